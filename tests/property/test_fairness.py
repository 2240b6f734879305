"""The fair queue under any sequence of events, and simulated under load with a clock of its own."""

from __future__ import annotations

import heapq
import math
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import count
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from freeapi.errors import CapacityExceeded
from freeapi.policy.fairness import FairQueue, Waiter

COST_MAX = 50
WAITING_MAX, PER_CALLER_MAX = 12, 4
CALLERS = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
LANES = st.sampled_from(["x", "y"])
COSTS = st.integers(1, COST_MAX)


class Reserved(RuleBasedStateMachine):
    """Callers join, leave, run out of time and are served at what they reserved."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[None] = FairQueue(WAITING_MAX, PER_CALLER_MAX)
        self.now_s = 0.0
        #: Who should be in the queue, in the order of joining.
        self.waiting: list[Waiter[None]] = []
        self.served: list[Waiter[None]] = []
        #: Cost served so far, and what it was for all callers when this one began to wait.
        self.totals: dict[tuple[str, bytes], int] = {}
        self.since: dict[tuple[str, bytes], dict[tuple[str, bytes], int]] = {}

    def of(self, lane: str, caller: bytes) -> list[Waiter[None]]:
        """Those of one caller in one lane, the oldest first."""
        return [w for w in self.waiting if (w.lane, w.caller) == (lane, caller)]

    def gone(self, waiter: Waiter[None]) -> None:
        """Forget one who isn't in the queue any more."""
        self.waiting.remove(waiter)
        if not self.of(waiter.lane, waiter.caller):
            del self.since[waiter.lane, waiter.caller]

    @rule(caller=CALLERS, lane=LANES, cost=COSTS, patience_s=st.integers(1, 40))
    def join(self, caller: bytes, lane: str, cost: int, patience_s: int) -> None:
        """Joining fails only where the queue is full or the estimate exceeds the deadline."""
        deadline_s = self.now_s + patience_s
        own = sum(waiter.caller == caller for waiter in self.waiting)
        full = len(self.waiting) >= WAITING_MAX or own >= PER_CALLER_MAX
        hopeless = self.queue.wait_s(caller, lane, self.now_s) >= patience_s
        if full or hopeless:
            with pytest.raises(CapacityExceeded) as caught:
                self.queue.join(caller, lane, cost, self.now_s, deadline_s, None)
            assert (caught.value.retry_after_s or 0.0) >= 1.0
            return
        waiter = self.queue.join(caller, lane, cost, self.now_s, deadline_s, None)
        self.waiting.append(waiter)
        self.since.setdefault((lane, caller), dict(self.totals))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Anyone may leave at any time, twice."""
        waiter = data.draw(st.sampled_from(self.waiting))
        self.queue.leave(waiter, self.now_s)
        self.queue.leave(waiter, self.now_s)
        self.gone(waiter)

    @rule(seconds=st.integers(0, 15))
    def pass_time(self, seconds: int) -> None:
        """Time passes; who is out of it may be in the queue still, but is never served."""
        self.now_s += seconds

    @rule(lanes=st.sets(LANES, min_size=1))
    def serve(self, lanes: set[str]) -> None:
        """One is served if and only if one waits, in time, for a lane that has capacity."""
        waiter = self.queue.next(lambda waiter: waiter.lane in lanes, self.now_s)
        for other in [w for w in self.waiting if w.state == "over"]:
            assert other.deadline_s <= self.now_s, "left out before its time"
            self.gone(other)
        if waiter is None:
            assert not [w for w in self.waiting if w.lane in lanes and w.deadline_s > self.now_s]
            return
        assert waiter.lane in lanes
        assert waiter.deadline_s > self.now_s
        assert waiter is self.of(waiter.lane, waiter.caller)[0], "overtaken by its caller's own"
        key = (waiter.lane, waiter.caller)
        self.totals[key] = self.totals.get(key, 0) + waiter.cost
        self.gone(waiter)
        self.served.append(waiter)

    @invariant()
    def nobody_is_lost(self) -> None:
        """The queue holds those who joined and neither left nor were served, each once."""
        assert self.queue.waiting == len(self.waiting) <= WAITING_MAX
        assert all(waiter.state == "waiting" for waiter in self.waiting)
        for lane in ("x", "y"):
            assert self.queue.holds(lane) == any(w.lane == lane for w in self.waiting)


class ReservedAndBounded(Reserved):
    """Without corrections, what was charged is what was served, and the paper's bound holds."""

    @invariant()
    def nobody_is_ahead(self) -> None:
        """Of two who have both waited in a lane since, neither got 2 dearest requests more."""
        for lane, f in self.since:
            for other, g in self.since:
                if lane != other or f >= g:
                    continue
                # The later of the two beginnings: totals only grow.
                start = max(
                    (self.since[lane, f], self.since[lane, g]), key=lambda t: sum(t.values())
                )
                got = [self.totals.get((lane, c), 0) - start.get((lane, c), 0) for c in (f, g)]
                assert abs(got[0] - got[1]) <= 2 * COST_MAX


class Corrected(Reserved):
    """The same with corrections at any time, down to nothing and up to twice the cost."""

    @precondition(lambda self: self.served)
    @rule(data=st.data(), used=st.integers(0, 2 * COST_MAX))
    def correct(self, data: st.DataObject, used: int) -> None:
        """Any served request may be corrected, whoever waits by then."""
        waiter = data.draw(st.sampled_from(self.served))
        self.queue.correct(waiter, used)
        assert waiter.state == "over"


FEW = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestReserved = ReservedAndBounded.TestCase
TestReserved.settings = FEW
TestCorrected = Corrected.TestCase
TestCorrected.settings = FEW


def put(queue: FairQueue[None], caller: bytes, cost: int = 100) -> Waiter[None]:
    """Join where time doesn't matter."""
    return queue.join(caller, "m", cost, 0.0, 1e9, None)


def take(queue: FairQueue[None]) -> Waiter[None]:
    """Serve the next, who must exist."""
    waiter = queue.next(lambda _: True, 0.0)
    assert waiter is not None
    return waiter


# --- Under load -----------------------------------------------------------------------------------

#: How long a request of this cost holds its slot.
Seconds = Callable[[Random, int], float]


class Simulation:
    """A model of so many slots, and callers who ask again after each answer.

    Half of what is reserved is used. Who is refused obeys `retry-after`.
    """

    def __init__(self, slots: int, seconds: Seconds) -> None:
        self.queue: FairQueue[None] = FairQueue()
        self.chance = Random(4)
        self.slots = slots
        self.seconds = seconds
        self.used: dict[bytes, int] = {}
        #: Time, number (equals stay in order), what happens.
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.numbers = count()

    def at(self, time_s: float, event: Callable[[float], None]) -> None:
        """Let it happen then."""
        heapq.heappush(self.events, (time_s, next(self.numbers), event))

    def run(self, concurrency: dict[bytes, int], until_s: float) -> list[int]:
        """What each caller was served, in the order given."""
        self.used = dict.fromkeys(concurrency, 0)
        for caller, requests in concurrency.items():
            for _ in range(requests):
                self.at(self.chance.random() / 100, partial(self.ask, caller))
        now_s = 0.0
        while now_s < until_s:
            now_s, _, event = heapq.heappop(self.events)
            event(now_s)
            while self.slots and (waiter := self.queue.next(lambda _: True, now_s)) is not None:
                self.slots -= 1
                seconds = self.seconds(self.chance, waiter.cost)
                self.at(now_s + seconds, partial(self.answer, waiter))
        return list(self.used.values())

    def ask(self, caller: bytes, now_s: float) -> None:
        """One more request of the caller."""
        cost = self.chance.randint(100, 4_000)
        try:
            waiter = self.queue.join(caller, "m", cost, now_s, now_s + 10.0, None)
        except CapacityExceeded as error:
            self.at(now_s + (error.retry_after_s or 0.0), partial(self.ask, caller))
        else:
            self.at(waiter.deadline_s, partial(self.expire, waiter))

    def expire(self, waiter: Waiter[None], now_s: float) -> None:
        """The deadline is here; it says nothing to who is served."""
        if waiter.state == "waiting":
            self.queue.leave(waiter, now_s)
            self.ask(waiter.caller, now_s)

    def answer(self, waiter: Waiter[None], now_s: float) -> None:
        """The answer is over and its slot free."""
        self.slots += 1
        self.used[waiter.caller] += waiter.cost // 2
        self.queue.correct(waiter, waiter.cost // 2)
        self.ask(waiter.caller, now_s)


def by_tokens(_: Random, cost: int) -> float:
    """A model that takes its time by the token."""
    return cost / 2_000


def by_chance(chance: Random, _: int) -> float:
    """An upstream whose time has little to do with the tokens."""
    return chance.expovariate(1.5)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("seconds", [by_tokens, by_chance])
def test_one_flood_takes_nothing_from_nine_others(slots: int, seconds: Seconds) -> None:
    """Beside 50 concurrent requests of one caller, each of nine with one gets 90 % of its share."""
    concurrency = {b"flood": 50} | {b"%d" % number: 1 for number in range(9)}
    _, *nine = used = Simulation(slots, seconds).run(concurrency, 600.0)
    assert min(nine) >= 0.9 * sum(used) / 10


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
@pytest.mark.parametrize("seconds", [by_tokens, by_chance])
def test_ten_floods_get_the_same(slots: int, seconds: Seconds) -> None:
    """Jain's index of ten callers with 50 concurrent requests each is 0.98 or more."""
    concurrency = {b"%d" % number: 50 for number in range(10)}
    used = Simulation(slots, seconds).run(concurrency, 300.0)
    assert sum(used) ** 2 / (10 * sum(x * x for x in used)) >= 0.98


class Counted(int):
    """A number that counts how often it, or what it was added to, is compared."""

    comparisons = 0

    def __add__(self, other: int) -> Counted:
        return Counted(int(self) + int(other))

    __radd__ = __add__

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __gt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) > int(other)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return int.__eq__(self, other)

    __hash__ = int.__hash__


def comparisons_by_decision(callers: int) -> float:
    """How many numbers are compared to serve one of so many who wait, and let it wait again."""
    chance = Random(4)
    queue: FairQueue[None] = FairQueue(waiting_max=callers)

    def decide() -> None:
        waiter = take(queue)
        cost = Counted(chance.randint(1, 10_000))
        queue.join(waiter.caller, "m", cost, 0.0, 1e9, None)

    # Newcomers start at the least counter, so that all of them count as soon as the first does.
    put(queue, b"0", Counted(1))
    decide()
    for number in range(1, callers):
        put(queue, b"%d" % number, Counted(chance.randint(1, 10_000)))
    for _ in range(2_000):
        decide()
    Counted.comparisons = 0
    for _ in range(2_000):
        decide()
    return Counted.comparisons / 2_000


def test_cost_of_a_decision_grows_no_faster_than_the_logarithm() -> None:
    """From 1,000 to 20,000 waiting callers, comparisons by decision grow as log n at most."""
    few, many = comparisons_by_decision(1_000), comparisons_by_decision(20_000)
    assert few > 5, "nothing was counted"
    assert many / few <= math.log(20_000) / math.log(1_000) * 1.1


def test_corrections_do_not_pile_up() -> None:
    """Memory stays the same however often a waiting caller's counter is corrected."""
    queue: FairQueue[None] = FairQueue()
    put(queue, b"b", cost=10**9)
    take(queue)
    put(queue, b"b")
    put(queue, b"a", cost=10_000)
    tracemalloc.start()
    try:
        for _ in range(10_000):
            put(queue, b"a", cost=10_000)
            queue.correct(take(queue), 1)
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()


def test_callers_who_come_and_go_do_not_pile_up() -> None:
    """Memory stays the same however many join and leave behind one who waits."""
    queue: FairQueue[None] = FairQueue()
    put(queue, b"b")
    for number in range(2_000):
        queue.leave(put(queue, b"%d" % number), 0.0)
    tracemalloc.start()
    try:
        for number in range(5_000):
            queue.leave(put(queue, b"%d" % number), 0.0)
        assert tracemalloc.get_traced_memory()[0] < 600_000
    finally:
        tracemalloc.stop()
