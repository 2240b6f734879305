"""What metrics read from the other parts when they are asked: keys, money, connections, process.

Each function here has ``metrics`` watch one part. What this is not: a counter; nothing here costs
a request anything.

Invariant: keys are counted by upstream and state, never told apart.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from freeapi import __version__
from freeapi.measures import Labels, Reading
from freeapi.metrics import Metrics
from freeapi.policy.budget import NANO, Caps, Status
from freeapi.policy.keys import KeyPool

#: Of a key, worst last: ``paused`` is its whole upstream.
KEY_STATES: Final = ("ok", "cooling", "out of quota", "dead", "paused")
#: The scope of the caps over all upstreams; the others are upstreams' names.
ALL: Final = "all"

_PAUSED: Final = "; upstream failing"
_PROC: Final = Path("/proc/self")


def watch_keys(
    metrics: Metrics, keys: KeyPool, models: Callable[[], Collection[str]], now: Callable[[], float]
) -> None:
    """Keys by state; ``models`` as for ``KeyPool.describe``."""
    metrics.watch("freeapi_keys", lambda: _keys_by_state(keys, models(), now()))


def watch_money(
    metrics: Metrics, status: Callable[[], Status | None], caps: Callable[[], Caps | None]
) -> None:
    """What is left, and the caps; both None where nothing is capped."""
    metrics.watch("freeapi_budget_left_usd", lambda: _left(status()))
    metrics.watch("freeapi_budget_cap_usd", lambda: _caps(caps()))


def watch_load(
    metrics: Metrics, waiting: Callable[[], int], connections: Callable[[], tuple[int, int]]
) -> None:
    """``connections``: callers' and upstreams'."""
    metrics.watch("freeapi_queue_waiting_requests", waiting)
    metrics.watch("freeapi_connections", lambda: dict(zip(_SIDES, connections(), strict=True)))


def watch_process(metrics: Metrics) -> None:
    """This process; what the system doesn't tell is left out."""
    start_s = _start_s()
    build: dict[Labels, float] = {(__version__, platform.python_version()): 1}
    metrics.watch("freeapi_build_info", lambda: build)
    metrics.watch("process_start_time_seconds", lambda: start_s)
    metrics.watch("process_cpu_seconds_total", _cpu_s)
    metrics.watch("process_resident_memory_bytes", _resident_bytes)
    metrics.watch("process_open_fds", _open_files)
    metrics.watch("process_max_fds", lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0])


_SIDES: Final[tuple[Labels, Labels]] = (("caller",), ("upstream",))


def _keys_by_state(keys: KeyPool, models: Collection[str], now_s: float) -> Reading:
    shown = keys.describe(now_s, models)
    counts = Counter((str(key["upstream"]), key_state(str(key["state"]))) for key in shown)
    upstreams = dict.fromkeys(str(key["upstream"]) for key in shown)
    return {(name, state): counts[name, state] for name in upstreams for state in KEY_STATES}


def key_state(words: str) -> str:
    """One of KEY_STATES for what ``KeyPool.describe`` says.

    >>> key_state("cooling for gpt-4o-mini for 7 s"), key_state("ok; upstream failing, next probe")
    ('cooling', 'paused')
    """
    if _PAUSED in words:
        return "paused"
    return next(state for state in KEY_STATES if words.startswith(state))


def _left(status: Status | None) -> Reading:
    if status is None:
        return None
    left: dict[Labels, float] = {
        (upstream,): nanousd / NANO for upstream, nanousd in status.upstream_left_nanousd.items()
    }
    if status.left_today_nanousd is not None:
        left[ALL,] = status.left_today_nanousd / NANO
    return left


def _caps(caps: Caps | None) -> Reading:
    """The day's; where there is none, the month's."""
    if caps is None:
        return None
    shown: dict[Labels, float] = {
        (upstream,): nanousd / NANO for upstream, nanousd in caps.upstream_daily_nanousd.items()
    }
    shared = caps.monthly_nanousd if caps.daily_nanousd is None else caps.daily_nanousd
    if shared is not None:
        shown[ALL,] = shared / NANO
    return shown


# --- The process ----------------------------------------------------------------------------------


def _start_s() -> float:
    """In seconds since 1970; without a /proc, now."""
    try:
        ticks = int(_stat()[19])
        up_s = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.time()
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK")


def _stat() -> list[str]:
    """The fields after the name, which may hold anything. Source: proc_pid_stat(5)."""
    return (_PROC / "stat").read_text().rpartition(")")[2].split()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident_bytes() -> Reading:
    try:
        return int(_stat()[21]) * resource.getpagesize()
    except OSError:
        return None


def _open_files() -> Reading:
    """The folder's size is their number since Linux 6.2; ``hardening`` closes it to listing."""
    try:
        return os.stat(_PROC / "fd").st_size or len(os.listdir(_PROC / "fd"))
    except OSError:
        return None
