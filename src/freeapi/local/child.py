"""A child process that is kept running: started, replaced whenever it is gone, ended at last.

``Child`` does that for whoever knows how to start one (``_spawn``): the embedded model, and the
workers' store. What this is not: the supervisor's workers, whose ends have to be settled first.

Invariants:
- A new child comes after a pause, which doubles while they keep failing.
- After ``stop``, or a ``begin`` that failed or was cancelled, no process and no directory is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from abc import ABC, abstractmethod
from asyncio.subprocess import Process
from typing import ClassVar, Final

from freeapi.journal import Journal

#: Children end at SIGTERM without any clean-up of their own, so this only bounds a stuck kernel.
STOP_MAX_S: Final = 5.0
PAUSE_MIN_S: Final = 1.0
PAUSE_MAX_S: Final = 30.0
#: A child that has lived this long wasn't failing at its start: the next pause is short again.
STABLE_S: Final = 60.0


class Child(ABC):
    """One process at a time, with a directory of its own."""

    #: What the journal calls its exit.
    exit_event: ClassVar[str]
    #: What ``_spawn`` may raise, besides OSError.
    failure: ClassVar[type[Exception]]

    def __init__(self, directory: str, journal: Journal) -> None:
        self._directory = directory
        self._journal = journal
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @abstractmethod
    async def _spawn(self) -> None:
        """Set ``_process`` to a new one, and wait until it serves. Raises what it failed of."""

    async def begin(self) -> None:
        """Start it, and keep it running from now on. Raises as ``_spawn``; nothing is left then."""
        try:
            await self._spawn()
        except BaseException:
            await self.stop()
            raise
        loop = asyncio.get_running_loop()
        self._keeper = loop.create_task(self._keep_running(), name=self.exit_event)

    async def stop(self) -> None:
        """End it, whatever it is doing, and remove its directory."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._process is not None:
            await end(self._process, STOP_MAX_S)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _keep_running(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        pause_s = 0.0
        while self._process is not None:
            since_s = loop.time()
            status = await self._process.wait()
            pause_s = next_pause_s(pause_s, loop.time() - since_s)
            self._journal.event(self.exit_event, status=status, wait_s=pause_s)
            await asyncio.sleep(pause_s)
            # What fails here is seen as the next exit, after which the pause is longer.
            with contextlib.suppress(self.failure, OSError):
                await self._spawn()


def next_pause_s(pause_s: float, lived_s: float) -> float:
    """The pause before a new child, given the last one and how long the dead child had lived."""
    if lived_s >= STABLE_S:
        return PAUSE_MIN_S
    return min(max(PAUSE_MIN_S, pause_s * 2), PAUSE_MAX_S)


async def end(process: Process, wait_max_s: float) -> None:
    """End a process and wait for its exit: SIGTERM, and after ``wait_max_s`` SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(wait_max_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
