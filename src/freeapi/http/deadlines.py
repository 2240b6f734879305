"""Time-outs of all connections by one sweep.

A timer per connection and phase would cost a heap operation for every request and every chunk.
Here a phase costs one float: each connection keeps ``deadline_s``, and a sweep, at most once a
second, calls ``expire`` on those past it. So a time-out fires up to one interval late, never early.

Cost: O(connections) per interval, about 0.5 ms a second for 10,000; nothing per request.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

NEVER_S: Final = float("inf")


class Expiring(Protocol):
    """Something with a deadline (on the event loop's clock)."""

    deadline_s: float

    def expire(self) -> None:
        """The deadline has passed. May add to and discard from the sweep."""


class Deadlines:
    """The set of everything that can time out, swept every ``interval_s``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, shortest_s: float) -> None:
        """``shortest_s`` is the shortest time-out in use: it is overrun by at most a quarter."""
        self._loop = loop
        self.heed(shortest_s)
        self._watched: set[Expiring] = set()
        self._timer: asyncio.TimerHandle | None = None

    def heed(self, shortest_s: float) -> None:
        """Another time-out is the shortest now; counts from the next sweep on."""
        self._interval_s = min(1.0, max(0.01, shortest_s / 4))

    def add(self, item: Expiring) -> None:
        """Watch ``item`` until it is discarded. O(1)."""
        self._watched.add(item)
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval_s, self._sweep)

    def discard(self, item: Expiring) -> None:
        """Stop watching; unknown items are fine. O(1)."""
        self._watched.discard(item)

    def _sweep(self) -> None:
        now_s = self._loop.time()
        self._timer = None
        try:
            for item in [item for item in self._watched if item.deadline_s <= now_s]:
                item.expire()
        finally:  # what goes wrong with one must not end the watch over all
            if self._watched and self._timer is None:
                self._timer = self._loop.call_later(self._interval_s, self._sweep)

    def close(self) -> None:
        """End the sweep."""
        if self._timer is not None:
            self._timer.cancel()
        self._watched.clear()
