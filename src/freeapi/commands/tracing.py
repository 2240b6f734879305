"""What a process and its children write and whom they talk to, as the kernel sees it.

``Tracer`` starts a program and stops it at every system call, as strace would. So nothing has to be
guessed and no code has to be asked: a file that is written and deleted within a millisecond, a
library's socket, a child process are all seen, and what is written is kept, byte for byte.

What this is not: no log of everything. Only what leads out of the process is noted, in ``Trace``.
Writes to pipes and connected sockets aren't: both ends of those are ours to watch elsewhere.

Invariants:
- What can't be followed is listed in ``Trace.gaps``; an empty list means that all was seen.
- The traced processes end with this one, whatever ends it.
- One thread does all the tracing: the kernel obeys only that one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from freeapi.commands import ptrace

#: Not a signal of its own: a stop at a system call. Source: ptrace(2), PTRACE_O_TRACESYSGOOD.
_SYSTEM_CALL: Final = signal.SIGTRAP | 0x80
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PATH_BYTES_MAX: Final = 4_096
_ADDRESS_BYTES_MAX: Final = 128
_VECTORS_MAX: Final = 1_024  # UIO_MAXIOV
_MMSGHDR_BYTES: Final = 64
_EINPROGRESS: Final = -115
_DUPFD, _DUPFD_CLOEXEC, _SET_DUMPABLE = 0, 1030, 4
#: Ways to write that leave no bytes to look at, so they must not be used.
_UNSEEN: Final = ("io_uring_setup", "sendfile", "splice", "copy_file_range")


class CannotTrace(Exception):
    """This machine doesn't let a process trace its own child; the text says what to do."""


class Trace:
    """What was seen so far."""

    def __init__(self) -> None:
        #: Each file that was opened for writing, and all that was written to it.
        self.files: dict[str, bytearray] = {}
        #: Where something was connected or sent to: "127.0.0.1:443", or a socket's path.
        self.peers: set[str] = set()
        #: Programs started after the first.
        self.programs: list[str] = []
        #: The process asked the kernel for no core dumps and no look from outside.
        self.is_undumpable = False
        self.gaps: set[str] = set()


class Tracer:
    """One traced program, from its start to its end."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], out: IO[bytes]
    ) -> None:
        """``out`` takes both stdout and stderr."""
        self.trace = Trace()
        self._start = (list(command), cwd, dict(env), out)
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: Exception | None = None
        self._has_started = threading.Event()
        #: By thread, the call that it is in.
        self._entered: dict[int, ptrace.Entered] = {}
        #: By thread, its process.
        self._processes: dict[int, int] = {}
        #: Those of them that haven't had their first stop yet.
        self._unborn: set[int] = set()
        #: By process: its memory, and which of its descriptors lead to files.
        self._memories: dict[int, int] = {}
        self._files: dict[int, dict[int, str]] = {}
        self._thread = threading.Thread(target=self._run, name="tracer", daemon=True)

    def start(self) -> int:
        """Start the program; returns its process id. Raises CannotTrace."""
        if not ptrace.IS_SUPPORTED:
            raise CannotTrace("it traces what the gateway does, which needs Linux (x86-64, arm64)")
        self._thread.start()
        self._has_started.wait()
        if self._failure is not None or self._process is None:
            raise CannotTrace(
                "this machine doesn't let a process trace its own child (in a container: "
                "--cap-add SYS_PTRACE; else see /proc/sys/kernel/yama/ptrace_scope)"
            ) from self._failure
        return self._process.pid

    def terminate(self) -> None:
        """Ask the program to stop (SIGTERM)."""
        self._signal(signal.SIGTERM)

    def end(self, wait_s: float) -> int | None:
        """Wait for the end, and bring it about after ``wait_s``; the exit code."""
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self._signal(signal.SIGKILL)
            self._thread.join()
        return None if self._process is None else self._process.returncode

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    # --- The tracing thread ---

    def _run(self) -> None:
        try:
            self._launch()
        except (OSError, subprocess.SubprocessError) as error:
            self._failure = error
        finally:
            self._has_started.set()
        if self._failure is None:
            self._follow()

    def _launch(self) -> None:
        command, cwd, env, out = self._start
        process = subprocess.Popen(  # noqa: S603 - our own command, or a test's
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            preexec_fn=ptrace.ask_to_be_traced,
            start_new_session=True,
        )
        os.waitpid(process.pid, ptrace.WAIT)
        ptrace.follow(process.pid)
        self._arrive(process.pid)
        ptrace.go_on(process.pid)
        self._process = process

    def _follow(self) -> None:
        """Go from stop to stop until all have ended."""
        while self._processes:
            tid, status = os.waitpid(-1, ptrace.WAIT)
            if os.WIFSTOPPED(status):
                # Killed while we looked at it: its end is the next that we hear of it.
                with contextlib.suppress(ProcessLookupError):
                    self._stopped(tid, os.WSTOPSIG(status), status >> 16)
            else:
                self._leave(tid, os.waitstatus_to_exitcode(status))

    def _stopped(self, tid: int, number: int, event: int) -> None:
        is_new = tid not in self._processes or tid in self._unborn
        self._unborn.discard(tid)
        self._arrive(tid)
        deliver = 0
        if number == _SYSTEM_CALL:
            self._called(tid)
        elif event == ptrace.EVENT_EXEC:
            self._open_memory(self._processes[tid])
        elif event in ptrace.EVENTS_BIRTH:
            # Now, while the parent stands still: it may end before its child's first stop, and what
            # the child has inherited, or that there is a child at all, would be lost with it.
            child = ptrace.born(tid)
            if child not in self._processes:
                self._unborn.add(child)
                self._arrive(child)
        elif not event and not (is_new and number == signal.SIGSTOP):
            deliver = number
        ptrace.go_on(tid, deliver)

    def _arrive(self, tid: int) -> None:
        """Note a thread, if it is new, or a process with what it inherits."""
        if tid in self._processes:
            return
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{tid}/status").read_text().splitlines()
        )
        pid, parent = int(status["Tgid"]), int(status["PPid"])
        self._processes[tid] = pid
        if pid not in self._files:
            self._files[pid] = dict(self._files.get(parent, {}))
            self._open_memory(pid)

    def _open_memory(self, pid: int) -> None:
        """Early: once a process is undumpable only root may open it, but what is open stays so."""
        self._close_memory(pid)
        try:
            self._memories[pid] = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        except OSError:
            self.trace.gaps.add("the memory of a child process")

    def _close_memory(self, pid: int) -> None:
        if (memory := self._memories.pop(pid, None)) is not None:
            os.close(memory)

    def _leave(self, tid: int, code: int) -> None:
        self._unborn.discard(tid)
        pid = self._processes.pop(tid, None)
        self._entered.pop(tid, None)
        if pid is not None and pid not in self._processes.values():
            self._close_memory(pid)
            self._files.pop(pid, None)
        if self._process is not None and tid == self._process.pid:
            self._process.returncode = code

    # --- System calls ---

    def _called(self, tid: int) -> None:
        stop = ptrace.system_call(tid)
        if isinstance(stop, ptrace.Entered):
            self._entered[tid] = stop
            return
        entered = self._entered.pop(tid, None)
        if entered is not None and stop is not None:
            look = _LOOKS.get(entered.name, Tracer._unseen)
            look(self, self._processes[tid], entered, stop.result)

    def _opened(self, pid: int, call: ptrace.Entered, result: int) -> None:
        """``open`` and its like: the file's name, if it may be written to."""
        place, flags = _open_arguments(call)
        if call.name == "openat2":
            flags = int.from_bytes(self._read(pid, call.arguments[2], 8), "little")
        if result < 0 or not flags & _WRITING:
            return
        path = os.path.join(self._start[1], self._text(pid, place))
        # The kernel's own name for it, where we may ask: absolute, without links.
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/{pid}/fd/{result}")
        self._files[pid][result] = path
        self.trace.files.setdefault(path, bytearray())

    def _wrote(self, pid: int, call: ptrace.Entered, result: int) -> None:
        """``write`` and its like: the bytes, if they went to a file."""
        number, address, count = call.arguments[:3]
        path = self._files[pid].get(number)
        if path is None or result <= 0:
            return
        if "v" in call.name:
            data = b"".join(self._vectors(pid, address, count))[:result]
        else:
            data = self._read(pid, address, result)
        self.trace.files[path] += data

    def _vectors(self, pid: int, address: int, count: int) -> list[bytes]:
        table = self._read(pid, address, 16 * min(count, _VECTORS_MAX))
        return [self._read(pid, start, size) for start, size in struct.iter_unpack("=QQ", table)]

    def _copied(self, pid: int, call: ptrace.Entered, result: int) -> None:
        """``dup`` and its like, ``fcntl`` included: one more descriptor of a file."""
        is_copy = call.name != "fcntl" or call.arguments[1] in (_DUPFD, _DUPFD_CLOEXEC)
        if is_copy and result >= 0:
            files = self._files[pid]
            files.pop(result, None)
            if call.arguments[0] in files:
                files[result] = files[call.arguments[0]]

    def _closed(self, pid: int, call: ptrace.Entered, result: int) -> None:
        self._files[pid].pop(call.arguments[0], None)

    def _connected(self, pid: int, call: ptrace.Entered, result: int) -> None:
        """An attempt counts: it tells the other end something even if it is refused."""
        peer = self._peer(pid, *call.arguments[1:3])
        is_path = peer is not None and ":" not in peer
        if peer is not None and not (is_path and result < 0 and result != _EINPROGRESS):
            self.trace.peers.add(peer)

    def _sent(self, pid: int, call: ptrace.Entered, result: int) -> None:
        """Datagrams name their receiver themselves."""
        if call.name == "sendto":
            names = [call.arguments[4:6]]
        else:
            count = call.arguments[2] if call.name == "sendmmsg" else 1
            table = self._read(pid, call.arguments[1], _MMSGHDR_BYTES * min(count, _VECTORS_MAX))
            names = [
                struct.unpack_from("=QI", table, at) for at in range(0, len(table), _MMSGHDR_BYTES)
            ]
        peers = (self._peer(pid, *name) for name in names)
        self.trace.peers.update(peer for peer in peers if peer is not None)

    def _peer(self, pid: int, address: int, size: int) -> str | None:
        """An address in words; None for none, and for the kernel's own (netlink)."""
        raw = self._read(pid, address, min(size, _ADDRESS_BYTES_MAX)) if address else b""
        family = int.from_bytes(raw[:2], "little")
        if family == socket.AF_INET and len(raw) >= 8:
            return f"{socket.inet_ntop(family, raw[4:8])}:{int.from_bytes(raw[2:4], 'big')}"
        if family == socket.AF_INET6 and len(raw) >= 24:
            return f"[{socket.inet_ntop(family, raw[8:24])}]:{int.from_bytes(raw[2:4], 'big')}"
        if family == socket.AF_UNIX:
            return os.fsdecode(raw[2:].strip(b"\0").partition(b"\0")[0]) or None
        return None

    def _became(self, pid: int, call: ptrace.Entered, result: int) -> None:
        """Another program; its memory is a new one, so its name is asked of the kernel."""
        if result < 0:
            return
        try:
            self.trace.programs.append(os.readlink(f"/proc/{pid}/exe"))
        except OSError:
            self.trace.programs.append("a program whose name can't be read")

    def _asked(self, pid: int, call: ptrace.Entered, result: int) -> None:
        option, value = call.arguments[:2]
        if result == 0 and option == _SET_DUMPABLE:
            self.trace.is_undumpable = value == 0

    def _unseen(self, pid: int, call: ptrace.Entered, result: int) -> None:
        if result >= 0:
            self.trace.gaps.add(f"data written by {call.name}")

    def _read(self, pid: int, address: int, size: int) -> bytes:
        memory = self._memories.get(pid)
        try:
            return os.pread(memory, size, address) if memory is not None else b""
        except OSError:
            self.trace.gaps.add("some of the memory of a process")
            return b""

    def _text(self, pid: int, address: int) -> str:
        return os.fsdecode(self._read(pid, address, _PATH_BYTES_MAX).partition(b"\0")[0])


def _open_arguments(call: ptrace.Entered) -> tuple[int, int]:
    """Where the path is, and the flags."""
    first, second, third, *_ = call.arguments
    if call.name == "open":
        return first, second
    if call.name in ("creat", "memfd_create"):
        return first, os.O_WRONLY
    return second, third


_Look = Callable[[Tracer, int, ptrace.Entered, int], None]
_LOOKS: Final[Mapping[str, _Look]] = {
    **dict.fromkeys(("open", "openat", "openat2", "creat", "memfd_create"), Tracer._opened),
    **dict.fromkeys(("write", "writev", "pwrite64", "pwritev", "pwritev2"), Tracer._wrote),
    **dict.fromkeys(("dup", "dup2", "dup3", "fcntl"), Tracer._copied),
    **dict.fromkeys(("sendto", "sendmsg", "sendmmsg"), Tracer._sent),
    **dict.fromkeys(("execve", "execveat"), Tracer._became),
    **dict.fromkeys(_UNSEEN, Tracer._unseen),
    "close": Tracer._closed,
    "connect": Tracer._connected,
    "prctl": Tracer._asked,
}
