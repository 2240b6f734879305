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
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

from freeapi.errors import FreeApiError

_END: Final = object()


class Outcome:
    """To be awaited in a ``Run``, by one; others ask for the ``future``."""

    __slots__ = ("_wake", "error", "is_known")

    def __init__(self) -> None:
        self.is_known = False
        #: Why it went wrong; None: it didn't, or nothing is known yet.
        self.error: FreeApiError | None = None
        self._wake: Callable[[], object] | None = None

    def resolve(self, error: FreeApiError | None) -> None:
        """It is known: whoever waits goes on within this call. Only the first time counts."""
        if self.is_known:
            return
        self.is_known = True
        self.error = error
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def on_known(self, wake: Callable[[], object]) -> None:
        """Call it once, when it is known. It isn't yet, and nobody else waits."""
        assert not self.is_known, "what is known needs no waiting"
        assert self._wake is None, "two wait for one outcome"
        self._wake = wake

    def future(self) -> asyncio.Future[None]:
        """The same for a task."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if future.done():
                return
            if self.error is None:
                future.set_result(None)
            else:
                future.set_exception(self.error)

        if self.is_known:
            tell()
        else:
            self.on_known(tell)
        return future

    def __await__(self) -> Generator[Outcome, None, None]:
        if not self.is_known:
            yield self
        if self.error is not None:
            try:
                raise self.error
            finally:  # its traceback leads to this frame: a cycle, which only the collector frees
                self.error = None


class Run:
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
        self._step()

    def cancel(self) -> None:
        """Cancel the future that it waits for, or the next one, which raises CancelledError there.

        One that waits for an outcome isn't touched before: it has to see for itself that nobody
        wants it any more.
        """
        if self._waits_for is not None:
            self._waits_for.cancel()
        else:
            self._is_cancelled = True

    def _step(self) -> None:
        try:
            # StopIteration would cost 4,000 instructions.
            waits_for: Any = next(self._steps, _END)
        except asyncio.CancelledError:
            return
        if waits_for is _END:
            return
        if isinstance(waits_for, Outcome):
            waits_for.on_known(self._step)
            return
        # What asyncio's futures yield, and what a task does with it (asyncio.tasks, Task.__step).
        waits_for._asyncio_future_blocking = False
        self._waits_for = waits_for
        waits_for.add_done_callback(self._go_on)
        if self._is_cancelled:
            self._is_cancelled = False
            waits_for.cancel()

    def _go_on(self, future: asyncio.Future[Any]) -> None:
        """The future raises or returns by itself where it is awaited."""
        self._waits_for = None
        self._step()
