"""What several gateways share: limits, places in line, money, keys' health, the callers' secret.

``Shared`` holds this gateway's part of it: the connections to the store, and what was heard over
them. ``SharedScheduler`` grants as ``scheduler.Scheduler`` does, by one question to the store; a
key is then chosen here, where the connections are.

What this is not: no decision is made here (``state/lua``), and a gateway that shares with nobody
has none of it.

Invariants:
- Without the store nobody spends the operator's money: such requests get a 503. What costs nothing
  goes on by this gateway's own limits.
- What was admitted is settled exactly once, whatever becomes of the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Collection
from typing import Final

from freeapi.errors import BudgetBusy, BudgetExhausted, UpstreamRefused
from freeapi.gate import Gate, Visitor, tokens_of
from freeapi.http.outcome import Outcome
from freeapi.journal import Journal
from freeapi.policy.fairness import token_cost
from freeapi.policy.keys import Key, KeyPool, Lease
from freeapi.policy.models import Endpoint
from freeapi.policy.payload import Prepared
from freeapi.policy.prices import bound_nanousd, is_priced
from freeapi.providers import LOCAL
from freeapi.scheduler import Grant, Scheduler
from freeapi.spelling import StateUrl
from freeapi.state.valkey import Store, StoreError, StoreUnavailable
from freeapi.state.valkey_checks import check_server
from freeapi.state.valkey_leases import LEASE_TIMEOUT_S, Leases, LeaseStore
from freeapi.state.valkey_limits import Report, SharedAdmission, SharedLimits
from freeapi.state.valkey_questions import Ask, Question

_DAY_S: Final = 86_400
#: Tomorrow's secret is asked for so long before midnight, and looked for as often.
_AHEAD_S: Final = 3_600
_SECRET_LOOK_S: Final = 60.0
_SECRET_BYTES: Final = 32


class Shared:
    """This gateway's part in the store. Made by ``open``; ``close`` it after the last request."""

    def __init__(self, url: str, leases: Leases | None, journal: Journal) -> None:
        """``leases``: where money is leased, if not in the store."""
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._store = Store(url, report=self._reported)
        self._lease_store: Store | None = None
        if leases is None:
            self._lease_store = Store(url, timeout_s=LEASE_TIMEOUT_S)
            leases = LeaseStore(self._lease_store)
        self.leases: Leases = leases
        self.limits = SharedLimits(self._store, clock=time.time, heard=self._heard)
        self._is_closing = False
        #: None: not yet.
        self._was_up: bool | None = None
        self._keys: KeyPool | None = None
        self._secrets: dict[int, bytes] = {}
        self._store.on_up.append(self._fetch_secrets)
        self._fetching: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls, state: StateUrl, leases: Leases | None, journal: Journal, *, is_capped: bool
    ) -> Shared:
        """Connect, and see that the store can keep what is promised.

        Raises StoreError, with what the operator can do.
        """
        shared = cls(state.url.reveal(), leases, journal)
        try:
            await shared._start(is_capped=is_capped)
        except BaseException:
            await shared.close()
            raise
        return shared

    def join(self, keys: KeyPool) -> None:
        """Tell and hear of these keys' health from now on."""
        self._keys = keys
        keys.on_news = self._tell

    def secret(self) -> bytes:
        """Today's, which all gateways have.

        Should the store have been away since before midnight, one of our own: then this gateway
        counts its callers apart from the others'.
        """
        day = int(time.time()) // _DAY_S
        return self._secrets.get(day) or secrets.token_bytes(_SECRET_BYTES)

    async def close(self) -> None:
        """Settle what can be, then leave."""
        self._is_closing = True
        for task in (self._fetching, *self._telling):
            if task is not None:
                task.cancel()
        self.limits.flush()
        with contextlib.suppress(StoreUnavailable):
            await self._store.command(b"PING")  # answered after the last settlements
        await self.limits.close()
        await self._store.close()
        if self._lease_store is not None:
            await self._lease_store.close()

    async def _start(self, *, is_capped: bool) -> None:
        await self._store.start()
        keeps_money = is_capped and self._lease_store is not None
        problems = await check_server(self._store, is_capped=keeps_money)
        if problems and keeps_money:
            raise StoreError("the shared store can't keep to the spend cap: " + "; ".join(problems))
        if problems:
            self._journal.event("store_unfit", problems=len(problems))
        if self._lease_store is not None:
            await self._lease_store.start()
        self.limits.begin()
        self._fetching = self._loop.create_task(self._keep_secrets(), name="secrets")

    async def _keep_secrets(self) -> None:
        while True:
            await asyncio.sleep(_SECRET_LOOK_S)
            try:
                await self._fetch_secrets()
            except StoreUnavailable:  # the next look is soon enough
                continue

    async def _fetch_secrets(self) -> None:
        """Today's, and near midnight tomorrow's; older ones are forgotten.

        Over each new connection, too: a store that has lost it gets it back from whoever has it.
        """
        now_s = int(time.time())
        days = {now_s // _DAY_S, (now_s + _AHEAD_S) // _DAY_S}
        self._secrets = {
            day: await self.limits.secret(day, self._secrets.get(day)) for day in sorted(days)
        }

    def _reported(self, label: str) -> None:
        """The first connection and our own goodbye are no news."""
        was_up, self._was_up = self._was_up, label == "ok"
        if was_up is not None and not self._is_closing:
            self._journal.event("store", label=label)

    # --- Keys ---

    def _heard(self, report: Report) -> None:
        if self._keys is not None:
            identity = bytes.fromhex(report.key)
            now_s = self._loop.time()
            self._keys.heard(identity, report.model, report.state, report.wait_s, now_s)

    def _tell(self, key: Key, model: str) -> None:
        """A key's health has changed: let the others know; not by a name that a caller made up.

        A server without keys isn't told of: which one it is can't be said, and each machine may
        have its own.
        """
        if not key.identity:
            return
        about, state, wait_s = key.health.report(model, self._loop.time())
        report = Report(key.identity.hex(), about, state, wait_s)
        telling = self._loop.create_task(self._publish(report), name="tell")
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _publish(self, report: Report) -> None:
        try:
            await self.limits.publish(report)
        except StoreUnavailable:  # the others will find out by themselves
            return


class SharedGrant:
    """As ``scheduler.Grant``, for what the store has admitted."""

    __slots__ = ("_admission", "_grant", "_prepared", "lease", "queued_s", "upstreams")

    def __init__(self, prepared: Prepared, admission: SharedAdmission, grant: Grant) -> None:
        self._prepared = prepared
        #: Those that may serve it: where its caller's share is spent, the free ones of the model.
        self.upstreams = prepared.model.upstreams
        self._admission = admission
        self._grant = grant
        self.lease: Lease = grant.lease
        #: In the line that all share, and then for a key.
        self.queued_s = admission.queued_s + grant.queued_s

    def settle(
        self, prompt_tokens: int, completion_tokens: int, unknown: int, cost_nanousd: int
    ) -> None:
        """The request is over; see ``Grant.settle``."""
        self._grant.settle(prompt_tokens, completion_tokens, unknown, cost_nanousd)
        used = prompt_tokens + completion_tokens + unknown * tokens_of(self._prepared)
        cost = None if unknown else token_cost(prompt_tokens, completion_tokens)
        self._admission.settle(used, cost_nanousd, cost)

    def cancel(self) -> None:
        """Nothing was sent: give all of it back."""
        self._grant.cancel()
        self._admission.cancel()


class _Question(Question):
    """One whose request goes on in the call that brings the answer; see ``http.outcome``."""

    __slots__ = ("outcome",)

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask)
        self.outcome = Outcome()

    def told(self) -> None:
        self.outcome.resolve(None)


class SharedScheduler:
    """Grants in an order that is fair over all gateways."""

    def __init__(self, gate: Gate, keys: KeyPool, shared: Shared, alone: Scheduler) -> None:
        """``alone`` grants what costs nothing while the store is away. ``reconfigure`` it next."""
        self._gate = gate
        self._limits = shared.limits
        self._alone = alone
        self._queue_s = 0.0
        #: For keys alone: limits are the store's.
        self._for_keys = Scheduler(_Admitted(), keys, 0.0)
        self._free: Collection[str] = ()
        self._share_nanousd: int | None = None
        self._stand_in_for: Collection[Endpoint] = ()

    def reconfigure(
        self,
        queue_s: float,
        free: Collection[str],
        share_nanousd: int | None,
        *,
        stand_in_for: Collection[Endpoint],
    ) -> None:
        """``free``: upstreams that cost nothing; ``share_nanousd``: one caller's of a day.

        ``stand_in_for``: where the embedded model goes on when the money is gone.
        """
        self._queue_s = queue_s
        self._free = free
        self._share_nanousd = share_nanousd
        self._stand_in_for = stand_in_for
        self._alone.reconfigure(queue_s)
        self._for_keys.reconfigure(queue_s)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn here."""
        return self._limits.waiting + self._for_keys.waiting + self._alone.waiting

    @property
    def wait_s(self) -> float:
        """About how long a newcomer would wait for a key."""
        return self._for_keys.wait_s

    def grant_now(self, visitor: Visitor, prepared: Prepared) -> None:
        """Nothing can be had without asking the store."""

    async def grant(self, visitor: Visitor, prepared: Prepared) -> Grant | SharedGrant:
        """What the request needs, at once or in its turn.

        Raises what ``Scheduler.grant`` does, the caller's share included, and StoreUnavailable.
        """
        is_free = self._is_free(prepared)
        amount_nanousd = 0
        if not is_free and self._share_nanousd is not None and is_priced(prepared):
            amount_nanousd = bound_nanousd(prepared)
        ask = self._gate.ask(visitor, prepared, amount_nanousd, self._share_nanousd)
        question = _Question(ask)
        try:
            self._limits.ask(question, self._queue_s)
            await question.outcome
            admission = self._limits.granted(question)
            if admission is None:
                admission = await self._limits.pursue(question, self._queue_s)
        except StoreUnavailable:
            if not is_free:
                raise
            return await self._alone.grant(visitor, prepared)
        except (BudgetExhausted, BudgetBusy) as broke:
            return await self._without_share(visitor, prepared, broke)
        try:
            key = self._for_keys.grant_now(visitor, prepared)
        except BaseException:
            admission.cancel()
            raise
        if key is None:
            return await self._with_key(visitor, prepared, admission)
        return SharedGrant(prepared, admission, key)

    def _is_free(self, prepared: Prepared) -> bool:
        for name in prepared.model.upstreams:  # noqa: SIM110 - all() makes a generator
            if name not in self._free:
                return False
        return True

    async def _without_share(
        self, visitor: Visitor, prepared: Prepared, broke: BudgetExhausted | BudgetBusy
    ) -> SharedGrant:
        """What costs nothing may still answer, as where one gateway is alone.

        See ``Dispatcher._without_money``, whose rule for the embedded model this is, too.
        """
        free = tuple(name for name in prepared.model.upstreams if name in self._free)
        is_gone = isinstance(broke, BudgetExhausted)
        if not free and is_gone and prepared.endpoint in self._stand_in_for:
            free = (LOCAL,)
        if not free:
            raise broke
        prepared = prepared.over(free)
        ask = self._gate.ask(visitor, prepared, 0, None)
        admission = await self._limits.admit(ask, self._queue_s)
        try:
            return await self._with_key(visitor, prepared, admission)
        except UpstreamRefused:
            raise broke from None

    async def _with_key(
        self, visitor: Visitor, prepared: Prepared, admission: SharedAdmission
    ) -> SharedGrant:
        """It was let in: now a key, at once or when there is one."""
        try:
            key = await self._for_keys.grant(visitor, prepared)
        except BaseException:
            admission.cancel()
            raise
        return SharedGrant(prepared, admission, key)


class _Admitted:
    """In the gate's place, for what has been let in already."""

    def admit(self, visitor: Visitor, prepared: Prepared) -> _Nothing:
        """Nothing is taken here."""
        return _NOTHING


class _Nothing:
    """An admission that holds nothing."""

    def settle(self, used_tokens: int | None, now_s: float) -> None:
        """It is the store's to settle."""

    def cancel(self, now_s: float) -> None:
        """As ``settle``."""


_NOTHING: Final = _Nothing()
