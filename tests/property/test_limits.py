"""Any order of requests, ends and waits keeps what the limits promise."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from freeapi import errors
from freeapi.policy.limits import DAY_S, Admission, CallerLimits, Limits, ModelBucket
from freeapi.policy.meter import BURST_PARTS, SLACK_S, WINDOW_S, Meter, Rates

CALLERS = (b"ann", b"bob", b"eve")
LIMITS = st.none() | st.integers(1, 60)


@dataclass
class Sent:
    """A request that was let in, as an outsider counts it."""

    caller: bytes
    at_s: float
    day: int
    reserved: int
    admission: Admission
    used: int
    is_open: bool = True
    is_cancelled: bool = False


def most_in_a_window(amounts: list[tuple[float, int]]) -> int:
    """The largest sum of what falls into any 60 s; the amounts are in the order of their times."""
    window: deque[tuple[float, int]] = deque()
    most = inside = 0
    for at_s, amount in amounts:
        while window and window[0][0] <= at_s - WINDOW_S:
            inside -= window.popleft()[1]
        window.append((at_s, amount))
        inside += amount
        most = max(most, inside)
    return most


def check_windows(rates: Rates, sent: list[Sent]) -> None:
    """No 60 s have seen more than the stated bounds."""
    counted = [one for one in sent if not one.is_cancelled]
    if rates.rpm is not None:
        burst = max(rates.rpm / BURST_PARTS, 1.0)
        assert most_in_a_window([(one.at_s, 1) for one in counted]) <= rates.rpm + burst
    if rates.tpm is not None:
        # What is used beyond a reservation comes on top.
        tokens = [(one.at_s, min(one.used, one.reserved)) for one in counted]
        assert most_in_a_window(tokens) <= 2 * rates.tpm


class LimitsMachine(RuleBasedStateMachine):
    """Three callers with the same limits and one model, asked and answered in any order."""

    @initialize(
        rpm=LIMITS, tpm=LIMITS, rpd=LIMITS, concurrency=LIMITS, model_rpm=LIMITS, model_tpm=LIMITS
    )
    def make(
        self,
        rpm: int | None,
        tpm: int | None,
        rpd: int | None,
        concurrency: int | None,
        model_rpm: int | None,
        model_tpm: int | None,
    ) -> None:
        """Start with full buckets."""
        self.own = CallerLimits(rpm=rpm, tpm=tpm, rpd=rpd, concurrency=concurrency)
        self.model = ModelBucket(model_rpm, model_tpm)
        self.limits = Limits()
        self.now_s = 1_000.0
        self.sent: list[Sent] = []

    def utc_s(self) -> float:
        """The wall clock, a few minutes before a midnight at first."""
        return 20_000 * DAY_S - 1_300.0 + self.now_s

    def seen(self) -> list[bytes]:
        """All that anyone can see of the state."""
        shown = [self.limits.headers(caller, self.own, self.now_s) for caller in CALLERS]
        return [*shown, self.model.rates.headers(self.model.meter, self.now_s)]

    def ask(self, caller: bytes, tokens: int) -> Admission:
        """Ask for admission now."""
        return self.limits.admit(caller, self.own, self.model, tokens, self.now_s, self.utc_s())

    @rule(seconds=st.sampled_from([0.01, 1.0, 10.0, 59.9, 60.0, 600.0]) | st.floats(0.0, 120.0))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now_s += seconds

    @rule(caller=st.sampled_from(CALLERS), tokens=st.integers(0, 70), times=st.integers(1, 8))
    def request(self, caller: bytes, tokens: int, times: int) -> None:
        """A burst of requests; a refusal takes nothing and tells the truth about the wait."""
        for _ in range(times):
            before = self.seen()
            try:
                admission = self.ask(caller, tokens)
            except errors.FreeApiError as refusal:
                assert self.seen() == before
                self.check_refusal(refusal, caller, tokens)
                return
            day = int(self.utc_s() // DAY_S)
            self.sent.append(Sent(caller, self.now_s, day, tokens, admission, tokens))

    def check_refusal(self, refusal: errors.FreeApiError, caller: bytes, tokens: int) -> None:
        """It is of the right kind, and nothing but requests in flight stands against it later."""
        mine = [one for one in self.sent if one.caller == caller]
        if isinstance(refusal, errors.RequestAboveTokenLimit):
            assert tokens > min(self.own.rates.tpm_max, self.model.rates.tpm_max)
            assert refusal.should_retry is False
            return
        wait_s = refusal.retry_after_s
        assert wait_s is not None
        assert wait_s > 0.0
        assert refusal.should_retry is (False if wait_s > 60.0 else None)
        if isinstance(refusal, errors.ConcurrencyExceeded):
            assert sum(one.is_open for one in mine) == self.own.concurrency
            return
        if sum(one.is_open for one in mine) < self.own.concurrency_max:
            then_s, later_s = self.now_s, self.now_s + wait_s + SLACK_S
            utc_s = self.utc_s() + wait_s + SLACK_S
            self.limits.admit(caller, self.own, self.model, tokens, later_s, utc_s).cancel(later_s)
            self.now_s = max(then_s, later_s)

    @precondition(lambda self: any(one.is_open for one in self.sent))
    @rule(data=st.data(), used=st.none() | st.integers(0, 100), is_sent=st.booleans())
    def end(self, data: Any, used: int | None, is_sent: bool) -> None:
        """A request ends with what it used, or was never sent; saying so twice does no harm."""
        one = data.draw(st.sampled_from([one for one in self.sent if one.is_open]))
        one.is_open = False
        for _ in range(2):
            if is_sent:
                one.used = one.reserved if used is None else used
                one.admission.settle(used, self.now_s)
            else:
                one.is_cancelled = True
                one.admission.cancel(self.now_s)

    @invariant()
    def no_window_admits_more_than_stated(self) -> None:
        """Neither any caller's nor the model's limits are exceeded in any 60 s."""
        for caller in CALLERS:
            mine = [one for one in self.sent if one.caller == caller]
            check_windows(self.own.rates, mine)
            assert sum(one.is_open for one in mine) <= self.own.concurrency_max
            for day in {one.day for one in mine}:
                todays = [one for one in mine if one.day == day and not one.is_cancelled]
                assert len(todays) <= self.own.rpd_max
        check_windows(self.model.rates, self.sent)

    @invariant()
    def those_in_flight_are_counted(self) -> None:
        """The table's count is the number of requests that haven't ended."""
        in_flight = sum(one.is_open for one in self.sent)
        assert f"in_flight={in_flight}>" in repr(self.limits)
        assert self.model.meter.in_flight == in_flight


TestLimits = LimitsMachine.TestCase
TestLimits.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(
    requests=st.lists(st.tuples(st.integers(0, 50), st.none() | st.integers(0, 50)), max_size=12),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_tokens_are_conserved(requests: list[tuple[int, int | None]], order: Any) -> None:
    """While the clock stands, a bucket lacks exactly what was used, or is still reserved."""
    limits, model = Limits(), ModelBucket(None, 2_000)
    own = CallerLimits(rpm=None, tpm=1_000, rpd=None, concurrency=None)
    admitted = [
        (limits.admit(b"ann", own, model, reserved, 1_000.0, 0.0), reserved, used)
        for reserved, used in requests
    ]
    order.shuffle(admitted)
    held = sum(reserved for reserved, _ in requests)
    for admission, reserved, used in admitted:
        admission.settle(used, 1_000.0)
        held += (reserved if used is None else used) - reserved
        line = f"x-ratelimit-remaining-tokens: {1_000 - held}\r\n".encode()
        assert line in limits.headers(b"ann", own, 1_000.0)
        assert f"{2_000 - held}".encode() in model.rates.headers(model.meter, 1_000.0)


class Hindsight:
    """A bucket that learns at once what each request will use: the truth to compare with."""

    def __init__(self) -> None:
        #: When, how much time's worth, in the order of admission.
        self.charges: list[tuple[float, float]] = []

    def due_s(self, now_s: float) -> float:
        """When it is full again. Charged from the start, however often the charges change."""
        due_s = 0.0
        for at_s, cost_s in self.charges:
            due_s = max(due_s, at_s) + cost_s
        return max(due_s, now_s)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("wait"), st.integers(0, 3) | st.integers(0, 40), st.none()),
            st.tuples(st.just("take"), st.integers(0, 5) | st.integers(0, 60), st.none()),
            st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 80)),
            st.tuples(st.just("cancel"), st.integers(0, 9), st.none()),
        ),
        max_size=40,
    )
)
@settings(max_examples=300, deadline=None)
def test_giving_back_never_beats_hindsight(steps: list[tuple[str, int, int | None]]) -> None:
    """No bucket is ever fuller than had each request taken from the start what it used."""
    rates, meter, now_s = Rates(20, 60), Meter(), 1_000.0
    requests, tokens = Hindsight(), Hindsight()
    spent_s = now_s
    flying: list[tuple[int, int, int]] = []
    for step, amount, used in steps:
        if step == "wait":
            now_s += amount
        elif step == "take" and meter.admits(rates, amount, now_s):
            flying.append((meter.take(rates, amount, now_s), amount, len(tokens.charges)))
            requests.charges.append((now_s, rates.request_s))
            tokens.charges.append((now_s, amount * rates.token_s))
            spent_s = max(spent_s, now_s) + amount * rates.token_s
        elif step in ("settle", "cancel") and flying:
            number, reserved, place = flying.pop(amount % len(flying))
            if used is None:
                meter.cancel(rates, reserved, number, now_s)
                requests.charges[place] = (requests.charges[place][0], 0.0)
            else:
                meter.settle(rates, reserved, used, now_s)
                spent_s = max(spent_s, now_s) + max(used - reserved, 0) * rates.token_s
            tokens.charges[place] = (tokens.charges[place][0], (used or 0) * rates.token_s)
        assert max(meter.requests_due_s, now_s) >= requests.due_s(now_s) - 1e-6
        assert tokens.due_s(now_s) - 1e-6 <= max(meter.tokens_due_s, now_s)
        assert meter.tokens_due_s <= max(spent_s, now_s) + 1e-6
        assert meter.in_flight == len(flying)


@given(
    visits=st.lists(st.tuples(st.integers(0, 9), st.floats(0.0, 5.0)), max_size=80),
    callers_max=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_forgetting_hands_out_no_more_than_stated(
    visits: list[tuple[int, float]], callers_max: int
) -> None:
    """One full bucket for each time that as many others as the table holds came in between."""
    limits, model = Limits(callers_max), ModelBucket(None, None)
    own = CallerLimits(rpm=6, tpm=None, rpd=None, concurrency=None)
    now_s = 1_000.0
    admitted: dict[int, int] = {}
    others: dict[int, set[int]] = {}
    lives: dict[int, int] = {}
    for visitor, pause_s in visits:
        now_s += pause_s
        if len(others.get(visitor, ())) >= callers_max:
            lives[visitor] += 1
        lives.setdefault(visitor, 1)
        try:
            limits.admit(bytes([visitor]), own, model, 0, now_s, 0.0).settle(0, now_s)
            admitted[visitor] = admitted.get(visitor, 0) + 1
        except errors.RateLimitExceeded:
            pass
        others[visitor] = set()
        for known in others:
            if known != visitor:
                others[known].add(visitor)
        refilled = (now_s - 1_000.0) / 10.0
        assert admitted.get(visitor, 0) <= lives[visitor] + refilled + 1e-6
        table, _ = repr(limits).removeprefix("<Limits callers=").split(" ")
        assert int(table) <= callers_max


@pytest.mark.parametrize("seed", range(2))
def test_500_clients_at_once_stay_within_the_bound(seed: int) -> None:
    """They never stop asking, and get no more of a model than stated; nor less than its limit."""
    chance = Random(seed)
    limits, model = Limits(), ModelBucket(3_500, 90_000)
    own = CallerLimits(rpm=20, tpm=40_000, rpd=None, concurrency=8)
    sent: list[Sent] = []
    flying: list[tuple[float, Sent]] = []
    for step in range(180):
        for place in range(500):
            now_s = 1_000.0 + step + place / 1_000.0
            caller = chance.randrange(500).to_bytes(2, "big")
            try:
                admission = limits.admit(caller, own, model, 1_100, now_s, 0.0)
            except errors.FreeApiError:
                continue
            one = Sent(caller, now_s, 0, 1_100, admission, chance.randrange(50, 600))
            sent.append(one)
            flying.append((now_s + chance.uniform(0.5, 8.0), one))
        for end_s, one in [flight for flight in flying if flight[0] < 1_001.0 + step]:
            one.admission.settle(one.used, end_s)
        flying = [flight for flight in flying if flight[0] >= 1_001.0 + step]
    check_windows(model.rates, sent)
    for number in range(500):
        check_windows(own.rates, [one for one in sent if one.caller == number.to_bytes(2, "big")])
    last_minute = sum(one.used for one in sent if one.at_s >= 1_120.0)
    assert last_minute >= 0.9 * 90_000


MANY_CALLERS = """
from freeapi.policy.limits import CallerLimits, Limits, ModelBucket

def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

before = resident_bytes()
limits = Limits()
own = CallerLimits(rpm=20, tpm=40_000, rpd=1_000, concurrency=8)
model = ModelBucket(None, None)
for number in range(250_000):
    now_s = 1_000.0 + number * 1e-6
    limits.admit(number.to_bytes(8, "little"), own, model, 1_100, now_s, 0.0).settle(300, now_s)
print(limits)
print(resident_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_callers_take_less_than_300_mb() -> None:
    """A quarter of them, none idle, stay below a quarter of it, the interpreter not counted.

    Hash tables double, so that theirs are as full at a quarter million as at a million; all of them
    would take 10 s.
    """
    done = subprocess.run(
        [sys.executable, "-c", MANY_CALLERS], capture_output=True, text=True, check=True
    )
    table, taken = done.stdout.splitlines()
    assert table == "<Limits callers=250000 in_flight=0>"
    assert 10e6 < int(taken) < 280e6 / 4
