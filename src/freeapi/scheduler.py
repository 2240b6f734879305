"""May they, and when: a request is let through at once, or waits for its turn.

``Scheduler.grant`` takes all that a request needs in one synchronous step (its limits, a key) or
nothing. If only shared capacity is short (a model's limits, keys that cool), the request waits in
the fair queue; when something is given back, or the time has come at which something will be free,
the queue says whose turn it is. What the caller alone has used up is refused at once.

While nobody waits the queue costs one look at a number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from mypy_extensions import mypyc_attr

from freeapi.errors import CapacityExceeded, FreeApiError
from freeapi.gate import Visitor, tokens_of
from freeapi.policy.fairness import FairQueue, Waiter, token_cost
from freeapi.policy.keys import KeyPool, Lease
from freeapi.policy.payload import Prepared

#: A timer is never set for less: a bucket that fills every millisecond is looked at that often.
_LOOK_AGAIN_MIN_S = 0.001
#: Where nobody may wait any more but some still do.
_LOOK_AGAIN_MAX_S = 1.0


class Admitted(Protocol):
    """What a gate has let in."""

    def settle(self, used_tokens: int | None, now_s: float) -> None:
        """Charge what it used."""

    def cancel(self, now_s: float) -> None:
        """Give all of it back."""


class Admits(Protocol):
    """The gate, as far as a scheduler needs it."""

    def admit(self, visitor: Visitor, prepared: Prepared) -> Admitted:
        """Reserve the request and its tokens, or raise and take nothing."""


@mypyc_attr(free_list_len=1)  # one for each request: the last one's memory is the next one's
class Grant:
    """What a request was given; ``settle`` or ``cancel`` gives it back, once."""

    __slots__ = (
        "_admission",
        "_prepared",
        "_scheduler",
        "_waiter",
        "is_open",
        "lease",
        "queued_s",
        "upstreams",
    )

    def __init__(
        self,
        scheduler: Scheduler,
        prepared: Prepared,
        upstreams: tuple[str, ...],
        admission: Admitted,
        lease: Lease,
    ) -> None:
        self._scheduler = scheduler
        self._prepared = prepared
        self._admission = admission
        self._waiter: Waiter[Turn] | None = None
        #: The names of those that may serve it.
        self.upstreams = upstreams
        #: How long it waited for its turn.
        self.queued_s = 0.0
        self.lease = lease
        self.is_open = True

    def settle(
        self, prompt_tokens: int, completion_tokens: int, unknown: int, cost_nanousd: int
    ) -> None:
        """The request is over: put what it used in place of what it reserved.

        ``unknown`` tries, of which nobody knows what they used, count as much as was reserved.
        ``cost_nanousd`` is for gateways that share (``shared``); here the purse has counted it.
        """
        if not self.is_open:
            return
        self.is_open = False
        used = prompt_tokens + completion_tokens
        if unknown:
            used += unknown * tokens_of(self._prepared)
        self._admission.settle(used, self._scheduler.now())
        self.lease.release()
        if self._waiter is not None:
            cost = token_cost(prompt_tokens, completion_tokens)
            self._scheduler.correct(self._waiter, self._waiter.cost if unknown else cost)
        self._scheduler.look()

    def cancel(self) -> None:
        """Nothing was sent: give all of it back."""
        if not self.is_open:
            return
        self.is_open = False
        self._admission.cancel(self._scheduler.now())
        self.lease.release()
        if self._waiter is not None:
            self._scheduler.correct(self._waiter, 0)
        self._scheduler.look()

    def came_from(self, waiter: Waiter[Turn]) -> None:
        """It was given to a waiter, whose cost is to be corrected at the end."""
        self._waiter = waiter


class Turn:
    """A request that waits, and the future that its task sleeps on."""

    __slots__ = ("future", "prepared", "visitor")

    def __init__(self, visitor: Visitor, prepared: Prepared, future: asyncio.Future[Grant]) -> None:
        self.visitor = visitor
        self.prepared = prepared
        self.future = future


class Scheduler:
    """Grants in fair order."""

    def __init__(self, gate: Admits, keys: KeyPool, queue_s: float) -> None:
        """``queue_s``: the longest wait; 0 means that nobody waits."""
        self._gate = gate
        self._keys = keys
        self._queue_s = queue_s
        self._queue: FairQueue[Turn] = FairQueue()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        #: While the queue is asked whose turn it is: when the ones passed over can be asked again.
        self._look_again_s = 0.0
        self.now: Callable[[], float] = self._loop.time

    def grant_now(self, visitor: Visitor, prepared: Prepared) -> Grant | None:
        """What the request needs, if it can be had at once; None: it has to wait (``grant``).

        Raises as ``grant``.
        """
        if self._held_lane(prepared) is not None:
            return None
        try:
            return self._take(visitor, prepared)
        except _Short as short:
            if not self._queue_s:
                raise short.error from None
            return None

    async def grant(self, visitor: Visitor, prepared: Prepared) -> Grant:
        """What the request needs, at once or in its turn.

        Raises FreeApiError; then nothing is taken: RateLimitExceeded and ConcurrencyExceeded at
        once, CapacityExceeded if there is no hope within ``queue_s``, UpstreamRefused.
        """
        lane = self._held_lane(prepared)
        known_wait_s = 0.0
        if lane is None:
            try:
                return self._take(visitor, prepared)
            except _Short as short:
                if not self._queue_s:
                    raise short.error from None
                lane = short.lane
                known_wait_s = short.error.retry_after_s or 0.0
        # Its time-out wants a task, which who awaits this need not be.
        waiting = self._wait(visitor, prepared, lane, known_wait_s)
        return await self._loop.create_task(waiting)

    def reconfigure(self, queue_s: float) -> None:
        """Let those who come from now on wait so long; what waits may fit by new limits and keys.

        To be called when those are in place.
        """
        self._queue_s = queue_s
        self.look()

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return self._queue.waiting

    @property
    def wait_s(self) -> float:
        """About how long a newcomer would wait."""
        return self._queue.longest_wait_s(self.now())

    def look(self) -> None:
        """Something was given back: serve whose turn it is. Free while nobody waits."""
        if self._queue.waiting:
            self._serve_waiting()

    def correct(self, waiter: Waiter[Turn], used_cost: int) -> None:
        """Tell the queue what a request that had waited really cost."""
        self._queue.correct(waiter, used_cost)

    def __repr__(self) -> str:
        return f"<Scheduler {self._queue!r}>"

    def _take(self, visitor: Visitor, prepared: Prepared) -> Grant:
        """All that the request needs, or nothing. Raises _Short if only shared capacity is short.

        The caller's own limits come first: whoever is over them is told so, not to wait.
        """
        model = prepared.model
        try:
            admission = self._gate.admit(visitor, prepared)
        except CapacityExceeded as error:
            raise _Short(error, _model_lane(prepared)) from None
        try:
            upstreams = model.upstreams
            lease = self._keys.lease(model.upstream_model, upstreams, self.now())
        except CapacityExceeded as error:
            admission.cancel(self.now())
            raise _Short(error, _keys_lane(prepared)) from None
        except FreeApiError:
            admission.cancel(self.now())
            raise
        return Grant(self, prepared, upstreams, admission, lease)

    def _held_lane(self, prepared: Prepared) -> str | None:
        """The lane in which others wait for what this request needs, too: it may not pass them."""
        if self._queue.waiting:
            for lane in (_model_lane(prepared), _keys_lane(prepared)):
                if self._queue.holds(lane):
                    return lane
        return None

    async def _wait(
        self, visitor: Visitor, prepared: Prepared, lane: str, known_wait_s: float
    ) -> Grant:
        turn = Turn(visitor, prepared, self._loop.create_future())
        cost = token_cost(prepared.prompt_tokens, prepared.output_tokens)
        now_s = self.now()
        waiter = self._queue.join(
            visitor.caller, lane, cost, now_s, now_s + self._queue_s, turn, known_wait_s
        )
        self._serve_waiting()
        try:
            async with asyncio.timeout_at(waiter.deadline_s):
                grant = await turn.future
                grant.queued_s = self.now() - now_s
                return grant
        except TimeoutError:
            _give_back(turn.future)
            known_wait_s = self._known_wait_s(visitor, prepared)
            raise self._queue.refusal(visitor.caller, lane, self.now(), known_wait_s) from None
        except asyncio.CancelledError:
            _give_back(turn.future)
            raise
        finally:
            if waiter.state == "waiting":
                self._queue.leave(waiter, self.now())
                # Its turn was the next, perhaps, and those behind it need less.
                self.look()

    def _known_wait_s(self, visitor: Visitor, prepared: Prepared) -> float:
        """When the request could be served if nobody else waited, as far as that is known."""
        try:
            self._take(visitor, prepared).cancel()
        except _Short as short:
            return short.error.retry_after_s or 0.0
        except FreeApiError:  # it is over limits of its own by now, which the next try will tell
            return 0.0
        return 0.0

    def _serve_waiting(self) -> None:
        """Serve as many waiters as can be, and see that those left are looked at again in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._look_again_s = self._queue_s or _LOOK_AGAIN_MAX_S
        while (waiter := self._queue.next(self._can_serve, self.now())) is not None:
            grant = _granted(waiter.item.future)
            if grant is None:  # it had left, or is over limits of its own
                self._queue.correct(waiter, 0)
            else:
                grant.came_from(waiter)
        if self._queue.waiting:
            delay_s = max(self._look_again_s, _LOOK_AGAIN_MIN_S)
            self._timer = self._loop.call_later(delay_s, self.look)

    def _can_serve(self, waiter: Waiter[Turn]) -> bool:
        """Take for the waiter what it needs; False if that is short still.

        Whatever else is wrong with it is its own: it is told, and out of the others' way.
        """
        turn = waiter.item
        if turn.future.done():
            return True
        try:
            turn.future.set_result(self._take(turn.visitor, turn.prepared))
        except _Short as short:
            self._look_again_s = min(self._look_again_s, short.error.retry_after_s or 0.0)
            return False
        except FreeApiError as error:
            turn.future.set_exception(error)
        return True


class _Short(Exception):
    """Shared capacity is short; ``lane`` says which, and the error when there will be more."""

    def __init__(self, error: CapacityExceeded, lane: str) -> None:
        self.error = error
        self.lane = lane
        super().__init__(lane)


def _model_lane(prepared: Prepared) -> str:
    return f"model {prepared.model.name}"


def _keys_lane(prepared: Prepared) -> str:
    """Names that mean one upstream model share its keys' capacity."""
    return f"keys {prepared.model.upstream_model}"


def _granted(future: asyncio.Future[Grant]) -> Grant | None:
    """What a waiter's future holds, if that is a grant."""
    if future.cancelled() or future.exception() is not None:
        return None
    return future.result()


def _give_back(future: asyncio.Future[Grant]) -> None:
    """Whoever was granted something in the very moment of leaving never saw it."""
    if future.done() and (grant := _granted(future)) is not None:
        grant.cancel()
