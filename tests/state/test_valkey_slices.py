"""How much a gateway leases ahead, reserves and gives back, without a store."""

from __future__ import annotations

import pytest

from freeapi.errors import BudgetBusy, BudgetExhausted
from freeapi.state.valkey_leases import Leased, Order
from freeapi.state.valkey_slices import Account, SharedReservation, end_of

DAY = "2026-11-23"
#: Its midnight, 00:00 UTC.
MIDNIGHT_S = 1_795_478_400


def account(cap: int = 100_000, leased: int = 0, others: int = 0) -> Account:
    """One whose slice is a hundredth of the cap at most, and which was asked for 100."""
    made = Account("all", DAY, cap, cap // 100)
    made.amount = 100
    made.take_over(Order("all", DAY, cap, 0, 0, 0), Leased(leased, others, 0), 0.0)
    return made


def reserve(one: Account, amount: int, due: list[str] | None = None) -> SharedReservation:
    """A request's worst case."""
    return SharedReservation((one,), amount, lambda: (due if due is not None else []).append("due"))


@pytest.mark.parametrize(
    ("others", "size"),
    [
        (0, 1_000),  # a hundredth of the cap
        (96_000, 500),  # an eighth of what is left
        (99_200, 100),  # the least that a request fits in
        (99_208, 0),
        (100_500, 0),  # the cap was lowered
    ],
)
def test_slice_shrinks_with_what_is_left(others: int, size: int) -> None:
    """Near the end of a cap slices become small, and then there are none."""
    assert account(others=others).slice == size


def test_nothing_is_leased_ahead_before_the_first_request() -> None:
    """Nobody knows how large it will be: a slice too small for it would help nobody."""
    one = account()
    one.amount = 0
    assert one.slice == 0
    assert one.order() is None
    assert one.order(is_probe=True) == Order("all", DAY, 100_000, 0, 0, 0)


def test_order_is_made_only_where_something_is_due() -> None:
    """From half a slice to two there is no order; below and above there is, for one slice."""
    for leased, is_due in ((499, True), (500, False), (2_000, False), (2_001, True)):
        order = account(leased=leased).order()
        assert (order is not None) is is_due
        assert order is None or order.wanted == 1_000


def test_what_goes_back_is_out_of_reach_at_once() -> None:
    """Before the store knows of it, it can't be reserved any more."""
    one = account(leased=5_000)
    assert one.order() == Order("all", DAY, 100_000, 1_000, 1_000, 0)
    assert one.left == 1_000


def test_last_order_keeps_what_is_reserved() -> None:
    """At the end all that isn't used goes back; open reservations stay leased."""
    one = account(leased=1_000)
    reserve(one, 300)
    assert one.order(is_last=True) == Order("all", DAY, 100_000, 300, 300, 300)


def test_cap_that_was_lowered_while_an_order_was_under_way() -> None:
    """An answer by the old cap gives no more than the new one allows, beyond what is used."""
    one = account(leased=1_000)
    reserve(one, 900)
    order = Order("all", DAY, 100_000, 5_000, 1_000, 900)
    one.cap_at(2_000, 20)
    one.take_over(order, Leased(5_000, 500, 0), 1.0)
    assert one.leased == 1_500
    one.cap_at(100, 1)
    assert one.leased == 900


def test_store_is_believed_for_a_second() -> None:
    """That there is no more is asked again only after a second, and not for what is in hand."""
    one = account()
    one.take_over(Order("all", DAY, 100_000, 500, 0, 0), Leased(200, 99_800, 0), 10.0)
    assert one.is_short(201, 10.9)
    assert not one.is_short(200, 10.9)
    one.leased = 0  # given back since; the store would have it still
    assert not one.is_short(200, 10.9)
    assert not one.is_short(201, 11.1)


def test_settlement_replaces_the_worst_case_once() -> None:
    """What it cost stays used; beyond its bound that is told; a second end does nothing."""
    one = account(leased=1_000)
    first, second, third = reserve(one, 300), reserve(one, 100), reserve(one, 100)
    assert first.settle(50) == 0
    assert second.settle(130) == 30
    assert second.settle(0) == 0
    third.settle(None)
    assert (one.used, one.reserved) == (280, 0)
    third.release()
    assert one.used == 280


def test_low_or_large_slice_is_due() -> None:
    """A reservation below half a slice and a settlement above two make an order due."""
    one, due = account(leased=1_600), list[str]()
    large = reserve(one, 1_000, due)
    assert due == []
    small = reserve(one, 200, due)
    assert due == ["due"]
    one.leased += 2_000
    large.release()
    assert due == ["due", "due"]
    small.release()


def test_reserving_more_than_is_leased_is_a_bug() -> None:
    """Whoever reserves has looked before."""
    with pytest.raises(AssertionError):
        reserve(account(leased=10), 11)


def test_end_near_the_cap_is_told_to_the_others() -> None:
    """Where others are refused for a reservation of ours, they hear when it is over."""
    one = account(leased=300, others=99_700)
    reservation = reserve(one, 300)
    order = one.order(is_probe=True)
    assert order is not None
    assert order.reserved == 300
    reservation.settle(300)
    assert one.is_stale
    after = one.order()
    assert after is not None
    assert (after.wanted, after.reserved) == (300, 0)


def test_refusal_is_busy_only_while_money_may_come_back() -> None:
    """If all that is under way cost nothing, would there be enough? Else it is exhausted."""
    one = account(leased=1_000, others=99_000)
    reserve(one, 900)
    assert isinstance(one.refusal(1_000, 0.0), BudgetBusy)
    gone = one.refusal(1_001, MIDNIGHT_S - 60.0)
    assert isinstance(gone, BudgetExhausted)
    assert gone.retry_after_s == 60.0
    one.pending = 99_000
    assert isinstance(one.refusal(100_000, 0.0), BudgetBusy)


def test_refusal_names_the_cap_but_no_upstream() -> None:
    """Callers hear whose cap it is: the day's, the month's or an upstream's."""
    scopes = [("all", DAY), ("all", "2026-11"), ("upstream:donor", DAY)]
    words = [Account(*one, 10, 0).refusal(11, 0.0).facts["whose"] for one in scopes]
    assert words == ["this instance's daily", "this instance's monthly", "the upstream's daily"]


@pytest.mark.parametrize(
    ("period", "end_s"),
    [(DAY, MIDNIGHT_S), ("2026-11", 1_796_083_200), ("2026-12", 1_798_761_600)],
)
def test_end_of_a_day_and_of_a_month(period: str, end_s: int) -> None:
    """In UTC, over the end of a year too."""
    assert end_of(period) == end_s
