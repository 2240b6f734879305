"""Money is conserved, and no cap is exceeded, whatever happens in whatever order, over restarts."""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from freeapi.errors import BudgetBusy, BudgetExhausted
from freeapi.policy.budget import Budget, Caps, Grant, Reservation
from freeapi.state.ledger import Ledger

#: In memory where that can be: syncing isn't what is tested here, and costs 10 ms each time.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - not a fixed name
#: Half an hour before a month ends, so that few steps lead over days and a month.
START = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)
CAPS = Caps(
    daily_nanousd=10_000,
    monthly_nanousd=15_000,
    caller_daily_nanousd=6_000,
    upstream_daily_nanousd={"a": 4_000},
)
LIMITS = {"day": 10_000, "month": 15_000, "a": 4_000}


class Open:
    """A reservation as the model sees it: what it holds, and in which accounts."""

    def __init__(self, reservation: Reservation, keys: list[tuple[str, str]], life: int) -> None:
        self.reservation = reservation
        self.keys = keys
        self.life = life
        self.amount = reservation.amount_nanousd


class Money(RuleBasedStateMachine):
    """A budget with a ledger on disk, beside plain sums of what was reserved and spent."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.now = self.latest = START
        self.life = 0
        #: By kind of cap and period: all that upstreams may have billed, over all lives.
        self.used: dict[tuple[str, str], int] = {}
        #: As ``used``, plus what crashes have forfeited.
        self.counted: dict[tuple[str, str], int] = {}

    @initialize()
    def begin(self) -> None:
        """Start a life, with what the ledger knows of earlier ones."""
        self.life += 1
        self.latest = self.now
        self.ledger = Ledger(self.folder)
        history = self.ledger.grants(self.now.timestamp())
        self.counted = {_key(row): row.leased_nanousd for row in history}
        self.budget = Budget(CAPS, history, self.now.timestamp())

    @rule(
        target=reservations,
        upstream=st.sampled_from("ab"),
        caller=st.sampled_from([b"x", b"y"]),
        amount=st.one_of(st.integers(1, 200), st.integers(1, 12_000)),
        is_granted=st.booleans(),
    )
    def reserve(self, upstream: str, caller: bytes, amount: int, is_granted: bool) -> Open | None:
        """Reserve; if too little is leased, have it written and try again."""
        self.latest = max(self.latest, self.now)
        try:
            reservation = self._try(upstream, caller, amount)
            if reservation is None and is_granted:
                self.write(works=True)
                reservation = self._try(upstream, caller, amount)
                assert reservation is not None, "the lease that was asked for isn't enough"
        except (BudgetBusy, BudgetExhausted):
            return None
        if reservation is None:
            return None
        day = f"{self.latest:%Y-%m-%d}"
        keys = [("day", day), ("month", day[:7])] + ([("a", day)] if upstream == "a" else [])
        self._count(keys, amount)
        return Open(reservation, keys, self.life)

    def _try(self, upstream: str, caller: bytes, amount: int) -> Reservation | None:
        return self.budget.reserve(upstream, caller, amount, self.now.timestamp())

    @rule(one=consumes(reservations), part=st.none() | st.floats(0, 1))
    def settle(self, one: Open | None, part: float | None) -> None:
        """Settle at a part of the worst case, or as unknown; after a crash nobody can."""
        if one is not None and one.life == self.life:
            actual = None if part is None else int(one.amount * part)
            one.reservation.settle(actual)
            if actual is not None:
                self._count(one.keys, actual - one.amount)

    @rule(one=consumes(reservations))
    def release(self, one: Open | None) -> None:
        """Give it back."""
        if one is not None and one.life == self.life:
            one.reservation.release()
            self._count(one.keys, -one.amount)

    @rule(works=st.booleans())
    def write(self, works: bool) -> None:
        """Write what is ordered, or fail to."""
        orders = self.budget.orders()
        if works and orders:
            self.ledger.write(orders)
            self.budget.granted(orders)

    @rule()
    def crash_amid_a_write(self) -> None:
        """Die when the orders are on the disk and nobody knows it yet."""
        self.ledger.write(self.budget.orders())
        self.crash()

    @rule()
    def crash(self) -> None:
        """Die at once: the ledger is as it is, all that was reserved may have been spent."""
        self.ledger.close()
        self.begin()

    @rule()
    def stop(self) -> None:
        """End in order: what isn't used of the current leases is given back."""
        rows = self.budget.close()
        self.ledger.write(rows)
        for row in rows:
            assert row.leased_nanousd == self.counted.get(_key(row), 0), row
        self.ledger.close()
        self.begin()

    @rule(hours=st.sampled_from([-30, -1, 1, 1, 30]))
    def step_clock(self, hours: int) -> None:
        """Let the clock go on or step, also back over midnight."""
        self.now += timedelta(hours=hours)

    @invariant()
    def caps_hold(self) -> None:
        """All that may have been billed is within each cap of each period."""
        assert all(0 <= used <= LIMITS[kind] for (kind, _), used in self.used.items())

    @invariant()
    def budget_agrees(self) -> None:
        """What the budget says is left is the cap less what counts as used, to the nano-dollar."""
        if self.life == 0:
            return
        self.latest = max(self.latest, self.now)
        status = self.budget.status(self.now.timestamp())
        day = f"{self.latest:%Y-%m-%d}"
        left = {
            kind: limit - self.counted.get((kind, day[:7] if kind == "month" else day), 0)
            for kind, limit in LIMITS.items()
        }
        assert status.left_today_nanousd == min(left["day"], left["month"])
        assert status.upstream_left_nanousd == {"a": left["a"]}

    @invariant()
    def ledger_has_it_all(self) -> None:
        """Each row of the ledger covers what may have been billed, and is within its cap."""
        if self.life == 0:
            return
        rows = {_key(row): row.leased_nanousd for row in self.ledger.grants(START.timestamp())}
        for key, used in self.used.items():
            assert used <= rows.get(key, 0) <= LIMITS[key[0]]

    def _count(self, keys: list[tuple[str, str]], amount: int) -> None:
        for key in keys:
            self.used[key] = self.used.get(key, 0) + amount
            self.counted[key] = self.counted.get(key, 0) + amount

    def teardown(self) -> None:
        if self.life:
            self.ledger.close()
        shutil.rmtree(self.folder)


def _key(row: Grant) -> tuple[str, str]:
    kind = "month" if len(row.period) == 7 else "day"
    return (row.scope.removeprefix("upstream:") if row.scope != "all" else kind, row.period)


TestMoney = Money.TestCase
TestMoney.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink may take minutes
)
