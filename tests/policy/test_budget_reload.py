"""What becomes of money that was spent, reserved or leased when the caps are changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from freeapi.errors import BudgetBusy, BudgetExhausted
from freeapi.policy.budget import Budget, Caps, Grant, Reservation

#: 2026-11-23T12:00:00Z
NOON_S = 1_795_435_200.0
DAY, MONTH = "2026-11-23", "2026-11"


def lease(budget: Budget) -> None:
    """Have all that is ordered written."""
    budget.granted(budget.orders())


def warm(caps: Caps, on_due: Callable[[], None] = lambda: None) -> Budget:
    """A budget that has its first leases."""
    budget = Budget(caps, [], NOON_S, on_due)
    lease(budget)
    return budget


def take(budget: Budget, amount: int, upstream: str = "a", caller: bytes = b"x") -> Reservation:
    """Reserve, with as many leases as it takes."""
    for _ in range(3):
        reservation = budget.reserve(upstream, caller, amount, NOON_S)
        if reservation is not None:
            return reservation
        lease(budget)
    raise AssertionError("still not leased")


def left(budget: Budget) -> int | None:
    """What is left today."""
    return budget.status(NOON_S).left_today_nanousd


def test_what_was_spent_stays_spent() -> None:
    """Spent and reserved money counts for the new cap, and settles there."""
    budget = warm(Caps(daily_nanousd=10_000))
    take(budget, 3_000).settle(2_000)
    under_way = take(budget, 1_000)
    budget.reconfigure(Caps(daily_nanousd=8_000), NOON_S)
    assert left(budget) == 5_000
    under_way.settle(400)
    assert left(budget) == 5_600


def test_a_lowered_cap_refuses_at_once() -> None:
    """No request is paid out of what was leased beyond the new cap."""
    budget = warm(Caps(daily_nanousd=100_000))
    take(budget, 500).settle(500)
    budget.reconfigure(Caps(daily_nanousd=600), NOON_S)
    with pytest.raises(BudgetExhausted):
        budget.reserve("a", b"x", 101, NOON_S)
    take(budget, 100).settle(100)
    with pytest.raises(BudgetExhausted):
        budget.reserve("a", b"x", 1, NOON_S)


def test_a_cap_below_what_is_spent_leaves_nothing() -> None:
    """Then nothing more is spent, and the ledger says what was."""
    budget = warm(Caps(daily_nanousd=100_000))
    take(budget, 5_000).settle(5_000)
    lease(budget)
    budget.reconfigure(Caps(daily_nanousd=1_000), NOON_S)
    assert left(budget) == 0
    assert budget.orders() == [Grant("all", DAY, 5_000)]


def test_under_a_lowered_cap_what_is_under_way_may_come_back() -> None:
    """Where open reservations alone stand against a request it is told to try again soon."""
    budget = warm(Caps(daily_nanousd=10_000))
    under_way = take(budget, 5_000)
    budget.reconfigure(Caps(daily_nanousd=5_000), NOON_S)
    with pytest.raises(BudgetBusy):
        budget.reserve("a", b"x", 100, NOON_S)
    under_way.settle(10)
    take(budget, 100)


def test_a_raised_cap_lets_go_on() -> None:
    """Who was refused is served after the next lease."""
    budget = warm(Caps(daily_nanousd=100))
    take(budget, 100).settle(100)
    with pytest.raises(BudgetExhausted):
        budget.reserve("a", b"x", 50, NOON_S)
    budget.reconfigure(Caps(daily_nanousd=200), NOON_S)
    take(budget, 50)
    assert left(budget) == 50


def test_a_lease_that_is_being_written_is_bound_by_the_new_cap() -> None:
    """A slice ordered under the old cap can't be reserved beyond the new one."""
    budget = Budget(Caps(daily_nanousd=100_000), [], NOON_S)
    orders = budget.orders()
    assert orders == [Grant("all", DAY, 1_000)]
    budget.reconfigure(Caps(daily_nanousd=100), NOON_S)
    budget.granted(orders)
    with pytest.raises(BudgetExhausted):
        budget.reserve("a", b"x", 101, NOON_S)
    take(budget, 100)


def test_what_the_ledger_has_beyond_a_lowered_cap_is_returned() -> None:
    """The row is written down to the cap, again if that write fails, so that a crash costs none."""
    budget = Budget(Caps(daily_nanousd=100_000), [], NOON_S)
    lease(budget)
    budget.reconfigure(Caps(daily_nanousd=100), NOON_S)
    failed = budget.orders()
    orders = budget.orders()
    assert failed == orders == [Grant("all", DAY, 1)]
    budget.granted(orders)
    assert budget.orders() == []


def test_caps_come_and_go_by_scope() -> None:
    """A new cap counts from now on; one that was off for a while goes on where it was."""
    budget = warm(Caps(daily_nanousd=10_000, upstream_daily_nanousd={"a": 1_000}))
    take(budget, 600).settle(600)
    budget.reconfigure(Caps(daily_nanousd=10_000, upstream_daily_nanousd={"b": 1_000}), NOON_S)
    take(budget, 5_000).settle(5_000)
    take(budget, 700, "b").settle(700)
    with pytest.raises(BudgetExhausted):
        take(budget, 301, "b")
    both = {"a": 1_000, "b": 1_000}
    budget.reconfigure(Caps(daily_nanousd=10_000, upstream_daily_nanousd=both), NOON_S)
    assert budget.status(NOON_S).upstream_left_nanousd == {"a": 400, "b": 300}
    with pytest.raises(BudgetExhausted):
        take(budget, 401)


def test_without_caps_all_is_paid_and_the_past_is_kept() -> None:
    """An idle budget refuses nothing; reservations made before settle where they were made."""
    budget = warm(Caps(daily_nanousd=1_000))
    under_way = take(budget, 900)
    budget.reconfigure(Caps(), NOON_S)
    take(budget, 1_000_000).settle(None)
    assert left(budget) is None
    under_way.settle(100)
    budget.reconfigure(Caps(daily_nanousd=1_000), NOON_S)
    assert left(budget) == 900


def test_a_cap_that_appears_counts_what_the_ledger_knows() -> None:
    """What earlier lives have leased today counts, too, if the cap was off at the start."""
    budget = Budget(Caps(monthly_nanousd=9_000), [Grant("all", DAY, 300)], NOON_S)
    budget.reconfigure(Caps(daily_nanousd=1_000, monthly_nanousd=9_000), NOON_S)
    assert left(budget) == 700


def test_closing_gives_back_what_removed_caps_have_leased() -> None:
    """The rows of caps that were taken away are written, too."""
    budget = warm(Caps(daily_nanousd=100_000, monthly_nanousd=900_000))
    take(budget, 70).settle(70)
    budget.reconfigure(Caps(monthly_nanousd=900_000), NOON_S)
    assert budget.close() == [Grant("all", DAY, 70), Grant("all", MONTH, 70)]


def test_a_callers_share_keeps_what_it_has_used() -> None:
    """A caller's new share is for all callers, less what each has used of the old one."""
    budget = warm(Caps(daily_nanousd=10_000, caller_daily_nanousd=500))
    take(budget, 400).settle(400)
    budget.reconfigure(Caps(daily_nanousd=10_000, caller_daily_nanousd=450), NOON_S)
    with pytest.raises(BudgetExhausted):
        take(budget, 51)
    take(budget, 50).settle(50)
    take(budget, 450, caller=b"y")
    budget.reconfigure(Caps(daily_nanousd=10_000, caller_daily_nanousd=900), NOON_S)
    take(budget, 450).release()
    with pytest.raises(BudgetExhausted):
        take(budget, 451)


def test_orders_are_due_after_a_change() -> None:
    """The ledger is asked to follow the new caps without waiting for a request."""
    due: list[None] = []
    budget = warm(Caps(daily_nanousd=10_000), lambda: due.append(None))
    due.clear()
    budget.reconfigure(Caps(daily_nanousd=90_000), NOON_S)
    assert due == [None]
    assert budget.orders() == [Grant("all", DAY, 900)]


def test_a_change_after_midnight_begins_the_new_day() -> None:
    """The new caps are the new day's, with nothing spent; the month goes on."""
    budget = warm(Caps(daily_nanousd=10_000, monthly_nanousd=50_000))
    take(budget, 4_000).settle(4_000)
    later_s = NOON_S + 86_400
    budget.reconfigure(Caps(daily_nanousd=20_000, monthly_nanousd=21_000), later_s)
    assert budget.status(later_s).left_today_nanousd == 17_000
    budget.reconfigure(Caps(daily_nanousd=20_000), later_s)
    assert budget.status(later_s).left_today_nanousd == 20_000
