"""Promise: on a terminal ``freeapi serve`` shows in one line how it does, below the log."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

from tests.gateway import SERVE
from tests.scripted_upstream import PATIENCE_S

LOG_LINE = re.compile(rb"\{[^{}]*\}")


def _read_until(master: int, wanted: bytes) -> bytes:
    """What the terminal shows, up to what is wanted; b"" if it doesn't come in time."""
    seen = b""
    while wanted not in seen:
        if not select.select([master], [], [], 2 * PATIENCE_S)[0]:
            return b""
        try:
            piece = os.read(master, 65_536)
        except OSError:  # the other end is closed
            return b""
        seen += piece
    return seen


def test_terminal_shows_a_live_line_below_the_log(tmp_path: Path) -> None:
    """The line is drawn, the log stands above it as JSON, and Ctrl-C ends both cleanly."""
    master, slave = pty.openpty()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TERM": "xterm",
        "PORT": "0",
        "FREEAPI_ADMIN_ADDR": "off",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    }
    process = subprocess.Popen(
        [sys.executable, *SERVE],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=slave,
    )
    os.close(slave)
    try:
        seen = _read_until(master, b"req/s | 0 streams")
        events = [json.loads(row)["event"] for row in LOG_LINE.findall(seen)]
        assert {"start", "ready"} <= set(events)
        process.send_signal(signal.SIGINT)
        assert _read_until(master, b'"event":"stop"')
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
