"""Promise: whoever wants to know what leaves can see it, byte for byte, before anything is sent.

The proof is the scripted upstream: it must get nothing from a dry run, and from the same request
without the header exactly what the dry run showed, but for the key.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.answers import error
from tests.conftest import StartGateway
from tests.gateway import MODEL, POOL_KEY, Gateway
from tests.raw_client import Answer, ask, caller, chat, post
from tests.scripted_upstream import ScriptedUpstream, send

DRY = ("x-freeapi-dry-run", "1")
#: What a caller may send that must not, or not so, go on.
ODD: dict[str, Any] = {"user": "canary", "max_tokens": 99_999, "x_unknown": 1, "temperature": 0.50}


def shown(answer: Answer) -> dict[str, Any]:
    """The request in a dry run's answer."""
    assert answer.status == 200, answer.body
    assert answer.header("content-type") == "application/json"
    document: dict[str, Any] = answer.json()
    assert list(document) == ["method", "url", "headers", "body"]
    return document


@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
async def test_what_is_shown_is_what_is_sent(
    upstream: ScriptedUpstream, gateway: Gateway, streams: bool
) -> None:
    """Method, URL, headers in their order and the body's text are those of the real request."""
    asked = ("你好 \u2028 \\ 😀",), {"stream": streams, **ODD}
    dry = shown(await ask(gateway.port, chat(*asked[0], DRY, **asked[1])))
    assert upstream.requests == []
    assert len(upstream.connections) == 0
    await ask(gateway.port, chat(*asked[0], **asked[1]))
    (seen,) = upstream.requests
    assert dry["method"] == seen.method
    assert dry["url"] == f"http://127.0.0.1:{upstream.port}{seen.target}"
    assert dry["body"].encode() == seen.body
    redacted = [
        [name, value.replace(POOL_KEY, "[redacted]")] for name, value in map(tuple, seen.headers)
    ]
    assert dry["headers"] == redacted
    assert ["authorization", "Bearer [redacted]"] in dry["headers"]


async def test_caller_is_told_of_adjustments_and_limits(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """The answer's head says what a real one's would: what was changed, and what is left."""
    gateway = await start_gateway(FREEAPI_CALLER_RPM="60")
    dry = await ask(gateway.port, chat("Hi", DRY, **ODD))
    real = await ask(gateway.port, chat("Hi", **ODD))
    assert {name for name, _ in dry.headers} == {name for name, _ in real.headers}
    assert dry.header("x-freeapi-adjusted") == real.header("x-freeapi-adjusted")
    assert "canary" not in str(dry.headers) + dry.body.decode()


async def test_it_counts_as_a_request_and_takes_no_tokens(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A minute's requests are soon used up by dry runs, its tokens never; then it is 429."""
    gateway = await start_gateway(
        FREEAPI_CALLER_RPM="12", FREEAPI_CALLER_TPM="5000", FREEAPI_CALLER_CONCURRENCY="1"
    )
    async with caller(gateway.port) as connection:
        answers = [await connection.ask(chat("Hi", DRY)) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.header("x-ratelimit-remaining-requests") for answer in answers] == [
        "1",
        "0",
        "0",
    ]
    assert {answer.header("x-ratelimit-remaining-tokens") for answer in answers} == {"5000"}
    assert answers[-1].error()["code"] == "rate_limit_exceeded"
    assert answers[-1].header("retry-after") is not None
    assert upstream.requests == []


async def test_it_spends_nothing(upstream: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Dry runs of requests that would cost many times the cap leave it whole."""
    gateway = await start_gateway(
        "input_usd_per_mtok = 1.0\noutput_usd_per_mtok = 1.0\n",
        FREEAPI_DAILY_USD="0.01",
        FREEAPI_CALLER_DAILY_USD="off",
    )
    async with caller(gateway.port) as connection:
        for _ in range(200):
            shown(await connection.ask(chat("x" * 200, DRY, max_tokens=1000)))
        assert (await connection.ask(chat("Hi", max_tokens=1000))).text() == "Hi"


@pytest.mark.parametrize("value", ["0", "true", "yes", "", "1, 1", "11"])
async def test_any_other_value_is_refused(
    upstream: ScriptedUpstream, gateway: Gateway, value: str
) -> None:
    """Whoever misspells the wish for a dry run isn't surprised by a real one."""
    answer = await ask(gateway.port, chat("Hi", (DRY[0], value)))
    assert answer.status == 400
    assert answer.error()["param"] == DRY[0]
    assert upstream.requests == []


async def test_what_would_be_refused_is_refused(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A dry run of a request that would not be sent says why, as the real one does."""
    for asked in (
        chat("Hi", DRY, model="gpt-none"),
        chat("Hi", DRY, n=99),
        post("/v1/chat/completions", b"{", DRY),
    ):
        dry = await ask(gateway.port, asked)
        real = await ask(gateway.port, asked.replace(b"x-freeapi-dry-run: 1\r\n", b""))
        assert (dry.status, dry.body) == (real.status, real.body)
        assert 400 <= dry.status < 500
    assert upstream.requests == []


async def test_it_takes_no_key(upstream: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Dry runs don't move the turn among keys, and where no key is left they say so."""
    keys = [f"sk-test-canary-{number}-of-two" for number in range(2)]
    gateway = await start_gateway(OPENAI_API_KEYS=" ".join(keys))
    for _ in range(3):
        shown(await ask(gateway.port, chat("Hi", DRY)))
        assert (await ask(gateway.port, chat())).text() == "Hi"
    used = [seen.header("authorization") for seen in upstream.requests]
    assert used == [f"Bearer {keys[turn % 2]}" for turn in range(3)]
    upstream.plays(*[[send(error(401, "invalid_api_key", "no"))]] * 2)
    assert (await ask(gateway.port, chat())).status == 503
    dry = await ask(gateway.port, chat("Hi", DRY))
    assert (dry.status, dry.error()["code"]) == (503, "upstream_unavailable")


async def test_embedded_model_is_shown_too(embedded: Gateway) -> None:
    """Without a key the request would go to this machine's own model, and has no Authorization."""
    document = shown(await ask(embedded.port, chat("canary", DRY)))
    assert document["url"] == "http://localhost/v1/chat/completions"
    assert "authorization" not in dict(document["headers"])
    assert json.loads(document["body"])["messages"] == [{"role": "user", "content": "canary"}]
    assert json.loads(document["body"])["model"] != MODEL
