"""Who is let in, who is refused, and what that costs whom."""

from __future__ import annotations

import pytest

from freeapi import errors
from freeapi.policy.limits import DAY_S, Admission, CallerLimits, Limits, ModelBucket

NOW_S = 1_000.0
#: 01:00 UTC of some day.
UTC_S = 20_000 * DAY_S + 3_600.0
ANN, BOB = b"ann", b"bob"
FREE = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=None)


def limited(
    *,
    rpm: int | None = None,
    tpm: int | None = None,
    rpd: int | None = None,
    concurrency: int | None = None,
) -> CallerLimits:
    """Only these limits."""
    return CallerLimits(rpm=rpm, tpm=tpm, rpd=rpd, concurrency=concurrency)


class Desk:
    """A table, a model, and clocks that move when told to."""

    def __init__(self, model: ModelBucket | None = None, callers_max: int = 100) -> None:
        self.limits = Limits(callers_max)
        self.model = model or ModelBucket(None, None)
        self.now_s = NOW_S
        self.utc_s = UTC_S

    def admit(self, caller: bytes, limits: CallerLimits, tokens: int = 10) -> Admission:
        """Ask for admission now."""
        return self.limits.admit(caller, limits, self.model, tokens, self.now_s, self.utc_s)

    def use(self, caller: bytes, limits: CallerLimits = FREE, tokens: int = 10) -> None:
        """One request that ends at once and has used all that it reserved."""
        self.admit(caller, limits, tokens).settle(None, self.now_s)

    def refuse(
        self,
        error: type[errors.FreeApiError],
        caller: bytes,
        limits: CallerLimits,
        tokens: int = 10,
    ) -> errors.FreeApiError:
        """Ask for admission, and see that it isn't given for just this reason."""
        with pytest.raises(errors.FreeApiError) as caught:
            self.admit(caller, limits, tokens)
        assert type(caught.value) is error
        assert caught.value.status == 429
        return caught.value

    def pass_time(self, seconds: float) -> None:
        """Both clocks go on."""
        self.now_s += seconds
        self.utc_s += seconds


def test_requests_per_minute_are_limited() -> None:
    """The caller is told what is used up, and when the next request fits; then it does."""
    desk, limits = Desk(), limited(rpm=20)
    for _ in range(3):
        desk.use(ANN, limits)
    refusal = desk.refuse(errors.RateLimitExceeded, ANN, limits)
    assert (refusal.code, refusal.type) == ("rate_limit_exceeded", "requests")
    assert refusal.message == (
        "Rate limit reached on requests per min (RPM): limit 20, requested 1. "
        "Please try again in 2s."
    )
    assert refusal.retry_after_s == pytest.approx(2.0, abs=1e-5)
    assert refusal.should_retry is None
    desk.use(BOB, limits)
    desk.pass_time(refusal.retry_after_s or 0.0)
    desk.use(ANN, limits)


def test_tokens_per_minute_are_limited() -> None:
    """Tokens are counted as reserved until it is known what was used."""
    desk, limits = Desk(), limited(tpm=600)
    admission = desk.admit(ANN, limits, 500)
    refusal = desk.refuse(errors.TokenRateExceeded, ANN, limits, 200)
    assert (refusal.code, refusal.type) == ("rate_limit_exceeded", "tokens")
    assert "tokens per min (TPM): limit 600, requested 200" in refusal.message
    assert refusal.retry_after_s == pytest.approx(10.0, abs=1e-5)
    admission.settle(400, desk.now_s)
    desk.use(ANN, limits, 200)


def test_a_request_larger_than_a_minutes_tokens_is_pointless() -> None:
    """It is told so with the numbers and told not to retry, for its own limit and the model's."""
    desk = Desk(ModelBucket(None, 5_000))
    own = desk.refuse(errors.RequestAboveTokenLimit, ANN, limited(tpm=600), 601)
    assert (own.code, own.type, own.should_retry) == ("rate_limit_exceeded", "tokens", False)
    assert "limit 600, requested 601" in own.message
    shared = desk.refuse(errors.RequestAboveTokenLimit, ANN, FREE, 5_001)
    assert "TPM) of the model: limit 5000, requested 5001" in shared.message
    assert shared.should_retry is False


def test_requests_per_day_are_counted_until_midnight() -> None:
    """The wait is until 00:00 UTC; while that is over a minute away retrying is pointless."""
    desk, limits = Desk(), limited(rpd=2)
    desk.use(ANN, limits)
    desk.use(ANN, limits)
    refusal = desk.refuse(errors.RateLimitExceeded, ANN, limits)
    assert refusal.retry_after_s == 82_800.0
    assert refusal.should_retry is False
    assert "requests per day (RPD): limit 2, requested 1" in refusal.message
    assert "23h0m0s" in refusal.message
    desk.pass_time(82_800.0 - 30.0)
    assert desk.refuse(errors.RateLimitExceeded, ANN, limits).should_retry is None
    desk.pass_time(30.0)
    desk.use(ANN, limits)
    desk.use(ANN, limits)
    desk.refuse(errors.RateLimitExceeded, ANN, limits)


def test_a_wall_clock_set_back_by_a_day_does_not_lock_callers_out() -> None:
    """The count belongs to the day that the clock shows, whichever way it was set."""
    desk, limits = Desk(), limited(rpd=1)
    desk.utc_s += 365 * DAY_S
    desk.use(ANN, limits)
    desk.utc_s -= 365 * DAY_S
    desk.use(ANN, limits)
    desk.refuse(errors.RateLimitExceeded, ANN, limits)


def test_a_new_day_refills_no_minute() -> None:
    """Midnight only resets what is counted by the day."""
    desk, limits = Desk(), limited(tpm=600)
    desk.use(ANN, limits, 600)
    desk.utc_s += DAY_S
    desk.refuse(errors.TokenRateExceeded, ANN, limits, 1)


def test_requests_at_once_are_limited() -> None:
    """Requests count between admission and settlement, and the wait is a guess."""
    desk, limits = Desk(), limited(concurrency=2)
    first, _ = desk.admit(ANN, limits), desk.admit(ANN, limits)
    refusal = desk.refuse(errors.ConcurrencyExceeded, ANN, limits)
    assert (refusal.code, refusal.type) == ("concurrency_exceeded", "requests")
    assert "2 may be in flight" in refusal.message
    assert refusal.retry_after_s == 1.0
    assert refusal.should_retry is None
    assert repr(desk.limits) == "<Limits callers=1 in_flight=2>"
    first.settle(None, desk.now_s)
    assert repr(desk.limits) == "<Limits callers=1 in_flight=1>"
    desk.admit(ANN, limits)


def test_a_busy_model_is_nobodys_fault() -> None:
    """When only the instance's limit stands against it, the refusal is one that can be queued."""
    desk = Desk(ModelBucket(6, 600))
    desk.use(ANN, tokens=600)
    refusal = desk.refuse(errors.CapacityExceeded, BOB, FREE, 300)
    assert refusal.code == "capacity_exceeded"
    assert refusal.retry_after_s == pytest.approx(30.0, abs=1e-5)
    desk.pass_time(5.0)
    assert desk.refuse(errors.CapacityExceeded, BOB, FREE, 0).retry_after_s == pytest.approx(5.0)


def test_the_wait_is_until_nothing_stands_against_it() -> None:
    """The caller's own limit is named, but the wait is that of the model if that is longer."""
    desk = Desk(ModelBucket(None, 600))
    desk.use(BOB, tokens=600)
    limits = limited(rpm=60, concurrency=1)
    desk.pass_time(10.0)
    desk.admit(ANN, limits, 100)
    crowded = desk.refuse(errors.ConcurrencyExceeded, ANN, limits, 300)
    assert crowded.retry_after_s == pytest.approx(30.0, abs=1e-5)
    empty = limited(rpm=1)
    desk.refuse(errors.CapacityExceeded, BOB, empty, 300)
    desk.use(b"eve", empty, 0)
    slow = desk.refuse(errors.RateLimitExceeded, b"eve", empty, 600)
    assert slow.retry_after_s == pytest.approx(60.0, abs=1e-5)


def test_a_long_debt_says_not_to_retry() -> None:
    """Waits over a minute are never left to the SDKs' own judgement."""
    desk = Desk()
    desk.admit(ANN, limited(tpm=60), 10).settle(1_000, desk.now_s)
    assert desk.refuse(errors.TokenRateExceeded, ANN, limited(tpm=60)).should_retry is False
    desk.model = ModelBucket(None, 60)
    desk.admit(BOB, FREE, 10).settle(1_000, desk.now_s)
    assert desk.refuse(errors.CapacityExceeded, BOB, FREE).should_retry is False


@pytest.mark.parametrize(
    "short",
    [
        limited(rpm=1),
        limited(tpm=600),
        limited(rpd=1),
        limited(concurrency=1),
        FREE,
    ],
)
def test_a_refusal_takes_nothing(short: CallerLimits) -> None:
    """Whichever limit refuses, neither the caller nor the model has less than before."""
    desk = Desk(ModelBucket(None, 600))
    desk.admit(ANN, short, 600)
    limits = CallerLimits(
        rpm=short.rates.rpm or 600,
        tpm=short.rates.tpm or 6_000,
        rpd=short.rpd or 100,
        concurrency=short.concurrency or 100,
    )
    before = desk.limits.headers(ANN, limits, desk.now_s), repr(desk.limits)
    for _ in range(50):
        with pytest.raises(errors.FreeApiError):
            desk.admit(ANN, limits, 600)
    assert (desk.limits.headers(ANN, limits, desk.now_s), repr(desk.limits)) == before
    desk.pass_time(60.0)
    desk.use(BOB, limits, 600)


def test_a_refused_stranger_takes_no_room() -> None:
    """Nobody gets into the table, and others out of it, by requests that are refused."""
    desk = Desk(callers_max=1)
    desk.use(ANN, limited(rpd=5))
    for _ in range(10):
        desk.refuse(errors.RequestAboveTokenLimit, BOB, limited(tpm=1))
    assert desk.limits.headers(ANN, limited(rpm=60), desk.now_s)
    assert repr(desk.limits) == "<Limits callers=1 in_flight=0>"


def test_an_admission_ends_once() -> None:
    """Settling or cancelling again, in any order, changes nothing."""
    desk, limits = Desk(), limited(rpm=600, tpm=600, rpd=9)
    settled, cancelled = desk.admit(ANN, limits, 100), desk.admit(ANN, limits, 100)
    settled.settle(50, desk.now_s)
    cancelled.cancel(desk.now_s)
    after = desk.limits.headers(ANN, limits, desk.now_s)
    assert b"remaining-requests: 99\r\n" in after
    assert b"remaining-tokens: 550\r\n" in after
    for admission in (settled, cancelled):
        admission.settle(0, desk.now_s)
        admission.settle(10_000, desk.now_s)
        admission.cancel(desk.now_s)
    assert desk.limits.headers(ANN, limits, desk.now_s) == after
    assert repr(desk.limits) == "<Limits callers=1 in_flight=0>"


def test_unknown_usage_keeps_the_reservation() -> None:
    """None charges what was reserved, to the caller and to the model."""
    desk, limits = Desk(ModelBucket(None, 600)), limited(tpm=600)
    desk.admit(ANN, limits, 100).settle(None, desk.now_s)
    assert b"remaining-tokens: 500\r\n" in desk.limits.headers(ANN, limits, desk.now_s)
    desk.refuse(errors.CapacityExceeded, BOB, FREE, 501)
    desk.use(BOB, FREE, 500)


def test_what_is_not_used_comes_back_to_the_model_too() -> None:
    """The instance's tokens are corrected like the caller's."""
    desk = Desk(ModelBucket(None, 600))
    desk.admit(ANN, FREE, 600).settle(100, desk.now_s)
    desk.refuse(errors.CapacityExceeded, BOB, FREE, 501)
    desk.use(BOB, FREE, 500)


def test_a_request_that_was_never_sent_counts_nowhere() -> None:
    """Cancelling gives back all four of the caller's limits and both of the model's."""
    desk = Desk(ModelBucket(1, 10))
    limits = limited(rpm=1, tpm=10, rpd=1, concurrency=1)
    for _ in range(5):
        desk.admit(ANN, limits).cancel(desk.now_s)
    desk.use(ANN, limits)


def test_cancelling_after_midnight_takes_nothing_off_the_new_day() -> None:
    """A request of yesterday isn't subtracted from today's, nor below nought."""
    desk, limits = Desk(), limited(rpd=2)
    yesterdays = desk.admit(ANN, limits), desk.admit(ANN, limits)
    desk.pass_time(DAY_S)
    desk.use(ANN, limits)
    yesterdays[0].cancel(desk.now_s)
    yesterdays[1].cancel(desk.now_s)
    desk.use(ANN, limits)
    desk.refuse(errors.RateLimitExceeded, ANN, limits)


def test_cancelling_does_not_uncount_what_was_never_counted() -> None:
    """A caller without a daily limit, or whose limit was lifted, has nothing to get back."""
    desk, limits = Desk(), limited(rpd=2)
    uncounted = desk.admit(ANN, FREE)
    desk.use(ANN, limits)
    uncounted.cancel(desk.now_s)
    desk.use(ANN, limits)
    desk.refuse(errors.RateLimitExceeded, ANN, limits)


def test_new_limits_of_a_model_hold_at_once() -> None:
    """Replacing its rates keeps what it has used, and settles what was admitted under the old."""
    desk = Desk(ModelBucket(None, 600))
    admission = desk.admit(ANN, FREE, 300)
    desk.model.rates = ModelBucket(None, 300).rates
    assert desk.refuse(errors.CapacityExceeded, BOB, FREE, 300).retry_after_s == pytest.approx(30.0)
    admission.settle(0, desk.now_s)
    desk.use(BOB, FREE, 300)


def test_headers_are_for_every_answer() -> None:
    """They stand on a refusal, for a stranger, and take no room in the table."""
    desk, limits = Desk(), limited(rpm=6, tpm=600)
    assert b"remaining-tokens: 600\r\n" in desk.limits.headers(ANN, limits, desk.now_s)
    assert repr(desk.limits) == "<Limits callers=0 in_flight=0>"
    desk.use(ANN, limits, 60)
    desk.refuse(errors.RateLimitExceeded, ANN, limits)
    lines = desk.limits.headers(ANN, limits, desk.now_s)
    assert b"remaining-requests: 0\r\nx-ratelimit-reset-requests: 10s\r\n" in lines
    assert b"remaining-tokens: 540\r\nx-ratelimit-reset-tokens: 6s\r\n" in lines


def test_a_full_table_forgets_the_least_recently_seen() -> None:
    """Being refused is being seen; who is forgotten starts anew."""
    desk, limits = Desk(callers_max=3), limited(rpd=1)
    for caller in (ANN, BOB, b"eve"):
        desk.use(caller, limits)
    desk.refuse(errors.RateLimitExceeded, ANN, limits)
    desk.use(b"new", limits)
    assert repr(desk.limits) == "<Limits callers=3 in_flight=0>"
    desk.refuse(errors.RateLimitExceeded, ANN, limits)
    desk.refuse(errors.RateLimitExceeded, b"eve", limits)
    desk.use(BOB, limits)


def test_requests_in_flight_are_never_forgotten() -> None:
    """A full table keeps callers with requests in flight, beyond its size if all have some."""
    desk, limits = Desk(callers_max=2), limited(concurrency=1)
    admissions = {caller: desk.admit(caller, limits) for caller in (b"1", b"2", b"3", b"4")}
    assert repr(desk.limits) == "<Limits callers=4 in_flight=4>"
    for caller in admissions:
        desk.refuse(errors.ConcurrencyExceeded, caller, limits)
    admissions.pop(b"3").settle(None, desk.now_s)
    desk.use(b"5", limited(rpd=1))
    assert repr(desk.limits) == "<Limits callers=4 in_flight=3>"
    for admission in admissions.values():
        admission.settle(None, desk.now_s)
    desk.use(b"6")
    assert repr(desk.limits) == "<Limits callers=2 in_flight=0>"


def test_callers_whom_it_costs_nothing_are_forgotten_early() -> None:
    """With full buckets and no request today, they leave as others come, four for one."""
    desk, limits = Desk(), limited(rpm=60, tpm=60)
    for number in range(10):
        desk.use(bytes([number]), limits, 30)
    desk.pass_time(29.0)
    desk.use(ANN, limits)
    assert repr(desk.limits) == "<Limits callers=11 in_flight=0>"
    desk.pass_time(1.0)
    desk.use(BOB, limits)
    assert repr(desk.limits) == "<Limits callers=8 in_flight=0>"


def test_a_table_for_nobody_is_a_mistake() -> None:
    """There is room for one caller at least, and no request has fewer than no tokens."""
    with pytest.raises(AssertionError):
        Limits(0)
    with pytest.raises(AssertionError):
        Desk().admit(ANN, FREE, -1)
