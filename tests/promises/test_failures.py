"""Promise: an upstream's fault gets a clear error in our words, and never half an answer.

What an upstream says of itself may name its account or quote its key, so nothing of it is passed
on but a caller's own mistake, scrubbed. The caller's faults are in ``test_errors``.
"""

from __future__ import annotations

import pytest

from tests.answers import answer, chat_json, error, head
from tests.gateway import Gateway
from tests.raw_client import ask, chat
from tests.scripted_upstream import (
    Exchange,
    ScriptedUpstream,
    Step,
    chunk,
    close,
    reset,
    says,
    send,
)

CHAT = "/v1/chat/completions"
JSON = ("content-type", "application/json")
CANARY = "sk-abcd***canary org-canary proj_canary"


@pytest.mark.parametrize(
    ("status", "code", "given_status", "given_code"),
    [
        (401, "invalid_api_key", 503, "upstream_unavailable"),
        (403, "unsupported_country", 503, "upstream_unavailable"),
        (429, "rate_limit_exceeded", 429, "capacity_exceeded"),
        (500, None, 502, "upstream_unavailable"),
        (500, "asked for a stream", 502, "upstream_unavailable"),
        (502, "bad_gateway", 502, "upstream_unavailable"),
        (503, "server_is_overloaded", 502, "upstream_unavailable"),
        (302, None, 502, "upstream_unavailable"),
    ],
)
async def test_upstream_errors_are_replaced(
    upstream: ScriptedUpstream,
    fresh_gateway: Gateway,
    status: int,
    code: str | None,
    given_status: int,
    given_code: str,
) -> None:
    """What an upstream says about its account or its trouble isn't what the caller reads."""
    location = ("location", f"http://127.0.0.1:{upstream.port}/canary")
    upstream.plays([send(error(status, code, CANARY, location))])
    given = await ask(fresh_gateway.port, chat(stream=code == "asked for a stream"))
    assert given.status == given_status
    assert given.error()["code"] == given_code
    assert b"canary" not in given.body
    assert "canary" not in str(given.headers)
    assert "canary" not in fresh_gateway.output()
    assert {seen.target for seen in upstream.requests} == {CHAT}


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_callers_own_errors_come_through_scrubbed(
    upstream: ScriptedUpstream, gateway: Gateway, status: int
) -> None:
    """What the caller did wrong is told in the upstream's words, without keys and accounts."""
    text = f"'temperature' must be at most 2. {CANARY}, please."
    upstream.plays([send(error(status, "invalid_value", text))])
    given = await ask(gateway.port, chat(temperature=3))
    assert given.status == status
    assert given.error()["code"] == "invalid_value"
    assert "'temperature' must be at most 2." in given.error()["message"]
    assert b"canary" not in given.body
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("body", [b"<html>canary sk-canary</html>", b"{", b"", b"7", b"{}"])
async def test_callers_error_that_is_not_openais_is_reshaped(
    upstream: ScriptedUpstream, gateway: Gateway, body: bytes
) -> None:
    """A 400 whose body isn't OpenAI's still gives the caller OpenAI's shape."""
    upstream.plays([send(answer(400, body))])
    given = await ask(gateway.port, chat())
    assert given.status == 400
    assert given.error()["type"] == "invalid_request_error"
    assert b"canary" not in given.body


@pytest.mark.parametrize("ending", [close(), reset()], ids=["close", "reset"])
async def test_plain_answer_that_is_cut_is_502(
    upstream: ScriptedUpstream, fresh_gateway: Gateway, ending: Step
) -> None:
    """A JSON answer that dies half-way is never passed on as a 200."""
    body = chat_json("x" * 200_000)
    whole = answer(200, body)
    chunked_head = head(200, JSON, ("transfer-encoding", "chunked"))
    upstream.plays(
        [send(whole[:-1]), ending],
        [send(whole[: len(whole) // 2]), ending],
        [send(chunked_head), chunk(body[:1000]), ending],
        [send(chunked_head), chunk(body), ending],
    )
    for _ in range(4):
        given = await ask(fresh_gateway.port, chat())
        assert given.status == 502
        assert given.error()["code"] == "upstream_unavailable"
    assert len(upstream.requests) == 4


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_plain_answer_too_large_to_keep_is_seen_to_be_cut(
    upstream: ScriptedUpstream, gateway: Gateway, framing: str
) -> None:
    """A JSON answer larger than what is kept for a 502 is cut in a way that HTTP callers see."""
    body = chat_json("x" * 3_000_000)
    if framing == "length":
        upstream.plays([send(answer(200, body)[:-1]), close()])
    else:
        chunked_head = head(200, JSON, ("transfer-encoding", "chunked"))
        upstream.plays([send(chunked_head), chunk(body), close()])
    given = await ask(gateway.port, chat())
    assert not given.complete


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"HTTP/1.1 999999 Huge\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000,
    ],
    ids=["ssh", "tls", "status", "two-lengths", "length-and-chunks", "chunk-size", "huge-head"],
)
async def test_upstream_that_speaks_no_http_is_502(
    upstream: ScriptedUpstream, fresh_gateway: Gateway, garbage: bytes
) -> None:
    """Bytes that aren't an HTTP answer give 502, and the connection is given up."""

    async def until_gone(exchange: Exchange) -> None:
        await exchange.gone.wait()

    upstream.plays([send(garbage), until_gone], says("recovered"))
    given = await ask(fresh_gateway.port, chat())
    assert given.status == 502
    assert given.error()["code"] == "upstream_unavailable"
    assert (await ask(fresh_gateway.port, chat())).text() == "recovered"
    assert upstream.requests[1].connection == 1


@pytest.mark.parametrize(
    "described",
    [("content-type", "text/html; charset=utf-8"), ("content-encoding", "gzip")],
    ids=["web-page", "compressed"],
)
async def test_success_that_is_no_api_answer_is_502(
    upstream: ScriptedUpstream, gateway: Gateway, described: tuple[str, str]
) -> None:
    """A web page (a wrong base URL, a login) or a coding that wasn't asked for isn't passed on."""
    page = b"<html>canary</html>"
    upstream.plays([send(head(200, described, ("content-length", str(len(page)))) + page)])
    given = await ask(gateway.port, chat())
    assert given.status == 502
    assert b"canary" not in given.body


async def test_interim_answers_are_skipped(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """1xx answers of the upstream aren't taken for the answer. Source: RFC 9110 section 15.2."""
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    upstream.plays([send(early + early + answer(200, chat_json("Hi")))])
    assert (await ask(gateway.port, chat())).text() == "Hi"
