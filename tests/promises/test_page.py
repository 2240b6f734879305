"""Promise: the instance's own page tells a visitor what to do, in their language, on any screen.

In a real browser, over a real gateway. That no page writes to the console, asks another host or
stores anything is looked at by every ``Tab`` when it is closed.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Page, ViewportSize, expect

from tests.answers import DONE, delta, error
from tests.browser import Browse, Chromium, Tab
from tests.conftest import StartGateway
from tests.gateway import MODEL, Gateway
from tests.scripted_upstream import ScriptedUpstream, send, stream

LANGUAGES = {"en": "The OpenAI API, free to call", "zh-CN": "免费调用 OpenAI API"}
SCREENS: list[ViewportSize] = [{"width": 360, "height": 740}, {"width": 1440, "height": 900}]
#: The rules of WCAG 2.2 AA and axe's best practices.
AXE_RUN = "async () => (await axe.run()).violations.map(({ id, nodes }) => [id, nodes[0].html])"


async def is_alive(tab: Tab) -> None:
    """Wait for the script's first look at the status."""
    await tab(lambda page: page.wait_for_selector("#now-service[data-is]"))


async def axe(tab: Tab) -> list[Any]:
    """What axe finds fault with."""
    source = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
    await tab(Page.evaluate, source)
    found: list[Any] = await tab(Page.evaluate, AXE_RUN)
    return found


@pytest.mark.parametrize("locale", LANGUAGES)
async def test_visitor_sees_what_to_do(gateway: Gateway, browse: Browse, locale: str) -> None:
    """In the browser's language: what this is, the address to copy, and samples with it."""
    tab = await browse(gateway.port, locale=locale)
    await tab.shows("h1", LANGUAGES[locale])
    assert await tab(Page.get_attribute, "html", "lang") == locale
    assert await tab.text("#base") == gateway.base_url
    assert f"curl {gateway.base_url}/chat/completions" in await tab.text("#sample-curl")
    assert MODEL in await tab.text("tbody")


async def test_status_is_live(gateway: Gateway, browse: Browse) -> None:
    """The page says how the instance is doing, for the model that is chosen."""
    tab = await browse(gateway.port)
    await tab.shows("#now-service", "Answering")
    await tab.shows("#now-capacity", "No limit")
    await tab.shows("#now-waiting", "Nobody")
    await tab.shows("#now-budget", "No cap")


async def test_budget_and_capacity_are_told(start_gateway: StartGateway, browse: Browse) -> None:
    """With a cap, what is left of it today and when it starts anew; with limits, what is left."""
    config = '[[model]]\nname = "scarce"\nupstream_model = "gpt-4o-mini"\nrpm = 60\ntpm = 9000\n'
    gateway = await start_gateway(config, FREEAPI_DAILY_USD="5")
    tab = await browse(gateway.port)
    await tab.shows("#now-budget", "$5.00")
    await tab.shows("#now-budget", "starts anew at")
    await tab(Page.select_option, "#model", "scarce")
    await tab.shows("#now-capacity", "10 requests and 9,000 tokens of scarce")


@pytest.mark.parametrize("locale", LANGUAGES)
async def test_page_fits_the_screen(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse, locale: str
) -> None:
    """Nothing sticks out to the side, not even an answer that is one endless word."""
    tab = await browse(gateway.port, locale=locale)
    await tab(Page.fill, "#message", "endless" * 100)
    await tab(Page.click, "#send")
    await tab.shows("#log .answer", "endless" * 100)
    for screen in SCREENS:
        await tab(Page.set_viewport_size, screen)
        assert await tab(Page.evaluate, "document.documentElement.scrollWidth") == screen["width"]


async def test_axe_finds_nothing(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """The rules of accessibility that a machine can check hold, light and dark, on any screen."""
    # Without the page's policy, which wouldn't let axe itself in.
    tab = await browse(gateway.port, bypass_csp=True)
    upstream.plays(stream(delta("Hi"), DONE), [send(error(400, None, "no"))])
    for shown in (".answer", ".bad"):
        await tab(Page.fill, "#message", "Hi")
        await tab(Page.click, "#send")
        await tab.shows(f"#log {shown}", re.compile("Hi|no"))
    await tab(Page.click, "#dry")
    await tab.shows("#shown", "redacted")
    await tab(lambda page: page.emulate_media(color_scheme="light"))
    for screen in SCREENS:
        await tab(Page.set_viewport_size, screen)
        assert await axe(tab) == [], screen
        await tab(lambda page: page.emulate_media(color_scheme="dark"))


async def test_axe_finds_what_is_wrong(gateway: Gateway, browse: Browse) -> None:
    """The check above would see a field without a label."""
    tab = await browse(gateway.port, bypass_csp=True)
    await tab(
        Page.evaluate, "document.querySelector('main').append(document.createElement('input'))"
    )
    assert "label" in [rule for rule, _ in await axe(tab)]


async def test_language_changes_without_losing_the_conversation(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """The link swaps all words in place, the labels too, and the address is the other page's."""
    tab = await browse(gateway.port)
    await tab(Page.fill, "#message", "Hi")
    await tab(Page.click, "#send")
    await tab.shows("#log .answer", "Hi")
    await tab(Page.click, "#language")
    await tab.shows("h1", LANGUAGES["zh-CN"])
    await tab.shows("#log .answer", "Hi")
    await tab.shows("#now-service", "正常")
    assert await tab(Page.get_attribute, "#log", "aria-label") == "对话"
    assert (
        await tab(Page.evaluate, "document.documentElement.lang + location.pathname") == "zh-CN/zh"
    )
    await tab(Page.click, "#language")
    await tab.shows("h1", LANGUAGES["en"])
    await tab.shows("#log .answer", "Hi")


@pytest.mark.parametrize("path", ["/en", "/zh"])
async def test_swapped_words_are_those_of_the_page_itself(
    gateway: Gateway, browse: Browse, path: str
) -> None:
    """After two swaps the page reads as it did before: no word has gone to another's place."""
    tab = await browse(gateway.port, path)
    await is_alive(tab)
    before, title = await tab.text("main"), await tab.text("h1")
    await tab(Page.click, "#language")
    await tab(lambda page: expect(page.locator("h1")).not_to_have_text(title))
    await tab(Page.click, "#language")
    await tab.shows("h1", title)
    await tab.shows("main", before.rpartition("\n")[2])
    assert await tab.text("main") == before


async def test_without_javascript_it_can_be_read(gateway: Gateway, browse: Browse) -> None:
    """All but the playground and the status is there, also the other language by its link."""
    tab = await browse(gateway.port, java_script_enabled=False)
    shown = await tab.text("body")
    assert "Without JavaScript" in shown
    for words in ("curl ", "from openai import OpenAI", 'import OpenAI from "openai"', MODEL):
        assert words in shown
    assert "Try it" not in shown
    assert "Right now" not in shown
    await tab(Page.click, "#language")
    await tab.shows("h1", LANGUAGES["zh-CN"])


async def test_keyboard_is_enough(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """Skip link, tabs by arrows, a message sent by Enter and an answer, without a mouse."""
    tab = await browse(gateway.port)

    async def press(*keys: str) -> str:
        for key in keys:
            await tab(Page.press, ":focus, body", key)
        focused: str = await tab(Page.evaluate, "document.activeElement.id")
        return focused

    await press("Tab")
    assert await tab(Page.evaluate, "document.activeElement.className") == "skip"
    assert await press("Enter") == "main"
    while (place := await press("Tab")) != "sample-curl-tab":
        assert place != "message", "the tabs were passed over"
    assert await press("ArrowRight") == "sample-python-tab"
    await tab.shows("#sample-python", "from openai import OpenAI")
    assert await press("ArrowLeft", "ArrowLeft") == "sample-node-tab"
    while await press("Tab") != "message":
        pass
    await tab(lambda page: page.keyboard.type("By keyboard"))
    assert await press("Enter") == "message"
    await tab.shows("#log .answer", "By keyboard")


async def test_address_is_copied(gateway: Gateway, browse: Browse) -> None:
    """The button puts the base URL on the clipboard, and says so."""
    tab = await browse(gateway.port, permissions=["clipboard-read", "clipboard-write"])
    await tab(Page.click, "[data-copy=base]")
    await tab.shows("[data-copy=base]", "Copied")
    assert await tab(Page.evaluate, "navigator.clipboard.readText()") == gateway.base_url


async def test_samples_work_as_they_stand(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """What a visitor copies from the page runs, and is answered."""
    tab = await browse(gateway.port)
    curl = await tab.text("#sample-curl-code")
    python: str = await tab(lambda page: page.locator("#sample-python-code").text_content() or "")
    commands = (["sh", "-c", curl], [sys.executable, "-c", python])
    for command in commands:
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=30, check=True
        )
        assert "Hello!" in done.stdout
    assert [request.prompt() for request in upstream.requests] == ["Hello!"] * 2


async def test_what_no_page_may_do_is_seen(gateway: Gateway, chromium: Chromium) -> None:
    """A tab that complains, asks another host and stores something is told of at its end."""
    tab = await chromium.do(Tab, chromium, {"bypass_csp": True})
    await tab.goto(f"http://127.0.0.1:{gateway.port}/")
    other = f"http://localhost:{gateway.port}"
    await tab(Page.evaluate, "console.error('ouch'); localStorage.setItem('a', 'b')")
    await tab(Page.evaluate, f"fetch('{other}/healthz').then((answer) => answer.text())")
    assert await chromium.do(tab.close) == ["ouch", other, "stored"]
