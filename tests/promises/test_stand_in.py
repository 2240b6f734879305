"""Promise: where the operator wants it, the embedded model goes on when the money is gone.

``when_exhausted = "local"``: callers get an answer with a header that says by whom, not a refusal.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.answers import answer, chat_json
from tests.conftest import upstream_settings
from tests.gateway import UNLIMITED_MODEL, Gateway
from tests.money import NANO, PRICES, cap, left_becomes, left_nanousd
from tests.raw_client import Answer, ask, caller, chat, post
from tests.scripted_upstream import ScriptedUpstream, send

SERVED_BY = "x-freeapi-served-by"
#: A caller has its share; the instance has money for a hundred like it.
SHARE = 10_000_000
DAY = 100 * SHARE
CONFIG = UNLIMITED_MODEL + PRICES + '[policy]\nwhen_exhausted = "local"\n'
#: At the upstream of these tests one such answer costs a caller's whole share.
ALL_OF_A_SHARE = chat_json("Hi from upstream", 0, 5_000)


@pytest.fixture(scope="module")
def with_stand_in(
    listener: socket.socket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway whose callers each have a share, told apart by a proxy before it."""
    settings = {
        **upstream_settings(listener.getsockname()[1]),
        **cap(DAY),
        "FREEAPI_CALLER_DAILY_USD": f"{SHARE / NANO:.9f}",
        "FREEAPI_PROXY_HOPS": "1",
    }
    gateway = Gateway(tmp_path_factory.mktemp("stand-in"), settings, CONFIG)
    yield gateway
    gateway.stop()


@pytest.fixture
def gateway(upstream: ScriptedUpstream, with_stand_in: Gateway) -> Gateway:
    """The same, with an upstream that is dear."""
    upstream.plays([send(answer(200, ALL_OF_A_SHARE))])
    return with_stand_in


def chat_of(number: int, **fields: Any) -> bytes:
    """A short request of the caller with this number."""
    return chat("Hi", ("x-forwarded-for", f"192.0.2.{number}"), max_tokens=5, **fields)


async def spend_share(gateway: Gateway, number: int) -> None:
    """One answer of the upstream's."""
    left = await left_nanousd(gateway)
    served = await ask(gateway.port, chat_of(number))
    assert served.text() == "Hi from upstream"
    assert served.header(SERVED_BY) is None
    await left_becomes(gateway, left - SHARE)


async def test_it_goes_on_by_the_embedded_model(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A caller without money gets real answers, marked and free; others aren't marked."""
    await spend_share(gateway, 1)
    left = await left_nanousd(gateway)
    async with caller(gateway.port) as connection:
        for _ in range(2):
            served = await connection.ask(chat_of(1))
            assert served.header(SERVED_BY) == "local"
            assert served.text() != "Hi from upstream"
            assert served.json()["usage"]["completion_tokens"] > 0
    assert len(upstream.requests) == 1
    assert await left_nanousd(gateway) == left
    await spend_share(gateway, 2)


async def test_it_streams_too(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """A stream by the embedded model is marked in its head and ends as OpenAI's do."""
    await spend_share(gateway, 3)
    served = await ask(gateway.port, chat_of(3, stream=True))
    assert served.header(SERVED_BY) == "local"
    assert served.header("content-type") == "text/event-stream"
    *chunks, last = served.events()
    assert last == b"[DONE]"
    assert chunks
    assert len(upstream.requests) == 1


async def test_mistakes_are_still_the_callers(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """Who asks for what isn't served is told so, money or not; the model's own 400 is marked."""
    await spend_share(gateway, 4)
    refused: Answer = await ask(gateway.port, post("/v1/chat/completions", b"{"))
    assert refused.error()["code"] == "invalid_json"
    too_long = chat("word " * 20_000, ("x-forwarded-for", "192.0.2.4"))
    refused = await ask(gateway.port, too_long)
    assert refused.status == 400
    assert refused.header(SERVED_BY) == "local"
    assert len(upstream.requests) == 1
