"""One run of the bench: how long, how often, who, where, and what has been seen so far.

Every part measures alike: all contenders run at once, one of them is loaded at a time, and they
take turns within a round, so that the machine's moods meet all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from bench.contenders import CORE, Place, Start
from bench.peers import FAST
from bench.server import NotStarted, Server
from bench.table import Table

One = TypeVar("One")


class Run(NamedTuple):
    """Handed to each part."""

    home: Path
    table: Table
    contenders: Mapping[str, Start]
    rounds: int
    seconds: float
    #: Whether what was counted replaces what is recorded.
    is_recording: bool = False

    @contextmanager
    def started(
        self, part: str, upstream: int, *, for_streams: bool = False
    ) -> Iterator[list[Server]]:
        """All contenders before this upstream. One that doesn't start is noted and left out."""
        servers = []
        with ExitStack() as stack:
            for name, start in self.contenders.items():
                place = Place(self.home / part / name, upstream, for_streams)
                try:
                    servers.append(stack.enter_context(start(place)))
                except (NotStarted, OSError) as error:
                    self.missing(name, f"{part}: {error}")
            yield servers

    def is_fast(self, name: str) -> bool:
        """Whether it is worth loading with what most peers take minutes for."""
        return name in CORE or name in FAST

    def missing(self, name: str, why: str) -> None:
        """A contender can't be measured; of the core set that makes the run a failure."""
        print(f"{name}: {why}", flush=True)
        (self.table.wrong if name in CORE else self.table.notes).append(f"{name}: {why}")

    def alternating(self, servers: Sequence[One]) -> Iterator[One]:
        """Each of these in each round; every other round backwards."""
        for number in range(self.rounds):
            yield from servers if number % 2 == 0 else reversed(servers)
