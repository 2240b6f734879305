"""Promise: any correct HTTP/1.1 caller is served: patient, pipelining, slow or browser.

And an incorrect one is told so and disconnected, before it can confuse anyone's answers.
"""

from __future__ import annotations

import pytest

from tests.conftest import StartGateway
from tests.gateway import MODEL, Gateway
from tests.raw_client import ask, caller, chat, request
from tests.scripted_upstream import ScriptedUpstream

HEALTH = request("GET", "/healthz")
CHAT = "/v1/chat/completions"
JSON = ("content-type", "application/json")


async def test_many_requests_share_a_connection(gateway: Gateway) -> None:
    """A caller may go on asking over the same connection, streaming or not."""
    async with caller(gateway.port) as connection:
        for number in range(20):
            text = f"request {number}"
            assert (await connection.ask(chat(text))).text() == text
            answer = await connection.ask(chat(text, stream=True))
            assert answer.complete
            assert answer.events()[-1] == b"[DONE]"


async def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    """Ten GETs and ten POSTs in one write get twenty answers, in their order."""
    entry = request("GET", f"/v1/models/{MODEL}")
    async with caller(gateway.port) as connection:
        await connection.send(b"".join(entry + chat(f"number {n}") for n in range(10)))
        for number in range(10):
            assert (await connection.answer()).json()["id"] == MODEL
            assert (await connection.answer()).text() == f"number {number}"


async def test_pipelined_streams_are_answered_in_order(gateway: Gateway) -> None:
    """Streams don't overtake or mix when they are asked for in one write."""
    async with caller(gateway.port) as connection:
        await connection.send(b"".join(chat(f"{n}{n}", stream=True) for n in range(5)))
        for number in range(5):
            answer = await connection.answer()
            texts = [event for event in answer.events() if f'"{number}"'.encode() in event]
            assert len(texts) == 2


async def test_request_in_single_bytes_is_served(gateway: Gateway) -> None:
    """A request that trickles in byte by byte is the same request."""
    async with caller(gateway.port) as connection, caller(gateway.port) as clock:
        for byte in chat("slow"):
            await connection.send(bytes([byte]))
            if byte in b"\r\n{}":
                # One round trip elsewhere makes the gateway read what came so far.
                await clock.ask(HEALTH)
        assert (await connection.answer()).text() == "slow"


async def test_chunked_request_is_served(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """A body in chunks goes upstream with a length, and the connection stays good."""
    body = chat("in chunks").partition(b"\r\n\r\n")[2]
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    raw = request("POST", CHAT, JSON, ("transfer-encoding", "chunked")) + pieces
    async with caller(gateway.port) as connection:
        for _ in range(2):
            assert (await connection.ask(raw)).text() == "in chunks"
    assert upstream.requests[0].header("transfer-encoding") is None
    assert upstream.requests[0].header("content-length") == str(len(upstream.requests[0].body))


async def test_expect_continue_is_answered(gateway: Gateway) -> None:
    """A caller that waits for ``100 Continue`` before its body gets it. RFC 9110 10.1.1."""
    whole = chat("x" * 2000, ("expect", "100-continue"))
    raw_head, _, body = whole.partition(b"\r\n\r\n")
    async with caller(gateway.port) as connection:
        await connection.send(raw_head + b"\r\n\r\n")
        assert (await connection.head()).status == 100
        await connection.send(body)
        assert (await connection.answer()).text() == "x" * 2000


@pytest.mark.parametrize("target", ["/v1/models", f"/v1/models/{MODEL}", "/healthz", "/readyz"])
async def test_head_is_get_without_a_body(gateway: Gateway, target: str) -> None:
    """HEAD gives GET's head, its length included, and no body that would shift what follows."""
    async with caller(gateway.port) as connection:
        got = await connection.ask(request("GET", target))
        asked = await connection.ask(request("HEAD", target))
        assert (asked.status, asked.body) == (200, b"")
        assert asked.header("content-length") == got.header("content-length")
        assert asked.header("content-type") == got.header("content-type")
        assert (await connection.ask(HEALTH)).status == 200


@pytest.mark.parametrize("target", [CHAT, "/chat/completions", "/v1/models", "/v1/nothing", "*"])
async def test_preflight_allows_browsers(
    upstream: ScriptedUpstream, gateway: Gateway, target: str
) -> None:
    """A browser's preflight is answered for anyone, without credentials and without a key."""
    wanted = "authorization, content-type, x-stainless-lang, x-stainless-retry-count"
    answer = await ask(
        gateway.port,
        request(
            "OPTIONS",
            target,
            ("origin", "https://chat.invalid"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", wanted),
        ),
    )
    assert answer.status in (200, 204)
    assert answer.header("access-control-allow-origin") == "*"
    assert "POST" in (answer.header("access-control-allow-methods") or "")
    # "*" covers every name but Authorization. Source: WHATWG Fetch, "CORS-preflight fetch".
    named = answer.header("access-control-allow-headers") or ""
    allowed = {name.strip().lower() for name in named.split(",")}
    assert "authorization" in allowed
    assert "*" in allowed or set(wanted.split(", ")) <= allowed
    assert answer.header("access-control-allow-credentials") is None
    assert upstream.requests == []


async def test_answers_can_be_read_by_browsers(gateway: Gateway) -> None:
    """Good answers and errors alike may be read by a page of any origin."""
    origin = ("origin", "https://chat.invalid")
    for raw in (
        chat("Hi", origin),
        chat("Hi", origin, stream=True),
        chat("Hi", origin, model="none"),
        request("GET", "/v1/models", origin),
        request("GET", "/v1/none", origin),
    ):
        answer = await ask(gateway.port, raw)
        assert answer.header("access-control-allow-origin") == "*"
        assert answer.header("access-control-allow-credentials") is None


@pytest.mark.parametrize("close", ["close", "Close", "foo, close"])
async def test_connection_close_is_obeyed(gateway: Gateway, close: str) -> None:
    """A caller that asks for it gets its answer, and then the end of the connection."""
    async with caller(gateway.port) as connection:
        assert (await connection.ask(chat("Hi", ("connection", close)))).text() == "Hi"
        assert await connection.closed() == b""


async def test_http_1_0_is_served_and_closed(gateway: Gateway) -> None:
    """A caller of the old version gets an unchunked answer, ended by the connection's end."""
    for raw in (chat("Hi there"), chat("Hi there", stream=True)):
        async with caller(gateway.port) as connection:
            await connection.send(raw.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            answer = await connection.answer()
            assert answer.status == 200
            assert answer.header("transfer-encoding") is None
            assert b"Hi t" in answer.body
            assert await connection.closed() == b""


@pytest.mark.parametrize(
    "broken",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: a\r\nbad name: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: a\r\n folded: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost : a\r\n\r\n",
        b"GET /healthz HTTP/1.1\nhost: a\n\n",
        b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx",
        b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked"
        b"\r\n\r\n0\r\n\r\n",
        b"POST %b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST %b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /healthz HTTP/2.0\r\nhost: a\r\n\r\n",
    ],
)
async def test_ambiguous_requests_are_refused_and_disconnected(
    upstream: ScriptedUpstream, gateway: Gateway, broken: bytes
) -> None:
    """What two parsers could read differently is an error, and nothing after it is read."""
    smuggled = chat("smuggled")
    async with caller(gateway.port) as connection:
        await connection.send(broken.replace(b"%b", CHAT.encode()) + smuggled)
        answer = await connection.answer()
        assert 400 <= answer.status < 600
        assert answer.status != 404
        assert answer.error()
        assert await connection.closed() == b""
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (request("GET", "/healthz", ("x", "y" * 17_000)), 431, "request_too_large"),
        (
            request("GET", "/healthz", *((f"x-{n}", "y") for n in range(65))),
            431,
            "request_too_large",
        ),
        (request("GET", "/" + "a" * 17_000), 414, "request_too_large"),
    ],
    ids=["long-head", "many-headers", "long-target"],
)
async def test_large_heads_are_refused(
    gateway: Gateway, raw: bytes, status: int, code: str
) -> None:
    """A head over 16 KiB or 64 headers is refused and the connection closed."""
    async with caller(gateway.port) as connection:
        await connection.send(raw)
        answer = await connection.answer()
        assert answer.status == status
        assert answer.error()["code"] == code
        await connection.closed()


async def test_connections_per_address_are_capped(
    start_gateway: StartGateway, upstream: ScriptedUpstream
) -> None:
    """One address holds at most so many connections; the next is turned away, others go on."""
    gateway = await start_gateway(FREEAPI_MAX_CONNECTIONS_PER_ADDRESS="2")
    async with caller(gateway.port) as first, caller(gateway.port) as second:
        assert (await first.ask(HEALTH)).status == 200
        assert (await second.ask(HEALTH)).status == 200
        async with caller(gateway.port) as third:
            turned_away = await third.closed()
            assert b" 200 " not in turned_away
        assert (await first.ask(chat())).text() == "Hi"
