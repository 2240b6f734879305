"""What the process gives up when it starts, so that a mistake elsewhere costs less.

Its memory holds the operator's keys and the callers' texts. So it leaves no image of it behind when
it dies, lets no other process of its user look into it (nor into ``/proc/PID/environ``, where the
keys are as well), can gain no rights by a program that it might start, and makes files that only
its own user can read.

What this is not: a sandbox. A container, or systemd's directives, can take away more.

A price: as the files below ``/proc/PID`` belong to root from then on, tools that look into the
process (py-spy, gdb, ``ls /proc/PID/fd``) need to be root's. The process itself still sees its own.

Source: prctl(2), core(5), proc(5).
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Final

#: Source: linux/prctl.h.
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


class HardeningRefused(Exception):
    """The system refuses a part of it; the text, for the operator, says which and why."""


def harden() -> None:
    """Give it all up, for good; once, before anything secret is read.

    Raises HardeningRefused: a promise that can't be kept stops the start.
    """
    os.umask(0o077)
    # Not enough by itself: Linux ignores the limit where dumps are piped to a program.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)
        _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def _prctl(name: str, option: int, value: int) -> None:
    # The kernel insists on zeros for what PR_SET_NO_NEW_PRIVS doesn't use.
    arguments = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(ctypes.c_int(option), *arguments) != 0:
        raise HardeningRefused(f"{name} is refused: {os.strerror(ctypes.get_errno())}")
