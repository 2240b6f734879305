"""The process under audit: a gateway that is traced, and all that it prints.

Plan: both its outputs go into one pipe that a thread empties; the address is read from the banner,
which is printed once the port listens. Callers speak to it over sockets of their own, each from an
address of its own in 127.0.0.0/8, which is how a gateway on this machine tells callers apart.

What this is not: a view into the process. All that is known of it is seen from outside.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from freeapi.commands.exchanges import Caller
from freeapi.commands.recorder import RESET
from freeapi.commands.tracing import Trace, Tracer

#: A start takes a second, or three on a busy machine: tracing doubles it.
START_MAX_S: Final = 30.0
STOP_MAX_S: Final = 10.0
#: For an answer. The silent upstream takes ``rehearsal.FIRST_BYTE_S``.
_ANSWER_MAX_S: Final = 15.0
_ADDRESS: Final = re.compile(rb"http://127\.0\.0\.1:(\d+)/")
_READ_BYTES: Final = 65_536


class CannotStart(Exception):
    """The gateway didn't come up; the text says what it printed."""


class Subject:
    """A running gateway. Use it as a context manager: it ends with the block."""

    def __init__(self, command: Sequence[str], home: Path, environ: Mapping[str, str]) -> None:
        self.output = b""
        self.port = 0
        self.pid = 0
        self._is_up = threading.Event()
        read, write = os.pipe()
        self._reader = threading.Thread(target=self._collect, args=[read], daemon=True)
        self._reader.start()
        with os.fdopen(write, "wb") as out:
            self._tracer = Tracer(command, cwd=home, env=environ, out=out)
            # The other end is closed when the last writer is gone, so only it may keep this one.
            self.pid = self._tracer.start()

    def __enter__(self) -> Subject:
        """Raises CannotStart."""
        self._is_up.wait(START_MAX_S)
        if not self.port:
            self._tracer.end(0)
            self._reader.join(STOP_MAX_S)
            raise CannotStart(self.output.decode(errors="replace").strip() or "it says nothing")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def trace(self) -> Trace:
        """What it wrote and whom it spoke to."""
        return self._tracer.trace

    def stop(self) -> int | None:
        """End it as an operator would; the exit code. Once it is over, ``output`` is complete."""
        self._tracer.terminate()
        code = self._tracer.end(STOP_MAX_S)
        self._reader.join(STOP_MAX_S)
        return code

    def ask(
        self,
        port: int,
        data: bytes,
        source: str = "127.0.0.1",
        caller: Caller = "stays",
        wait: Callable[[], None] = lambda: None,
    ) -> bytes:
        """One caller's request on a connection of its own; what was answered.

        ``wait`` returns once the upstream has it, for the caller that gives up then.
        """
        timeout_s = _ANSWER_MAX_S
        with socket.create_connection(("127.0.0.1", port), timeout_s, (source, 0)) as connection:
            connection.sendall(data)
            if caller == "stays":
                return _read_all(connection)
            if caller == "gives up":
                wait()
            answer = connection.recv(_READ_BYTES) if caller == "leaves" else b""
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return answer

    def _collect(self, number: int) -> None:
        with os.fdopen(number, "rb", buffering=0) as pipe:
            while piece := pipe.read(_READ_BYTES):
                self.output += piece
                if not self.port and (match := _ADDRESS.search(self.output)):
                    self.port = int(match[1])
                    self._is_up.set()
        self._is_up.set()


def _read_all(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(_READ_BYTES):
            answer += piece
    return answer
