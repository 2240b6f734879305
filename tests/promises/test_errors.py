"""Promise: a caller's mistake gets a clear error in OpenAI's own shape.

One table per kind of mistake; each answer is checked for all four keys of the error object, and for
leaving the connection in a known state. The upstream's faults are in ``test_failures``.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest

from tests.answers import LAST_CHUNK, error
from tests.conftest import StartGateway
from tests.gateway import MODEL, Gateway
from tests.raw_client import Caller, ask, caller, chat, post, request
from tests.scripted_upstream import (
    ScriptedUpstream,
    says,
    send,
)

CHAT = "/v1/chat/completions"
JSON = ("content-type", "application/json")
HI = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}).encode()


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/nothing"),
        ("GET", "/v1"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/chat/completions"),
        ("GET", "/v1/chat/completions/chatcmpl-1"),
        ("DELETE", "/v1/chat/completions/chatcmpl-1"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/conversations"),
        ("POST", "/v1/batches"),
        ("POST", "/v1/assistants"),
        ("POST", "/v1/threads"),
        ("POST", "/v1/vector_stores"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/uploads"),
        ("GET", "/v1/realtime/sessions"),
        ("GET", "/v1/models/../files"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v2/chat/completions"),
        ("GET", "/%76%31/models"),
    ],
)
async def test_other_routes_are_404(gateway: Gateway, method: str, target: str) -> None:
    """What isn't served, or is stateful, is 404 in OpenAI's shape, without asking the upstream."""
    async with caller(gateway.port) as connection:
        given = await connection.ask(request(method, target, JSON, body=HI))
        assert given.status == 404
        assert given.error()["type"] == "invalid_request_error"
        # The body was read, so the connection is still good.
        assert (await connection.ask(request("GET", "/healthz"))).status == 200


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/v1/models", "GET"),
        ("POST", "/models", "GET"),
        ("DELETE", f"/v1/models/{MODEL}", "GET"),
        ("PUT", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("PATCH", "/chat/completions", "POST"),
        ("POST", "/healthz", "GET"),
    ],
)
async def test_other_methods_are_405(
    gateway: Gateway, method: str, target: str, allowed: str
) -> None:
    """A wrong method on a known path is 405, and ``Allow`` says which are right."""
    given = await ask(gateway.port, request(method, target))
    assert given.status == 405
    assert given.error()["code"] == "method_not_allowed"
    assert allowed in (given.header("allow") or "")


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("content-type", "text/plain"),),
        (("content-type", "application/x-www-form-urlencoded"),),
        (("content-type", "application/jsonp"),),
    ],
)
async def test_other_content_types_are_415(
    gateway: Gateway, headers: tuple[tuple[str, str], ...]
) -> None:
    """A body that doesn't say that it is JSON is 415, and the message says what to add."""
    given = await ask(gateway.port, request("POST", CHAT, *headers, body=HI))
    assert given.status == 415
    assert "Content-Type: application/json" in given.error()["message"]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "Application/JSON",
    ],
)
async def test_json_is_recognised_with_parameters(gateway: Gateway, content_type: str) -> None:
    """Parameters and case of the content type don't matter."""
    raw = request("POST", CHAT, ("content-type", content_type), body=HI)
    assert (await ask(gateway.port, raw)).text() == "Hi"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'"text"', "invalid_json", None),
        (HI + b"}", "invalid_json", None),
        (HI.replace(b"Hi", b"\xff"), "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"messages":[]}', "invalid_value", "model"),
        (b'{"model":7,"messages":[]}', "invalid_value", "model"),
        (b'{"model":"%s"}' % MODEL.encode(), "invalid_value", "messages"),
        (b'{"model":"%s","messages":[]}' % MODEL.encode(), "invalid_value", "messages"),
        (HI[:-1] + b',"max_tokens":-1}', "invalid_value", "max_tokens"),
        (HI[:-1] + b',"n":2}', "invalid_value", "n"),
        (HI[:-1] + b',"web_search_options":{}}', "unsupported_parameter", "web_search_options"),
    ],
)
async def test_wrong_bodies_are_400(
    upstream: ScriptedUpstream, gateway: Gateway, body: bytes, code: str, param: str | None
) -> None:
    """A body that can't be used is 400 with the code and the field, and goes nowhere."""
    async with caller(gateway.port) as connection:
        raw = request("POST", CHAT, JSON, ("content-length", "0"))
        given = await connection.ask(post(CHAT, body) if body else raw)
        assert given.status == 400
        assert given.error()["code"] == code
        assert given.error()["param"] == param
        assert (await connection.ask(chat("still good"))).text() == "still good"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("name", ["gpt-none", "../files", "é", "x" * 200])
async def test_unknown_model_is_404(
    upstream: ScriptedUpstream, gateway: Gateway, name: str
) -> None:
    """A model that isn't on the list is 404 ``model_not_found``, and isn't asked for upstream."""
    given = await ask(gateway.port, chat(model=name))
    assert given.status == 404
    assert given.error()["code"] == "model_not_found"
    assert upstream.requests == []


async def test_unknown_model_entry_is_404(gateway: Gateway) -> None:
    """``GET /v1/models/{id}`` of an unknown model is 404 with the same code."""
    given = await ask(gateway.port, request("GET", "/v1/models/gpt-none"))
    assert given.status == 404
    assert given.error()["code"] == "model_not_found"


async def too_large_with_length(connection: Caller) -> None:
    """Announce too much and send none of it."""
    await connection.send(request("POST", CHAT, JSON, ("content-length", "2001")))


async def too_large_in_chunks(connection: Caller) -> None:
    """Send a little too much without having announced it."""
    await connection.send(request("POST", CHAT, JSON, ("transfer-encoding", "chunked")))
    for _ in range(2):
        await connection.send(b"3e9\r\n" + b" " * 1001 + b"\r\n")


@pytest.mark.parametrize("send_too_much", [too_large_with_length, too_large_in_chunks])
async def test_large_bodies_are_413(
    start_gateway: StartGateway, send_too_much: Callable[[Caller], Awaitable[None]]
) -> None:
    """A body over the limit is 413 as soon as that is known; the connection is closed."""
    gateway = await start_gateway(FREEAPI_MAX_BODY_BYTES="2000")
    async with caller(gateway.port) as connection:
        await send_too_much(connection)
        given = await connection.answer()
        assert given.status == 413
        assert given.error()["code"] == "request_too_large"
        assert await connection.closed() == b""


async def test_body_of_exactly_the_limit_is_served(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """The limit itself is allowed, with a length or in chunks."""
    gateway = await start_gateway(FREEAPI_MAX_BODY_BYTES="2000")
    body = HI + b" " * (2000 - len(HI))
    assert (await ask(gateway.port, post(CHAT, body))).text() == "Hi"
    raw = request("POST", CHAT, JSON, ("transfer-encoding", "chunked"))
    pieces = b"1\r\n" + body[:1] + b"\r\n7cf\r\n" + body[1:] + b"\r\n" + LAST_CHUNK
    assert (await ask(gateway.port, raw + pieces)).text() == "Hi"
    assert upstream.requests[1].header("content-length") == str(len(upstream.requests[1].body))


async def test_every_answer_has_a_request_id_of_ours(
    upstream: ScriptedUpstream, fresh_gateway: Gateway
) -> None:
    """Good or bad, each POST's answer carries an id, and no two are the same."""
    upstream.plays(says("Hi"), [send(error(500, None, "canary"))], says("Hi"))
    answers = [
        await ask(fresh_gateway.port, raw) for raw in (chat(), chat(), chat(), post(CHAT, b"{"))
    ]
    ids = {given.header("x-request-id") for given in answers}
    assert len(ids) == 4
    assert None not in ids


async def test_adjusted_parameters_are_named(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """What was clamped or dropped is said in a header, and what went upstream agrees with it."""
    given = await ask(gateway.port, chat(max_tokens=999_999, user="canary-user"))
    assert given.header("x-freeapi-adjusted") == "max_tokens=1024, user=dropped"
    sent = upstream.requests[0].json()
    assert "user" not in sent
    ceilings = [sent[name] for name in ("max_tokens", "max_completion_tokens") if name in sent]
    assert ceilings == [1024]


async def test_prefix_is_optional(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """Every route also answers without ``/v1``, and upstream it is the same path."""
    assert (await ask(gateway.port, post("/chat/completions", HI))).text() == "Hi"
    assert (await ask(gateway.port, post(CHAT + "?api-version=1", HI))).text() == "Hi"
    assert {seen.target for seen in upstream.requests} == {CHAT}
    for target in ("/v1/models", "/models"):
        listing = (await ask(gateway.port, request("GET", target))).json()
        assert listing["data"][0]["id"] == MODEL
    for target in (f"/v1/models/{MODEL}", f"/models/{MODEL}"):
        entry = (await ask(gateway.port, request("GET", target))).json()
        assert (entry["id"], entry["object"]) == (MODEL, "model")


@pytest.mark.parametrize(
    "path", ["/v1//chat/completions", "//v1/chat/completions", "/v1/chat/completions/"]
)
async def test_slash_too_many_is_named(gateway: Gateway, path: str) -> None:
    """A base URL that ends in a slash, put before a path by hand, is told from a missing route."""
    answer = await ask(gateway.port, post(path, b"{}"))
    assert (answer.status, answer.error()["code"]) == (404, "not_found")
    assert "It is /v1/chat/completions: mind the slashes" in answer.error()["message"]
