"""The arithmetic of limits: buckets as times, giving back, the day's count, the headers."""

from __future__ import annotations

import pytest

from freeapi.policy.meter import Day, Meter, Rates, duration

NOW_S = 1_000.0


def take_all(meter: Meter, rates: Rates, tokens: int, now_s: float) -> int:
    """Take until no more is admitted (at most 1,000 times); how many were."""
    for taken in range(1_000):
        if not meter.admits(rates, tokens, now_s):
            return taken
        meter.take(rates, tokens, now_s)
    return 1_000


def tokens_free(meter: Meter, rates: Rates, now_s: float) -> int:
    """The largest request that would be let in now."""
    assert rates.tpm is not None
    return max((n for n in range(rates.tpm + 1) if meter.admits(rates, n, now_s)), default=-1)


def test_requests_come_in_bursts_of_a_sixth() -> None:
    """Of 60 a minute ten are admitted at once, and then one a second."""
    rates, meter = Rates(60, None), Meter()
    assert take_all(meter, rates, 0, NOW_S) == 10
    assert take_all(meter, rates, 0, NOW_S + 0.99) == 0
    assert take_all(meter, rates, 0, NOW_S + 1.0) == 1
    assert take_all(meter, rates, 0, NOW_S + 3.5) == 2


@pytest.mark.parametrize("rpm", [1, 2, 3, 5, 6, 7])
def test_a_small_limit_admits_one_at_a_time(rpm: int) -> None:
    """Where a sixth of the limit is less than one request, one is admitted and then refilled."""
    rates, meter = Rates(rpm, None), Meter()
    assert take_all(meter, rates, 0, NOW_S) == 1
    assert take_all(meter, rates, 0, NOW_S + 60.0 / rpm) == 1


def test_a_minutes_tokens_may_come_at_once() -> None:
    """A request may be as large as the limit; then it takes a minute until the next such one."""
    rates, meter = Rates(None, 40_000), Meter()
    assert take_all(meter, rates, 40_000, NOW_S) == 1
    assert not meter.admits(rates, 1, NOW_S)
    assert meter.waits_s(rates, 20_000, NOW_S)[1] == pytest.approx(30.0)
    assert meter.admits(rates, 20_000, NOW_S + 30.0)
    assert not meter.admits(rates, 20_001, NOW_S + 30.0)
    assert meter.admits(rates, 40_000, NOW_S + 60.0)


def test_a_request_above_the_limit_never_fits() -> None:
    """However long a bucket has been idle, it holds no more than a minute's tokens."""
    assert not Meter().admits(Rates(None, 100), 101, 1e9)


def test_off_is_without_limit() -> None:
    """Where nothing is limited everything is admitted, even by a meter that is deep in debt."""
    meter = Meter(requests_due_s=1e9, tokens_due_s=1e9)
    assert take_all(meter, Rates(None, None), 10**12, NOW_S) == 1_000


@pytest.mark.parametrize(("rpm", "tpm"), [(0, None), (None, 0), (-1, 1)])
def test_a_limit_of_nothing_is_a_mistake(rpm: int | None, tpm: int | None) -> None:
    """Limits are at least one: zero would divide by itself, and is spelled `off` or not at all."""
    with pytest.raises(AssertionError):
        Rates(rpm, tpm)


def test_a_step_back_of_the_clock_refills_nothing() -> None:
    """Were the clock ever to step back, what was taken stays taken."""
    rates, meter = Rates(6, 100), Meter()
    meter.take(rates, 100, NOW_S)
    assert not meter.admits(rates, 0, NOW_S - 5.0)
    assert not meter.admits(Rates(None, 100), 1, NOW_S - 5.0)


def test_settling_gives_the_rest_back_exactly() -> None:
    """While the clock stands, the bucket lacks what was used, whichever request ends first."""
    rates = Rates(None, 100)
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        meter = Meter()
        for _ in range(3):
            meter.take(rates, 30, NOW_S)
        assert tokens_free(meter, rates, NOW_S) == 10
        for ended, _ in enumerate(order, start=1):
            meter.settle(rates, 30, 10, NOW_S)
            assert tokens_free(meter, rates, NOW_S) == 10 + 20 * ended
        assert meter.in_flight == 0


def test_what_ended_requests_used_stays_used() -> None:
    """Requests that follow each other add up, be there a pause without any in flight or not."""
    rates, meter = Rates(None, 100), Meter()
    for number in range(1, 5):
        meter.take(rates, 20, NOW_S)
        meter.settle(rates, 20, 10, NOW_S)
        assert tokens_free(meter, rates, NOW_S) == 100 - 10 * number


def test_settling_never_fills_above_the_limit() -> None:
    """What the clock has refilled in the meantime isn't added to what comes back."""
    rates, meter = Rates(None, 100), Meter()
    meter.take(rates, 100, NOW_S)
    meter.settle(rates, 100, 0, NOW_S + 45.0)
    assert take_all(meter, rates, 1, NOW_S + 45.0) == 100


def test_what_the_clock_refilled_is_not_given_back_again() -> None:
    """A long request that used nothing can't pay for what others took while it ran.

    Had it reserved nothing, the bucket would have been full after 50 s all the same.
    """
    rates, meter = Rates(None, 60), Meter()
    meter.take(rates, 60, NOW_S)
    meter.take(rates, 50, NOW_S + 50.0)
    meter.settle(rates, 60, 0, NOW_S + 50.0)
    assert tokens_free(meter, rates, NOW_S + 50.0) == 10


def test_a_long_request_does_not_hold_its_tokens_for_ever() -> None:
    """What is in flight is refilled too: after a minute, a second request of that size fits."""
    rates, meter = Rates(None, 60), Meter()
    meter.take(rates, 60, NOW_S)
    assert meter.admits(rates, 60, NOW_S + 60.0)


def test_using_more_than_reserved_is_a_debt() -> None:
    """The excess is charged, and waited for by the next request."""
    rates, meter = Rates(None, 60), Meter()
    meter.take(rates, 10, NOW_S)
    meter.take(rates, 10, NOW_S)
    meter.settle(rates, 10, 130, NOW_S)
    assert meter.waits_s(rates, 1, NOW_S)[1] == pytest.approx(140.0 + 1.0 - 60.0)
    assert b"remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 2m20s" in rates.headers(meter, NOW_S)
    late_s = NOW_S + 500.0
    meter.settle(rates, 10, 40, late_s)
    assert tokens_free(meter, rates, late_s) == 30


def test_settling_what_was_not_taken_is_a_mistake() -> None:
    """More ends than beginnings, or of more tokens than are reserved, are noticed."""
    rates, meter = Rates(1, 1), Meter()
    with pytest.raises(AssertionError, match="settled more often"):
        meter.settle(rates, 0, 0, NOW_S)
    with pytest.raises(AssertionError, match="cancelled more often"):
        meter.cancel(rates, 0, 1, NOW_S)
    meter.take(rates, 1, NOW_S)
    meter.take(rates, 1, NOW_S)
    with pytest.raises(AssertionError):
        meter.settle(rates, 3, 0, NOW_S)


def test_a_cancelled_request_leaves_no_trace() -> None:
    """All of it comes back, be it the first, the last or the only one."""
    rates = Rates(60, 100)
    for order in ((0, 1), (1,), (0,)):
        meter = Meter()
        numbers = [meter.take(rates, 50, NOW_S) for _ in range(2)]
        for place in order:
            meter.cancel(rates, 50, numbers[place], NOW_S)
        kept = 2 - len(order)
        assert meter.in_flight == kept
        assert meter.requests_due_s == pytest.approx(NOW_S + kept)
        assert tokens_free(meter, rates, NOW_S) == 100 - 50 * kept


def test_cancelling_gives_back_no_place_that_was_refilled() -> None:
    """Two cancelled requests can't pay for a third that came when they were long refilled."""
    rates, meter = Rates(20, None), Meter()
    first, second = (meter.take(rates, 0, NOW_S) for _ in range(2))
    meter.cancel(rates, 0, first, NOW_S + 1.0)
    meter.take(rates, 0, NOW_S + 20.0)
    meter.cancel(rates, 0, second, NOW_S + 20.0)
    assert meter.requests_due_s == NOW_S + 23.0
    third = meter.take(rates, 0, NOW_S + 60.0)
    meter.cancel(rates, 0, third, NOW_S + 99.0)
    assert meter.requests_due_s == NOW_S + 63.0


def test_headers_say_how_the_caller_stands() -> None:
    """The limit by the minute, what would pass now, and when everything is refilled."""
    rates, meter = Rates(20, 40_000), Meter()
    meter.take(rates, 1_000, NOW_S)
    assert rates.headers(meter, NOW_S) == (
        b"x-ratelimit-limit-requests: 20\r\n"
        b"x-ratelimit-remaining-requests: 2\r\n"
        b"x-ratelimit-reset-requests: 3s\r\n"
        b"x-ratelimit-limit-tokens: 40000\r\n"
        b"x-ratelimit-remaining-tokens: 39000\r\n"
        b"x-ratelimit-reset-tokens: 2s\r\n"
    )
    idle = rates.headers(meter, NOW_S + 60.0)
    assert b"remaining-requests: 3\r\nx-ratelimit-reset-requests: 0s\r\n" in idle
    assert b"remaining-tokens: 40000\r\nx-ratelimit-reset-tokens: 0s\r\n" in idle


def test_headers_leave_out_what_is_off() -> None:
    """Nothing is said about a limit that doesn't exist."""
    meter = Meter()
    assert Rates(None, None).headers(meter, NOW_S) == b""
    assert Rates(6, None).headers(meter, NOW_S).count(b"-requests: ") == 3
    assert b"tokens" not in Rates(6, None).headers(meter, NOW_S)
    assert b"requests" not in Rates(None, 6).headers(meter, NOW_S)


def test_headers_show_no_debt() -> None:
    """Under a limit that was lowered meanwhile nothing is free, rather than less than nothing."""
    meter = Meter(requests_due_s=NOW_S + 9.0, tokens_due_s=NOW_S + 90.0)
    lines = Rates(6_000, 6_000).headers(meter, NOW_S)
    assert b"remaining-requests: 100\r\n" in lines
    meter.requests_due_s = NOW_S + 30.0
    lines = Rates(6_000, 6_000).headers(meter, NOW_S)
    assert b"remaining-requests: 0\r\nx-ratelimit-reset-requests: 30s\r\n" in lines
    assert b"remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 1m30s\r\n" in lines


@pytest.mark.parametrize("tpm", [1, 999, 1_000, 1_001, 40_000, 999_999, 1_000_000, 50_000_050])
def test_numbers_of_any_length_are_written_out(tpm: int) -> None:
    """What remains is a plain decimal number, without a digit lost between its thousands."""
    assert Rates(None, tpm).headers(Meter(), NOW_S) == (
        b"x-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-tokens: %d\r\n"
        b"x-ratelimit-reset-tokens: 0s\r\n" % (tpm, tpm)
    )


def test_one_limit_alone_has_whole_lines() -> None:
    """Three lines about what is limited, each ended, and nothing of the other limit."""
    meter = Meter(requests_due_s=NOW_S + 10.0, tokens_due_s=NOW_S + 0.25)
    assert Rates(60, None).headers(meter, NOW_S) == (
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 0\r\n"
        b"x-ratelimit-reset-requests: 10s\r\n"
    )
    assert Rates(None, 600).headers(meter, NOW_S) == (
        b"x-ratelimit-limit-tokens: 600\r\nx-ratelimit-remaining-tokens: 597\r\n"
        b"x-ratelimit-reset-tokens: 250ms\r\n"
    )


@pytest.mark.parametrize("rpm", [1, 7, 20, 60, 3_500])
def test_remaining_is_what_would_be_admitted(rpm: int) -> None:
    """Exactly as many requests as the header says are let in at that moment."""
    rates, meter = Rates(rpm, None), Meter()
    for step in range(50):
        now_s = NOW_S + step * 0.37
        line = rates.headers(meter, now_s).split(b"\r\n")[1]
        assert take_all(meter, rates, 0, now_s) == int(line.rsplit(b" ")[-1])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0s"),
        (0.0, "0s"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (0.9985, "999ms"),
        (0.9995, "1s"),
        (1.0, "1s"),
        (1.2, "2s"),
        (59.0, "59s"),
        (59.1, "1m0s"),
        (360.0, "6m0s"),
        (3_599.5, "1h0m0s"),
        (86_399.0, "23h59m59s"),
    ],
)
def test_durations_are_spelled_as_openai_does(seconds: float, text: str) -> None:
    """Milliseconds below a second, else whole seconds, never less than the truth."""
    assert duration(seconds) == text


def test_a_day_shares_its_tallies() -> None:
    """All who have counted as many requests on a day hold the same object; days don't mix."""
    day, other = Day(86_400.0), Day(172_800.0)
    first = day.tally(1)
    meter = Meter(tally=first)
    assert day.tally(1) is first
    assert meter.requests_on(day) == 1
    assert meter.requests_on(other) == 0
    assert Meter().requests_on(day) == 0


@pytest.mark.parametrize("count", [-1, 2])
def test_a_tally_counts_one_by_one(count: int) -> None:
    """There is no count below nought or beyond the next."""
    with pytest.raises(AssertionError):
        Day(0.0).tally(count)


def test_a_meter_is_forgettable_when_a_new_one_is_the_same() -> None:
    """Only with full buckets, nothing in flight and nothing counted on this day."""
    rates, day, meter = Rates(60, 60), Day(86_400.0), Meter()
    assert meter.is_forgettable(NOW_S, day)
    meter.take(rates, 5, NOW_S)
    assert not meter.is_forgettable(NOW_S + 60.0, day)
    meter.settle(rates, 5, 5, NOW_S)
    assert not meter.is_forgettable(NOW_S + 4.9, day)
    assert meter.is_forgettable(NOW_S + 5.0, day)
    meter.tally = day.tally(1)
    assert not meter.is_forgettable(NOW_S + 5.0, day)
    assert meter.is_forgettable(NOW_S + 5.0, Day(172_800.0))
