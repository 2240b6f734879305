"""What is asked of the store, and how its answers become the errors of one process alone."""

from __future__ import annotations

import pytest

from freeapi import errors
from freeapi.policy.limits import CallerLimits
from freeapi.policy.meter import Rates
from freeapi.state.valkey_questions import (
    FULL,
    POOR,
    REFUSED,
    WAITING,
    Ask,
    Question,
    Verdict,
    cancelled,
    refusal,
    settled,
)
from tests.sharers import FREE

LIMITS = CallerLimits(rpm=6, tpm=600, rpd=10, concurrency=2)
#: 2026-11-23, 12:00 UTC.
NOON_S = 1_795_435_200.0


def ask(limits: CallerLimits = LIMITS, rates: Rates = Rates(60, 6_000)) -> Ask:  # noqa: B008 - a value
    """A request of 100 tokens and 60 nano-dollars, of a share of 100."""
    return Ask(b"\x01\x02", limits, "m", rates, 100, 500, 60, 100)


def test_question_is_read_by_place() -> None:
    """``admit.lua`` takes its arguments by place; no limit is 0, no share is -1."""
    question = Question(ask())
    question.ticket, question.ttl_s, question.asked = 7, 1.5, 2
    assert question.item() == (
        *(False, 7, "0102", "m"),
        *(6, 600, 10, 2, 60, 6_000),
        *(100, 500, 60, 100, 1.5, 2),
    )
    free = Question(Ask(b"", FREE, "m", Rates(None, None), 1, 0)).item()
    assert free[4:10] == (0, 0, 0, 0, 0, 0)
    assert free[11] == 1, "who costs nothing would be before all others for good"
    assert free[12:14] == (0, -1)


def test_end_is_read_by_place() -> None:
    """``decide.lua`` does so, too; what nobody knows is false, as it may be nothing else there."""
    assert settled(7, 0, 5, None) == (True, 7, False, 0, 5, False)
    assert cancelled(7) == (True, 7, True, False, False, False)


def test_withdrawal_leaves_the_line_only_where_it_may_stand_there() -> None:
    """The line is looked up for nobody who wouldn't have waited."""
    question = Question(ask())
    question.ticket = 7
    assert question.withdrawal() == cancelled(7)
    question.ttl_s = 1.5
    assert question.withdrawal() == (*cancelled(7), "m", "0102")


@pytest.mark.parametrize(
    ("verdict", "kind", "wait_s"),
    [
        (Verdict(REFUSED, requests_due_s=15.0), errors.RateLimitExceeded, 15.0),
        (Verdict(REFUSED, tokens_due_s=60.0), errors.TokenRateExceeded, 10.0),
        (Verdict(REFUSED, in_flight=2), errors.ConcurrencyExceeded, None),
        (Verdict(REFUSED, day_wait_s=3_600.0), errors.RateLimitExceeded, 3_600.0),
        (Verdict(REFUSED, model_requests_due_s=30.0), errors.CapacityExceeded, None),
        (Verdict(WAITING, hint_s=7.0), errors.CapacityExceeded, 7.0),
        (Verdict(FULL), errors.CapacityExceeded, None),
        (Verdict(POOR, spent_nanousd=30, held_nanousd=60), errors.BudgetBusy, None),
        (Verdict(POOR, spent_nanousd=41, day_wait_s=43_200), errors.BudgetExhausted, 43_200),
    ],
)
def test_refusal_names_the_limit_that_holds(
    verdict: Verdict, kind: type[errors.FreeApiError], wait_s: float | None
) -> None:
    """Each verdict is the error that one process would raise, with its wait."""
    error = refusal(ask(), verdict, NOON_S)
    assert type(error) is kind
    assert error.retry_after_s is not None
    if wait_s is not None:
        assert error.retry_after_s == pytest.approx(wait_s, abs=0.01)


def test_share_that_is_gone_says_until_when() -> None:
    """The end of the day, by the store's clock, in words."""
    error = refusal(ask(), Verdict(POOR, spent_nanousd=100, day_wait_s=43_200), NOON_S)
    assert error.facts["resets_at"] == "2026-11-24T00:00:00Z"
    assert error.should_retry is False
