"""The public status: sums only, of what is left and who waits."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from freeapi.pages.status import Left, Money, StatusPage
from freeapi.policy.budget import ALL, Budget, Caps, Grant, Status

#: 2026-11-23 12:00 UTC, and the midnights that follow of the day and of the month.
NOON_S = 1_795_435_200
MIDNIGHT, NEXT_MONTH = "2026-11-24T00:00:00Z", "2026-12-01T00:00:00Z"
DOLLAR = 1_000_000_000


def page(
    money: Callable[[], Status] | None,
    *,
    is_ready: bool = True,
    waiting: Callable[[], int] = lambda: 0,
) -> StatusPage:
    """A page of an instance whose upstream is well and whose models have no limits."""
    return StatusPage(
        lambda: is_ready, waiting, money, wait_s=lambda: 0.0, upstream=lambda: "ok", capacity=tuple
    )


def page_of(caps: Caps, *spent: Grant) -> StatusPage:
    """A page over a budget of which this is spent."""
    budget = Budget(caps, spent, NOON_S)
    return page(lambda: budget.status(NOON_S))


def test_page_tells_sums_only() -> None:
    """It has these keys, and no more can be read from it."""
    budget = Budget(Caps(daily_nanousd=5 * DOLLAR), [Grant(ALL, "2026-11-23", 2 * DOLLAR)], NOON_S)
    full = StatusPage(
        lambda: True,
        lambda: 3,
        lambda: budget.status(NOON_S),
        wait_s=lambda: 1.26,
        upstream=lambda: "busy",
        capacity=lambda: [Left("gpt-3.5-turbo", 583, None)],
    )
    assert json.loads(full.body()) == {
        "status": "ready",
        "upstream": "busy",
        "waiting": 3,
        "wait_s": 1.3,
        "budget": {"left_today_usd": 3.0, "resets_at": MIDNIGHT},
        "models": [{"name": "gpt-3.5-turbo", "requests_left": 583, "tokens_left": None}],
    }


@pytest.mark.parametrize(("is_ready", "word"), [(True, "ready"), (False, "not ready")])
def test_page_without_caps_has_no_budget(is_ready: bool, word: str) -> None:
    """Where nothing is capped the budget is null, and the state is as it is now."""
    document = json.loads(page(None, is_ready=is_ready).body())
    assert (document["status"], document["budget"]) == (word, None)


def test_cap_that_leaves_the_least_is_told() -> None:
    """With less left of the month than of the day, that is told, and when the month ends."""
    caps = Caps(daily_nanousd=5 * DOLLAR, monthly_nanousd=50 * DOLLAR)
    month = page_of(caps, Grant(ALL, "2026-11", 49 * DOLLAR))
    assert json.loads(month.body())["budget"] == {"left_today_usd": 1.0, "resets_at": NEXT_MONTH}


def test_spent_cap_has_nothing_left() -> None:
    """A cap that was lowered below what is spent leaves zero, never less."""
    spent = page_of(Caps(daily_nanousd=DOLLAR), Grant(ALL, "2026-11-23", 2 * DOLLAR))
    assert json.loads(spent.body())["budget"]["left_today_usd"] == 0.0


def test_upstreams_are_not_told() -> None:
    """Donors' names and caps are theirs: with no other cap what is left today has no number."""
    donors = page_of(Caps(upstream_daily_nanousd={"anna": DOLLAR}))
    assert b"anna" not in donors.body()
    assert json.loads(donors.body())["budget"] == {"left_today_usd": None, "resets_at": MIDNIGHT}


def test_page_is_made_anew() -> None:
    """What changed since the last answer is in the next one."""
    waiting = iter([1, 2])
    changing = page(None, waiting=lambda: next(waiting))
    assert [json.loads(changing.body())["waiting"] for _ in range(2)] == [1, 2]


def test_money_in_dollars() -> None:
    """To the nano-dollar, as JSON has it."""
    money = Money.of(Status(1_234_567_891, NOON_S, {}))
    assert (money.left_today_usd, money.resets_at) == (1.234567891, "2026-11-23T12:00:00Z")
