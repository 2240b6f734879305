"""A gateway that leaks on purpose: the real one, watched from within by a profiler that tells.

Nothing of ``freeapi`` is replaced: ``sys.setprofile`` sees each of its calls, and what some of them
are given is passed on to where it mustn't go. Started as the command of an audit, it shows that the
audit finds each kind of leak: ``python leaky.py file stderr``.
"""

from __future__ import annotations

import base64
import ctypes
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import freeapi

freeapi.take_sources()  # a profiler sees nothing of what is compiled

from freeapi.cli import main  # noqa: E402 - see above

Leak = Callable[[FrameType], None]


def to_file(frame: FrameType) -> None:
    """Write the prompt to a file that is gone a moment later."""
    path = Path("leak.tmp")
    path.write_bytes(b"x" + base64.b64encode(b"y" + frame.f_locals["body"]))
    path.unlink()


def to_stderr(frame: FrameType) -> None:
    """Print one of the caller's headers."""
    print(frame.f_locals["request"].headers.get(b"user-agent"), file=sys.stderr)


def to_network(frame: FrameType) -> None:
    """Tell somebody else."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"someone called", ("127.0.0.1", 9))


def to_upstream(frame: FrameType) -> None:
    """Tell the upstream who is calling."""
    config = Path(os.environ["FREEAPI_CONFIG"]).read_text(encoding="utf-8")
    port = int(config.split("http://127.0.0.1:")[1].split("/")[0])
    cookie = frame.f_locals["request"].headers[b"cookie"].decode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/tell", headers={"X-Session": cookie})
    connection.close()


def to_program(frame: FrameType) -> None:
    """Let another program do it."""
    subprocess.run(["true"], check=True)


def to_neighbours(frame: FrameType) -> None:
    """Let other processes look into the memory (PR_SET_DUMPABLE)."""
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


def to_death(frame: FrameType) -> None:
    """Die without a word."""
    os._exit(3)


#: Which leak, and the function of the gateway's whose first call sets it off.
LEAKS: dict[str, tuple[str, Leak]] = {
    "file": ("prepare", to_file),
    "stderr": ("identify", to_stderr),
    "network": ("identify", to_network),
    "upstream": ("identify", to_upstream),
    "program": ("identify", to_program),
    "neighbours": ("identify", to_neighbours),
    # Where nothing was to be sent: what is missed is not the request but the next caller's.
    "death": ("refuse", to_death),
}


def watch(wanted: list[tuple[str, Leak]]) -> None:
    """Let each leak happen once."""

    def profile(frame: FrameType, event: str, _: object) -> None:
        for one in wanted.copy():
            if event == "call" and frame.f_code.co_name == one[0]:
                wanted.remove(one)
                one[1](frame)

    sys.setprofile(profile)


if __name__ == "__main__":
    watch([LEAKS[name] for name in sys.argv[1:]])
    sys.exit(main(["serve"]))
