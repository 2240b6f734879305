"""The budget's decisions: what may be reserved, what a refusal says, which leases are asked for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from freeapi.errors import BudgetBusy, BudgetExhausted
from freeapi.policy.budget import Budget, Caps, Grant, Reservation

#: A Monday at noon.
NOON_S = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
DAY, MONTH, NEXT_DAY = "2026-11-23", "2026-11", "2026-11-24"
MIDNIGHT_S = datetime(2026, 11, 24, tzinfo=UTC).timestamp()
CALLER, OTHER = b"caller", b"other"


def settled(budget: Budget) -> list[Grant]:
    """Grant orders until there are none left, as a ledger would; all that was granted."""
    granted: list[Grant] = []
    while orders := budget.orders():
        budget.granted(orders)
        granted += orders
    return granted


def warm(
    caps: Caps, *history: Grant, utc_s: float = NOON_S, on_due: Callable[[], None] = lambda: None
) -> Budget:
    """A budget whose first leases are granted."""
    budget = Budget(caps, history, utc_s, on_due)
    settled(budget)
    return budget


def take(
    budget: Budget,
    amount: int,
    upstream: str = "u",
    caller: bytes = CALLER,
    utc_s: float = NOON_S,
) -> Reservation:
    """Reserve, with a ledger that grants what is asked for."""
    for _ in range(2):
        reservation = budget.reserve(upstream, caller, amount, utc_s)
        if reservation is not None:
            return reservation
        budget.granted(budget.orders())
    raise AssertionError("still not leased")


def left(budget: Budget, utc_s: float = NOON_S) -> int | None:
    """What is left today."""
    return budget.status(utc_s).left_today_nanousd


def test_reserve_takes_and_settle_gives_back_the_difference() -> None:
    """A request counts at its worst case until it is settled, then at its cost."""
    budget = warm(Caps(daily_nanousd=10_000))
    reservation = take(budget, 100)
    assert (reservation.amount_nanousd, left(budget)) == (100, 9_900)
    assert reservation.settle(30) == 0
    assert left(budget) == 9_970


def test_settling_twice_counts_once() -> None:
    """After the first settlement, neither another one nor a release changes anything."""
    budget = warm(Caps(daily_nanousd=10_000))
    reservation = take(budget, 100)
    reservation.settle(30)
    reservation.settle(0)
    reservation.release()
    assert left(budget) == 9_970


def test_release_gives_all_back() -> None:
    """A request that wasn't sent costs nothing, to its caller neither."""
    budget = warm(Caps(daily_nanousd=10_000, caller_daily_nanousd=100))
    take(budget, 100).release()
    assert left(budget) == 10_000
    take(budget, 100)


def test_unknown_usage_keeps_the_reservation() -> None:
    """Settled without a figure, the whole reservation is spent."""
    budget = warm(Caps(daily_nanousd=10_000, caller_daily_nanousd=1_000))
    assert take(budget, 100).settle(None) == 0
    assert left(budget) == 9_900


def test_negative_cost_is_our_mistake() -> None:
    """A settlement can't give back more than was taken."""
    with pytest.raises(AssertionError):
        take(warm(Caps(daily_nanousd=10_000)), 10).settle(-1)


def test_negative_amount_is_our_mistake() -> None:
    """A reservation can't add money."""
    with pytest.raises(AssertionError):
        warm(Caps()).reserve("u", CALLER, -1, NOON_S)


def test_cost_above_the_reservation_is_charged_and_reported() -> None:
    """What was more than the bound says is charged in full, leased even over the cap, and told."""
    budget = warm(Caps(daily_nanousd=1_000, caller_daily_nanousd=1_000))
    assert take(budget, 100).settle(1_500) == 1_400
    assert budget.orders() == [Grant("all", DAY, 1_500)]
    assert left(budget) == 0


def test_exhausted_cap_says_when_it_starts_anew() -> None:
    """A spent daily cap refuses until the next UTC midnight and tells SDKs not to retry."""
    budget = warm(Caps(daily_nanousd=1_000_000))
    take(budget, 999_999).settle(None)
    with pytest.raises(BudgetExhausted) as caught:
        budget.reserve("u", CALLER, 2_000, NOON_S)
    error = caught.value
    assert (error.retry_after_s, error.should_retry) == (12 * 3_600, False)
    assert (error.status, error.code, error.type) == (429, "budget_exhausted", "insufficient_quota")
    assert error.message == (
        "This request may cost up to $0.000002, and this instance's daily budget has less than "
        "that left. It starts anew at 2026-11-24T00:00:00Z."
    )


def test_exhausted_month_starts_anew_with_the_next() -> None:
    """A spent monthly cap refuses until the first of the next month, in December too."""
    for month, day_s in ((11, NOON_S), (12, datetime(2026, 12, 31, 23, tzinfo=UTC).timestamp())):
        budget = warm(Caps(monthly_nanousd=1_000), utc_s=day_s)
        with pytest.raises(BudgetExhausted, match="budget_exhausted") as caught:
            budget.reserve("u", CALLER, 1_001, day_s)
        start = datetime(2026 + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        assert caught.value.retry_after_s == start.timestamp() - day_s
        assert "monthly" in caught.value.message
        assert budget.status(day_s).resets_at_s == start.timestamp()


def test_upstream_cap_refuses_without_its_name() -> None:
    """A donor's own cap binds that upstream alone, and callers don't learn its name."""
    budget = warm(Caps(daily_nanousd=10_000, upstream_daily_nanousd={"donor": 500}))
    with pytest.raises(BudgetExhausted) as caught:
        budget.reserve("donor", CALLER, 501, NOON_S)
    assert "the upstream's daily budget" in caught.value.message
    assert "donor" not in caught.value.message
    take(budget, 400, "donor")
    take(budget, 501, "other")
    assert budget.status(NOON_S).upstream_left_nanousd == {"donor": 100}


def test_caller_has_a_share_of_the_day() -> None:
    """One caller's share refuses only that caller, and begins anew on the next day."""
    budget = warm(Caps(daily_nanousd=100_000, caller_daily_nanousd=100))
    take(budget, 100).settle(90)
    with pytest.raises(BudgetExhausted, match="budget_exhausted") as caught:
        budget.reserve("u", CALLER, 11, NOON_S)
    assert "your share of today's budget" in caught.value.message
    assert caught.value.retry_after_s == 12 * 3_600
    take(budget, 100, caller=OTHER)
    take(budget, 100, utc_s=MIDNIGHT_S)


def test_requests_under_way_make_it_busy_not_exhausted() -> None:
    """Where only open reservations stand in the way, the answer is to try again soon."""
    budget = warm(Caps(daily_nanousd=100, caller_daily_nanousd=60))
    first, second = take(budget, 50), take(budget, 50, caller=OTHER)
    for caller, whose in ((b"third", "this instance's daily"), (OTHER, "this instance's daily")):
        with pytest.raises(BudgetBusy) as caught:
            budget.reserve("u", caller, 1, NOON_S)
        assert whose in caught.value.message
        assert caught.value.should_retry is None
    second.settle(5)
    take(budget, 10, caller=OTHER)
    with pytest.raises(BudgetBusy) as caught:
        take(budget, 11)
    assert "your share of today's" in caught.value.message
    first.settle(0)
    take(budget, 11)


def test_refusal_takes_nothing() -> None:
    """A request that one account refuses has taken from no other."""
    caps = Caps(daily_nanousd=10_000, monthly_nanousd=20_000, upstream_daily_nanousd={"u": 50})
    budget = warm(caps)
    with pytest.raises(BudgetExhausted):
        take(budget, 51)
    small = warm(Caps(daily_nanousd=10_000, caller_daily_nanousd=50))
    with pytest.raises(BudgetExhausted):
        take(small, 51)
    assert (left(budget), left(small)) == (10_000, 10_000)


def test_without_caps_all_is_allowed() -> None:
    """Without any cap nothing is refused, leased or counted."""
    budget = warm(Caps())
    take(budget, 10**15).settle(10**14)
    status = budget.status(NOON_S)
    assert (status.left_today_nanousd, status.resets_at_s) == (None, MIDNIGHT_S)
    assert budget.close() == []


def test_free_request_is_never_refused() -> None:
    """An amount of 0 needs no lease and passes an exhausted cap."""
    budget = Budget(Caps(daily_nanousd=0, caller_daily_nanousd=0), [], NOON_S)
    reservation = budget.reserve("local", CALLER, 0, NOON_S)
    assert reservation is not None
    assert reservation.settle(0) == 0


# --- Leases ---------------------------------------------------------------------------------------


def test_nothing_is_reserved_that_is_not_leased() -> None:
    """Before the first grant a reservation has to wait, though the cap has room."""
    budget = Budget(Caps(daily_nanousd=10_000), [], NOON_S)
    assert budget.reserve("u", CALLER, 1, NOON_S) is None
    orders = budget.orders()
    assert orders == [Grant("all", DAY, 100)]
    assert budget.reserve("u", CALLER, 1, NOON_S) is None
    budget.granted(orders)
    assert budget.reserve("u", CALLER, 100, NOON_S)
    assert budget.reserve("u", CALLER, 1, NOON_S) is None


def test_request_above_a_slice_has_its_own_lease() -> None:
    """A worst case larger than a slice is leased to the nano-dollar, the largest one that waits."""
    budget = warm(Caps(daily_nanousd=10_000))
    assert budget.reserve("u", CALLER, 700, NOON_S) is None
    assert budget.reserve("u", CALLER, 300, NOON_S) is None
    assert budget.orders() == [Grant("all", DAY, 700)]


def test_order_for_one_account_leaves_another_what_it_needs() -> None:
    """An account that has enough for a request isn't given back while another one leases for it."""
    budget = warm(Caps(daily_nanousd=10_000, upstream_daily_nanousd={"u": 4_000}))
    assert budget.reserve("u", CALLER, 41, NOON_S) is None
    budget.granted(budget.orders())  # the upstream's slice is 40, so this leases 41 there
    take(budget, 60, "other")
    assert budget.reserve("u", CALLER, 41, NOON_S) is None
    budget.granted(budget.orders())
    assert budget.reserve("u", CALLER, 41, NOON_S)


def test_next_slice_is_due_when_half_is_used() -> None:
    """The notice comes once, as soon as less than half a slice is left."""
    notices: list[None] = []
    budget = warm(Caps(daily_nanousd=10_000), on_due=lambda: notices.append(None))
    notices.clear()
    take(budget, 50)
    assert notices == []
    take(budget, 1)
    take(budget, 1)
    assert len(notices) == 1
    assert budget.orders() == [Grant("all", DAY, 152)]


def test_lease_that_is_too_large_is_given_back() -> None:
    """What a big request leaves unused is out of reach when it is ordered back, before it is."""
    notices: list[None] = []
    budget = warm(Caps(daily_nanousd=10_000), on_due=lambda: notices.append(None))
    reservation = take(budget, 5_000)
    settled(budget)
    notices.clear()
    reservation.settle(10)
    assert len(notices) == 1
    orders = budget.orders()
    assert orders == [Grant("all", DAY, 110)]
    assert budget.reserve("u", CALLER, 101, NOON_S) is None
    assert left(budget) == 9_990


def test_review_asks_for_what_grants_left_open() -> None:
    """After a grant, a lease that is already short or too large again is due again."""
    notices: list[None] = []
    budget = warm(Caps(daily_nanousd=10_000), on_due=lambda: notices.append(None))
    notices.clear()
    budget.review()
    assert notices == []
    assert budget.reserve("u", CALLER, 400, NOON_S) is None
    budget.granted(budget.orders())
    notices.clear()
    budget.review()  # whoever wanted the 400 has gone
    assert len(notices) == 1
    assert settled(budget) == [Grant("all", DAY, 100)]


def test_review_repeats_a_notice() -> None:
    """Orders that fell due while others were being written are told of again."""
    notices: list[None] = []
    budget = warm(Caps(daily_nanousd=10_000), on_due=lambda: notices.append(None))
    first = budget.orders()
    take(budget, 100)
    budget.granted(first)
    notices.clear()
    assert budget.reserve("u", CALLER, 100, NOON_S) is None
    assert notices == []
    budget.review()
    assert len(notices) == 1


def test_lease_ends_at_the_cap() -> None:
    """The last slice is what the cap has left, and after it none is due."""
    notices: list[None] = []
    budget = warm(Caps(daily_nanousd=10_000), on_due=lambda: notices.append(None))
    take(budget, 9_950)
    assert settled(budget)[-1] == Grant("all", DAY, 10_000)
    notices.clear()
    take(budget, 50)
    assert notices == []
    assert budget.orders() == []


def test_tiny_cap_leases_at_least_one() -> None:
    """A cap of less than a hundred nano-dollars can be spent to the last one."""
    budget = warm(Caps(daily_nanousd=3))
    for _ in range(3):
        take(budget, 1)
    with pytest.raises(BudgetBusy):
        take(budget, 1)


def test_slices_follow_the_smallest_cap() -> None:
    """Every account's slice is 1 % of the smallest among its own cap and those over all."""
    caps = Caps(
        daily_nanousd=10_000,
        monthly_nanousd=5_000,
        upstream_daily_nanousd={"large": 90_000, "small": 1_000},
    )
    assert Budget(caps, [], NOON_S).orders() == [
        Grant("all", DAY, 50),
        Grant("all", MONTH, 50),
        Grant("upstream:large", DAY, 50),
        Grant("upstream:small", DAY, 10),
    ]


def test_history_counts_as_spent() -> None:
    """What earlier lives have leased of today and this month can't be spent again."""
    history = (Grant("all", DAY, 9_000), Grant("all", MONTH, 9_900), Grant("upstream:u", DAY, 1))
    budget = warm(Caps(daily_nanousd=10_000, monthly_nanousd=10_000), *history)
    assert left(budget) == 100
    with pytest.raises(BudgetExhausted):
        take(budget, 101)


def test_cap_below_what_is_spent_refuses() -> None:
    """A cap that was lowered under what is spent has nothing left, and leases nothing."""
    budget = Budget(Caps(daily_nanousd=100), [Grant("all", DAY, 500)], NOON_S)
    assert budget.orders() == []
    assert left(budget) == 0
    with pytest.raises(BudgetExhausted):
        budget.reserve("u", CALLER, 1, NOON_S)


def test_close_gives_back_all_but_what_is_used() -> None:
    """At the end spent and open reservations stay leased, and nothing can be reserved."""
    budget = warm(Caps(daily_nanousd=10_000))
    take(budget, 40).settle(10)
    take(budget, 20)
    assert budget.close() == [Grant("all", DAY, 30)]
    assert budget.reserve("u", CALLER, 1, NOON_S) is None


# --- Days -----------------------------------------------------------------------------------------


def test_day_rolls_and_the_month_goes_on() -> None:
    """At midnight the day's cap is whole again, and the month's isn't."""
    budget = warm(Caps(daily_nanousd=1_000, monthly_nanousd=1_500))
    take(budget, 900).settle(None)
    settled(budget)
    assert budget.reserve("u", CALLER, 600, MIDNIGHT_S) is None
    orders = budget.orders()
    assert Grant("all", NEXT_DAY, 600) in orders
    budget.granted(orders)
    assert budget.reserve("u", CALLER, 600, MIDNIGHT_S)
    with pytest.raises(BudgetBusy) as caught:
        budget.reserve("u", CALLER, 1, MIDNIGHT_S)
    assert "monthly" in caught.value.message


def test_status_rolls_too() -> None:
    """A page that is read after midnight shows the new day."""
    budget = warm(Caps(daily_nanousd=1_000))
    take(budget, 900)
    assert left(budget, MIDNIGHT_S) == 1_000
    assert budget.status(MIDNIGHT_S).resets_at_s == MIDNIGHT_S + 86_400


def test_reservation_stays_with_its_day() -> None:
    """Settled after midnight, a reservation changes its own day's account and its month's."""
    budget = warm(Caps(daily_nanousd=1_000, monthly_nanousd=10_000))
    reservation = take(budget, 900)
    before = settled(budget)
    take(budget, 1, utc_s=MIDNIGHT_S).settle(None)
    reservation.settle(100)
    assert left(budget, MIDNIGHT_S) == 999
    month = [grant for grant in settled(budget) if grant.period == MONTH]
    assert month[-1].leased_nanousd == 100 + 1 + 10
    budget.granted(before)  # a grant of yesterday's that comes late
    assert left(budget, MIDNIGHT_S) == 999


def test_clock_that_steps_back_keeps_the_later_day() -> None:
    """A day that has begun goes on though the clock says it is yesterday again."""
    budget = warm(Caps(daily_nanousd=1_000))
    take(budget, 1_000, utc_s=MIDNIGHT_S).settle(None)
    with pytest.raises(BudgetExhausted) as caught:
        budget.reserve("u", CALLER, 1, NOON_S)
    assert "2026-11-25T00:00:00Z" in caught.value.message


def test_rows_of_later_days_are_kept_in_mind() -> None:
    """A day that an earlier life, with a clock ahead, has spent is spent when it comes."""
    budget = warm(Caps(daily_nanousd=1_000), Grant("all", NEXT_DAY, 1_000))
    take(budget, 1_000)
    with pytest.raises(BudgetExhausted):
        budget.reserve("u", CALLER, 1, MIDNIGHT_S)


def test_oldest_shares_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of shares is bounded: the callers who came first make room."""
    monkeypatch.setattr("freeapi.policy.budget.SHARES_MAX", 100)
    full = warm(Caps(daily_nanousd=10**6, caller_daily_nanousd=10))
    for number in range(100):
        take(full, 10, caller=b"%d" % number).settle(None)
    take(full, 10, caller=b"one more")
    take(full, 10, caller=b"0")
    with pytest.raises(BudgetExhausted):
        take(full, 10, caller=b"2")
