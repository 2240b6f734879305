"""The browser, for the promises about the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.browser import Browse, Chromium, Tab


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
