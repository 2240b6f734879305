"""The gateway under test: a real process, started by the command that operators use.

It is not the application imported into the test: nothing of ``freeapi`` runs in this process, so
what a test sees is what a caller or an operator sees.

Plan: a clean environment and an empty home; the address is read from the banner, which is printed
once the socket listens; everything that the process prints is kept, to be searched for canaries.

Invariants: ``stop`` sends SIGTERM and insists on exit code 0 and on an output that shows neither a
mistake nor a key.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

#: The first start of the embedded model may have to read 140 MB from a cold disk.
START_MAX_S = 90.0
#: Longer than any drain that a test configures, on a busy machine.
STOP_MAX_S = 40.0

#: What Python prints about mistakes of ours: crashes, leaks, tasks that nobody awaited.
TROUBLE = re.compile(r"Traceback|Warning:|was never|Exception ignored")
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
#: One key for most tests. Its text must never come out anywhere.
POOL_KEY = "sk-test-canary-pool-key-0001"
#: The model that most tests ask for: what is sent upstream has another name.
MODEL = "gpt-3.5-turbo"
#: A freeapi.toml whose only model has no limits of the whole instance, as the built-in ones do.
UNLIMITED_MODEL = f'[[model]]\nname = "{MODEL}"\nupstream_model = "gpt-4o-mini"\n'
#: Limits would only be in the way of tests about bytes; the tests of limits turn them on.
UNLIMITED = {
    "FREEAPI_CALLER_RPM": "off",
    "FREEAPI_CALLER_TPM": "off",
    "FREEAPI_CALLER_RPD": "off",
    "FREEAPI_CALLER_CONCURRENCY": "off",
    "FREEAPI_DAILY_USD": "off",
}


#: Those that haven't been waited for: a test that fails leaves its own behind (``conftest``).
RUNNING: set[Gateway] = set()
#: The arguments of Python that operators use (``freeapi serve`` is the same).
SERVE = ("-m", "freeapi", "serve")


class Gateway:
    """A running ``freeapi serve``."""

    def __init__(
        self,
        home: Path,
        settings: Mapping[str, str],
        config: str = "",
        python: Sequence[str] = SERVE,
    ) -> None:
        """Start it in ``home``, with ``config`` as its freeapi.toml; returns when it listens."""
        home.mkdir(parents=True, exist_ok=True)
        if config:
            (home / "freeapi.toml").write_text(config)
        self.process = subprocess.Popen(
            [sys.executable, *python],
            cwd=home,
            env=_environment(home, settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        RUNNING.add(self)
        self.home = home
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._port: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._collect, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        ]
        for thread in self._threads:
            thread.start()
        self.port = self._wait_for_address()

    def _collect(self, pipe: IO[str], lines: list[str]) -> None:
        with pipe:
            for line in pipe:
                lines.append(line)
                if lines is self.stdout and (match := ADDRESS.search(line)):
                    self._port.put(int(match[1]))
        self._port.put(None)

    def _wait_for_address(self) -> int:
        try:
            port = self._port.get(timeout=START_MAX_S)
        except queue.Empty:
            port = None
        if port is None:
            self.process.kill()
            self.wait()
            raise AssertionError(f"the gateway did not start:\n{self.output()}")
        return port

    @property
    def base_url(self) -> str:
        """What a caller sets in an SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    def output(self) -> str:
        """All that it printed so far."""
        return "".join([*self.stdout, *self.stderr])

    def resident_bytes(self) -> int:
        """Its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def cpu_s(self) -> float:
        """The processor time that it has used since its start."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        user_ticks, system_ticks = int(fields[11]), int(fields[12])
        return (user_ticks + system_ticks) / os.sysconf("SC_CLK_TCK")

    def open_files(self) -> int:
        """How many descriptors it holds."""
        # Its directory is closed to all but root (freeapi.hardening); Linux 6.2 tells its size.
        folder = f"/proc/{self.process.pid}/fd"
        return os.stat(folder).st_size or len(os.listdir(folder))

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM); returns at once."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.process.wait(STOP_MAX_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it, if it hasn't ended."""
        self.process.kill()
        self.process.wait()
        RUNNING.discard(self)
        for thread in self._threads:
            thread.join(STOP_MAX_S)

    def stop(self) -> None:
        """Stop it, and insist on a clean end."""
        self.terminate()
        assert self.wait() == 0, self.output()
        assert not TROUBLE.search(self.output()), self.output()
        assert POOL_KEY not in self.output()


def _environment(home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    clean = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HOST": "127.0.0.1",
        "PORT": "0",
        "FREEAPI_DATA_DIR": str(home),
        "FREEAPI_ADMIN_ADDR": "off",
        # So that an unclosed socket or a forgotten coroutine is printed, and fails the test.
        "PYTHONWARNINGS": "default",
    }
    # So that the package can be tested where it isn't installed.
    path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
    return {**clean, **path, **UNLIMITED, **settings}


def run(
    home: Path, settings: Mapping[str, str], config: str = "", python: Sequence[str] = SERVE
) -> tuple[int, str]:
    """Start one that can't serve; returns its exit code and all that it printed."""
    if config:
        (home / "freeapi.toml").write_text(config)
    done = subprocess.run(
        [sys.executable, *python],
        cwd=home,
        env=_environment(home, settings),
        capture_output=True,
        text=True,
        timeout=START_MAX_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
