"""The kernel's tracing interface, as far as ``tracing`` needs it: stops, system calls, memory.

Linux on x86-64 and arm64 only, by ctypes, since no package for it has to be installed then. Which
calls mean what is ``tracing``'s affair; here they only get their names.

Source: ptrace(2), in particular PTRACE_GET_SYSCALL_INFO (Linux 5.3); the kernel's
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from typing import Final, NamedTuple

_TRACEME: Final = 0
_SYSCALL: Final = 24
_SETOPTIONS: Final = 0x4200
_GET_EVENT_MESSAGE: Final = 0x4201
_GET_SYSCALL_INFO: Final = 0x420E
#: Mark stops at system calls; follow threads, children and new programs; end with the tracer.
_OPTIONS: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100000
#: waitpid: also for threads (__WALL), and only for what this thread started (__WNOTHREAD).
WAIT: Final = 0x40000000 | 0x20000000
#: The stops of whoever forks, or starts a thread: fork, vfork, clone.
EVENTS_BIRTH: Final = (1, 2, 3)
EVENT_EXEC: Final = 4
_INFO: Final = struct.Struct("=B3xIQQ7Q")

_X86_64: Final = {
    1: "write", 2: "open", 3: "close", 18: "pwrite64", 20: "writev", 32: "dup", 33: "dup2",
    40: "sendfile", 42: "connect", 44: "sendto", 46: "sendmsg", 59: "execve", 72: "fcntl",
    85: "creat", 157: "prctl", 257: "openat", 275: "splice", 292: "dup3", 296: "pwritev",
    307: "sendmmsg", 319: "memfd_create", 322: "execveat", 326: "copy_file_range",
    328: "pwritev2", 425: "io_uring_setup", 437: "openat2",
}  # fmt: skip
_ARM64: Final = {
    23: "dup", 24: "dup3", 25: "fcntl", 56: "openat", 57: "close", 64: "write", 66: "writev",
    68: "pwrite64", 70: "pwritev", 71: "sendfile", 76: "splice", 167: "prctl", 203: "connect",
    206: "sendto", 211: "sendmsg", 221: "execve", 269: "sendmmsg", 279: "memfd_create",
    281: "execveat", 285: "copy_file_range", 287: "pwritev2", 425: "io_uring_setup",
    437: "openat2",
}  # fmt: skip
_NAMES: Final = {"x86_64": _X86_64, "aarch64": _ARM64}.get(platform.machine(), {})
IS_SUPPORTED: Final = sys.platform == "linux" and bool(_NAMES)

#: io_uring writes without system calls, so no tracer sees what. Whoever finds it missing does
#: without. Source: seccomp(2); the number is the same on all machines.
_IO_URING_SETUP: Final = 425
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _ENOSYS = 0x7FFF0000, 0x00050000 | 38
#: "Load the call's number; if it is that one, refuse; allow" as (code, if true, if false, value).
_WITHOUT_IO_URING: Final = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x20, 0, 0, 0),
        (0x15, 0, 1, _IO_URING_SETUP),
        (0x06, 0, 0, _ENOSYS),
        (0x06, 0, 0, _ALLOW),
    )
)

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Entered(NamedTuple):
    """A system call begins."""

    name: str
    arguments: tuple[int, ...]


class Left(NamedTuple):
    """The thread's system call ended; a negative result is an error number."""

    result: int


def ask_to_be_traced() -> None:
    """For a child, before it becomes the program: the parent's thread is its tracer from now on."""
    code = ctypes.create_string_buffer(_WITHOUT_IO_URING)
    program = struct.pack("@HP", len(_WITHOUT_IO_URING) // 8, ctypes.addressof(code))
    for arguments in ((_NO_NEW_PRIVS, 1, 0, 0, 0), (_SET_SECCOMP, _FILTER, program, 0, 0)):
        if _LIBC.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    _request(_TRACEME, 0, 0, 0)


def follow(pid: int) -> None:
    """Say what is to be followed; the process must be at a stop, as all must be below."""
    _request(_SETOPTIONS, pid, 0, _OPTIONS)


def go_on(tid: int, signal_number: int = 0) -> None:
    """Let the thread run to its next system call, with that signal if it isn't 0."""
    _request(_SYSCALL, tid, 0, signal_number)


def born(tid: int) -> int:
    """Whom the thread has just started; for a stop at one of ``EVENTS_BIRTH``."""
    child = ctypes.c_ulong()
    _request(_GET_EVENT_MESSAGE, tid, 0, ctypes.addressof(child))
    return child.value


def system_call(tid: int) -> Entered | Left | None:
    """What this stop at a system call is; None for calls that have no name here."""
    buffer = ctypes.create_string_buffer(_INFO.size)
    _request(_GET_SYSCALL_INFO, tid, _INFO.size, ctypes.addressof(buffer))
    kind, _, _, _, first, *rest = _INFO.unpack(buffer.raw)
    if kind == 1:
        name = _NAMES.get(first)
        return None if name is None else Entered(name, tuple(rest))
    return Left(ctypes.c_int64(first).value) if kind == 2 else None


def _request(request: int, tid: int, address: int, data: int) -> None:
    """Raises OSError; ProcessLookupError: the thread was killed in the meantime."""
    if _LIBC.ptrace(request, tid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
