"""``policy.limits`` for several gateways: the decision is made inside the shared store.

``SharedLimits.ask`` asks for all that a request needs of its caller, its model and its caller's
share of the money, in one round trip; where only the model is short ``pursue`` stands for it in a
line that all gateways share (``lua/lane.lua``) until it is its turn. What was granted is settled or
cancelled once. ``admit`` is both for who may wait for a future. Besides, what gateways tell each
other: keys' health, and the day's secret for callers' tags.

What this is not: no arithmetic (``lua/meter.lua``), no caps over all callers' money
(``valkey_purse``), and no keys of upstreams: they are known by an opaque identity.

Plan: this gateway has a random name, and each connection of it a number (epoch); the store hears
only the latest one. Each granted request is a ticket in the store under that name. A gateway that
hasn't been heard for ``ALIVE_S`` is dead: another one's beat settles its tickets as used in full.

Invariants: a refusal has taken nothing. A grant is settled exactly once, though it be sent twice;
what isn't confirmed is sent again over the next connection, before anything else.
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
from freeapi.state.valkey import (
    NAMESPACE,
    Script,
    Store,
    StoreRefused,
    StoreUnavailable,
    unavailable,
)
from freeapi.state.valkey_batches import Batches
from freeapi.state.valkey_questions import (
    GRANTED,
    UNKNOWN_NODE,
    WAITING,
    Ask,
    Question,
    Verdict,
    cancelled,
    refusal,
    settled,
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

    __slots__ = ("_batches", "_ticket", "is_open", "queued_s")

    def __init__(self, batches: Batches, ticket: int, queued_s: float = 0.0) -> None:
        """``queued_s``: how long it stood in line."""
        self._batches = batches
        self._ticket = ticket
        self.queued_s = queued_s
        self.is_open = True

    def settle(self, tokens: int | None, cost_nanousd: int | None, cost: int | None = None) -> None:
        """It has ended: charge what it used; None: nobody knows, so all that was reserved.

        ``cost`` is by ``token_cost``. Returns at once; the store is told as soon as it can be.
        """
        if self.is_open:
            self.is_open = False
            self._batches.end(settled(self._ticket, tokens, cost_nanousd, cost))

    def cancel(self) -> None:
        """It was never sent: give all of it back."""
        if self.is_open:
            self.is_open = False
            self._batches.end(cancelled(self._ticket))


class _FutureQuestion(Question):
    """One that somebody awaits."""

    __slots__ = ("future",)

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask)
        self.future: asyncio.Future[None] | None = None

    def told(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)


class SharedLimits:
    """The decision, in the store."""

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
        self._batches = Batches(store, namespace, self._node, self._now)
        self._tickets = 0
        self._news_seen = 0
        self._joining: asyncio.Task[None] | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._seen: OrderedDict[bytes, Meter] = OrderedDict()
        #: Models of whose limits each beat asks what is left, and what it was told.
        self.models: tuple[str, ...] = ()
        self._meters: dict[str, Meter] = {}
        #: Requests that stand in line here.
        self.waiting = 0
        self._renew = store.know("meter", "lane", "tickets", "beat")
        self._enter = store.know("meter", "join")
        self._tell = store.know("meter", "publish")
        store.on_up.append(self._join)

    def __repr__(self) -> str:
        return f"<SharedLimits epoch={self._batches.epoch} unconfirmed={self.unconfirmed}>"

    @property
    def unconfirmed(self) -> int:
        """How many ends the store hasn't confirmed yet."""
        return self._batches.unconfirmed

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

    def ask(self, question: Question, queue_s: float) -> None:
        """Ask for the first time, at the end of this turn; ``question.told`` is called once, then
        ``granted`` says what came of it. Raises StoreUnavailable: nothing is asked.
        """
        if not self._store.is_up:  # so there is nothing to take back later
            raise unavailable()
        self._tickets += 1
        question.ticket = self._tickets
        question.ttl_s = LINE_TTL_S if queue_s else 0.0
        question.begun_s = self._loop.time()
        self._batches.ask(question)

    def granted(self, question: Question) -> SharedAdmission | None:
        """What the answer grants; None: nothing, or nothing yet (``pursue``).

        Raises StoreUnavailable: nobody knows, so whatever it was given is taken back.
        """
        if question.error is not None:
            self._withdraw(question)
            raise _as_raised(question.error)
        answer = question.answer
        if answer[0] == UNKNOWN_NODE:
            return None
        now_s = self._loop.time()
        self._remember(question.ask.caller, answer, now_s)
        if answer[0] != GRANTED:
            return None
        queued_s = now_s - question.begun_s if question.asked else 0.0
        return SharedAdmission(self._batches, question.ticket, queued_s)

    async def pursue(self, first: Question, queue_s: float) -> SharedAdmission:
        """Go on asking for what wasn't granted at once, while there is hope within ``queue_s``.

        Raises as ``admit``. One round trip for each ``POLL_MAX_S`` at least.
        """
        question = _FutureQuestion(first.ask)
        question.again(first)
        try:
            if question.answer[0] == UNKNOWN_NODE:
                await self._join_again()
                await self._ask(question)
            if question.answer[0] == WAITING:
                await self._wait(question, question.begun_s + queue_s)
        except BaseException:
            # Nobody knows what became of the last question: take back whatever it was given.
            self._withdraw(question)
            raise
        admission = self.granted(question)
        if admission is not None:
            return admission
        if question.answer[0] == WAITING:
            self._withdraw(question)
        raise refusal(question.ask, Verdict(*question.answer), self._clock())

    async def admit(self, ask: Ask, queue_s: float = 0.0) -> SharedAdmission:
        """Take what the request needs, at once or in its turn within ``queue_s``.

        Raises RateLimitExceeded, ConcurrencyExceeded, BudgetExhausted, BudgetBusy (its caller's
        own), CapacityExceeded (the model's), StoreUnavailable. Then nothing is taken.
        """
        question = _FutureQuestion(ask)
        question.future = self._loop.create_future()
        self.ask(question, queue_s)
        try:
            await question.future
        except asyncio.CancelledError:
            self._withdraw(question)
            raise
        return self.granted(question) or await self.pursue(question, queue_s)

    def headers(self, caller: bytes, limits: CallerLimits) -> bytes:
        """The caller's ``x-ratelimit-*`` lines as of its last question here; asks nothing."""
        return limits.rates.headers(self._seen.get(caller) or Meter(), self._loop.time())

    def meter(self, model: str) -> Meter:
        """What all gateways have used of a model's limits, as of the last beat."""
        return self._meters.get(model) or Meter()

    def flush(self) -> None:
        """Send now what was asked and ended in this turn."""
        self._batches.flush()

    async def _wait(self, question: _FutureQuestion, deadline_s: float) -> None:
        """Ask again until it is its turn, or there is no hope in time: then as it stands."""
        self.waiting += 1
        try:
            while question.answer[0] == WAITING:
                hint_s = max(Verdict(*question.answer).hint_s, POLL_MIN_S)
                if self._loop.time() + hint_s >= deadline_s:
                    break
                await asyncio.sleep(min(hint_s, POLL_MAX_S))
                question.asked += 1
                await self._ask(question)
        finally:
            self.waiting -= 1

    async def _ask(self, question: _FutureQuestion) -> None:
        await self._ask_once(question)
        if question.answer[0] == UNKNOWN_NODE:  # taken for dead, or the store lost its state
            await self._join_again()
            await self._ask_once(question)
            if question.answer[0] == UNKNOWN_NODE:
                raise StoreUnavailable(retry_after_s=1.0)

    async def _ask_once(self, question: _FutureQuestion) -> None:
        if not self._store.is_up:
            raise unavailable()
        question.future = self._loop.create_future()
        self._batches.ask(question)
        await question.future
        if question.error is not None:
            raise _as_raised(question.error)

    def _withdraw(self, question: Question) -> None:
        self._batches.end(question.withdrawal())

    def _remember(self, caller: bytes, answer: list[float], now_s: float) -> None:
        seen = self._seen
        meter = seen.get(caller)
        if meter is None:
            if len(seen) >= _SEEN_MAX:
                seen.popitem(last=False)
            meter = seen[caller] = Meter()
        else:
            seen.move_to_end(caller)
        meter.requests_due_s, meter.tokens_due_s = answer[1] + now_s, answer[2] + now_s

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
        self._batches.epoch = await self._store.call_early(self._enter, self._namespace, packed)
        self._news_seen = 0  # the store may have lost its state, and counts its news anew
        self._batches.repeat()

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

    def _beat(self) -> None:
        self._beat_timer = self._loop.call_later(BEAT_S, self._beat)
        if not self._store.is_up:
            return
        beat = {
            "node": self._node,
            "epoch": self._batches.epoch,
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


def _as_raised(error: Exception) -> Exception:
    """For one of those that it is told to: each has a traceback of its own."""
    return unavailable() if isinstance(error, StoreUnavailable) else StoreRefused(str(error))
