"""The budget: whether a request may be paid for, decided in whole nano-dollars before it is sent.

Plan: a request reserves its worst case and later settles at what it cost. It may only reserve out
of money that is leased: written down durably as if it were spent. So for each cap there is an
account, of which ``left`` is what is leased and not yet used. ``orders`` says which leases the
ledger has to write next, ``granted`` takes them over.

What this is not: it writes nothing and never waits (``state/ledger`` does both), it reads no clock,
and it knows neither prices nor tokens (``prices``).

Invariants:
- used (spent and reserved) <= leased in memory <= leased in the ledger, and leased <= cap, or what
  was used already when the cap was lowered.
- A refused request has taken nothing, from no account.
- The day never goes back; a reservation stays with the day on which it was made.
- Of each cap at most ``SLICE``, and what is due to be given back, is leased without being used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Final, NamedTuple

from mypy_extensions import mypyc_attr

from freeapi.errors import BudgetBusy, BudgetExhausted

DAY_S: Final = 86_400
NANO: Final = 1_000_000_000
#: The scope of the caps over all upstreams; an upstream's is ``upstream:NAME``.
ALL: Final = "all"
#: A slice is this part of the cap. Up to two are open, and a crash may forfeit 2 % (DESIGN 5).
SLICES_PER_CAP: Final = 100
#: Callers whose share is remembered, about 250 bytes each; one that is forgotten has it anew.
SHARES_MAX: Final = 200_000
#: What to wait for requests under way to settle: most answers take a few seconds.
_BUSY_S: Final = 2.0
_EPOCH: Final = date(1970, 1, 1)
_MONTHLY: Final = "this instance's monthly"


class Caps(NamedTuple):
    """The operator's caps; ``None`` and a missing upstream are uncapped. Days are UTC days."""

    daily_nanousd: int | None = None
    monthly_nanousd: int | None = None
    caller_daily_nanousd: int | None = None
    upstream_daily_nanousd: Mapping[str, int] = {}


class Grant(NamedTuple):
    """One row of the ledger: how much of a scope's cap in a day or month is leased in all."""

    scope: str
    #: ``2026-11-23`` or ``2026-11``; as text they sort by time.
    period: str
    leased_nanousd: int


class Status(NamedTuple):
    """What may still be spent, reservations counted as spent; ``None``: no cap."""

    left_today_nanousd: int | None
    #: When the cap starts anew that leaves the least.
    resets_at_s: int
    #: Of the upstreams that have a cap of their own.
    upstream_left_nanousd: dict[str, int]


class _Pot:
    """Money to reserve from: ``left``, and ``reserved`` by requests under way.

    A caller's share has its cap added to ``left`` where it is compared: so a new cap is everyone's.
    """

    __slots__ = ("left", "reserved")

    def __init__(self) -> None:
        self.left = 0
        self.reserved = 0


class _Account(_Pot):
    """One cap in one day or month, and what of it is leased."""

    __slots__ = (
        "cap", "high", "leased", "low", "period", "scope", "slice", "wanted", "whose", "written"
    )  # fmt: skip

    def __init__(self, scope: str, period: str, leased: int) -> None:
        """``leased``: by earlier lives of this process, of which all may have been spent."""
        super().__init__()
        self.scope = scope
        self.period = period
        self.leased = leased
        #: What the ledger is known to say; more than ``leased`` until a return is written.
        self.written = leased
        #: The largest amount that waits for a lease, this one's or another account's.
        self.wanted = 0
        self.whose = _whose(scope, period)

    def limit(self, cap: int, slice_: int) -> None:
        """Set the cap: what is leased beyond it can't be reserved any more, what is used stays."""
        self.cap = cap
        self.slice = slice_
        #: With less left than ``low`` the next slice is due, with more than ``high`` a return is.
        self.high = 2 * slice_
        self.take_over(self.leased)

    @property
    def used(self) -> int:
        """Spent or reserved."""
        return self.leased - self.left

    def order(self) -> Grant | None:
        """The lease that this account should have, if it hasn't.

        What it gives back is out of reach at once, and only then out of the ledger.
        """
        used = self.used
        target = max(used, min(self.cap, used + max(self.slice, self.wanted)))
        self.wanted = 0
        if target == self.leased == self.written:
            return None
        if target < self.leased:
            self.take_over(target)
        return Grant(self.scope, self.period, target)

    def take_over(self, leased: int) -> None:
        """Set what is leased, and with it what is left, within the cap."""
        leased = min(leased, max(self.used, self.cap))
        self.left += leased - self.leased
        self.leased = leased
        self.low = self.slice // 2 if leased < self.cap else 0


@mypyc_attr(free_list_len=1)  # one for each request: the last one's memory is the next one's
class Reservation:
    """A request's worst case, taken out of each account that it concerns.

    Settle or release it in the end; a second time does nothing.
    """

    __slots__ = ("_accounts", "_budget", "_is_open", "_share", "amount_nanousd")

    def __init__(
        self,
        budget: Budget,
        accounts: tuple[_Account, ...],
        share: _Pot | None,
        amount_nanousd: int,
    ) -> None:
        """Take the amount; whether there is enough was checked. No await between the two."""
        self._budget = budget
        self._accounts = accounts
        self._share = share
        self.amount_nanousd = amount_nanousd
        self._is_open = True
        for account in accounts:
            account.left -= amount_nanousd
            account.reserved += amount_nanousd
            if account.left < account.low:
                budget.need_orders()
        if share is not None:
            share.left -= amount_nanousd
            share.reserved += amount_nanousd

    def settle(self, actual_nanousd: int | None) -> int:
        """Replace the worst case by what it cost; ``None``: unknown, all of it counts as spent.

        Returns by how much it cost more than was reserved: 0, or our bound is wrong (report it).
        """
        if not self._is_open:
            return 0
        self._is_open = False
        reserved = self.amount_nanousd
        back = 0 if actual_nanousd is None else reserved - actual_nanousd
        assert back <= reserved, "a cost is not negative"
        for account in self._accounts:
            assert account.reserved >= reserved, account.scope
            account.reserved -= reserved
            account.left += back
            if account.left > account.high or account.left < 0:
                self._budget.need_orders()
        if self._share is not None:
            self._share.reserved -= reserved
            self._share.left += back
        return -back if back < 0 else 0

    def release(self) -> None:
        """Give all of it back: nothing was sent."""
        self.settle(0)


class Budget:
    """The caps and what is left of them. ``reserve`` and ``settle`` are O(1)."""

    __slots__ = (
        "_accounts", "_accounts_by_upstream", "_caps", "_day", "_has_due_orders", "_history",
        "_known", "_on_due", "_rolls_at_s", "_shared", "_shares",
    )  # fmt: skip

    def __init__(
        self,
        caps: Caps,
        history: Iterable[Grant],
        utc_s: float,
        on_due: Callable[[], None] = lambda: None,
    ) -> None:
        """``history``: the ledger's rows, at least those of today, this month and later.

        ``on_due`` is called once when ``orders`` should be asked for; it must not do so itself,
        since the call comes from amid a decision.
        """
        self._caps = caps
        self._history = {(row.scope, row.period): row.leased_nanousd for row in history}
        self._on_due = on_due
        self._has_due_orders = False
        #: All of the present day and month, with those whose cap was taken away meanwhile.
        self._known: dict[tuple[str, str], _Account] = {}
        self._roll(utc_s)

    def reconfigure(self, caps: Caps, utc_s: float) -> None:
        """Keep to these caps from now on: what was spent and reserved under the old ones stays.

        What is spent while a cap is off isn't counted for it. O(caps).
        """
        self._caps = caps
        if utc_s >= self._rolls_at_s:
            self._roll(utc_s)
        self._open_accounts()

    def reserve(
        self, upstream: str, caller: bytes, amount_nanousd: int, utc_s: float
    ) -> Reservation | None:
        """Take the worst case of a request, from all that it concerns or from nothing.

        Returns None where the caps have room but too little is leased: ask again when the orders,
        which are then due, are granted. An amount of 0 (a free upstream) is never refused.
        Raises BudgetExhausted, BudgetBusy.
        O(1), amortised where a new caller pushes old ones out.
        """
        assert amount_nanousd >= 0
        if utc_s >= self._rolls_at_s:
            self._roll(utc_s)
        if amount_nanousd == 0:
            return Reservation(self, (), None, 0)
        accounts = self._accounts_by_upstream.get(upstream, self._shared)
        for account in accounts:
            if account.left < amount_nanousd:
                self._want(accounts, amount_nanousd, utc_s)
                return None
        share, cap = None, self._caps.caller_daily_nanousd
        if cap is not None:
            share = self._shares.get(caller) or self._new_share(caller)
            if cap + share.left < amount_nanousd:
                spent = -share.left - share.reserved
                raise self._refusal("your share of today's", amount_nanousd, spent, cap, utc_s)
        return Reservation(self, accounts, share, amount_nanousd)

    def need_orders(self) -> None:
        """Note that a lease should grow or shrink."""
        if not self._has_due_orders:
            self._has_due_orders = True
            self._on_due()

    def orders(self) -> list[Grant]:
        """The leases to write, all in one. Not again until they are granted or have failed."""
        self._has_due_orders = False
        orders = (account.order() for account in self._accounts)
        return [order for order in orders if order is not None]

    def granted(self, grants: Iterable[Grant]) -> None:
        """These are written durably: what they lease may be reserved."""
        leased = {(grant.scope, grant.period): grant.leased_nanousd for grant in grants}
        for key, account in self._known.items():
            # Those of a day that has ended meanwhile are of no more use.
            if key in leased:
                account.written = leased[key]
                account.take_over(leased[key])

    def review(self) -> None:
        """Tell, again if it was told amid a write, that orders are due since the last ones."""
        if any(not account.low <= account.left <= account.high for account in self._accounts):
            self._has_due_orders = True
        if self._has_due_orders:
            self._on_due()

    def close(self) -> list[Grant]:
        """The leases less what is unused: to be written when nothing will be reserved any more."""
        for account in self._known.values():
            account.take_over(account.used)
        return [Grant(one.scope, one.period, one.leased) for one in self._known.values()]

    def status(self, utc_s: float) -> Status:
        """For people: what is left, as of the last decision or now."""
        if utc_s >= self._rolls_at_s:
            self._roll(utc_s)
        left = {one: max(0, one.cap - one.used) for one in self._accounts}
        least = min(self._shared, key=left.__getitem__, default=None)
        return Status(
            left_today_nanousd=None if least is None else left[least],
            resets_at_s=self._resets_at_s("" if least is None else least.whose),
            upstream_left_nanousd={
                one.scope.partition(":")[2]: left[one] for one in self._accounts if one.scope != ALL
            },
        )

    # --- Refusing ---

    def _want(self, accounts: tuple[_Account, ...], amount: int, utc_s: float) -> None:
        """Too little is leased: order it. Raises where a cap has no room for it."""
        for account in accounts:
            if account.used + amount > account.cap:
                spent = account.used - account.reserved
                raise self._refusal(account.whose, amount, spent, account.cap, utc_s)
        for account in accounts:
            # Those that have enough, too: else the same order could take it back.
            account.wanted = max(account.wanted, amount)
        self.need_orders()

    def _refusal(
        self, whose: str, amount: int, spent: int, cap: int, utc_s: float
    ) -> BudgetExhausted | BudgetBusy:
        """Exhausted only if it stays so though all requests under way should cost nothing."""
        if spent + amount <= cap:
            return BudgetBusy(whose=whose, retry_after_s=_BUSY_S)
        resets_at_s = self._resets_at_s(whose)
        return BudgetExhausted(
            retry_after_s=max(0.0, resets_at_s - utc_s),
            should_retry=False,
            cost=f"{amount / NANO:.6f}",
            whose=whose,
            resets_at=f"{datetime.fromtimestamp(resets_at_s, UTC):%Y-%m-%dT%H:%M:%SZ}",
        )

    def _resets_at_s(self, whose: str) -> int:
        if whose != _MONTHLY:
            return self._rolls_at_s
        next_month = (self._day.replace(day=1) + timedelta(days=32)).replace(day=1)
        return (next_month - _EPOCH).days * DAY_S

    # --- Days and callers ---

    def _roll(self, utc_s: float) -> None:
        """Begin the day of ``utc_s``, and its month if that is another one."""
        days = int(utc_s // DAY_S)
        self._day = _EPOCH + timedelta(days=days)
        self._rolls_at_s = (days + 1) * DAY_S
        self._shares: dict[bytes, _Pot] = {}
        self._open_accounts()

    def _open_accounts(self) -> None:
        """Have an account for each cap."""
        caps = self._caps
        day = self._day.isoformat()
        self._known = {key: one for key, one in self._known.items() if key[1] in (day, day[:7])}
        wanted = [(ALL, day, caps.daily_nanousd), (ALL, day[:7], caps.monthly_nanousd)]
        wanted += [
            (_scope(name), day, cap) for name, cap in sorted(caps.upstream_daily_nanousd.items())
        ]
        self._accounts = tuple(
            self._account(scope, period, cap) for scope, period, cap in wanted if cap is not None
        )
        self._shared = tuple(account for account in self._accounts if account.scope == ALL)
        self._accounts_by_upstream = {
            name: tuple(one for one in self._accounts if one.scope in (ALL, _scope(name)))
            for name in caps.upstream_daily_nanousd
        }
        self.need_orders()

    def _account(self, scope: str, period: str, cap: int) -> _Account:
        """The account as it was, or a new one, of which earlier lives have leased a part."""
        key = (scope, period)
        account = self._known.get(key) or _Account(scope, period, self._history.get(key, 0))
        self._known[key] = account
        # Of the smallest cap that applies, so that this one isn't drained by another's slices.
        caps = (cap, self._caps.daily_nanousd, self._caps.monthly_nanousd)
        account.limit(cap, max(1, min(one for one in caps if one is not None) // SLICES_PER_CAP))
        return account

    def _new_share(self, caller: bytes) -> _Pot:
        """Begin a caller's share; the table being full, forget the hundredth that is oldest."""
        if len(self._shares) >= SHARES_MAX:
            for oldest in list(islice(self._shares, SHARES_MAX // 100)):
                del self._shares[oldest]
        return self._shares.setdefault(caller, _Pot())


def _scope(upstream: str) -> str:
    return f"upstream:{upstream}"


def _whose(scope: str, period: str) -> str:
    """The cap in the words of a refusal; callers don't learn the names of upstreams."""
    if scope != ALL:
        return "the upstream's daily"
    return _MONTHLY if len(period) == len("2026-11") else "this instance's daily"
