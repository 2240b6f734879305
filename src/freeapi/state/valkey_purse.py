"""The money of several gateways under one set of caps: each spends from slices that it leases.

``SharedPurse`` does for several gateways what ``ledger.Purse`` does for one, with the same
``reserve``, ``status``, ``reconfigure`` and ``close``; a request costs no round trip while its
slice lasts.

What this is not: how much to lease is ``valkey_slices``, where it is kept ``valkey_leases``; a
caller's share of the day is decided with its limits (``valkey_limits``).

Plan: orders are made when a slice runs low or grows too large, when someone asks what is left, and
now and then for a slice that nobody uses: what is left of the cap may have become so little that it
should go back.

Invariants:
- In each gateway: used <= leased in memory <= leased in the store, and synced.
- A refused request has taken nothing. Requests that wait are served in their order, but for those
  for which there is no money.
- One order is under way at a time; while none gets through, only what is leased may be spent.
- Nobody waits for a store that fails for longer than ``PATIENCE_S`` and one order's time-out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from freeapi.errors import FreeApiError, LedgerUnavailable, ShuttingDown
from freeapi.policy.budget import ALL, DAY_S, Caps, Status
from freeapi.state.valkey import StoreUnavailable
from freeapi.state.valkey_leases import RETRY_S, Leases
from freeapi.state.valkey_slices import SLICES_PER_CAP, Account, SharedReservation, end_of

#: An order that fails is made again before anyone is refused, until its first try is this old: a
#: connection that broke is back by then (``valkey.RETRY_MAX_S``). Where the store is slow rather
#: than gone, one order has used it up.
PATIENCE_S: Final = 2.0
#: Between such tries. Without a connection one costs microseconds.
_AGAIN_S: Final = 0.1
#: What is left is asked anew where the last answer is older, which shows on a page only.
_STALE_S: Final = 2.0
#: How often a slice is looked at that nobody uses.
REVIEW_S: Final = 30.0


class _Waiter(NamedTuple):
    upstream: str
    amount_nanousd: int
    result: asyncio.Future[SharedReservation]


class SharedPurse:
    """The caps of all gateways, as this one may spend from them. For one event loop."""

    def __init__(
        self,
        caps: Caps,
        leases: Leases,
        clock: Callable[[], float],
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``clock``: seconds since 1970. ``report`` hears ``ok`` or ``unavailable``."""
        self._caps = caps
        self._leases = leases
        self._clock = clock
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._waiters: deque[_Waiter] = deque()
        self._writing: asyncio.Task[None] | None = None
        #: When the first of the orders was made that have failed since one got through.
        self._failing_s: float | None = None
        #: And they have for too long: callers are refused at once.
        self._has_failed = False
        self._is_closed = False
        self._is_due = False
        #: Each account is to be heard of, though no order is due.
        self._is_asking = False
        self._accounts: tuple[Account, ...] = ()
        #: Those that a request to an upstream is paid from, by its name.
        self._payers: dict[str, tuple[Account, ...]] = {}
        #: Those, and others of these days: of a cap that is off now, of a clock that was set back.
        self._known: dict[tuple[str, str], Account] = {}
        self._rolls_at_s = 0
        self._roll(clock())
        self._ask_soon()
        self._review_timer = self._loop.call_later(REVIEW_S, self._review)

    def reserve_now(
        self, upstream: str, caller: bytes, amount_nanousd: int
    ) -> SharedReservation | None:
        """Take a request's worst case; None while too little is leased: then ``reserve``."""
        assert amount_nanousd >= 0
        if amount_nanousd == 0:
            return SharedReservation((), 0, self.order_soon)
        return None if self._waiters else self._reserve(upstream, amount_nanousd)

    async def reserve(self, upstream: str, caller: bytes, amount_nanousd: int) -> SharedReservation:
        """The same, waiting while too little is leased.

        Raises BudgetExhausted, BudgetBusy, LedgerUnavailable, ShuttingDown: nothing was taken.
        """
        reservation = self.reserve_now(upstream, caller, amount_nanousd)
        if reservation is not None:
            return reservation
        if self._is_closed:
            raise ShuttingDown
        if self._has_failed:
            raise LedgerUnavailable(retry_after_s=RETRY_S)
        waiter = _Waiter(upstream, amount_nanousd, self._loop.create_future())
        self._waiters.append(waiter)
        self.order_soon()
        try:
            return await waiter.result
        except asyncio.CancelledError:
            # Served in the very tick in which its caller went.
            if not waiter.result.cancelled() and waiter.result.exception() is None:
                waiter.result.result().release()
            raise

    def reconfigure(self, caps: Caps) -> None:
        """Other caps from now on; what was spent today and this month stays."""
        self._caps = caps
        self._roll(self._clock())
        self.order_soon()

    def status(self) -> Status:
        """What is left, as of this gateway's last order; one is made if that is long ago."""
        self._roll_if_due()
        old_s = self._loop.time() - _STALE_S
        if any(one.heard_s < old_s for one in self._accounts):
            self._ask_soon()
        left = {one: max(0, one.cap - one.others - one.used) for one in self._accounts}
        shared = [one for one in self._accounts if one.scope == ALL]
        least = min(shared, key=left.__getitem__, default=None)
        return Status(
            left_today_nanousd=None if least is None else left[least],
            resets_at_s=int(self._rolls_at_s if least is None else end_of(least.period)),
            upstream_left_nanousd={
                one.scope.partition(":")[2]: left[one] for one in self._accounts if one.scope != ALL
            },
        )

    async def close(self) -> None:
        """Give back what isn't used. Reservations that are open still count as spent."""
        self._is_closed = True
        self._review_timer.cancel()
        self._fail_waiters(ShuttingDown)
        if self._writing is not None:
            await asyncio.wait([self._writing])
        orders = [one.order(is_last=True) for one in self._accounts]
        try:
            await self._leases.write([order for order in orders if order is not None])
        except StoreUnavailable:
            self._report("unavailable")  # forfeited, and no more

    def order_soon(self) -> None:
        """A lease should grow or shrink; told amid decisions, so after them."""
        self._is_due = True
        if self._writing is None and not self._is_closed:
            self._writing = self._loop.create_task(self._order(), name="purse")

    def _ask_soon(self) -> None:
        self._is_asking = True
        self.order_soon()

    def _review(self) -> None:
        self._review_timer = self._loop.call_later(REVIEW_S, self._review)
        if any(one.left > 0 for one in self._accounts):
            self._ask_soon()

    async def _order(self) -> None:
        """Write what is due, until nothing is."""
        try:
            while self._is_due and not self._is_closed:
                self._is_due = False
                self._roll_if_due()
                await self._order_once()
        finally:
            self._writing = None

    async def _order_once(self) -> None:
        self._count_wanted()
        is_probe, self._is_asking = self._failing_s is not None or self._is_asking, False
        orders = ((one, one.order(is_probe=is_probe)) for one in self._accounts)
        made = [(one, order) for one, order in orders if order is not None]
        if not made:
            self._serve()
            return
        made_s = self._loop.time()
        try:
            answers = await self._leases.write([order for _, order in made])
        except StoreUnavailable:
            await self._failed(made_s)
            return
        self._failing_s = None
        self._tell(has_failed=False)
        now_s = self._loop.time()
        for (account, order), leased in zip(made, answers, strict=True):
            account.take_over(order, leased, now_s)
        self._serve()
        if any(one.is_large for one in self._accounts):  # by what was heard of the others
            self._is_due = True
        if any(one.is_stale for one in self._accounts):  # they were refused: nothing will come back
            self._is_due = True

    async def _failed(self, made_s: float) -> None:
        """Until the next try; whoever waits is refused once it has been too long."""
        if self._failing_s is None:
            self._failing_s = made_s
        is_long = self._loop.time() - self._failing_s >= PATIENCE_S
        if is_long:
            self._tell(has_failed=True)
            self._fail_waiters(partial(LedgerUnavailable, retry_after_s=RETRY_S))
        await asyncio.sleep(RETRY_S if is_long else _AGAIN_S)
        self._is_due = True

    def _count_wanted(self) -> None:
        for account in self._accounts:
            account.wanted = 0
        for waiter in self._waiters:
            for account in self._accounts_of(waiter.upstream):
                account.wanted += waiter.amount_nanousd

    def _serve(self) -> None:
        """Let those that waited reserve, or refuse them; those who came meanwhile wait on."""
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if waiter.result.done():
                continue
            try:
                reservation = self._reserve(waiter.upstream, waiter.amount_nanousd)
            except FreeApiError as error:
                waiter.result.set_exception(error)
                continue
            if reservation is None:
                self._waiters.append(waiter)
                self._is_due = True
            else:
                waiter.result.set_result(reservation)

    def _reserve(self, upstream: str, amount: int) -> SharedReservation | None:
        """None: too little is leased, and the store may have more. Raises the refusals."""
        self._roll_if_due()
        accounts = self._accounts_of(upstream)
        now_s = self._loop.time()
        for account in accounts:
            if account.is_short(amount, now_s) or amount > account.cap:
                raise account.refusal(amount, self._clock())
        for account in accounts:
            if account.left < amount:
                return None
        return SharedReservation(accounts, amount, self.order_soon)

    def _accounts_of(self, upstream: str) -> tuple[Account, ...]:
        payers = self._payers.get(upstream)
        if payers is None:
            scopes = ALL, f"upstream:{upstream}"
            payers = tuple([one for one in self._accounts if one.scope in scopes])
            self._payers[upstream] = payers
        return payers

    def _roll_if_due(self) -> None:
        if self._clock() >= self._rolls_at_s:
            self._roll(self._clock())

    def _roll(self, utc_s: float) -> None:
        """Begin the day of ``utc_s``, or a day with other caps."""
        day = f"{datetime.fromtimestamp(utc_s, UTC):%Y-%m-%d}"
        self._rolls_at_s = end_of(day)
        caps = self._caps
        wanted = [(ALL, day, caps.daily_nanousd), (ALL, day[:7], caps.monthly_nanousd)]
        upstreams = sorted(caps.upstream_daily_nanousd.items())
        wanted += [(f"upstream:{name}", day, cap) for name, cap in upstreams]
        smallest = min((cap for _, _, cap in wanted[:2] if cap is not None), default=None)
        known = self._known = {
            name: one for name, one in self._known.items() if utc_s < end_of(one.period) + DAY_S
        }
        accounts = []
        for scope, period, cap in wanted:
            if cap is None:
                continue
            slice_max = min(cap, cap if smallest is None else smallest) // SLICES_PER_CAP
            name = scope, period
            account = known[name] = known.get(name) or Account(scope, period, cap, slice_max)
            account.cap_at(cap, slice_max)
            accounts.append(account)
        self._accounts = tuple(accounts)
        self._payers = {}

    def _tell(self, *, has_failed: bool) -> None:
        if has_failed is not self._has_failed:
            self._has_failed = has_failed
            self._report("unavailable" if has_failed else "ok")

    def _fail_waiters(self, error: Callable[[], FreeApiError]) -> None:
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.result.done():
                waiter.result.set_exception(error())

    def __repr__(self) -> str:
        sums: list[Any] = [(one.scope, one.period, one.used, one.leased) for one in self._accounts]
        return f"<SharedPurse {sums} waiting={len(self._waiters)}>"
