"""The browser, for the promises about the page; one gateway with every endpoint, for those."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browse, Chromium, Tab
from tests.endpoints import answer_any, start_all
from tests.gateway import POOL_KEY, Gateway
from tests.scripted_upstream import ScriptedUpstream


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """The browser of all tests; they are skipped where there is none, except in CI."""
    path = shutil.which("chromium")
    if path is None:
        reason = "chromium is missing (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    chromium = Chromium(path)
    yield chromium
    chromium.close()


@pytest.fixture
async def browse(chromium: Chromium) -> AsyncIterator[Browse]:
    """Tabs of the browser, each an empty profile, closed at the end."""
    tabs: list[Tab] = []

    async def open_tab(port: int, path: str = "/", **profile: Any) -> Tab:
        tab = await chromium.do(Tab, chromium, profile)
        tabs.append(tab)
        await tab.goto(f"http://127.0.0.1:{port}{path}")
        return tab

    yield open_tab
    assert [await chromium.do(tab.close) for tab in tabs] == [[] for _ in tabs]


@pytest.fixture(scope="session")
def shared_endpoints(
    listener: socket.socket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """The gateway that serves every endpoint, of all tests that leave it as they found it."""
    gateway = start_all(tmp_path_factory.mktemp("endpoints"), listener.getsockname()[1])
    yield gateway
    gateway.stop()


@pytest.fixture
def endpoints(upstream: ScriptedUpstream, shared_endpoints: Gateway) -> Gateway:
    """The same, with an upstream behind it that answers everything."""
    assert shared_endpoints.process.poll() is None, shared_endpoints.output()
    upstream.script = answer_any
    return shared_endpoints


@pytest.fixture
async def fresh_endpoints(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway like it for this test alone, with two keys, that may remember failures."""
    upstream.script = answer_any
    keys = {"OPENAI_API_KEYS": f"{POOL_KEY} sk-test-canary-pool-key-0002"}
    gateway = await asyncio.to_thread(start_all, tmp_path / "fresh", upstream.port, **keys)
    yield gateway
    if gateway.process.returncode is None:
        await asyncio.to_thread(gateway.stop)
