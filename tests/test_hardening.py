"""What a serving process has given up, seen from outside and, where that can't be, from within.

The processes are real: the gateway as operators start it, and ``freeapi serve`` in a Python that
looks around once it has ended.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway import Gateway

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux's")

#: Serves until it is told to end, and then says what the kernel has noted of this process.
LOOK_AROUND = """
import ctypes, os, resource
from freeapi.cli import main
code = main(["serve"])
print("dumpable", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
print("core", resource.getrlimit(resource.RLIMIT_CORE))
print("umask", oct(os.umask(0)))
raise SystemExit(code)
"""
#: Number of the system call prctl. Source: Linux, asm/unistd_64.h and asm-generic/unistd.h.
PRCTL = {"x86_64": 157, "aarch64": 167}
#: Forbids this process the system call, as some sandboxes do (seccomp(2)), and serves.
FORBID_PRCTL = """
import ctypes, struct, sys
from freeapi.cli import main
code = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (6, 0, 0, 0x50001), (6, 0, 0, 0x7fff0000)]
filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(filters))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
raise SystemExit(main(["serve"]))
"""


def status(gateway: Gateway, name: str) -> str:
    """One line of ``/proc/PID/status``."""
    text = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return text.split(f"\n{name}:")[1].split("\n")[0].strip()


def test_no_core_file_no_new_rights_no_open_files(gateway: Gateway) -> None:
    """The core limit is 0, hard and soft; it can gain no rights; its files are its own user's."""
    limits = Path(f"/proc/{gateway.process.pid}/limits").read_text()
    core = limits.split("Max core file size")[1].split("\n")[0].split()
    assert core[:2] == ["0", "0"]
    assert status(gateway, "NoNewPrivs") == "1"
    assert status(gateway, "Umask") == "0077"


def test_it_isnt_dumpable_until_its_end(tmp_path: Path) -> None:
    """Nothing on the way undoes it: after a drain the process still can't be dumped nor traced."""
    settings = {"OPENAI_BASE_URL": "http://127.0.0.1:1"}
    gateway = Gateway(tmp_path, settings, python=["-c", LOOK_AROUND])
    gateway.stop()
    assert gateway.stdout[-3:] == ["dumpable 0\n", "core (0, 0)\n", "umask 0o77\n"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every process's environment")
def test_environment_with_the_keys_is_closed_to_the_same_user(gateway: Gateway) -> None:
    """Another process of the same user can't read the keys in ``/proc/PID/environ``."""
    with pytest.raises(PermissionError):
        Path(f"/proc/{gateway.process.pid}/environ").read_bytes()


@pytest.mark.skipif(platform.machine() not in PRCTL, reason="prctl's number isn't known here")
def test_a_system_that_refuses_stops_the_start(tmp_path: Path) -> None:
    """Where memory can't be protected it doesn't serve: exit code 1, and a sentence says why."""
    done = subprocess.run(
        [sys.executable, "-c", FORBID_PRCTL, str(PRCTL[platform.machine()])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == (
        "freeapi can't start: PR_SET_DUMPABLE is refused: Operation not permitted. "
        "A sandbox around it (seccomp) forbids that: let it call prctl.\n"
    )
