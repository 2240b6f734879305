"""The tracer sees what a program writes and whom it speaks to, however it goes about it.

The programs are real ones, a few lines of Python or shell each.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from freeapi.commands.tracing import CannotTrace, Tracer

PATIENCE_S = 20.0


def traced(home: Path, code: str) -> tuple[Tracer, bytes, int | None]:
    """Run the code to its end; the tracer, the output and the exit code."""
    read, write = os.pipe()
    with os.fdopen(write, "wb") as out:
        tracer = Tracer([sys.executable, "-c", code], cwd=home, env=dict(os.environ), out=out)
        tracer.start()
    with os.fdopen(read, "rb") as output:
        printed = output.read()
    return tracer, printed, tracer.end(PATIENCE_S)


@pytest.mark.parametrize(
    "code",
    [
        "open('f', 'w').write('the words')",
        "import os; os.write(os.creat('f', 0o600) if hasattr(os, 'creat') else"
        " os.open('f', os.O_CREAT | os.O_WRONLY), b'the words')",
        "import os; os.writev(os.open('f', os.O_CREAT | os.O_RDWR), [b'the ', b'words'])",
        "import os; os.pwrite(os.open('f', os.O_CREAT | os.O_RDWR), b'the words', 0)",
        "import os; n = os.dup(os.open('f', os.O_CREAT | os.O_RDWR)); os.write(n, b'the words')",
        "import os; os.dup2(os.open('f', os.O_CREAT | os.O_RDWR), 77); os.write(77, b'the words')",
        "import os; f = open('f', 'w'); os.unlink('f'); f.write('the words')",
        "import os; f = open('f', 'w'); os.fork() or f.write('the words')",
        "import threading as t; f = open('f', 'w');"
        " t.Thread(target=f.write, args=['the words']).start()",
        "import os; os.system('printf \"the words\" > f')",
    ],
)
def test_what_is_written_to_a_file_is_kept(tmp_path: Path, code: str) -> None:
    """By whichever call, descriptor, thread or process, and if it is deleted as well."""
    tracer, printed, status = traced(tmp_path, code)
    assert (printed, status) == (b"", 0)
    files = {
        Path(path.removesuffix(" (deleted)")): data for path, data in tracer.trace.files.items()
    }
    assert bytes(files[tmp_path / "f"]) == b"the words"
    assert tracer.trace.gaps == set()


def test_children_that_outlive_their_parent_are_seen(tmp_path: Path) -> None:
    """What a child writes counts, though its parent may have ended before it begins."""
    code = (
        "import os; f = open('f', 'ab', 0)\n"
        "for _ in range(30):\n"
        "    if not os.fork(): f.write(b'x'); os._exit(0)"
    )
    for number in range(5):  # each missed one or two of them every other time
        (home := tmp_path / str(number)).mkdir()
        tracer, _, _ = traced(home, code)
        assert bytes(tracer.trace.files[str(home / "f")]) == b"x" * 30


def test_a_library_is_seen_as_well(tmp_path: Path) -> None:
    """SQLite writes from C, without asking Python: its files and what is in them are seen."""
    code = (
        "import sqlite3; d = sqlite3.connect('d'); d.execute('create table words(a)'); d.commit()"
    )
    tracer, _, _ = traced(tmp_path, code)
    assert b"create table words" in tracer.trace.files[str(tmp_path / "d")].lower()


def test_memory_files_count_as_files(tmp_path: Path) -> None:
    """A file without a name can be handed on, so it is seen, too."""
    tracer, _, _ = traced(tmp_path, "import os; os.write(os.memfd_create('m'), b'the words')")
    assert b"the words" in tracer.trace.files.values()


def test_what_is_only_read_or_printed_is_no_file(tmp_path: Path) -> None:
    """Reading leaves nothing behind, and printing is seen at the other end of the pipe."""
    (tmp_path / "f").write_text("the words")
    tracer, printed, _ = traced(tmp_path, "print(open('f').read())")
    assert printed == b"the words\n"
    assert tracer.trace.files == {}


def test_connections_are_seen(tmp_path: Path) -> None:
    """Over TCP, by a datagram, to a name of this machine; whether or not anyone answers."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as neighbour,
    ):
        neighbour.bind(str(tmp_path / "s"))
        neighbour.listen()
        port = listener.getsockname()[1]
        code = f"""
import socket as s
s.create_connection(("127.0.0.1", {port}))
s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b"1", ("127.0.0.2", 9))
s.socket(s.AF_INET6, s.SOCK_DGRAM).sendmsg([b"1"], (), 0, ("::1", 9)) if {socket.has_ipv6} else 0
s.socket(s.AF_UNIX).connect("s")
try: s.create_connection(("127.0.0.3", 1))
except OSError: pass
try: s.socket(s.AF_UNIX).connect("nobody")
except OSError: pass
"""
        tracer, printed, status = traced(tmp_path, code)
    assert (printed, status) == (b"", 0)
    assert tracer.trace.peers - {"[::1]:9"} == {
        f"127.0.0.1:{port}",
        "127.0.0.2:9",
        "127.0.0.3:1",
        "s",
    }


def test_programs_and_promises_to_the_kernel_are_seen(tmp_path: Path) -> None:
    """Another program, and giving up memory dumps, are noted."""
    code = "import ctypes, os; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); os.system('exit 0')"
    trace = traced(tmp_path, code)[0].trace
    assert trace.is_undumpable
    assert len(trace.programs) == 1
    assert not traced(tmp_path, "")[0].trace.is_undumpable


def test_ways_around_the_tracer_are_gaps_or_closed(tmp_path: Path) -> None:
    """A copy within the kernel is reported; io_uring isn't to be had."""
    code = (
        """
import ctypes, os
r, w = os.pipe(); os.write(w, b"the words")
os.splice(r, os.open("f", os.O_CREAT | os.O_RDWR), 9)
assert ctypes.CDLL(None, use_errno=True).syscall(425, 8, ctypes.create_string_buffer(120)) == -1
assert ctypes.get_errno() == 38
"""
        if hasattr(os, "splice")
        else """
import os
a = os.open("a", os.O_CREAT | os.O_RDWR); os.write(a, b"the words"); os.lseek(a, 0, 0)
os.sendfile(os.open("f", os.O_CREAT | os.O_RDWR), a, 0, 9)
"""
    )  # os.splice: Python 3.10, Linux
    tracer, printed, status = traced(tmp_path, code)
    assert (printed, status) == (b"", 0)
    assert len(tracer.trace.gaps) == 1


def test_signals_arrive(tmp_path: Path) -> None:
    """The program sees SIGTERM as if nobody traced it; one that ignores it is ended."""
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print(1); signal.pause()"
    read, write = os.pipe()
    with os.fdopen(write, "wb") as out:
        tracer = Tracer([sys.executable, "-uc", code], cwd=tmp_path, env={}, out=out)
        tracer.start()
    with os.fdopen(read, "rb") as output:
        assert output.readline() == b"1\n"
        tracer.terminate()
        assert tracer.end(PATIENCE_S) == 7
        tracer.terminate()


def test_a_program_that_goes_on_is_ended(tmp_path: Path) -> None:
    """After the time that it is given it is killed."""
    with open(os.devnull, "wb") as out:
        tracer = Tracer(
            [sys.executable, "-c", "import signal; signal.pause()"], cwd=tmp_path, env={}, out=out
        )
        tracer.start()
        assert tracer.end(0.01) == -signal.SIGKILL


def test_a_program_that_is_not_there_cannot_be_traced(tmp_path: Path) -> None:
    """What can't be started is told at once."""
    with open(os.devnull, "wb") as out:
        tracer = Tracer([str(tmp_path / "nothing")], cwd=tmp_path, env={}, out=out)
        with pytest.raises(CannotTrace):
            tracer.start()


def test_a_machine_that_forbids_tracing_is_told(tmp_path: Path) -> None:
    """Who is traced already can't be traced by another: that is said, with what to do about it."""
    code = """
import sys
from pathlib import Path
from freeapi.commands.tracing import CannotTrace, Tracer
try:
    Tracer([sys.executable, "-c", ""], cwd=Path.cwd(), env={}, out=sys.stdout.buffer).start()
except CannotTrace as error:
    print(error)
"""
    _, printed, status = traced(tmp_path, code)
    assert b"--cap-add SYS_PTRACE" in printed
    assert status == 0
