"""``policy.limits`` for several gateways: the decision is made inside the shared store.

``SharedLimits.admit`` asks for all that a request needs of its caller, its model and its caller's
share of the money, in one round trip; where only the model is short it stays in a line that all
gateways share (``lua/lane.lua``) until it is its turn. What it gives is settled or cancelled once.
Besides, what gateways tell each other: keys' health, and the day's secret for callers' tags.

What this is not: no arithmetic (``lua/meter.lua``), no caps over all callers' money
(``valkey_purse``), and no keys of upstreams: they are known by an opaque identity.

Plan: this gateway has a random name, and each connection of it a number (epoch); the store hears
only the latest one. Each granted request is a ticket in the store under that name. A gateway that
hasn't been heard for ``ALIVE_S`` is dead: another one's beat settles its tickets as used in full.

Invariants: a refusal has taken nothing. A grant is settled exactly once, though it be sent twice;
what isn't confirmed is sent again over the next connection, before anything else. It is kept in
memory until then: no more than the requests that were in flight when the store went, since without
it none begins.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from freeapi.policy.limits import CallerLimits
from freeapi.policy.meter import Meter
from freeapi.state.valkey import NAMESPACE, Script, Store, StoreUnavailable
from freeapi.state.valkey_questions import (
    GRANTED,
    UNKNOWN_NODE,
    WAITING,
    Ask,
    End,
    Question,
    Verdict,
    question_of,
    refusal,
)

#: How often a gateway is heard, and hears of keys: news within a second (issue 7).
BEAT_S: Final = 0.5
#: Not heard for as long, a gateway is dead; its slots are free one beat of another's later.
ALIVE_S: Final = 10.0
#: A waiter asks again at the hint, but not later than this, and is out of the line after that.
POLL_MAX_S: Final = 0.4
POLL_MIN_S: Final = 0.005
LINE_TTL_S: Final = 1.5
#: Callers whose numbers are remembered for the headers of answers that ask nothing.
_SEEN_MAX: Final = 10_000
_SECRET_BYTES: Final = 32
#: A day's secret is there for requests that run over midnight, and for nobody later.
_SECRET_TTL_S: Final = 93_600
#: What to wait where the store is away.
_AWAY_S: Final = 2.0

assert POLL_MAX_S < LINE_TTL_S / 2, "one late question must not cost the place in the line"
assert BEAT_S < ALIVE_S / 4


class Report(NamedTuple):
    """What is known of a key: by a keyed hash of it, never the key. ``model`` is "" for all."""

    key: str
    model: str
    state: str
    wait_s: float


class SharedAdmission:
    """A request that was let in: settled or cancelled once; any further call does nothing."""

    __slots__ = ("_limits", "_ticket", "is_open", "queued_s")

    def __init__(self, limits: SharedLimits, ticket: str, queued_s: float = 0.0) -> None:
        """``queued_s``: how long it stood in line."""
        self._limits = limits
        self._ticket = ticket
        self.queued_s = queued_s
        self.is_open = True

    def settle(self, tokens: int | None, cost_nanousd: int | None, cost: int | None = None) -> None:
        """It has ended: charge what it used; None: nobody knows, so all that was reserved.

        ``cost`` is by ``token_cost``. Returns at once; the store is told as soon as it can be.
        """
        if self.is_open:
            self.is_open = False
            end = End(tokens=_or_false(tokens), nanousd=_or_false(cost_nanousd))
            end.cost = _or_false(cost)
            self._limits.end(self._ticket, end)

    def cancel(self) -> None:
        """It was never sent: give all of it back."""
        if self.is_open:
            self.is_open = False
            self._limits.end(self._ticket, End(is_cancelled=True))


class SharedLimits:
    """The decision, in the store. A grant with its settlement is two calls: see ``Store``."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float],
        heard: Callable[[Report], None] = lambda _: None,
        namespace: bytes = NAMESPACE,
        store_time: Callable[[], float] | None = None,
    ) -> None:
        """Make it before ``store.start``. ``clock``: seconds since 1970, for words only.

        ``heard`` is told what others publish. ``store_time``: for tests, in place of the server's.
        """
        self._store = store
        self._clock = clock
        self._heard = heard
        self._namespace = namespace
        self._store_time = store_time
        self._loop = asyncio.get_running_loop()
        self._node = secrets.token_hex(8)
        self._epoch = 0
        self._tickets = 0
        self._news_seen = 0
        self._ends: dict[str, bytes] = {}
        self._joining: asyncio.Task[None] | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._seen: OrderedDict[bytes, Meter] = OrderedDict()
        #: Models of whose limits each beat asks what is left, and what it was told.
        self.models: tuple[str, ...] = ()
        self._meters: dict[str, Meter] = {}
        #: Requests that stand in line here.
        self.waiting = 0
        self._admit = store.know("meter", "lane", "tickets", "admit")
        self._settle = store.know("meter", "lane", "tickets", "settle")
        self._renew = store.know("meter", "lane", "tickets", "beat")
        self._enter = store.know("meter", "join")
        self._tell = store.know("meter", "publish")
        store.on_up.append(self._join)

    def __repr__(self) -> str:
        return f"<SharedLimits epoch={self._epoch} unconfirmed={len(self._ends)}>"

    @property
    def unconfirmed(self) -> int:
        """How many ends the store hasn't confirmed yet."""
        return len(self._ends)

    def begin(self) -> None:
        """Start to be heard, the store being up."""
        self._beat()

    async def close(self) -> None:
        """Be heard no more, when nothing is in flight; what is counts as used in full."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()
            self._beat_timer = None
        if self._joining is not None:
            await asyncio.wait([self._joining])

    # --- The decision ---

    async def admit(self, ask: Ask, queue_s: float = 0.0) -> SharedAdmission:
        """Take what the request needs, at once or in its turn within ``queue_s``.

        Raises RateLimitExceeded, ConcurrencyExceeded, BudgetExhausted, BudgetBusy (its caller's
        own), CapacityExceeded (the model's), StoreUnavailable. Then nothing is taken. One round
        trip; where it waits, one more for each ``POLL_MAX_S`` at least.
        """
        if not self._store.is_up:  # nothing is asked, so there is nothing to take back later
            raise StoreUnavailable(retry_after_s=_AWAY_S)
        self._tickets += 1
        question = question_of(ask, f"{self._node}:{self._tickets}", LINE_TTL_S if queue_s else 0)
        begun_s = self._loop.time()
        deadline_s = begun_s + queue_s
        try:
            verdict = await self._ask(ask, question)
            if verdict.kind == WAITING:
                verdict = await self._wait(ask, question, verdict, deadline_s)
        except BaseException:
            # Nobody knows what became of the last question: take back whatever it was given.
            self._withdraw(question)
            raise
        if verdict.kind == GRANTED:
            queued_s = self._loop.time() - begun_s if question.asked else 0.0
            return SharedAdmission(self, question.ticket, queued_s)
        if verdict.kind == WAITING:
            self._withdraw(question)
        raise refusal(ask, verdict, self._clock())

    def headers(self, caller: bytes, limits: CallerLimits) -> bytes:
        """The caller's ``x-ratelimit-*`` lines as of its last question here; asks nothing."""
        return limits.rates.headers(self._seen.get(caller) or Meter(), self._loop.time())

    def meter(self, model: str) -> Meter:
        """What all gateways have used of a model's limits, as of the last beat."""
        return self._meters.get(model) or Meter()

    def end(self, ticket: str, end: End) -> None:
        """Tell the store, now or when it is back, until it has confirmed."""
        end.node, end.ticket, end.now = self._node, ticket, self._now()
        self._ends[ticket] = argument = msgspec.msgpack.encode(end)
        self._send_end(ticket, argument)

    async def _wait(
        self, ask: Ask, question: Question, verdict: Verdict, deadline_s: float
    ) -> Verdict:
        """Ask again until it is its turn, or there is no hope in time: then as it stands."""
        self.waiting += 1
        try:
            while verdict.kind == WAITING:
                if self._loop.time() + max(verdict.hint_s, POLL_MIN_S) >= deadline_s:
                    break
                await asyncio.sleep(min(max(verdict.hint_s, POLL_MIN_S), POLL_MAX_S))
                question.asked += 1
                verdict = await self._ask(ask, question)
        finally:
            self.waiting -= 1
        return verdict

    async def _ask(self, ask: Ask, question: Question) -> Verdict:
        verdict = await self._ask_once(question)
        if verdict.kind == UNKNOWN_NODE:  # others took us for dead, or the store lost its state
            await self._join_again()
            verdict = await self._ask_once(question)
            if verdict.kind == UNKNOWN_NODE:
                raise StoreUnavailable(retry_after_s=1.0)
        self._remember(ask.caller, verdict)
        return verdict

    async def _ask_once(self, question: Question) -> Verdict:
        question.node, question.epoch, question.now = self._node, self._epoch, self._now()
        argument = msgspec.msgpack.encode(question)
        return Verdict(
            *msgspec.msgpack.decode(await self._call(self._admit, argument), type=list[Any])
        )

    def _withdraw(self, question: Question) -> None:
        end = End(is_cancelled=True, is_leaving=question.ttl_s > 0)
        end.model, end.caller = question.model, question.caller
        self.end(question.ticket, end)

    def _remember(self, caller: bytes, verdict: Verdict) -> None:
        now_s = self._loop.time()
        due_s = verdict.requests_due_s + now_s, verdict.tokens_due_s + now_s
        seen = self._seen
        if caller in seen:
            seen.move_to_end(caller)
        elif len(seen) >= _SEEN_MAX:
            seen.popitem(last=False)
        seen[caller] = Meter(*due_s)

    # --- Being one of several ---

    async def publish(self, report: Report) -> None:
        """Tell the others of a key. Raises StoreUnavailable; the present state may then be told."""
        argument = {**report._asdict(), "node": self._node, "now": self._now()}
        await self._call(self._tell, msgspec.msgpack.encode(argument))

    async def secret(self, day: int, known: bytes | None = None) -> bytes:
        """The random secret of that UTC day, made by whoever asks first. Raises StoreUnavailable.

        Where it comes from is the system's source of chance, never anything of a caller's.
        ``known``: what it was, for a store that has forgotten.
        """
        key = b"%b:secret:%d" % (self._namespace, day)
        ttl = b"%d" % _SECRET_TTL_S
        mine = known or secrets.token_bytes(_SECRET_BYTES)
        made = self._store.command(b"SET", key, mine, b"NX", b"EX", ttl)
        secret, _ = await self._store.command(b"GET", key), await made
        if not isinstance(secret, bytes):
            raise StoreUnavailable(retry_after_s=1.0)
        return secret

    async def _join(self) -> None:
        """Over a new connection: be known, then repeat what wasn't confirmed."""
        argument = {"node": self._node, "alive_s": ALIVE_S, "now": self._now()}
        packed = msgspec.msgpack.encode(argument)
        self._epoch = await self._store.call_early(self._enter, self._namespace, packed)
        self._news_seen = 0  # the store may have lost its state, and counts its news anew
        for ticket, end in list(self._ends.items()):
            self._send_end(ticket, end)

    async def _join_again(self) -> None:
        """Once for all who find that they aren't known."""
        if self._joining is None:
            self._joining = self._loop.create_task(self._join(), name="join")
            self._joining.add_done_callback(self._joined)
        await asyncio.wait([self._joining])

    def _joined(self, joining: asyncio.Task[None]) -> None:
        self._joining = None
        if not joining.cancelled():
            joining.exception()  # whoever waits asks again, and meets it there

    def _send_end(self, ticket: str, argument: bytes) -> None:
        sent = self._store.call_early(self._settle, self._namespace, argument)
        sent.add_done_callback(partial(self._ended, ticket))

    def _ended(self, ticket: str, sent: asyncio.Future[Any]) -> None:
        if not isinstance(sent.exception(), StoreUnavailable):
            self._ends.pop(ticket, None)

    def _beat(self) -> None:
        self._beat_timer = self._loop.call_later(BEAT_S, self._beat)
        if not self._store.is_up:
            return
        beat = {
            "node": self._node,
            "epoch": self._epoch,
            "alive_s": ALIVE_S,
            "seen": self._news_seen,
            "models": self.models,
            "now": self._now(),
        }
        told = partial(self._beaten, self.models)
        self._call(self._renew, msgspec.msgpack.encode(beat)).add_done_callback(told)

    def _beaten(self, models: tuple[str, ...], beat: asyncio.Future[Any]) -> None:
        if beat.exception() is not None:
            return
        is_known, latest, news, dues = msgspec.msgpack.decode(beat.result())
        now_s = self._loop.time()
        self._meters = {
            model: Meter(now_s + requests_s, now_s + tokens_s)
            for model, (requests_s, tokens_s) in zip(models, dues, strict=True)
        }
        # Two beats may be answered late, in one turn; news are told once.
        if latest > self._news_seen:
            self._news_seen = latest
            for report in news:
                self._heard(Report(*report))
        if not is_known and self._joining is None and self._store.is_up:
            self._joining = self._loop.create_task(self._join(), name="join")
            self._joining.add_done_callback(self._joined)

    def _call(self, script: Script, argument: bytes) -> asyncio.Future[Any]:
        return self._store.call(script, self._namespace, argument)

    def _now(self) -> float | bool:
        return False if self._store_time is None else self._store_time()


def _or_false(number: int | None) -> int | bool:
    return False if number is None else number
