"""What becomes of something under way, and a coroutine that goes on as soon as it is known.

A task takes each of its steps in a call of its own, a turn of the event loop later, and so does
whoever waits for a future. A request waits once, for its answer: as a ``Run`` it takes its first
steps in the call in which it came, and goes on in the call that brought the last byte of the
answer. That saves a task, a future and their calls, some tenth of a request's instructions, and a
turn of the loop with nothing to read. (Python 3.12 has eager tasks, which save the first half.)

What this is not: a task. ``asyncio.timeout`` and its like need one, so what uses them has to be
awaited as one: ``await loop.create_task(…)``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Final

from freeapi.errors import FreeApiError

_END: Final = object()


class Waiter:
    """Who waits for an outcome. By a class, since a bound method is made anew for each wait."""

    __slots__ = ()

    def go_on(self) -> None:
        """It is known."""


class Outcome:
    """To be awaited in a ``Run``, by one; others ask for the ``future``."""

    __slots__ = ("_waiter", "error", "is_known")

    def __init__(self) -> None:
        self.is_known = False
        #: Why it went wrong; None: it didn't, or nothing is known yet.
        self.error: FreeApiError | None = None
        self._waiter: Waiter | None = None

    def resolve(self, error: FreeApiError | None) -> None:
        """It is known: whoever waits goes on within this call. Only the first time counts."""
        if self.is_known:
            return
        self.is_known = True
        self.error = error
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.go_on()

    def on_known(self, waiter: Waiter) -> None:
        """Let it go on once, when it is known. It isn't yet, and nobody else waits."""
        assert not self.is_known, "what is known needs no waiting"
        assert self._waiter is None, "two wait for one outcome"
        self._waiter = waiter

    def future(self) -> asyncio.Future[None]:
        """The same for a task."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _FutureWaiter(self, future)
        if self.is_known:
            waiter.go_on()
        else:
            self.on_known(waiter)
        return future

    def __await__(self) -> Generator[Outcome, None, None]:
        if not self.is_known:
            yield self
        if self.error is not None:
            try:
                raise self.error
            finally:  # its traceback leads to this frame: a cycle, which only the collector frees
                self.error = None


class _FutureWaiter(Waiter):
    """Tells a future."""

    __slots__ = ("_future", "_outcome")

    def __init__(self, outcome: Outcome, future: asyncio.Future[None]) -> None:
        self._outcome = outcome
        self._future = future

    def go_on(self) -> None:
        if self._future.done():
            return
        if self._outcome.error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(self._outcome.error)


class Run(Waiter):
    """A coroutine on its way, from ``start`` to its end; what it raises there is raised where it
    was woken, but for CancelledError.
    """

    __slots__ = ("_is_cancelled", "_steps", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, None, None]) -> None:
        self._steps = coroutine.__await__()
        #: A future, while it waits for one.
        self._waits_for: asyncio.Future[Any] | None = None
        self._is_cancelled = False

    def start(self) -> None:
        """Take the first steps, up to the first wait or the end."""
        self.go_on()

    def cancel(self) -> None:
        """Cancel the future that it waits for, or the next one, which raises CancelledError there.

        One that waits for an outcome isn't touched before: it has to see for itself that nobody
        wants it any more.
        """
        if self._waits_for is not None:
            self._waits_for.cancel()
        else:
            self._is_cancelled = True

    def go_on(self) -> None:
        """Take the next steps."""
        try:
            # StopIteration would cost 4,000 instructions.
            waits_for: Any = next(self._steps, _END)
        except asyncio.CancelledError:
            return
        if waits_for is _END:
            return
        if isinstance(waits_for, Outcome):
            waits_for.on_known(self)
            return
        # What asyncio's futures yield, and what a task does with it (asyncio.tasks, Task.__step).
        waits_for._asyncio_future_blocking = False
        self._waits_for = waits_for
        waits_for.add_done_callback(self._future_done)
        if self._is_cancelled:
            self._is_cancelled = False
            waits_for.cancel()

    def _future_done(self, future: asyncio.Future[Any]) -> None:
        """The future raises or returns by itself where it is awaited."""
        self._waits_for = None
        self.go_on()
