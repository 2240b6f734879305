"""A socket without a kernel: what is written to it is kept, what happens to it is noted.

It stands in for the event loop's transport, under the real connections of both sides, so that a
million inputs cost no system call. It tells nothing to its protocol by itself: the target plays the
loop, and calls ``data_received`` and ``connection_lost``.
"""

from __future__ import annotations

import asyncio
from typing import Any


class MemoryTransport(asyncio.Transport):
    """Takes everything at once, so nobody is ever asked to pause writing."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written = bytearray()
        #: No more can be written; what the peer sends may still be read.
        self.is_ended = False
        #: No more is read either.
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Kept, unless it comes too late."""
        if not self.is_ended:
            self.written += data

    def write_eof(self) -> None:
        """Noted."""
        self.is_ended = True

    def close(self) -> None:
        """Noted."""
        self.is_ended = self.is_closed = True

    def abort(self) -> None:
        """Noted in the same way, since nothing is ever unsent."""
        self.close()

    def is_closing(self) -> bool:
        """Whether either side may still send."""
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        """Everything is sent at once."""
        return 0

    def pause_reading(self) -> None:
        """Never needed: an input is shorter than any bound on reading ahead."""
        raise AssertionError("an input this short never stops the reading")

    def resume_reading(self) -> None:
        """As ``pause_reading``."""
        raise AssertionError("what was never paused isn't resumed")
