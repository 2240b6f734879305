"""A gateway under callgrind: instructions executed, which no noise of the machine changes.

Plan: the process starts uncounted (counted, its imports take more than a minute); ``vgdb`` turns
the counting on, and ``dump`` writes what has been counted since the last dump and begins anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.contenders import Place, nginx_command, settings, write_nginx
from bench.machine import free_port
from bench.server import Server, is_open, running

_TOTAL = re.compile(r"^totals: (\d+)", re.MULTILINE)
_START_MAX_S, _VGDB_MAX_S = 120.0, 60.0


class Counted:
    """A server whose instructions are counted."""

    def __init__(self, server: Server, out: Path) -> None:
        self.server = server
        self._out = out
        self._dumps = 0

    def begin(self) -> None:
        """Count from now on."""
        self._tell("instrumentation", "on")

    def dump(self) -> Path:
        """What was counted since the last dump (or since ``begin``), as callgrind's file."""
        self._tell("dump")
        self._dumps += 1
        return self._out.with_name(f"{self._out.name}.{self._dumps}")

    def _tell(self, *words: str) -> None:
        command = ["vgdb", f"--pid={self.server.process.pid}", *words]
        subprocess.run(command, check=True, capture_output=True, timeout=_VGDB_MAX_S, env=_ENV)


#: The names of vgdb's pipes contain these; both sides have to see the same.
_ENV = {"PATH": os.environ["PATH"], "HOST": "127.0.0.1", "LOGNAME": "bench"}


def instructions(dump: Path) -> int:
    """How many a dump has counted, over all threads."""
    return sum(map(int, _TOTAL.findall(dump.read_text())))


@contextmanager
def gateway(place: Place, core: int) -> Iterator[Counted]:
    """This checkout's gateway, as for the other measurements. Raises NotStarted."""
    port = free_port()
    env = {**settings(place, port), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "freeapi", "serve"]
    with _counted("the gateway under callgrind", command, place, port, core, env) as counted:
        yield counted


@contextmanager
def nginx(place: Place, core: int) -> Iterator[Counted]:
    """nginx as a plain proxy, in one process. Raises NotStarted."""
    port = free_port()
    write_nginx(place, port, "master_process off;")
    command = nginx_command(place.home)
    with _counted("nginx under callgrind", command, place, port, core, {}) as counted:
        yield counted


@contextmanager
def _counted(
    name: str, command: Sequence[str], place: Place, port: int, core: int, env: Mapping[str, str]
) -> Iterator[Counted]:
    out = place.home / "callgrind"
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
    with running(
        name,
        [*valgrind, *command],
        port=port,
        home=place.home,
        core=core,
        env={**env, **_ENV},
        start_max_s=_START_MAX_S,
        is_ready=is_open,
    ) as server:
        yield Counted(server, out)
