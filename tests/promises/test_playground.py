"""Promise: anyone can chat on the page itself, and sees what happens, in words.

In a real browser, over a real gateway, with a scripted upstream behind it.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.answers import DONE, STREAM_HEAD, delta, error, event, usage_event
from tests.browser import Browse, Tab
from tests.conftest import StartGateway
from tests.gateway import Gateway
from tests.scripted_upstream import (
    ScriptedUpstream,
    chunk,
    close,
    hang,
    happens,
    pause,
    send,
    stream,
)

#: What happens at each cut must be the same: characters of one to four bytes, all kinds of line
#: ends, comments, other fields, several lines of data, and an event that never ends.
EVENTS = (
    "data: a\n\ndata:b\r\n\r\n: c\nevent: d\ndata: e\r\ndata:  f\r\r"
    "data: \u00e9\u4e2d\U0001f642\n\ndata\n\ndata: x\n"
)
READ = ["a", "b", "e\n f", "\u00e9\u4e2d\U0001f642", ""]
READS = """
async (bytes) => {
  const { EventReader } = await import(document.querySelector("script[type=module]").src);
  const read = (cuts) => {
    const reader = new EventReader();
    const ends = [...cuts, bytes.length];
    const part = (n) => Uint8Array.from(bytes.slice(ends[n - 1] ?? 0, ends[n]));
    return ends.flatMap((_, n) => reader.push(part(n)));
  };
  const results = [read([]), read(bytes.map((_, place) => place))];
  for (let a = 0; a <= bytes.length; a++)
    for (let b = a; b <= bytes.length; b++) results.push(read([a, b]));
  return [...new Set(results.map((result) => JSON.stringify(result)))];
}
"""


async def ask(tab: Tab, text: str) -> None:
    """Type a message and send it."""
    await tab(Page.fill, "#message", text)
    await tab(Page.click, "#send")


async def is_over(tab: Tab) -> None:
    """Wait until no answer is under way."""
    await tab(lambda page: expect(page.locator("#send")).to_be_visible())


async def test_answer_is_shown_as_it_comes(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """The first words are there while the upstream still thinks, and in the end its tokens."""
    seen = asyncio.Event()
    upstream.plays(
        [send(STREAM_HEAD), chunk(delta("Once ")), pause(seen)]
        + [chunk(piece) for piece in (delta("upon"), usage_event(1_200, 34), DONE)]
        + [send(b"0\r\n\r\n")]
    )
    tab = await browse(gateway.port)
    await ask(tab, "A story")
    await tab.shows("#log .answer", "Once ")
    assert await tab(Page.get_attribute, "#log", "aria-busy") == "true"
    seen.set()
    await tab.shows("#state", "1,200 + 34 tokens")
    assert (await tab.text("#log .answer")).endswith("Once upon")
    assert await tab(Page.get_attribute, "#log", "aria-busy") == "false"
    assert upstream.requests[0].json()["messages"] == [{"role": "user", "content": "A story"}]


async def test_stop_cancels_upstream(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """The upstream's connection is closed by the button; what came stays and is built upon."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("Once ")), hang()], stream(delta("more"), DONE))
    tab = await browse(gateway.port)
    await ask(tab, "A story")
    await tab.shows("#log .answer", "Once ")
    await tab(Page.click, "#stop")
    await happens((await upstream.exchange()).gone)
    await tab.shows("#state", "Stopped.")
    assert await tab(Page.evaluate, "document.activeElement.id") == "message"
    await ask(tab, "Go on")
    await tab.shows("#log", "more")
    roles = [(m["role"], m["content"]) for m in upstream.requests[1].json()["messages"]]
    assert roles == [("user", "A story"), ("assistant", "Once "), ("user", "Go on")]


async def test_stop_before_the_first_word(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """An answer that was stopped before it began leaves no trace but the question, to edit."""
    upstream.plays([hang()])
    tab = await browse(gateway.port)
    await ask(tab, "A story")
    exchange = await upstream.exchange()
    await tab(Page.click, "#stop")
    await happens(exchange.gone)
    await is_over(tab)
    assert await tab(Page.input_value, "#message") == "A story"
    assert await tab(lambda page: page.locator("#log .answer").count()) == 0


async def test_new_conversation_forgets(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """It stops the answer under way, and nothing of before is sent with the next question."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("old")), hang()], stream(delta("new"), DONE))
    tab = await browse(gateway.port)
    await ask(tab, "first")
    await tab.shows("#log .answer", "old")
    await tab(Page.click, "#clear")
    await happens((await upstream.exchange()).gone)
    await ask(tab, "second")
    await tab.shows("#log .answer", "new")
    await is_over(tab)
    assert "old" not in await tab.text("#log")
    assert upstream.requests[1].json()["messages"] == [{"role": "user", "content": "second"}]


async def test_text_is_never_html(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """Tags in a question, an answer or an error are shown as they were written."""
    bad = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
    upstream.plays(stream(delta(bad), DONE), [send(error(400, None, bad))])
    tab = await browse(gateway.port)
    await ask(tab, bad)
    await tab.shows("#log .you", bad)
    await tab.shows("#log .answer", bad)
    await is_over(tab)
    await ask(tab, "again")
    await tab.shows("#log .bad", bad)
    assert await tab(lambda page: page.locator("#log img, #log script").count()) == 0
    assert await tab(Page.title) == "chatgpt-freeapi"


async def test_broken_stream_is_told(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """An upstream that dies in mid-answer is an error in words; what came stays."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("half")), close()])
    tab = await browse(gateway.port)
    await ask(tab, "Hi")
    await tab.shows("#log .bad", "The upstream can't answer at the moment.")
    await tab.shows("#log .answer", "half")
    await is_over(tab)


async def test_gateway_that_dies_in_mid_answer_is_told(
    upstream: ScriptedUpstream, start_gateway: StartGateway, browse: Browse
) -> None:
    """With the connection itself cut, the answer is said to be cut, and the service to be away."""
    gateway = await start_gateway()
    upstream.plays([send(STREAM_HEAD), chunk(delta("half")), hang()])
    tab = await browse(gateway.port)
    await ask(tab, "Hi")
    await tab.shows("#log .answer", "half")
    gateway.process.kill()
    await asyncio.to_thread(gateway.process.wait)
    await tab.shows("#state", "The answer was cut off")
    await tab.shows("#now-service", "Not reachable")
    await ask(tab, "Still there?")
    await tab.shows("#log .bad", "can't be reached")
    assert await tab(Page.input_value, "#message") == "Still there?"


async def test_restart_in_mid_answer_is_told(
    upstream: ScriptedUpstream, start_gateway: StartGateway, browse: Browse
) -> None:
    """What outlasts the drain ends in the gateway's own words."""
    gateway = await start_gateway(FREEAPI_DRAIN_S="0")
    upstream.plays([send(STREAM_HEAD), chunk(delta("half")), hang()])
    tab = await browse(gateway.port)
    await ask(tab, "Hi")
    await tab.shows("#log .answer", "half")
    await asyncio.to_thread(gateway.stop)
    await tab.shows("#log .bad", "restarting")


async def test_length_is_told(upstream: ScriptedUpstream, gateway: Gateway, browse: Browse) -> None:
    """An answer that met the ceiling says so, and that isn't an error."""
    choice = {"index": 0, "delta": {}, "finish_reason": "length"}
    upstream.plays(stream(delta("long"), event({"choices": [choice]}), DONE))
    tab = await browse(gateway.port)
    await ask(tab, "Hi")
    await tab.shows("#state", "maximum output")
    assert await tab(lambda page: page.locator("#log .bad").count()) == 0


async def test_refusal_is_told_with_its_wait(
    upstream: ScriptedUpstream, start_gateway: StartGateway, browse: Browse
) -> None:
    """A 429 is words and a time, and the question goes back to where it was typed."""
    gateway = await start_gateway(FREEAPI_CALLER_RPM="1")
    tab = await browse(gateway.port)
    await ask(tab, "one")
    await tab.shows("#log .answer", "one")
    await is_over(tab)
    await ask(tab, "two")
    words = re.compile(r"You have reached your limit\. Try again in \d+ s\.")
    await tab.shows("#log .bad strong", words)
    await tab.shows("#log .bad small", "Rate limit reached on requests per min")
    assert await tab(Page.input_value, "#message") == "two"
    tab = await browse(gateway.port, locale="zh-CN")
    await ask(tab, "three")
    await tab.shows("#log .bad strong", re.compile(r"你的用量已达到限额。请在 \d+ 秒后重试。"))
    assert len(upstream.requests) == 1


async def test_access_token_is_asked_for(
    upstream: ScriptedUpstream, start_gateway: StartGateway, browse: Browse, tmp_path: Path
) -> None:
    """Where tokens are needed the page says so, takes one, and sends it to nobody else."""
    tokens = tmp_path / "tokens"
    tokens.write_text("canary-token-0123456789\n")
    gateway = await start_gateway(FREEAPI_ACCESS_TOKENS_FILE=str(tokens))
    tab = await browse(gateway.port)
    await tab.shows(".hero", "Without one, calls are refused.")
    await ask(tab, "Hi")
    await tab.shows("#log .bad", "An access token is needed")
    await tab(Page.fill, "#token", "canary-token-0123456789")
    await tab(Page.click, "#send")
    await tab.shows("#log .answer", "Hi")
    await is_over(tab)
    assert "canary-token" not in repr(upstream.requests)


async def test_enter_sends_but_not_while_characters_are_composed(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """Enter that ends an input method's word sends nothing; Shift+Enter is a new line."""
    tab = await browse(gateway.port)
    composing = {"key": "Enter", "isComposing": True, "bubbles": True, "cancelable": True}
    await tab(Page.focus, "#message")
    await tab(lambda page: page.keyboard.type("one"))
    await tab(lambda page: page.dispatch_event("#message", "keydown", composing))
    await tab(lambda page: page.keyboard.press("Shift+Enter"))
    await tab(lambda page: page.keyboard.type("two"))
    await tab(lambda page: page.keyboard.press("Enter"))
    await tab.shows("#log .answer", "two")
    assert [request.prompt() for request in upstream.requests] == ["one\ntwo"]


async def test_events_are_read_however_they_are_cut(gateway: Gateway, browse: Browse) -> None:
    """Every pair of cuts, and a cut after each byte, gives the same events."""
    tab = await browse(gateway.port)
    results: list[str] = await tab(Page.evaluate, READS, list(EVENTS.encode()))
    assert [json.loads(result) for result in results] == [READ]


async def test_visitor_sees_what_would_be_sent(
    upstream: ScriptedUpstream, gateway: Gateway, browse: Browse
) -> None:
    """The dry run's button shows the request for the upstream, and nothing is sent."""
    tab = await browse(gateway.port)
    await tab(Page.click, "#dry")
    await tab.shows("#shown", "Bearer [redacted]")
    await tab.shows("#shown", '"content":"Hello!"')
    assert upstream.requests == []


async def test_demo_model_is_said_to_be_one_and_answers(embedded: Gateway, browse: Browse) -> None:
    """Without a key the page names the demo model, says that it is free, and chats."""
    tab = await browse(embedded.port)
    await tab.shows(".demo", "Demo model.")
    await tab.shows("#now-budget", "Costs nothing")
    await ask(tab, "Say hello in three words.")
    await tab.shows("#state", re.compile(r"\d+ \+ \d+ tokens"))
    assert re.search(r"\w+", (await tab.text("#log .answer")).partition("\n")[2])
