"""Promise: never over the cap, whatever callers, upstreams and numbers of either do.

What the upstream saw is added up here at the worst that it could bill. A crash of the gateway
itself is in ``test_spend_crash``.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.answers import DONE, STREAM_HEAD, answer, chat_json, delta, usage_event
from tests.conftest import StartGateway, upstream_settings
from tests.crowd import events
from tests.gateway import MODEL, UNLIMITED_MODEL, Gateway
from tests.money import (
    PRICES,
    assert_exhausted,
    cap,
    ceiling_nanousd,
    cost_nanousd,
    left_becomes,
    left_nanousd,
    tokens_max,
)
from tests.raw_client import Answer, ask, caller, chat, post
from tests.scripted_upstream import (
    Request,
    Script,
    ScriptedUpstream,
    Step,
    chunk,
    close,
    hang,
    happens,
    pause,
    reset,
    says,
    send,
    stream,
)

#: A request of 1,000 tokens out, which may cost about 2.15 million nano-dollars.
DEAR = chat(max_tokens=1_000)
DEAR_STREAM = chat(max_tokens=1_000, stream=True)
#: Enough for ten of them, and not for eleven.
TEN = 22_000_000
PLENTY = 1_000 * TEN
THREE_KEYS = {"OPENAI_API_KEYS": "sk-canary-1 sk-canary-2 sk-canary-3"}
NO_USAGE = json.dumps({"choices": [], "object": "chat.completion"}).encode()


def spends_all(request: Request) -> Script:
    """The answer of an upstream that bills the worst case."""
    return [send(answer(200, chat_json("Hi", *tokens_max(request))))]


def billed(upstream: ScriptedUpstream) -> int:
    """All requests at their ceiling."""
    return sum(map(ceiling_nanousd, upstream.requests))


@pytest.fixture(scope="module")
def shared_purse(
    listener: socket.socket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway with money enough for all tests that only look at what one request takes."""
    settings = {**upstream_settings(listener.getsockname()[1]), **cap(PLENTY)}
    gateway = Gateway(tmp_path_factory.mktemp("purse"), settings, UNLIMITED_MODEL + PRICES)
    yield gateway
    gateway.stop()
    assert events(gateway, "crash") == 0


@pytest.fixture
def rich(upstream: ScriptedUpstream, shared_purse: Gateway) -> Gateway:
    """The same, with this test's upstream behind it."""
    assert shared_purse.process.poll() is None, shared_purse.output()
    return shared_purse


# --- No way past the cap --------------------------------------------------------------------------


async def test_concurrency_is_no_way_past_the_cap(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Of 200 requests at once, against a cap that is enough for ten, ten reach the upstream."""
    gateway = await start_gateway(PRICES, **cap(TEN))
    release = asyncio.Event()

    def spend(request: Request) -> Script:
        return [pause(release), *spends_all(request)]

    upstream.script = spend
    answers: list[Answer] = []

    async def ask_and_count() -> None:
        answers.append(await ask(gateway.port, DEAR))
        if len(answers) == 190:
            release.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(ask_and_count())
    # What stands in the way is reserved, and might not have been spent: to be tried again soon.
    assert {one.error()["code"] for one in answers[:190]} == {"capacity_exceeded"}
    assert {one.header("retry-after") for one in answers[:190]} == {"2"}
    assert [one.status for one in answers[190:]] == [200] * 10
    assert len(upstream.requests) == 10
    assert TEN * 0.9 < billed(upstream) <= TEN
    await left_becomes(gateway, TEN - billed(upstream))
    assert_exhausted(await ask(gateway.port, DEAR))


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "plain"])
async def test_leaving_is_no_way_past_the_cap(
    upstream: ScriptedUpstream, start_gateway: StartGateway, streams: bool
) -> None:
    """Answers that callers leave, half-way or before the first byte, count at their worst case."""
    gateway = await start_gateway(PRICES, **cap(TEN))
    begun = [send(STREAM_HEAD), chunk(delta("Hi"))] if streams else []
    upstream.plays([*begun, hang()])
    for number in range(10):
        async with caller(gateway.port) as leaving:
            await leaving.send(DEAR_STREAM if streams else DEAR)
            exchange = await upstream.exchange(number)
            if streams:
                await leaving.receive_until(await leaving.head(), b"\n\n")
            leaving.reset()
            await happens(exchange.gone)
    await left_becomes(gateway, TEN - billed(upstream))
    assert_exhausted(await ask(gateway.port, DEAR))
    assert len(upstream.requests) == 10


async def test_failures_that_are_tried_again_all_count(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Each complete 5xx may have been billed: one request that is tried three times counts so."""
    gateway = await start_gateway(PRICES, **cap(TEN), **THREE_KEYS)
    upstream.plays([send(answer(500, b"{}"))])
    assert (await ask(gateway.port, DEAR)).status == 502
    assert len(upstream.requests) == 3
    await left_becomes(gateway, TEN - billed(upstream))


@pytest.mark.parametrize("ending", [close(), reset()], ids=["close", "reset"])
async def test_resend_after_a_stale_connection_counts_twice(
    upstream: ScriptedUpstream, start_gateway: StartGateway, ending: Step
) -> None:
    """The request that died with a kept-alive connection may have been served all the same."""
    gateway = await start_gateway(PRICES, **cap(TEN))
    upstream.plays(says("first"), [ending], says("again"))
    assert (await ask(gateway.port, DEAR)).text() == "first"
    assert (await ask(gateway.port, DEAR)).text() == "again"
    spent = 2 * cost_nanousd(5, 7) + ceiling_nanousd(upstream.requests[1])
    await left_becomes(gateway, TEN - spent)


@pytest.mark.parametrize("status", [400, 401, 404, 429])
async def test_refusals_of_the_upstream_cost_nothing(
    upstream: ScriptedUpstream, start_gateway: StartGateway, status: int
) -> None:
    """What an upstream refused before it did anything is given back."""
    gateway = await start_gateway(PRICES, **cap(TEN))
    upstream.plays([send(answer(status, b'{"error":{"message":"no","code":"no"}}'))])
    assert (await ask(gateway.port, DEAR)).status != 200
    assert len(upstream.requests) == 1
    await left_becomes(gateway, TEN)


async def test_connection_that_cannot_be_made_costs_nothing(start_gateway: StartGateway) -> None:
    """Nothing was sent, so nothing is kept."""
    nowhere = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    gateway = await start_gateway(PRICES, **cap(TEN), **nowhere)
    assert (await ask(gateway.port, DEAR)).status == 502
    await left_becomes(gateway, TEN)


# --- What is billed -------------------------------------------------------------------------------


SETTLED = {
    "plain": (DEAR, [send(answer(200, chat_json("Hi", 30, 400)))], (30, 400)),
    "stream": (DEAR_STREAM, stream(delta("Hi"), usage_event(30, 400), DONE), (30, 400)),
    "nothing": (DEAR, [send(answer(200, chat_json("Hi", 0, 0)))], (0, 0)),
}


@pytest.mark.parametrize(("asked", "script", "used"), SETTLED.values(), ids=SETTLED)
async def test_settles_at_what_the_upstream_says(
    upstream: ScriptedUpstream, rich: Gateway, asked: bytes, script: Script, used: tuple[int, int]
) -> None:
    """Usage takes the place of the worst case."""
    upstream.plays(script)
    before = await left_nanousd(rich)
    assert (await ask(rich.port, asked)).status == 200
    await left_becomes(rich, before - cost_nanousd(*used))
    assert events(rich, "cost_above_bound") == 0


async def test_cost_above_the_bound_ends_spending_at_the_cap(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """An upstream that bills more than can be is reported, and gets nothing beyond the cap."""
    gateway = await start_gateway(PRICES, **cap(TEN))
    upstream.plays([send(answer(200, chat_json("Hi", 0, 20_000)))])
    assert (await ask(gateway.port, DEAR)).status == 200
    await left_becomes(gateway, 0)
    assert_exhausted(await ask(gateway.port, DEAR))
    assert len(upstream.requests) == 1
    await asyncio.to_thread(gateway.stop)
    assert events(gateway, "cost_above_bound") == 1
    assert events(gateway, "crash") == 0


UNKNOWN: dict[str, tuple[bytes, Script]] = {
    "plain": (DEAR, [send(answer(200, NO_USAGE))]),
    "negative": (DEAR, [send(answer(200, chat_json("Hi", -1_000_000, -1)))]),
    "half": (DEAR, [send(answer(200, NO_USAGE[:-1] + b',"usage":{"prompt_tokens":1}}'))]),
    "stream": (DEAR_STREAM, stream(delta("Hi"), DONE)),
    "redirect": (DEAR, [send(answer(302, b"", ("location", "http://127.0.0.1:1/")))]),
}
CUT: dict[str, tuple[bytes, Script]] = {
    "cut": (DEAR, [send(answer(200, chat_json("Hi"))[:-9]), close()]),
    "cut-stream": (DEAR_STREAM, [send(STREAM_HEAD), chunk(delta("Hi")), reset()]),
    "garbage": (DEAR, [send(b"200 OK\r\n\r\n")]),
}


@pytest.mark.parametrize(("asked", "script"), UNKNOWN.values(), ids=UNKNOWN)
async def test_unknown_usage_counts_at_the_worst_case(
    upstream: ScriptedUpstream, rich: Gateway, asked: bytes, script: Script
) -> None:
    """Without usage, or with one that can't be, the whole reservation is spent."""
    upstream.plays(script)
    before = await left_nanousd(rich)
    await ask(rich.port, asked)
    assert len(upstream.requests) == 1
    await left_becomes(rich, before - billed(upstream))


@pytest.mark.parametrize(("asked", "script"), CUT.values(), ids=CUT)
async def test_unknown_fate_counts_at_the_worst_case(
    upstream: ScriptedUpstream, start_gateway: StartGateway, asked: bytes, script: Script
) -> None:
    """Of an answer without an end nobody knows what it cost: the whole reservation is spent."""
    gateway = await start_gateway(PRICES, **cap(TEN))
    upstream.plays(script)
    await ask(gateway.port, asked)
    assert len(upstream.requests) == 1
    await left_becomes(gateway, TEN - billed(upstream))


async def test_honest_traffic_can_use_the_cap_up(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Answers that cost half their worst case, eight at a time, spend over 95 % of the cap."""
    spendable = 200_000_000
    gateway = await start_gateway(PRICES, **cap(spendable))
    upstream.plays([send(answer(200, chat_json("Hi", 30, 500)))])
    served = 0

    async def spend() -> None:
        nonlocal served
        async with caller(gateway.port) as connection:
            while True:
                got = await connection.ask(DEAR)
                if got.status == 200:
                    served += 1
                elif got.error()["code"] == "budget_exhausted":
                    return

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(spend())
    spent = served * cost_nanousd(30, 500)
    assert spendable * 0.95 < spent <= spendable
    await left_becomes(gateway, spendable - spent)


# --- What may be asked for ------------------------------------------------------------------------

IMAGE = {"type": "image_url", "image_url": {"url": "https://images.invalid/a.png"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
FILE = {"type": "file", "file": {"file_id": "file-1"}}
REFUSED: dict[str, dict[str, Any]] = {
    "image": {"messages": [{"role": "user", "content": [IMAGE]}]},
    "audio": {"messages": [{"role": "user", "content": [AUDIO]}]},
    "file": {"messages": [{"role": "user", "content": [FILE]}]},
    "earlier-audio": {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]},
    "spoken": {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}},
    "hosted-tool": {"tools": [{"type": "web_search"}]},
    "web-search": {"web_search_options": {}},
    "prediction": {"prediction": {"type": "content", "content": "Hi"}},
    "n": {"n": 2},
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
async def test_what_has_no_bound_is_refused(
    upstream: ScriptedUpstream, rich: Gateway, fields: dict[str, Any]
) -> None:
    """What would cost more than its bytes say is a 400 that names the field; nothing is taken."""
    before = await left_nanousd(rich)
    refused = await ask(rich.port, chat(**fields))
    assert refused.status == 400
    error = refused.error()
    assert error["code"] in ("unsupported_parameter", "invalid_value")
    assert error["param"].split(".")[0].split("[")[0] in fields
    assert upstream.requests == []
    assert await left_nanousd(rich) == before


@pytest.mark.parametrize("tier", ["priority", "fast", "scale", "auto"])
async def test_dearer_tiers_are_dropped(
    upstream: ScriptedUpstream, gateway: Gateway, tier: str
) -> None:
    """A service tier above the standard price isn't sent, and the caller is told."""
    served = await ask(gateway.port, chat(service_tier=tier))
    assert served.status == 200
    assert served.header("x-freeapi-adjusted") == "service_tier=dropped"
    assert "service_tier" not in upstream.requests[0].json()


TWICE = {
    "max_tokens": b'"max_tokens":1,"max_tokens":1000000',
    "both": b'"max_tokens":1000000,"max_completion_tokens":1000000,"max_completion_tokens":9',
    "model": b'"model":"none","model":"%b"' % MODEL.encode(),
    "messages": b'"messages":[],"messages":[{"role":"user","content":"Hi"}]',
    "n": b'"n":128,"n":1',
    "content": b'"messages":[{"role":"user","content":[{"type":"image_url"}],"content":"Hi"}]',
    "escaped": b'"n":1,"\\u006e":1,"max_tokens":9,"max_\\u0074okens":1000000',
}


@pytest.mark.parametrize("repeated", TWICE.values(), ids=TWICE)
async def test_repeated_keys_smuggle_nothing(
    upstream: ScriptedUpstream, rich: Gateway, repeated: bytes
) -> None:
    """Whichever of two equal keys a parser takes, what is sent has one, and is what was paid."""
    before = await left_nanousd(rich)
    upstream.script = spends_all
    rest = {
        b'"model"': b'"model":"%b"' % MODEL.encode(),
        b'"messages"': b'"messages":[{"role":"user","content":"Hi"}]',
    }
    fields = [repeated, *(text for name, text in rest.items() if name not in repeated)]
    body = b"{%b}" % b",".join(fields)
    assert (await ask(rich.port, post("/v1/chat/completions", body))).text() == "Hi"
    keys: list[str] = []

    def only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys.extend(key for key, _ in pairs)
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)

    sent = json.loads(upstream.requests[0].body, object_pairs_hook=only_once)
    assert sent["model"] == "gpt-4o-mini"
    assert sent["max_tokens"] <= 1_024
    assert sent.get("n", 1) == 1
    assert len(keys) == len(sent) + 2
    await left_becomes(rich, before - billed(upstream))
