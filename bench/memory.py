"""Resident memory, and the time to start: what a proxy takes before and between requests."""

from __future__ import annotations

import time
from contextlib import closing

from bench.contenders import Place
from bench.machine import open_files_max
from bench.run import Run
from bench.server import NotStarted, Server
from bench.stage import Caller, Stage
from bench.streams import open_streams, way_to
from bench.texts import PLAIN
from bench.upstream import upstream

STREAMS, FIRST_STREAMS = 10_000, 1_000
STARTS = 5
#: Files that a process needs besides two for each stream.
_OTHER_FILES = 250
_OPEN_MAX_S = 60.0


def measure(run: Run) -> None:
    """RSS idle, for an open stream, and with as many as fit, up to STREAMS."""
    streams = min(STREAMS, (open_files_max() - _OTHER_FILES) // 2 // 100 * 100)
    if streams < STREAMS:
        run.table.notes.append(
            f"{streams:,} open streams instead of {STREAMS:,}: this shell lets a process have "
            f"{open_files_max():,} files, and each stream takes two (ulimit -Hn)"
        )
    if streams < 2 * FIRST_STREAMS:
        return
    with closing(Stage(0)) as stage:
        for name, start in run.contenders.items():
            place = Place(run.home / "memory" / name, stage.port, True)
            try:
                with start(place) as server:
                    _fill(run, stage, server, streams)
            except (NotStarted, OSError) as error:
                run.missing(name, f"memory: {error}")


def _fill(run: Run, stage: Stage, server: Server, streams: int) -> None:
    stage.reset()
    run.table.add("RSS idle, MB", server.name, server.resident_bytes() / 1e6)
    if not run.is_fast(server.name):
        return
    callers = open_streams(stage, way_to(server), FIRST_STREAMS, 0.0005)
    unheard = _wait(stage, callers)
    first_bytes = server.resident_bytes()  # whatever it reserves for the first ones is there now
    callers += open_streams(stage, way_to(server), streams - FIRST_STREAMS, 0.0005, FIRST_STREAMS)
    unheard += _wait(stage, callers)
    resident_bytes = server.resident_bytes()
    each_kb = (resident_bytes - first_bytes) / (streams - FIRST_STREAMS) / 1024
    run.table.add("RSS of an open stream, KB", server.name, each_kb)
    run.table.add(f"RSS at {streams:,} open streams, MB", server.name, resident_bytes / 1e6)
    run.table.check(server.name, f"{streams:,} open streams", unheard, "without a first chunk")
    for caller in callers:
        stage.forget(caller.end)
    stage.run(1.0)


def _wait(stage: Stage, callers: list[Caller]) -> int:
    """Wait until each has its first chunk; returns how many never got it."""
    until_s = time.perf_counter() + _OPEN_MAX_S
    while time.perf_counter() < until_s and not all(caller.first_s for caller in callers):
        stage.run(0.1)
    return sum(not caller.first_s for caller in callers)


def measure_start(run: Run) -> None:
    """Seconds from the command to the first right answer."""
    with upstream(run.home / "start-upstream", PLAIN) as direct:
        for number in range(STARTS):
            for name, start in run.contenders.items():
                place = Place(run.home / f"start-{number}" / name, direct.port)
                try:
                    with start(place) as server:
                        run.table.add("start to first answer, s", name, server.start_s)
                except (NotStarted, OSError) as error:
                    run.missing(name, f"start: {error}")
