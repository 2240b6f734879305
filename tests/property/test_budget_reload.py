"""No cap is exceeded by what is reserved after it was set, whatever is changed in whatever order.

Beside the budget and its ledger on disk the model keeps plain sums. A reservation may be made only
if every cap that applies at that moment has room for it, on top of all that it counts already.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from freeapi.errors import BudgetBusy, BudgetExhausted
from freeapi.policy.budget import Budget, Caps, Grant, Reservation
from freeapi.state.ledger import Ledger

#: In memory where that can be: syncing isn't what is tested here, and costs 10 ms each time.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - not a fixed name
#: Half an hour before a month ends, so that few steps lead over a day and a month.
START = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)
#: What a cap may be changed to; None: taken away.
CAPS = st.none() | st.sampled_from([0, 100, 3_000, 10_000, 1_000_000])


class Open:
    """A reservation as the model sees it: what it holds, and which caps count it."""

    def __init__(self, reservation: Reservation, keys: list[tuple[str, str]], life: int) -> None:
        self.reservation = reservation
        self.keys = keys
        self.life = life
        self.amount = reservation.amount_nanousd


class ChangingCaps(RuleBasedStateMachine):
    """A budget whose caps come, go, rise and fall amid requests, writes and crashes."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.now = self.latest = START
        self.life = 0
        self.caps: dict[str, int] = {}
        #: By scope and period: all that may have been billed while there was a cap, in all lives.
        self.used: dict[tuple[str, str], int] = {}
        #: Orders that a thread is writing.
        self.writing: list[Grant] | None = None

    @initialize(day=CAPS, month=CAPS, a=CAPS)
    def start(self, day: int | None, month: int | None, a: int | None) -> None:
        """Start with some caps."""
        self.set_caps(day, month, a)
        self.begin()

    def begin(self) -> None:
        """Start a life, with what the ledger knows of earlier ones."""
        self.life += 1
        self.latest = self.now
        self.writing = None
        self.ledger = Ledger(self.folder)
        history = self.ledger.grants(self.now.timestamp())
        self.budget = Budget(self.given(), history, self.now.timestamp())

    def set_caps(self, day: int | None, month: int | None, a: int | None) -> None:
        """Those that are on."""
        caps = {"day": day, "month": month, "a": a}
        self.caps = {kind: cap for kind, cap in caps.items() if cap is not None}

    def given(self) -> Caps:
        """The caps as the budget takes them."""
        own = {"a": self.caps["a"]} if "a" in self.caps else {}
        return Caps(self.caps.get("day"), self.caps.get("month"), None, own)

    def keys(self, upstream: str) -> list[tuple[str, str]]:
        """The scopes and periods that count a request now."""
        day = f"{self.latest:%Y-%m-%d}"
        scopes = {"day": ("all", day), "month": ("all", day[:7]), "a": ("upstream:a", day)}
        return [scopes[kind] for kind in self.caps if kind != "a" or upstream == "a"]

    @rule(day=CAPS, month=CAPS, a=CAPS)
    def reconfigure(self, day: int | None, month: int | None, a: int | None) -> None:
        """Change the caps."""
        self.latest = max(self.latest, self.now)
        self.set_caps(day, month, a)
        self.budget.reconfigure(self.given(), self.now.timestamp())

    @rule(
        target=reservations,
        upstream=st.sampled_from("ab"),
        amount=st.one_of(st.integers(1, 200), st.integers(1, 12_000)),
        is_granted=st.booleans(),
    )
    def reserve(self, upstream: str, amount: int, is_granted: bool) -> Open | None:
        """Reserve; if too little is leased, have it written and try again."""
        self.latest = max(self.latest, self.now)
        keys = self.keys(upstream)
        fits = all(self.used.get(key, 0) + amount <= self.cap(key) for key in keys)
        try:
            reservation = self.budget.reserve(upstream, b"x", amount, self.now.timestamp())
            if reservation is None and is_granted:
                self.finish_write(works=True)
                self.begin_write()
                self.finish_write(works=True)
                reservation = self.budget.reserve(upstream, b"x", amount, self.now.timestamp())
                assert reservation is not None, "the lease that was asked for isn't enough"
        except (BudgetBusy, BudgetExhausted):
            return None
        if reservation is None:
            return None
        assert fits, "over a cap"
        for key in keys:
            self.used[key] = self.used.get(key, 0) + amount
        return Open(reservation, keys, self.life)

    def cap(self, key: tuple[str, str]) -> int:
        """The cap of a scope and period that has one."""
        scope, period = key
        return self.caps["a" if scope != "all" else "month" if len(period) == 7 else "day"]

    @rule(one=consumes(reservations), part=st.none() | st.floats(0, 1))
    def settle(self, one: Open | None, part: float | None) -> None:
        """Settle at a part of the worst case, or as unknown; after a crash nobody can."""
        if one is not None and one.life == self.life:
            actual = one.amount if part is None else int(one.amount * part)
            one.reservation.settle(None if part is None else actual)
            for key in one.keys:
                self.used[key] += actual - one.amount

    @rule()
    def begin_write(self) -> None:
        """Have a thread write what is ordered."""
        if self.writing is None:
            self.writing = self.budget.orders()

    @rule(works=st.booleans())
    def finish_write(self, works: bool) -> None:
        """The write ends, well or badly."""
        writing, self.writing = self.writing, None
        if writing and works:
            self.ledger.write(writing)
            self.budget.granted(writing)

    @rule(is_written=st.booleans())
    def crash(self, is_written: bool) -> None:
        """Die at once, with a write that was under way on the disk or not."""
        if self.writing and is_written:
            self.ledger.write(self.writing)
        self.ledger.close()
        self.begin()

    @rule()
    def stop(self) -> None:
        """End in order: what isn't used of any lease is given back."""
        self.ledger.write(self.budget.close())
        self.ledger.close()
        self.begin()

    @rule(hours=st.sampled_from([-1, 1, 30]))
    def step_clock(self, hours: int) -> None:
        """Let the clock go on, or back over midnight."""
        self.now += timedelta(hours=hours)

    @invariant()
    def ledger_has_it_all(self) -> None:
        """Each row of the ledger covers all that may have been billed under its cap."""
        if self.life:
            rows = {
                (row.scope, row.period): row.leased_nanousd
                for row in self.ledger.grants(START.timestamp())
            }
            assert all(used <= rows.get(key, 0) for key, used in self.used.items())

    def teardown(self) -> None:
        if self.life:
            self.ledger.close()
        shutil.rmtree(self.folder)


TestChangingCaps = ChangingCaps.TestCase
TestChangingCaps.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink may take minutes
)
