"""Promise: the operator sees at a glance, live and on any screen, what the instance does.

The admin port's own pages over real sockets, in a real browser, with counters moved by hand. That
the page writes nothing to the console, asks no other host and stores nothing is looked at by every
``Tab`` when it is closed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources

import pytest
from playwright.sync_api import Page, expect

from tests.browser import Browse, Tab
from tests.pages.instruments import NOON_S, Instruments

DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 360, "height": 740}
AXE_RUN = "async () => (await axe.run()).violations.map(({ id, nodes }) => [id, nodes[0].html])"


def busy() -> Instruments:
    """One answer and one refusal, a minute ago."""
    instruments = Instruments()
    instruments.answer()
    instruments.refuse()
    instruments.course.take(int(NOON_S) - 30)
    return instruments


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_page_shows_the_figures(browse: Browse, viewport: dict[str, int]) -> None:
    """Keys, upstreams, refusals, money and charts are on the page, as wide as the screen."""
    instruments = busy()
    async with instruments.served() as port:
        tab = await browse(port, viewport=viewport)
        await tab.shows("#health", "All is well.")
        await tab.shows("#left", "$3.00")
        await tab.shows("#cap", "of $5.00")
        await tab.shows("#keys", "AAAA")
        await tab.shows("#upstreams", "$1.00 of $2.00")
        await tab.shows("#refusals", "rate_limit_exceeded")
        await tab.shows("#budget-text", "$3.00 left of $5.00")
        await tab.shows("#requests-text", "2 in 24 hours, by 10 minutes; 1 refused")
        await tab.shows("#tokens-text", "500 in 24 hours")
        await tab(lambda page: expect(page.locator("#budget-chart .line")).to_have_count(1))
        await tab(lambda page: expect(page.locator("#requests-chart .refused")).to_have_count(1))
        width = await tab(Page.evaluate, "document.documentElement.scrollWidth")
        assert width == viewport["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_is_accessible(browse: Browse, scheme: str) -> None:
    """The checks of axe (WCAG 2.2 AA and best practices) find nothing, in light and in dark."""
    instruments = busy()
    async with instruments.served() as port:
        tab = await browse(port, viewport=PHONE, color_scheme=scheme)
        await tab.shows("#budget-text", "$3.00 left of $5.00")
        source = (resources.files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
        await tab(Page.evaluate, source)
        assert await tab(Page.evaluate, AXE_RUN) == []


async def test_page_is_live(browse: Browse) -> None:
    """What happens is on the page with its next look: rates, times, troubles."""
    instruments = Instruments(clock=ticking())
    async with instruments.served() as port:
        tab = await browse(port)
        await tab.shows("#first-token", "-")
        for _ in range(10):
            instruments.answer()
        instruments.metrics.active = 7
        await tab.shows("#active", "7")
        await tab.shows("#first-token", re.compile(r"3\d\d\sms"))
        await tab.shows("#duration", "1.9")
        await tab.shows("#requests-rate", re.compile(r"[1-9]"))
        instruments.metrics.ledger_reported("SQLITE_FULL")
        instruments.metrics.reloaded(is_ok=False)
        instruments.left_nanousd = 0
        for trouble in ("ledger", "configuration", "budget is used up"):
            await tab.shows("#health.bad", trouble)


async def test_page_can_be_paused_by_keyboard(browse: Browse) -> None:
    """Tab leads over the skip link to the pause button; paused, nothing changes any more."""
    instruments = Instruments()
    async with instruments.served() as port:
        tab = await browse(port)
        await tab(lambda page: page.clock.install())
        await tab(Page.reload)
        await tab.shows("#waiting", "2")
        for key in ("Tab", "Tab", "Enter"):
            await press(tab, key)
        await tab(
            lambda page: expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
        )
        instruments.waiting = 9
        await tab(lambda page: page.clock.run_for(10_000))
        assert await tab.text("#waiting") == "2"
        await press(tab, "Enter")
        await tab.shows("#waiting", "9")


async def test_page_says_when_the_gateway_is_gone(browse: Browse) -> None:
    """A page that gets no answer says so, instead of showing old figures as new ones."""
    instruments = Instruments()
    async with instruments.served() as port:
        tab = await browse(port)
        await tab.shows("#health", "All is well.")
    await tab.shows("#health.bad", "doesn't answer")


async def press(tab: Tab, key: str) -> None:
    """One key, where the focus is."""
    await tab(lambda page: page.keyboard.press(key))


def ticking() -> Callable[[], float]:
    """A clock that goes on by a second whenever it is looked at."""
    now_s = [NOON_S]

    def clock() -> float:
        now_s[0] += 1
        return now_s[0]

    return clock
