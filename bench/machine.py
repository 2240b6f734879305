"""The machine under the measurements: its cores, its processes' time and memory, what it is.

Plan: the proxy that is measured has one core to itself, and whatever loads it another, so that
neither takes the other's time. A process started inside ``pinned`` stays on that core.

What a process costs is read from /proc, the same for each contender: processor time in user and
system mode, of the process and of all it started.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: The first and the last core that we may use; one and the same where there is only one.
PROXY_CORE, *_, LOAD_CORE = sorted(os.sched_getaffinity(0)) * 2
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Run this process, and for good what it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += map(int, (task / "children").read_text().split())
    return [pid, *(one for child in children for one in family(child))]


def cpu_s(pids: list[int]) -> float:
    """Processor seconds that they have used since they began."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_S


def resident_bytes(pids: list[int]) -> int:
    """Their resident memory; what two of them share counts twice."""
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(text.split("VmRSS:")[1].split()[0]) * 1024 for text in status)


def open_files_max() -> int:
    """Raise this process's limit of open files as far as it goes; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def described() -> dict[str, str | int]:
    """What a reader has to know about the machine to judge the figures."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count() or 1,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
