"""When files are read again, and what becomes of a configuration that can't be used."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from freeapi.config import Config, ConfigError
from freeapi.journal import Journal
from freeapi.reading import Problem
from freeapi.reload import Reloader, Sources, unchangeable
from freeapi.spelling import Address
from freeapi.state.ledger import LedgerError
from tests.configs import read as configuration

#: Far longer than anything here takes.
PATIENCE_S = 10.0
LOOK_S = 0.005


class Desk:
    """A reloader of one file, whose text is the ``HOST`` of the configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("first")
        self.sources = Sources()
        self.read()
        self.looks = asyncio.Semaphore(0)
        #: What was taken over, and whether that fails.
        self.applied: asyncio.Queue[str] = asyncio.Queue()
        self.fails: Exception | None = None
        self.lines = io.StringIO()
        self.asked = asyncio.Event()

    def read(self) -> Config:
        """As the command line does: only what is configured is watched."""
        self.sources.forget()
        try:
            host = self.sources.read(str(self.path))
        except FileNotFoundError as error:
            raise ConfigError(
                [Problem("HOST", "no file", "one"), Problem("a", "b", "c")]
            ) from error
        return msgspec.structs.replace(configuration(), host=host, warnings=("beware",))

    async def apply(self, config: Config) -> None:
        """Take it over, or fail."""
        if self.fails is not None:
            self.applied.put_nowait(f"failed at {config.host}")
            raise self.fails
        self.applied.put_nowait(config.host)

    async def next(self) -> str:
        """The next configuration that is taken over."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.applied.get()

    async def logged(self, name: str) -> dict[str, object]:
        """The journal's line of this name, once there is one."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for line in self.lines.getvalue().splitlines():
                    if f'"event":"{name}"' in line:
                        fields: dict[str, object] = json.loads(line)
                        return fields
                await asyncio.sleep(LOOK_S)

    @asynccontextmanager
    async def running(self, poll_s: float = LOOK_S) -> AsyncIterator[None]:
        """The reloader at work."""
        journal = Journal(self.lines, "info", lambda: 0.0)
        reloader = Reloader(self.sources, self.read, self.apply, journal, self.asked, poll_s=poll_s)
        task = asyncio.get_running_loop().create_task(reloader.run())
        yield
        assert not task.done(), "it must go on watching"
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    """A file that was read, and nothing that watches it yet."""
    return Desk(tmp_path / "file")


async def test_a_change_is_taken_over(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """What the file says after a change is handed on, with its warnings on stderr."""
    async with desk.running():
        desk.path.write_text("second")
        assert await desk.next() == "second"
        line = await desk.logged("reloaded")
    assert (line["upstreams"], line["level"]) == (0, "info")
    assert capsys.readouterr().err == "warning: beware\n"


async def test_nothing_happens_without_a_change(desk: Desk) -> None:
    """Files that stay as they were read are only looked at."""
    async with desk.running():
        desk.asked.set()
        assert await desk.next() == "first"
        await desk.logged("reloaded")
        for _ in range(20):
            await asyncio.to_thread(desk.sources.look)
            assert desk.applied.empty()


async def test_when_asked_it_reads_at_once(desk: Desk) -> None:
    """SIGHUP doesn't wait for the next look, nor for a change."""
    async with desk.running(poll_s=1_000.0):
        desk.asked.set()
        assert await desk.next() == "first"
        desk.path.write_text("second")
        desk.asked.set()
        assert await desk.next() == "second"


async def test_a_file_that_is_being_written_is_left_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change counts at its second look, so a file that changes between all looks isn't read."""
    looks = 0
    look, is_enough = desk.sources.look, asyncio.Event()
    loop = asyncio.get_running_loop()

    def flapping_look() -> tuple[object, ...] | None:
        nonlocal looks
        looks += 1
        if looks <= 10:
            desk.path.write_text("x" * looks)
        else:
            loop.call_soon_threadsafe(is_enough.set)
        return look()

    monkeypatch.setattr(desk.sources, "look", flapping_look)
    async with desk.running():
        async with asyncio.timeout(PATIENCE_S):
            await is_enough.wait()
        assert await desk.next() == "x" * 10
        assert desk.applied.empty()


async def test_what_cant_be_read_is_refused_once(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    """All problems are told on stderr, once; when the file is mended it is read again."""
    async with desk.running():
        desk.path.unlink()
        line = await desk.logged("reload_refused")
        assert (line["problems"], line["level"]) == (2, "error")
        said = capsys.readouterr().err
        assert said.startswith("freeapi goes on with its old configuration. ")
        assert "- HOST: found no file; allowed: one\n" in said
        assert "- a: found b" in said
        for _ in range(5):
            assert await asyncio.to_thread(desk.sources.look) is None
        assert capsys.readouterr().err == ""
        desk.path.write_text("second")
        assert await desk.next() == "second"


@pytest.mark.parametrize("error", [LedgerError("the ledger is damaged"), RuntimeError("a bug")])
async def test_what_cant_be_taken_over_ends_nothing(
    desk: Desk, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that fails, or a bug of ours, is told, and the next change is taken over."""
    async with desk.running():
        desk.fails = error
        desk.asked.set()
        assert await desk.next() == "failed at first"
        is_bug = isinstance(error, RuntimeError)
        await desk.logged("crash" if is_bug else "reload_refused")
        assert ("ledger is damaged" in capsys.readouterr().err) is not is_bug
        assert "a bug" not in desk.lines.getvalue()
        desk.fails = None
        desk.path.write_text("second")
        assert await desk.next() == "second"


def rewrite(path: Path) -> None:
    """Other text in the same file."""
    path.write_text("other text")


def replace(path: Path) -> None:
    """Another file of the same size and time under its name."""
    found = path.stat()
    new = path.with_name("new")
    new.write_text("x" * found.st_size)
    os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))
    new.rename(path)


def touch_back(path: Path) -> None:
    """Other text of the same size, and its time set back."""
    found = path.stat()
    path.write_text("x" * found.st_size)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def swap_link(path: Path) -> None:
    """The name leads to another file of the same size."""
    path.with_name("target").write_text("x" * path.stat().st_size)
    path.with_name("link").symlink_to("target")
    path.with_name("link").rename(path)


@pytest.mark.parametrize("change", [rewrite, replace, touch_back, swap_link, Path.unlink])
def test_every_kind_of_change_is_seen(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Writing, replacing, swapping a link, deleting, also where size and time look the same."""
    path = tmp_path / "file"
    path.write_text("text")
    sources = Sources()
    sources.read(str(path))
    assert sources.look() is None
    change(path)
    first = sources.look()
    assert first is not None
    assert first == sources.look()


def test_a_file_that_isnt_there_is_watched_too(tmp_path: Path) -> None:
    """One that could have been read is noticed when it appears; what is forgotten isn't watched."""
    path = tmp_path / "file"
    sources = Sources()
    with pytest.raises(FileNotFoundError):
        sources.read(str(path))
    assert sources.look() is None
    path.write_text("text")
    assert sources.look() is not None
    sources.forget()
    assert sources.look() is None


def test_what_is_bound_at_the_start_stays() -> None:
    """Addresses, the folder and the store can't change; each that should is named, all else is."""
    old = configuration()
    new = msgspec.structs.replace(
        old, host="::1", port=1, data_dir="/x", admin=Address("h", 1), drain_s=1.0
    )
    kept, names = unchangeable(old, new)
    assert names == ["HOST", "PORT", "FREEAPI_DATA_DIR", "FREEAPI_ADMIN_ADDR"]
    assert kept == msgspec.structs.replace(old, drain_s=1.0)
    assert unchangeable(old, old) == (old, [])
