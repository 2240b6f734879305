"""Streams: what a chunk costs the proxy's processor, and how soon the first one is there.

Two loads: as many streams as a busy instance carries, and five times as many. While the smaller one
goes on, more callers come over kept-alive connections and take the time to their first chunk; the
same once without a proxy, and the difference is what the proxy adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from statistics import quantiles
from typing import NamedTuple

from bench.run import Run
from bench.server import Server
from bench.stage import ENDLESS, Caller, Stage, Way

STREAMS = (200, 1_000)
CHUNKS_PER_S = 50
#: Callers a second who take the time to their first chunk; over so many connections.
PROBES_PER_S, PROBERS, PROBE_CHUNKS = 200, 40, 3
_RAMP_S, _SETTLE_S, _DRAIN_MAX_S = 0.001, 0.7, 20.0
DIRECT = "no proxy"


class Heard(NamedTuple):
    """What a load saw, and what it cost."""

    chunks_per_s: float
    chunk_us: float
    #: More than one: the proxy was late, and passed on two together, which is cheaper.
    chunks_a_read: float
    #: Seconds to the first chunk: median and 99th percentile; none where it wasn't asked for.
    first_s: tuple[float, float] | None


def measure(run: Run) -> None:
    """CPU of a chunk at both loads, and the added time to the first."""
    few, many = STREAMS
    alone: list[tuple[float, float]] = []
    seen: dict[str, list[tuple[float, float]]] = {}
    with (
        closing(Stage(CHUNKS_PER_S)) as stage,
        run.started("streams", stage.port, for_streams=True) as servers,
    ):
        for server in run.alternating([None, *servers]):
            heard = _carry(run, stage, server, few, asks_first=True)
            assert heard.first_s is not None
            times = alone if server is None else seen.setdefault(server.name, [])
            times.append(heard.first_s)
            if server is not None:
                _tell(run, server.name, few, heard)
        for server in run.alternating([one for one in servers if run.is_fast(one.name)]):
            _tell(run, server.name, many, _carry(run, stage, server, many))
    _tell_first(run, alone, seen)


def _tell(run: Run, name: str, streams: int, heard: Heard) -> None:
    wanted = streams * CHUNKS_PER_S
    run.table.add(f"CPU µs a chunk, {streams:,} streams", name, heard.chunk_us)
    run.table.add(f"% of a core for {wanted:,} chunks/s", name, heard.chunk_us * wanted / 1e4)
    run.table.add(f"chunks/s that came of {wanted:,}", name, heard.chunks_per_s)
    run.table.add(f"chunks a read, {streams:,} streams", name, heard.chunks_a_read)
    read_us = heard.chunk_us * heard.chunks_a_read
    run.table.add(f"CPU µs a read, {streams:,} streams", name, read_us)


def _tell_first(
    run: Run, alone: list[tuple[float, float]], seen: dict[str, list[tuple[float, float]]]
) -> None:
    for place, part in enumerate(("p50", "p99")):
        direct_s = sorted(times[place] for times in alone)[len(alone) // 2]
        for name, rounds in seen.items():
            for times in rounds:
                added_us = 1e6 * (times[place] - direct_s)
                figure = f"added time to first token {part} µs, {STREAMS[0]} streams"
                run.table.add(figure, name, added_us)


def _carry(
    run: Run, stage: Stage, server: Server | None, streams: int, *, asks_first: bool = False
) -> Heard:
    """One load through the server, or without one."""
    way = Way(DIRECT, stage.port) if server is None else way_to(server)
    stage.reset()
    callers = open_streams(stage, way, streams, _RAMP_S)
    stage.run(_SETTLE_S)
    used_s: Callable[[], float] = time.perf_counter if server is None else server.cpu_s
    before, reads, cpu_s, begun_s = stage.heard, stage.reads, used_s(), time.perf_counter()
    stage.run(run.seconds)
    heard, cpu_s, took_s = stage.heard - before, used_s() - cpu_s, time.perf_counter() - begun_s
    reads = stage.reads - reads
    first = _first_s(run, stage, way) if asks_first else None
    end_streams(stage, callers)
    check(run, stage, way.name, callers, f"{streams:,} streams")
    for caller in callers:
        stage.forget(caller.end)
    return Heard(heard / took_s, 1e6 * cpu_s / max(1, heard), heard / max(1, reads), first)


def way_to(server: Server) -> Way:
    """How callers get to it."""
    return Way(server.name, server.port, server.headers, server.is_exact)


def open_streams(
    stage: Stage, way: Way, streams: int, pause_s: float, first: int = 0
) -> list[Caller]:
    """Callers, each with a stream that goes on."""
    callers = []
    for number in range(first, first + streams):
        caller = Caller(stage, way)
        caller.ask(number, ENDLESS)
        callers.append(caller)
        stage.run(pause_s)
    return callers


def end_streams(stage: Stage, callers: list[Caller]) -> None:
    """Let the upstream end them all, and wait for what is under way."""
    stage.is_ending = True
    until_s = time.perf_counter() + _DRAIN_MAX_S
    while time.perf_counter() < until_s and not all(caller.is_over for caller in callers):
        stage.run(0.05)


def check(run: Run, stage: Stage, name: str, callers: list[Caller], what: str) -> None:
    """Compare each stream with what the upstream sent."""
    problems = [problem for caller in callers if (problem := caller.problem(stage.sent(caller)))]
    run.table.check(name, what, len(problems), problems[0] if problems else "")


@contextmanager
def _probers(stage: Stage, way: Way) -> Iterator[list[Caller]]:
    callers = [Caller(stage, way) for _ in range(PROBERS)]
    try:
        yield callers
    finally:
        for caller in callers:
            stage.forget(caller.end)


def _first_s(run: Run, stage: Stage, way: Way) -> tuple[float, float]:
    """Median and 99th percentile of the time to the first chunk, while the streams go on."""
    times: list[float] = []
    begun_s = time.perf_counter()
    with _probers(stage, way) as callers:
        for number in range(round(1.5 * run.seconds * PROBES_PER_S)):
            caller = callers[number % PROBERS]
            until_s = begun_s + number / PROBES_PER_S
            stage.run(max(0.0, until_s - time.perf_counter()))
            if number >= PROBERS:
                _finish(run, stage, way.name, caller, times)
            caller.ask(ENDLESS + number, PROBE_CHUNKS)
        for caller in callers:
            _finish(run, stage, way.name, caller, times)
    percentiles = quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
    return percentiles[49], percentiles[98]


def _finish(run: Run, stage: Stage, name: str, caller: Caller, times: list[float]) -> None:
    """Wait for a probe's stream, look at it, and note its time."""
    until_s = time.perf_counter() + _DRAIN_MAX_S
    while not caller.is_over and time.perf_counter() < until_s:
        stage.step(0.001)
    check(run, stage, name, [caller], "a stream that came later")
    times.append(caller.first_s - caller.asked_s)
