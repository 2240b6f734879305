"""The fair queue, case by case: order, refusals, leaving, corrections, estimates, bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from freeapi.errors import CapacityExceeded
from freeapi.policy import fairness
from freeapi.policy.fairness import FairQueue, Waiter, token_cost

Queue = FairQueue[str]
FAR_S = 1e9


def put(
    queue: Queue,
    caller: str,
    *,
    lane: str = "m",
    cost: int = 100,
    now_s: float = 0.0,
    deadline_s: float = FAR_S,
    item: str = "",
) -> Waiter[str]:
    """Join with defaults that never matter."""
    return queue.join(caller.encode(), lane, cost, now_s, deadline_s, item)


def put_all(queue: Queue, callers: str, cost: int = 100, now_s: float = 0.0) -> list[Waiter[str]]:
    """Each of these joins, in this order."""
    return [put(queue, caller, cost=cost, now_s=now_s) for caller in callers]


def refused(
    queue: Queue, caller: str = "z", known_wait_s: float = 0.0, **times: float
) -> CapacityExceeded:
    """The refusal that joining gives."""
    now_s, deadline_s = times.get("now_s", 0.0), times.get("deadline_s", FAR_S)
    with pytest.raises(CapacityExceeded) as caught:
        queue.join(caller.encode(), "m", 1, now_s, deadline_s, "", known_wait_s)
    return caught.value


def anything(_: Waiter[str]) -> bool:
    """There is capacity for all."""
    return True


def only(*lanes: str) -> Callable[[Waiter[str]], bool]:
    """There is capacity for these lanes."""
    return lambda waiter: waiter.lane in lanes


def take(queue: Queue, now_s: float = 0.0) -> Waiter[str]:
    """Serve the next, who must exist."""
    waiter = queue.next(anything, now_s)
    assert waiter is not None
    return waiter


def spend(queue: Queue) -> str:
    """Serve the next, who uses all that it reserved."""
    waiter = take(queue)
    queue.correct(waiter, waiter.cost)
    return waiter.caller.decode()


def order(queue: Queue) -> str:
    """The callers as they are served, and use what they reserved, until the queue is empty."""
    callers = ""
    while queue.waiting:
        callers += spend(queue)
    return callers


def at_pace(turn_s: float) -> tuple[Queue, float]:
    """A queue whose lane ``m`` has long served one each ``turn_s``, and the time; no one waits."""
    queue, now_s = Queue(), 0.0
    last = put(queue, "p")
    for _ in range(200):
        now_s += turn_s
        last = put(queue, "p", now_s=now_s)
        take(queue, now_s)
    queue.leave(last, now_s)
    return queue, now_s


def test_an_output_token_costs_four() -> None:
    """A request costs its prompt tokens and four times its output tokens."""
    assert token_cost(100, 25) == 200


def test_callers_take_turns() -> None:
    """A flood of one caller is served by turns with those who came later."""
    queue = Queue()
    put_all(queue, "aaaaabbcc")
    assert order(queue) == "abcabcaaa"


def test_cost_counts_rather_than_requests() -> None:
    """A caller of requests four times as dear is served a quarter as often."""
    queue = Queue()
    put_all(queue, "aaaaaaaa", cost=400)
    put_all(queue, "bbbbbbbb", cost=100)
    assert order(queue)[:10] == "abbbbabbbb"


def test_new_caller_starts_at_the_least_counter() -> None:
    """A newcomer isn't served for what others were served before it came."""
    queue = Queue()
    put_all(queue, "abababababab")
    for _ in range(6):
        spend(queue)
    put_all(queue, "nnn")
    assert order(queue) == "abnabnabn"


def test_idle_caller_earns_nothing() -> None:
    """Who was served little long ago comes back as a newcomer, without credit."""
    queue = Queue()
    put(queue, "i", cost=1)
    put(queue, "a")
    assert order(queue) == "ia"
    put_all(queue, "aaaaa")
    for _ in range(2):
        spend(queue)
    put_all(queue, "iii")
    assert order(queue) == "aiaiai"


def test_counters_last_while_the_queue_is_empty() -> None:
    """The first to come back to an empty queue doesn't start below the one who was last in it."""
    queue = Queue()
    put(queue, "a", cost=1000)
    put(queue, "b", cost=10)
    assert order(queue) == "ab"
    put_all(queue, "bab")
    assert order(queue) == "bba"
    put_all(queue, "nanana")
    assert order(queue) == "nanana"


def test_short_lane_does_not_block_others() -> None:
    """Who waits for a short model is passed over for those who wait for another one."""
    queue = Queue()
    put(queue, "a", lane="short", cost=1)
    put(queue, "b", lane="free", cost=10_000)
    put(queue, "a", lane="free")
    for _ in range(2):
        waiter = queue.next(only("free"), 0.0)
        assert waiter is not None
        assert waiter.lane == "free"
    assert queue.next(only("free"), 0.0) is None
    assert queue.waiting == 1


def test_large_request_is_not_overtaken() -> None:
    """When the first of a lane doesn't fit, none of the lane is asked: its capacity gathers."""
    queue = Queue()
    put(queue, "big", cost=5000)
    put(queue, "small", cost=1)
    asked: list[bytes] = []

    def fits(waiter: Waiter[str]) -> bool:
        asked.append(waiter.caller)
        return waiter.cost < 100

    assert queue.next(fits, 0.0) is None
    assert asked == [b"big"]


def test_lanes_take_turns() -> None:
    """Of two lanes that could both be served, the one served longest ago is."""
    queue = Queue()
    for lane in "xxxyy":
        put(queue, "a", lane=lane)
    assert [take(queue).lane for _ in range(5)] == ["x", "y", "x", "y", "x"]


def test_leaving_takes_effect_at_once() -> None:
    """Who has left, first or not, is neither served nor counted; leaving again changes nothing."""
    queue = Queue()
    waiters = put_all(queue, "aabb")
    for waiter in (waiters[0], waiters[3], waiters[0]):
        queue.leave(waiter, 0.0)
    assert queue.waiting == 2
    assert (queue.holds("m"), queue.holds("other")) == (True, False)
    assert [take(queue), take(queue)] == [waiters[1], waiters[2]]
    queue.leave(waiters[1], 0.0)
    assert queue.waiting == 0


def test_deadline_ends_waiting() -> None:
    """Nobody is served at or after its deadline, and those behind it are."""
    queue = Queue()
    late = put(queue, "a", deadline_s=5.0)
    put(queue, "b", deadline_s=5.1)
    assert take(queue, 5.0).caller == b"b"
    assert late.state == "over"
    put(queue, "c", deadline_s=5.0)
    assert queue.next(anything, 5.0) is None
    assert queue.waiting == 0


def test_queue_is_bounded() -> None:
    """The 1,001st waiter is refused, with at least a second to wait."""
    queue = Queue()
    for number in range(fairness.WAITING_MAX):
        put(queue, str(number))
    error = refused(queue)
    assert (error.retry_after_s, error.should_retry) == (1.0, None)
    assert queue.waiting == fairness.WAITING_MAX


def test_caller_is_bounded() -> None:
    """A caller's ninth waiter is refused, in whichever lane, and others aren't."""
    queue = Queue()
    for number in range(fairness.WAITING_PER_CALLER_MAX):
        put(queue, "a", lane=str(number))
    refused(queue, "a")
    put(queue, "b")


def test_no_time_to_wait_means_no_queue() -> None:
    """With a deadline that is now, as for `FREEAPI_QUEUE_S=0`, nobody joins."""
    refused(Queue(), now_s=7.0, deadline_s=7.0)


@pytest.mark.parametrize(("known_s", "retry"), [(30.0, None), (60.1, False)])
def test_known_wait_beyond_the_deadline_is_hopeless(known_s: float, retry: bool | None) -> None:
    """Capacity known to come too late: refused at once; beyond a minute SDKs shouldn't retry."""
    error = refused(Queue(), known_wait_s=known_s, deadline_s=10.0)
    assert (error.retry_after_s, error.should_retry) == (known_s, retry)


def test_wait_is_estimated_by_the_lane_s_pace() -> None:
    """A newcomer waits for one turn of each caller, one with two requests for up to three."""
    queue, now_s = at_pace(0.5)
    put_all(queue, "aabbbb", now_s=now_s)
    waits = [queue.wait_s(caller, "m", now_s) for caller in (b"n", b"a", b"b")]
    assert waits == pytest.approx([1.0, 2.5, 3.0], rel=0.05)


def test_hopeless_request_is_refused_at_once() -> None:
    """Who can't be served before its deadline, at the lane's pace, doesn't wait in vain."""
    queue, now_s = at_pace(0.5)
    put_all(queue, "abcdefgh", now_s=now_s)
    error = refused(queue, now_s=now_s, deadline_s=now_s + 3.8)
    assert error.retry_after_s == pytest.approx(4.0, rel=0.05)
    put(queue, "z", now_s=now_s, deadline_s=now_s + 4.3)


def test_too_few_services_make_nobody_hopeless() -> None:
    """Before the pace of a lane is known, only what is known of its capacity counts."""
    queue = Queue()
    put_all(queue, "abcdef")
    for number in range(fairness.PACE_SERVICES_MIN - 1):
        take(queue, 5.0 * (number + 1))
    now_s = 5.0 * fairness.PACE_SERVICES_MIN
    assert queue.wait_s(b"n", "m", now_s, known_wait_s=0.25) == 0.25
    take(queue, now_s)
    assert queue.wait_s(b"n", "m", now_s) > 2.0


def test_only_time_with_waiters_is_part_of_the_pace() -> None:
    """An hour in which nobody wanted it, or a clock that lags a little, makes no lane slower."""
    queue, now_s = at_pace(0.5)
    put(queue, "a", now_s=now_s + 3600.0)
    for seen_s in (now_s + 3600.0, now_s + 3599.0):
        assert queue.refusal(b"n", "m", seen_s, 3.0).retry_after_s == pytest.approx(3.5, rel=0.05)


def test_stall_slows_the_pace_down_to_a_bound() -> None:
    """A lane that stands still looks slower by the second, but never beyond a turn a minute."""
    queue, now_s = at_pace(0.5)
    put(queue, "a", now_s=now_s)
    waits = [
        queue.wait_s(b"n", "m", now_s + late_s)
        for late_s in (0.0, fairness.PACE_MEMORY_S, 3 * fairness.PACE_MEMORY_S, 1e6)
    ]
    assert waits == sorted(waits)
    assert waits[0] < waits[1] < waits[-1] == pytest.approx(fairness.TURN_MAX_S)


def test_waiting_in_vain_is_part_of_the_pace() -> None:
    """A lane whose waiters leave unserved is slower by the time that they waited."""
    queue, now_s = at_pace(0.5)
    queue.leave(put(queue, "a", now_s=now_s), now_s + 20.0)
    put(queue, "b", now_s=now_s + 20.0)
    assert queue.wait_s(b"n", "m", now_s + 20.0) > 1.0


def test_correction_brings_the_turn_forward() -> None:
    """A caller who used a tenth of what was reserved is next again once that is known."""
    queue = Queue()
    put_all(queue, "aaaabbb")
    served = [take(queue) for _ in range(3)]
    assert [waiter.caller for waiter in served] == [b"a", b"b", b"a"]
    queue.correct(served[0], 10)
    queue.correct(served[2], 10)
    assert order(queue) == "abab"


def test_correction_reaches_those_not_waiting() -> None:
    """Who has left the queue before its cost was known comes back with what it really used."""
    queue = Queue()
    put(queue, "a", cost=1000)
    put_all(queue, "bbb")
    first = take(queue)
    spend(queue)
    queue.correct(first, 1)
    put_all(queue, "aa")
    assert order(queue) == "baba"


def test_correction_counts_once() -> None:
    """Using more is charged too; again, or of a request that wasn't served, changes nothing."""
    queue = Queue()
    waiters = put_all(queue, "aaabbbb")
    first = take(queue)
    queue.correct(first, 250)
    queue.correct(first, 0)
    queue.correct(waiters[6], 0)
    assert order(queue) == "bbbaba"


def test_late_correction_gives_no_credit_below_the_least() -> None:
    """What comes back after the caller has begun to wait anew doesn't put it ahead of newcomers."""
    queue = Queue()
    put(queue, "a", cost=1000)
    first = take(queue)
    put_all(queue, "bbbb", cost=300)
    put_all(queue, "aaaa", cost=300)
    queue.correct(first, 0)
    assert order(queue) == "babababa"


def test_late_correction_gives_back_what_is_above_the_least() -> None:
    """Of earlier charges, that part comes back, once, which keeps the caller behind others."""
    queue = Queue()
    put_all(queue, "aa", cost=350)
    put_all(queue, "bbbbbb")
    served = [take(queue) for _ in range(6)]
    for waiter in [one for one in served if one.caller == b"b"]:
        queue.correct(waiter, 100)
    put_all(queue, "aa")
    for waiter in served:
        queue.correct(waiter, 0)
    assert order(queue) == "baba"


@pytest.mark.parametrize(
    ("elsewhere", "kept"), [(False, fairness.COUNTERS_MAX), (True, fairness.IDLE_LANES_MAX)]
)
def test_forgotten_are_those_who_waited_longest_ago(elsewhere: bool, kept: int) -> None:
    """Idle callers of a lane, and idle lanes, are bounded; who is forgotten begins anew."""

    def order_after(others: int) -> str:
        queue = Queue()
        put(queue, "a", cost=1000)
        waiter = put(queue, "b")
        take(queue)
        for number in range(others):
            if elsewhere:
                queue.leave(waiter, 0.0)
            lane = str(number) if elsewhere else "m"
            queue.leave(put(queue, str(number), lane=lane), 0.0)
        put_all(queue, "bab")
        return order(queue).removeprefix("" if elsewhere else "b")

    assert order_after(kept - 1) == "bba"
    assert order_after(kept) != "bba"


def test_our_own_mistakes_are_caught() -> None:
    """Free requests, negative costs, bounds that fit nobody, and a queue changed while asking."""
    queue = Queue()
    with pytest.raises(AssertionError):
        put(queue, "a", cost=0)
    with pytest.raises(AssertionError):
        queue.correct(put(queue, "a"), -1)
    with pytest.raises(AssertionError):
        Queue(waiting_max=1, per_caller_max=2)

    def leaves(waiter: Waiter[str]) -> bool:
        queue.leave(waiter, 0.0)
        return True

    with pytest.raises(AssertionError, match="touched the queue"):
        queue.next(leaves, 0.0)


def test_repr_shows_the_counts() -> None:
    """Waiters, callers and lanes can be read off, and no caller's tag."""
    queue = Queue()
    for caller, lane in (("a", "x"), ("a", "y"), ("b", "x")):
        put(queue, caller, lane=lane)
    assert repr(queue) == "<FairQueue: 3 of 2 callers [x: 2, y: 1]>"
