"""A real browser: Debian's Chromium, driven by Playwright, for what a visitor sees and does.

It is not a picture of the page: the page's own script runs, over real sockets to a real gateway.

Plan: one Chromium for all tests, in a thread of its own, since Playwright's objects belong to the
thread that made them, and the test's event loop has an upstream to play meanwhile. A ``Tab`` hands
each step over to that thread: ``await tab(Page.click, "#send")``.

Invariants: each tab is a new, empty profile. What no page of ours may do in any test (an error on
the console, something asked of another host, a cookie, anything stored) is looked for at its end.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from playwright.sync_api import Request as WebRequest

P = ParamSpec("P")
R = TypeVar("R")

#: An address, a token or an answer of ours that says no, which Chromium also puts on the console.
REFUSED = "Failed to load resource"
#: What a page has written down in the browser.
STORED = "localStorage.length + sessionStorage.length + document.cookie.length"


class Chromium:
    """The browser and the one thread that may talk to it."""

    def __init__(self, path: str) -> None:
        self._thread = ThreadPoolExecutor(1, "chromium")
        self._playwright = sync_playwright()
        self._browser: Browser = self._thread.submit(self._launch, path).result()

    def _launch(self, path: str) -> Browser:
        # Root, as in CI's containers, has to go without the sandbox.
        return self._playwright.start().chromium.launch(
            executable_path=path, chromium_sandbox=os.geteuid() != 0
        )

    def close(self) -> None:
        """End it."""
        self._thread.submit(self._browser.close).result()
        self._thread.submit(self._playwright.__exit__).result()
        self._thread.shutdown()

    async def do(self, act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call this in the browser's thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: act(*args, **kwargs)
        )

    def open(self, profile: dict[str, Any]) -> Page:
        """An empty profile's only tab; in the browser's thread."""
        return self._browser.new_context(**profile).new_page()


class Tab:
    """One tab; calling it is taking a step in it."""

    def __init__(self, chromium: Chromium, profile: dict[str, Any]) -> None:
        """In the browser's thread."""
        self._chromium = chromium
        self._page = page = chromium.open(profile)
        self._complaints: list[str] = []
        self._asked: set[str] = set()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._complaints.append(str(error)))
        page.on("request", self._request)

    async def __call__(
        self, act: Callable[Concatenate[Page, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Take this step."""
        return await self._chromium.do(act, self._page, *args, **kwargs)

    async def goto(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        await self(Page.goto, url)

    async def shows(self, selector: str, text: str | re.Pattern[str]) -> None:
        """Wait until the element has this text in it."""
        await self(lambda page: expect(page.locator(selector)).to_contain_text(text))

    async def text(self, selector: str) -> str:
        """What can be read in the element at this moment."""
        return await self(Page.inner_text, selector)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(REFUSED):
            self._complaints.append(message.text)

    def _request(self, request: WebRequest) -> None:
        self._asked.add("/".join(request.url.split("/")[:3]))

    def close(self) -> list[str]:
        """Close it; returns what it did that no page may do. In the browser's thread."""
        page = self._page
        elsewhere = self._asked - {"/".join(page.url.split("/")[:3])}
        kept = page.evaluate(STORED) or page.context.cookies()
        page.context.close()
        return [*self._complaints, *elsewhere, *(["stored"] if kept else [])]


class Browse(Protocol):
    """Open a tab at a gateway's page, with these options of a Playwright context."""

    def __call__(self, port: int, path: str = "/", **profile: Any) -> Awaitable[Tab]: ...
