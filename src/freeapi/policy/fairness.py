"""Whose turn it is when shared capacity is short: a virtual token counter over waiting callers.

What this is not: it has no clock, no timer and no future (the edge waits, and leaves at its
deadline), and knows no capacity: the edge says whether a waiter can be served now, and calls
``FairQueue.next`` again whenever a slot, a bucket or a key may be free.

Plan: a *lane* is one shared capacity, such as a model's, in which callers are equals; it counts the
token cost that each was served, and the next is the waiting caller with the least. Whoever begins
to wait starts no lower than the least of those waiting, so that being idle earns nothing (as far as
that is settled: nobody has to catch up with reservations of which most comes back). Lanes keep
apart counters: one that drains slowly would let its callers jump all queues of a fast one.

Invariants: of two callers who wait in a lane throughout, none is served more than
2 x (the dearest request) beyond the other, as reserved; a lane's next request is never overtaken
because it is large, so none starves; within a caller and lane, first come first served; each waiter
is served, leaves, or passes its deadline, once. Nothing is counted for lanes in which nobody waits.
Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from freeapi import errors
from freeapi.policy.limits import RETRY_WAIT_MAX_S

#: Requests that wait, in all and of one caller (DESIGN section 5).
WAITING_MAX: Final = 1_000
WAITING_PER_CALLER_MAX: Final = 8
#: What an output token costs, in prompt tokens: the ratio of today's prices (DESIGN section 5).
OUTPUT_WEIGHT: Final = 4
#: What any refused caller waits at least: by then some of the queue has moved.
RETRY_WAIT_MIN_S: Final = 1.0
#: How far back a lane's pace is remembered: the default of the longest wait. Were it longer, lanes
#: that recover from an outage would turn callers away whom they could serve.
PACE_MEMORY_S: Final = 10.0
#: Nobody is called hopeless on the word of fewer services: the first ones may come in a burst.
PACE_SERVICES_MIN: Final = 4
#: A lane that serves nobody isn't taken for slower: a minute refills any bucket.
TURN_MAX_S: Final = 60.0
#: Counters that a lane keeps of callers who don't wait; to be forgotten gains one request at most.
COUNTERS_MAX: Final = 1_000
#: Lanes without waiters whose pace and counters are kept; more than anyone has models.
IDLE_LANES_MAX: Final = 64

assert WAITING_PER_CALLER_MAX < WAITING_MAX

T = TypeVar("T")


def token_cost(prompt_tokens: int, output_tokens: int) -> int:
    """What a request counts for, in prompt tokens."""
    return prompt_tokens + OUTPUT_WEIGHT * output_tokens


class Waiter(Generic[T]):
    """One request in the queue; once served, the handle by which its cost is corrected."""

    __slots__ = ("_account", "_lane", "_spell", "caller", "cost", "deadline_s", "item", "state")

    def __init__(
        self, lane: _Lane[T], account: _Account[T], cost: int, deadline_s: float, item: T
    ) -> None:
        self._lane: Final = lane
        self._account: Final = account
        #: The caller's spell of waiting in which it was served.
        self._spell = 0
        self.caller: Final = account.caller
        self.cost: Final = cost
        self.deadline_s: Final = deadline_s
        #: What the edge needs to serve it; nothing to us.
        self.item: Final = item
        self.state: Literal["waiting", "served", "over"] = "waiting"

    @property
    def lane(self) -> str:
        """The shared capacity that it waits for."""
        return self._lane.name


class FairQueue(Generic[T]):
    """All waiters of all lanes.

    Joining, leaving and correcting are O(log callers waiting in the lane), amortised; while nobody
    waits, all that it costs is to look at ``waiting``.
    """

    def __init__(
        self, waiting_max: int = WAITING_MAX, per_caller_max: int = WAITING_PER_CALLER_MAX
    ) -> None:
        assert 1 <= per_caller_max <= waiting_max
        self._waiting_max: Final = waiting_max
        self._per_caller_max: Final = per_caller_max
        #: How many wait.
        self.waiting = 0
        self._waiting_of: Final[dict[bytes, int]] = {}
        #: Lanes with waiters; the one served longest ago comes first.
        self._busy: Final[OrderedDict[str, _Lane[T]]] = OrderedDict()
        #: Lanes without; the one that emptied longest ago comes first.
        self._idle: Final[OrderedDict[str, _Lane[T]]] = OrderedDict()

    def __repr__(self) -> str:
        lanes = ", ".join(f"{lane.name}: {lane.size}" for lane in self._busy.values())
        return f"<FairQueue: {self.waiting} of {len(self._waiting_of)} callers [{lanes}]>"

    def holds(self, lane: str) -> bool:
        """Whether someone waits for it: then a new request has to join, or it would jump the queue.

        O(1).
        """
        return lane in self._busy

    def join(
        self,
        caller: bytes,
        lane: str,
        cost: int,
        now_s: float,
        deadline_s: float,
        item: T,
        known_wait_s: float = 0.0,
    ) -> Waiter[T]:
        """Begin to wait.

        ``lane``: models that share what is short (an upstream's slots) share a lane.
        ``cost``: by ``token_cost``, of the most tokens it may use.
        ``known_wait_s``: until the capacity could serve this request if nobody else wanted it.
        Raises CapacityExceeded when the queue or the caller's part of it is full, or when its turn
        won't come before the deadline.
        """
        assert cost >= 1, "what is free is never behind"
        wait_s = self.wait_s(caller, lane, now_s, known_wait_s)
        if (
            self.waiting >= self._waiting_max
            or self._waiting_of.get(caller, 0) >= self._per_caller_max
            or now_s + wait_s >= deadline_s
        ):
            raise _refusal(wait_s)
        place = self._busy.get(lane) or self._open(lane, now_s)
        account = place.waiting.get(caller) or place.activate(caller)
        waiter = Waiter(place, account, cost, deadline_s, item)
        account.waiters.append(waiter)
        place.size += 1
        self.waiting += 1
        self._waiting_of[caller] = self._waiting_of.get(caller, 0) + 1
        return waiter

    def leave(self, waiter: Waiter[T], now_s: float) -> None:
        """Stop waiting: the client is gone or the time is up. Does nothing for those not waiting.

        Who was served but didn't use it needs ``correct(waiter, 0)``.
        """
        if waiter.state != "waiting":
            return
        waiter.state = "over"
        waiter._lane.pace.advance(now_s)
        self._remove(waiter)

    def next(self, can_serve: Callable[[Waiter[T]], bool], now_s: float) -> Waiter[T] | None:
        """The waiter whose turn it is, out of the queue and charged; None: nobody can be served.

        ``can_serve`` is asked about the first of a lane only; if it says no, the lane is short: its
        capacity gathers for that one, and other lanes go on. It may take the capacity itself, but
        must not touch the queue. To be called until it returns None.
        O(lanes with waiters) questions, and O(log callers waiting in the lane), amortised.
        """
        for lane in tuple(self._busy.values()):
            waiter = self._first(lane, now_s)
            if waiter is not None and can_serve(waiter):
                self._serve(waiter, now_s)
                return waiter
        return None

    def correct(self, waiter: Waiter[T], used_cost: int) -> None:
        """Put what the request really cost in place of what was charged; 0: it was never sent.

        To be called for all who were served; if the cost is unknown, with what was charged. Does
        nothing for others, or a second time.
        """
        assert used_cost >= 0
        if waiter.state != "served":
            return
        waiter.state = "over"
        waiter._account.unsettled -= waiter.cost
        waiter._lane.correct(waiter._account, used_cost - waiter.cost, waiter._spell)

    def refusal(
        self, caller: bytes, lane: str, now_s: float, known_wait_s: float = 0.0
    ) -> errors.CapacityExceeded:
        """What to tell one who waited in vain: the time that another try would have to wait."""
        return _refusal(self.wait_s(caller, lane, now_s, known_wait_s))

    def wait_s(self, caller: bytes, lane: str, now_s: float, known_wait_s: float = 0.0) -> float:
        """About how long one more request would wait: the time known, and that of those before it.

        Before the caller's k-th request of a lane, each other caller there has up to k turns; each
        turn takes as long as the latest did, on average. Too few seen: it takes no time. O(1).
        """
        place = self._busy.get(lane)
        if place is None:
            return known_wait_s
        account = place.waiting.get(caller)
        own = len(account.waiters) if account else 0
        others = len(place.waiting) - (account is not None)
        before = own + min(others * (own + 1), place.size - own)
        return known_wait_s + before * place.pace.turn_s(now_s)

    def longest_wait_s(self, now_s: float) -> float:
        """About how long a newcomer would wait where most do. O(lanes)."""
        return max((self.wait_s(b"", lane, now_s) for lane in self._busy), default=0.0)

    def _first(self, lane: _Lane[T], now_s: float) -> Waiter[T] | None:
        """The lane's next; those before it whose time is up leave (their own timers tell them)."""
        while lane.waiting:
            waiter = lane.least().waiters[0]
            if waiter.deadline_s > now_s:
                return waiter
            self.leave(waiter, now_s)
        return None

    def _serve(self, waiter: Waiter[T], now_s: float) -> None:
        assert waiter.state == "waiting", "can_serve touched the queue"
        lane, account = waiter._lane, waiter._account
        waiter.state = "served"
        waiter._spell = account.spell
        lane.pace.advance(now_s)
        lane.pace.count()
        self._busy.move_to_end(lane.name)
        # Charged before it is out, since a lane that empties remembers the counter; placed after,
        # since most callers have nothing else that waits.
        account.counter += waiter.cost
        account.unsettled += waiter.cost
        self._remove(waiter)
        if account.entry is not None:
            lane.place(account)

    def _remove(self, waiter: Waiter[T]) -> None:
        """Take it out of its lane and of the counts. O(the most that one caller may have)."""
        lane, account, caller = waiter._lane, waiter._account, waiter.caller
        account.waiters.remove(waiter)
        lane.size -= 1
        self.waiting -= 1
        assert self.waiting >= lane.size >= 0
        if self._waiting_of[caller] == 1:
            del self._waiting_of[caller]
        else:
            self._waiting_of[caller] -= 1
        if not account.waiters:
            lane.retire(account)
        if not lane.size:
            self._idle[lane.name] = self._busy.pop(lane.name)
            if len(self._idle) > IDLE_LANES_MAX:
                self._idle.popitem(last=False)

    def _open(self, name: str, now_s: float) -> _Lane[T]:
        lane = self._idle.pop(name, None) or _Lane(name)
        lane.pace.since_s = now_s
        self._busy[name] = lane
        return lane


class _Account(Generic[T]):
    """What one caller was served in one lane, and its requests that wait there."""

    __slots__ = ("caller", "counter", "entry", "spare", "spell", "unsettled", "waiters")

    def __init__(self, caller: bytes) -> None:
        self.caller: Final = caller
        #: Token cost served, lifted to others' when it began to wait; the part as reserved still.
        self.counter = 0
        self.unsettled = 0
        #: Its valid place in the lane's heap.
        self.entry: _Entry[T] | None = None
        #: How many times it began to wait, and how far above the least it was at the last.
        self.spell = 0
        self.spare = 0
        #: The oldest first. A list, since it is short.
        self.waiters: Final[list[Waiter[T]]] = []


#: Counter, turn (of equals, who has been at this place longest), account.
_Entry: TypeAlias = tuple[int, int, _Account[T]]


class _Lane(Generic[T]):
    """One shared capacity: its waiting callers by counter, and the counters of those before."""

    __slots__ = ("_heap", "_idle", "_last", "_turn", "name", "pace", "size", "waiting")

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.pace: Final = _Pace()
        #: Requests that wait.
        self.size = 0
        self.waiting: Final[dict[bytes, _Account[T]]] = {}
        #: Callers who waited before; the least recent comes first.
        self._idle: Final[OrderedDict[bytes, _Account[T]]] = OrderedDict()
        #: Entries that aren't their account's any more are passed over.
        self._heap: list[_Entry[T]] = []
        self._turn = 0
        #: The last one who waited: where to start when nobody does.
        self._last: _Account[T] | None = None

    def least(self) -> _Account[T]:
        """The waiting caller who was served least. O(log n), amortised."""
        heap = self._heap
        while heap[0][2].entry is not heap[0]:
            heappop(heap)
        return heap[0][2]

    def activate(self, caller: bytes) -> _Account[T]:
        """The caller begins to wait, with at least the least counter of those who do."""
        account = self._idle.pop(caller, None) or _Account(caller)
        least = self.least() if self.waiting else self._last
        floor = 0 if least is None else least.counter - least.unsettled
        account.spell += 1
        account.spare = max(account.counter - floor, 0)
        account.counter = max(account.counter, floor)
        self.waiting[caller] = account
        self.place(account)
        return account

    def retire(self, account: _Account[T]) -> None:
        """The last of its requests has been served, or has left."""
        del self.waiting[account.caller]
        account.entry = None
        if not self.waiting:
            self._last = account
        self._idle[account.caller] = account
        if len(self._idle) > COUNTERS_MAX:
            self._idle.popitem(last=False)

    def correct(self, account: _Account[T], change: int, spell: int) -> None:
        """Change the cost of a request that was served in that spell.

        Had the cost of an earlier spell been known in time, the caller would still have started
        this one at the least counter of that moment: what would take it below comes too late.
        """
        if change < 0 and spell != account.spell:
            change = max(change, -account.spare)
            account.spare += change
        account.counter += change
        if account.entry is not None:
            self.place(account)

    def place(self, account: _Account[T]) -> None:
        """Put the account where its counter belongs."""
        self._turn += 1
        account.entry = (account.counter, self._turn, account)
        heappush(self._heap, account.entry)
        # Where corrections are many and turns few, entries that don't count any more would pile up.
        if len(self._heap) > 2 * len(self.waiting) + WAITING_PER_CALLER_MAX:
            self._heap = [other.entry for other in self.waiting.values() if other.entry is not None]
            heapify(self._heap)


class _Pace:
    """How long a turn takes in a lane: seconds with waiters by services, both slowly forgotten."""

    __slots__ = ("_busy_s", "_seen", "_served", "since_s")

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._served = 0.0
        #: Services in all.
        self._seen = 0
        #: Up to when time has been counted, while someone waits.
        self.since_s = 0.0

    def advance(self, now_s: float) -> None:
        """Let the time pass since the last call: someone was waiting all along."""
        if now_s <= self.since_s:
            return
        kept = math.exp((self.since_s - now_s) / PACE_MEMORY_S)
        self._busy_s = self._busy_s * kept + PACE_MEMORY_S * (1.0 - kept)
        self._served *= kept
        self.since_s = now_s

    def count(self) -> None:
        """One was served."""
        self._served += 1.0
        self._seen += 1

    def turn_s(self, now_s: float) -> float:
        """Seconds by turn; 0.0 as long as too few were seen to tell."""
        if self._seen < PACE_SERVICES_MIN:
            return 0.0
        self.advance(now_s)
        return self._busy_s / max(self._served, PACE_MEMORY_S / TURN_MAX_S)


def _refusal(wait_s: float) -> errors.CapacityExceeded:
    return errors.CapacityExceeded(
        retry_after_s=max(wait_s, RETRY_WAIT_MIN_S),
        should_retry=False if wait_s > RETRY_WAIT_MAX_S else None,
    )
