"""JSON requests: what one costs the proxy's processor, and how long it takes."""

from __future__ import annotations

from statistics import median

from bench.run import Run
from bench.server import Server
from bench.texts import LONG, PLAIN, Exchange
from bench.upstream import upstream
from bench.wrk import Load, load

CONNECTIONS = (1, 64, 256)
#: Enough to keep every contender busy with long bodies, and few enough to fit into the caches.
LONG_CONNECTIONS = 16


def _checked(run: Run, server: Server, exchange: Exchange, connections: int) -> Load:
    seen = load(server, exchange, connections, run.seconds, run.home)
    run.table.check(server.name, exchange.name, seen.wrong, seen.words)
    return seen


def measure(run: Run) -> None:
    """CPU for a request, requests a second, added latency."""
    with (
        upstream(run.home / "requests-upstream", PLAIN) as direct,
        run.started("requests", direct.port) as servers,
    ):
        for connections in CONNECTIONS:
            alone: list[Load] = []
            seen: dict[str, list[Load]] = {server.name: [] for server in servers}
            loaded = [one for one in servers if connections <= 64 or run.is_fast(one.name)]
            for server in run.alternating([direct, *loaded] if connections == 1 else loaded):
                one = _checked(run, server, PLAIN, connections)
                (alone if server is direct else seen[server.name]).append(one)
            _tell(run, connections, seen, alone)


def _tell(run: Run, connections: int, seen: dict[str, list[Load]], alone: list[Load]) -> None:
    for name, loads in seen.items():
        for one in filter(None, loads):
            run.table.add(f"CPU µs a request, c={connections}", name, one.cpu_us)
            if connections == 64:
                run.table.add("requests/s of a core, c=64", name, 1e6 / one.cpu_us)
                run.table.add("requests/s seen, c=64", name, one.requests / one.took_s)
            if alone:
                p50_us = one.p50_us - median(load.p50_us for load in alone)
                p99_us = one.p99_us - median(load.p99_us for load in alone)
                run.table.add("added latency p50 µs, c=1", name, p50_us)
                run.table.add("added latency p99 µs, c=1", name, p99_us)


def measure_bodies(run: Run) -> None:
    """Long answers and long prompts, in megabytes by second of the proxy's processor."""
    for number, exchange in enumerate(LONG):
        with (
            upstream(run.home / f"bodies-upstream-{number}", exchange) as direct,
            run.started(f"bodies-{number}", direct.port) as servers,
        ):
            fast = [server for server in servers if run.is_fast(server.name)]
            for server in run.alternating(fast):
                seen = _checked(run, server, exchange, LONG_CONNECTIONS)
                if not seen:
                    continue
                moved_mb = seen.requests * exchange.moved_bytes / 1e6
                busy_s = seen.cpu_us * seen.requests / 1e6
                run.table.add(f"{exchange.name}, MB/s of a core", server.name, moved_mb / busy_s)
                run.table.add(f"{exchange.name}, MB/s seen", server.name, moved_mb / seen.took_s)
