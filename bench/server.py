"""A server that runs while it is measured: any program, started, watched and ended the same way.

Invariants: it is a session of its own, so that Ctrl-C reaches it only through us; it is ended when
its ``with`` block is, however that ends; it runs on one core for as long as it lives.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.machine import cpu_s, family, pinned, resident_bytes
from bench.texts import HEADERS, MARK, PATH, PLAIN

START_MAX_S, STOP_MAX_S = 60.0, 10.0
#: Between two looks at a server that starts; also the precision of its start-up time.
_LOOK_S = 0.002


class NotStarted(Exception):
    """It ended, or didn't answer in time; the text is the end of what it printed."""


class Server:
    """A running one, on a port of 127.0.0.1."""

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        port: int,
        headers: Mapping[str, str],
    ) -> None:
        self.name = name
        self.process = process
        self.port = port
        #: What it wants in each request.
        self.headers = {**HEADERS, **headers}
        #: Whether its answers are the upstream's to the byte.
        self.is_exact = True
        self.start_s = 0.0

    def cpu_s(self) -> float:
        """Processor seconds of all its processes so far."""
        return cpu_s(family(self.process.pid))

    def resident_bytes(self) -> int:
        """Resident memory of all its processes."""
        return resident_bytes(family(self.process.pid))


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    home: Path,
    core: int,
    env: Mapping[str, str] | None = None,
    start_max_s: float = START_MAX_S,
    is_ready: Callable[[Server], bool] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """It, from its first right answer to its end. Raises NotStarted.

    ``is_ready`` looks at it in another way; it may raise OSError while there is nothing.
    """
    home.mkdir(parents=True, exist_ok=True)
    clean = {"PATH": f"{os.environ['PATH']}:/usr/sbin", "HOME": str(home), "LANG": "C.UTF-8"}
    with (home / "output.txt").open("wb") as output, pinned(core):
        begun_s = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=home,
            env={**clean, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(name, process, port, headers or {})
    try:
        _wait(server, home, begun_s + start_max_s, is_ready or answers)
        server.start_s = time.perf_counter() - begun_s
        yield server
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it started."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_MAX_S)
    finally:
        # What is left of its session, which is nothing if it ended well.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(server: Server, home: Path, until_s: float, is_ready: Callable[[Server], bool]) -> None:
    while True:
        if server.process.poll() is not None or time.perf_counter() > until_s:
            said = (home / "output.txt").read_text(errors="replace")[-800:]
            raise NotStarted(f"{server.name} did not start: {said}")
        with contextlib.suppress(OSError):
            if is_ready(server):
                return
        time.sleep(_LOOK_S)


def answers(server: Server) -> bool:
    """Whether the upstream's answer comes through. Raises OSError."""
    status, body = ask(server)
    return status == 200 and MARK.encode() in body


def is_open(server: Server) -> bool:
    """Whether somebody listens. Raises OSError."""
    socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
    return True


def ask(server: Server) -> tuple[int, bytes]:
    """The status and body of one answer, on a connection of its own. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("POST", PATH, PLAIN.request, server.headers)
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()
