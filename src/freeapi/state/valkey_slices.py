"""How much of a cap this gateway leases ahead, of which it then spends without asking.

An ``Account`` is one cap in one day or month: what is leased, used and reserved here, what the
others have as far as is known, and the order that follows. A ``SharedReservation`` is one request's
worst case in each account that it concerns.

What this is not: nothing here waits, writes or reads a clock.

Plan: a slice is a part of what is LEFT of the cap, or the requests in hand if that is more; what is
over two slices goes back at once. Where a slice would be too small for one request none is kept, so
a cap of a few requests is shared request by request.

Invariants: used (spent and reserved) <= leased, but for a cost above its bound; what an order gives
back is out of reach before the store is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

from freeapi.errors import BudgetBusy, BudgetExhausted
from freeapi.policy.budget import ALL, DAY_S, NANO
from freeapi.state.valkey_leases import Leased, Order

#: A slice is at most this part of the smallest cap, and of what is left (DESIGN section 5: 2 %).
SLICES_PER_CAP: Final = 100
SLICES_PER_REST: Final = 8
#: For as long the store's word that a cap has no more is believed.
_BELIEVED_S: Final = 1.0
_BUSY_S: Final = 2.0
#: With as many requests' worth left of a cap, each end is told at once.
_NEAR_END: Final = 8


class Account:
    """One cap in one day or month, as this gateway knows it."""

    __slots__ = (
        "_slice_max",
        "amount",
        "cap",
        "checked_s",
        "heard_s",
        "leased",
        "most",
        "others",
        "pending",
        "period",
        "reported",
        "reserved",
        "scope",
        "used",
        "wanted",
    )

    def __init__(self, scope: str, period: str, cap: int, slice_max: int) -> None:
        self.scope = scope
        self.period = period
        self.cap = cap
        self._slice_max = slice_max
        self.leased = 0
        #: Spent or reserved, and the latter alone.
        self.used = 0
        self.reserved = 0
        #: What of it the store has heard of as reserved.
        self.reported = 0
        #: The last reservation's; 0: there was none yet.
        self.amount = 0
        #: As of the last answer: the other gateways', and what of it may come back.
        self.others = 0
        self.pending = 0
        #: When the store last answered, and when it last said that there is no more; loop time.
        self.heard_s = -math.inf
        self.checked_s = -math.inf
        #: What could be had then for one request.
        self.most = 0
        #: What requests wait for.
        self.wanted = 0

    @property
    def left(self) -> int:
        """What may be reserved without asking."""
        return self.leased - self.used

    @property
    def slice(self) -> int:
        """Shrinks with what is left of the cap; nothing where it is too small for a request, and
        before the first one."""
        rest = self.cap - self.others - self.used
        slice_ = min(self._slice_max, rest // SLICES_PER_REST)
        return slice_ if slice_ >= (self.amount or self.wanted) > 0 else 0

    @property
    def is_large(self) -> bool:
        """Should some of what is leased go back?"""
        return self.left > 2 * self.slice

    @property
    def is_stale(self) -> bool:
        """Do the others, near the cap's end, believe that something may come back that can't?"""
        if not self.reported or self.reserved:
            return False
        # What it told of may be a request that was refused, and its first one.
        return self.cap - self.others - self.used < _NEAR_END * max(self.amount, self.reported)

    def cap_at(self, cap: int, slice_max: int) -> None:
        """Have another cap; what it no longer allows is out of reach at once."""
        self.cap = cap
        self._slice_max = slice_max
        self.checked_s = -math.inf
        self.leased = self._within_cap(self.leased)

    def order(self, *, is_last: bool = False, is_probe: bool = False) -> Order | None:
        """What should be leased, if it isn't; a probe is made all the same."""
        target = self.used if is_last else self.used + max(self.slice, self.wanted)
        is_near = self.used + self.slice // 2 <= self.leased <= self.used + 2 * self.slice
        is_right = target == self.leased or (is_near and not self.wanted and not is_last)
        if is_right and not is_probe and not self.is_stale:
            return None
        # Out of reach before the store knows. Not below 0: a cost above its bound isn't leased yet.
        self.leased = min(self.leased, target)
        self.reported = self.reserved + self.wanted
        return Order(self.scope, self.period, self.cap, target, self.leased, self.reported)

    def take_over(self, order: Order, leased: Leased, now_s: float) -> None:
        """The answer to the order."""
        self.heard_s = now_s
        self.others, self.pending = leased.others, leased.pending
        self.leased = self._within_cap(leased.mine)  # it may have been lowered meanwhile
        if leased.mine < order.wanted:
            self.checked_s = now_s
            self.most = self.left

    def is_short(self, amount: int, now_s: float) -> bool:
        """Whether the store has said just now that there isn't as much."""
        is_believed = now_s < self.checked_s + _BELIEVED_S
        return self.left < amount and self.most < amount and is_believed

    def refusal(self, amount: int, utc_s: float) -> BudgetBusy | BudgetExhausted:
        """Exhausted only if it stays so though all requests under way should cost nothing."""
        whose = self._whose()
        spent = self.used - self.reserved + self.others - self.pending
        if spent + amount <= self.cap:
            return BudgetBusy(whose=whose, retry_after_s=_BUSY_S)
        resets_at_s = end_of(self.period)
        return BudgetExhausted(
            retry_after_s=max(0.0, resets_at_s - utc_s),
            should_retry=False,
            cost=f"{amount / NANO:.6f}",
            whose=whose,
            resets_at=f"{datetime.fromtimestamp(resets_at_s, UTC):%Y-%m-%dT%H:%M:%SZ}",
        )

    def _within_cap(self, leased: int) -> int:
        """As much of it as the cap allows, but not less than what is used already."""
        return max(min(leased, self.used), min(leased, self.cap - self.others))

    def _whose(self) -> str:
        """Callers don't learn the names of upstreams."""
        if self.scope != ALL:
            return "the upstream's daily"
        is_month = len(self.period) == len("2026-11")
        return "this instance's monthly" if is_month else "this instance's daily"


class SharedReservation:
    """A request's worst case; see ``policy.budget.Reservation``."""

    __slots__ = ("_accounts", "_is_open", "_on_due", "amount_nanousd")

    def __init__(
        self, accounts: tuple[Account, ...], amount_nanousd: int, on_due: Callable[[], None]
    ) -> None:
        """Take the amount, of which there is enough; ``on_due``: some account has an order."""
        self._on_due = on_due
        self._accounts = accounts
        self._is_open = True
        self.amount_nanousd = amount_nanousd
        for account in accounts:
            account.used += amount_nanousd
            account.amount = amount_nanousd
            account.reserved += amount_nanousd
            assert account.used <= account.leased, account.scope
            if account.left < account.slice // 2:
                on_due()

    def settle(self, actual_nanousd: int | None) -> int:
        """Replace the worst case by what it cost; None: unknown, all of it counts as spent.

        Returns by how much it cost more than was reserved.
        """
        if not self._is_open:
            return 0
        self._is_open = False
        reserved = self.amount_nanousd
        actual = reserved if actual_nanousd is None else actual_nanousd
        assert actual >= 0
        for account in self._accounts:
            account.reserved -= reserved
            account.used += actual - reserved
            assert account.reserved >= 0
            if account.is_large or account.left < 0 or account.is_stale:
                self._on_due()
        return max(actual - reserved, 0)

    def release(self) -> None:
        """Give all of it back: nothing was sent."""
        self.settle(0)

    def __enter__(self) -> SharedReservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.settle(None)


def end_of(period: str) -> int:
    """When the day or month is over, in seconds since 1970."""
    if len(period) == len("2026-11-23"):
        day = datetime.strptime(period, "%Y-%m-%d").replace(tzinfo=UTC)
        return int(day.timestamp()) + DAY_S
    year, month = map(int, period.split("-"))
    return int(datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp())
