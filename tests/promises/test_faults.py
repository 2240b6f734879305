"""Promise: whatever the upstream does wrong, the caller is told, and nothing of it stays behind.

Each fault is played against a real gateway: the status and code are right, the upstream's
connection is given up, no descriptor is leaked, and the next request is served. The words of the
errors are ``test_failures``'; what may be sent again is ``test_retries``'.

Plan: the time-outs are short, so that a fault that only time can end takes a second; one gateway
serves all faults of an upstream that can be reached. Each test ends with a success, which also
ends the pause that five failures in a row bring upon an upstream.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme

from tests.answers import DONE, STREAM_HEAD, answer, chat_json, chunked, delta, error, head
from tests.conftest import StartGateway, upstream_settings
from tests.gateway import UNLIMITED_MODEL, Gateway
from tests.raw_client import Answer, Caller, ask, caller, chat, request
from tests.scripted_upstream import (
    PATIENCE_S,
    Exchange,
    Script,
    ScriptedUpstream,
    Step,
    chunk,
    close,
    hang,
    happens,
    listening_socket,
    reset,
    send,
)

#: Short, and long enough for a busy machine to answer in.
HASTY = "[timeouts]\nconnect_s = 0.5\nfirst_byte_s = 0.5\nidle_s = 0.5\ntotal_s = 1.5\n"
#: Between two pieces of what drips; well below ``idle_s``, so that only ``total_s`` ends it.
DRIP_S = 0.1
#: What the gateway keeps of an answer that isn't whole yet.
KEPT_BYTES = 1_048_576
LARGE_BYTES = 3 * KEPT_BYTES

JSON = ("content-type", "application/json")
CHUNKED = ("transfer-encoding", "chunked")
EARLY = b"HTTP/1.1 103 Early Hints\r\n\r\n"
OPEN_HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED_HEAD = head(200, JSON, CHUNKED)
WHOLE = answer(200, chat_json("never whole"))
FAILED = error(500, None, "never whole")
HEALTH = request("GET", "/healthz")

UNAVAILABLE = (502, "upstream_unavailable")
TIMED_OUT = (504, "upstream_timeout")


def endless(piece: bytes) -> Step:
    """The step that sends the same as fast as the gateway takes it, until it has enough."""

    async def step(exchange: Exchange) -> None:
        while True:
            await exchange.send(piece * (1 + 16_384 // len(piece)))
            await asyncio.sleep(0)  # lets the loop see that the gateway is gone

    return step


def drip(piece: bytes) -> Step:
    """The step that sends a little now and then, until the gateway has enough."""

    async def step(exchange: Exchange) -> None:
        while not exchange.gone.is_set():
            await exchange.send(piece)
            with suppress(TimeoutError):
                async with asyncio.timeout(DRIP_S):
                    await exchange.gone.wait()

    return step


#: Faults before the answer, all of which the gateway sees at once.
BROKEN: dict[str, Script] = {
    "closes": [close()],
    "resets": [reset()],
    "garbage": [endless(b"\x00garbage\xff")],
    "switches protocols": [send(b"HTTP/1.1 101 Now\r\nupgrade: x\r\n\r\n"), hang()],
    "endless status line": [send(b"HTTP/1.1 200 "), endless(b"OK")],
    "endless header": [send(OPEN_HEAD + b"x: "), endless(b"y")],
    "endless headers": [send(OPEN_HEAD), endless(b"x-more: 1\r\n")],
    "endless interim answers": [endless(EARLY)],
    "endless chunk extension": [send(CHUNKED_HEAD + b"5;"), endless(b"x")],
    "endless trailers": [send(CHUNKED_HEAD + chunked(b"{}") + b"0\r\n"), endless(b"x-more: 1\r\n")],
    "endless body of a 400": [send(head(400, JSON, CHUNKED)), endless(chunked(b"x"))],
    "endless body of a 429": [send(head(429, JSON)), endless(b"x")],
    "endless body of a 500": [send(head(500, JSON, CHUNKED)), endless(chunked(b"x"))],
}
#: Faults before the answer that only a time-out ends.
STALLED: dict[str, Script] = {
    "silence": [hang()],
    "stall after an interim answer": [send(EARLY), hang()],
    "stall in the head": [send(WHOLE[:20]), hang()],
    "stall in the body": [send(WHOLE[:-1]), hang()],
    "stall in the body of a 500": [send(FAILED[:-1]), hang()],
    "dripping interim answers": [drip(EARLY)],
    "dripping head": [send(OPEN_HEAD), drip(b"x-more: 1\r\n")],
    "dripping body": [send(CHUNKED_HEAD), drip(chunked(b" "))],
    "dripping body of a 500": [send(head(500, JSON, CHUNKED)), drip(chunked(b" "))],
}
STREAMING: Script = [send(STREAM_HEAD), chunk(delta("Hi"))]
#: Faults in a stream under way that the gateway sees at once.
INTERRUPTED: dict[str, Script] = {
    "closes": [*STREAMING, close()],
    "garbage": [*STREAMING, endless(b"no chunk")],
    "endless trailers": [*STREAMING, send(b"0\r\n"), endless(b"x-more: 1\r\n")],
}
#: Those that only a time-out ends.
QUIET: dict[str, Script] = {
    "stall between events": [*STREAMING, hang()],
    "stall in an event": [*STREAMING, chunk(delta("never whole")[:-1]), hang()],
    "stall in the framing": [*STREAMING, send(b"5"), hang()],
    "dripping events": [*STREAMING, drip(chunked(delta("more")))],
    "dripping comments": [*STREAMING, drip(chunked(b": keep-alive\n\n"))],
    "dripping event": [*STREAMING, drip(chunked(b"data: x"))],
}
#: More than is kept of what isn't whole: it is passed on, and cut when the time is over.
LARGE_EVENT: Script = [*STREAMING, chunk(b"data: " + b"x" * LARGE_BYTES), drip(chunked(b"x"))]
LARGE_BODY: Script = [send(CHUNKED_HEAD), chunk(b" " * LARGE_BYTES), drip(chunked(b" "))]
#: Served, over a connection that isn't kept.
SERVED: Script = [send(answer(200, chat_json("Hi"), ("connection", "close"))), hang()]


@pytest.fixture(scope="module")
def hasty(listener: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with short time-outs in front of the scripted upstream."""
    settings = upstream_settings(listener.getsockname()[1])
    gateway = Gateway(tmp_path_factory.mktemp("hasty"), settings, UNLIMITED_MODEL + HASTY)
    yield gateway
    gateway.stop()


@asynccontextmanager
async def no_leak(gateway: Gateway) -> AsyncIterator[Caller]:
    """A caller before, during and after the fault, when no descriptor more may be open."""
    async with caller(gateway.port) as clock:
        assert (await clock.ask(HEALTH)).status == 200
        before = gateway.open_files()
        yield clock
        await falls_to(gateway, before, clock)


async def falls_to(gateway: Gateway, files: int, clock: Caller) -> None:
    """Wait until no more descriptors are open; each round trip lets the gateway close some."""
    async with asyncio.timeout(PATIENCE_S):
        while gateway.open_files() > files:
            assert (await clock.ask(HEALTH)).status == 200


@asynccontextmanager
async def fault(
    gateway: Gateway, upstream: ScriptedUpstream, scripts: Mapping[str, Script]
) -> AsyncIterator[None]:
    """Prompts play these scripts; afterwards all is given up, and the next request is served.

    The connections before and after aren't kept alive: a fault must not be met by a resend, and
    what is open can be counted.
    """
    upstream.script = lambda seen: scripts.get(seen.prompt(), SERVED)
    async with caller(gateway.port) as clock:
        assert (await clock.ask(chat())).text() == "Hi"
        await happens(upstream.exchanges[0].gone)
        before = gateway.open_files()
        yield
        assert (await clock.ask(chat())).text() == "Hi"
        for exchange in upstream.exchanges:
            await happens(exchange.gone)
        await falls_to(gateway, before, clock)
    assert len(upstream.requests) == len(upstream.connections)


def code_of(given: Answer) -> tuple[int, str]:
    """What a caller decides by."""
    return given.status, given.error()["code"]


def ending_of(given: Answer) -> tuple[bytes, str]:
    """The first event of a stream and, of its last one, the error's code."""
    assert given.status == 200
    assert DONE not in given.body
    first, *_, last = given.body.removesuffix(b"\n\n").split(b"\n\n")
    return first + b"\n\n", json.loads(last.removeprefix(b"data: "))["error"]["code"]


@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", BROKEN)
async def test_fault_before_the_answer_is_502(
    upstream: ScriptedUpstream, hasty: Gateway, name: str, streams: bool
) -> None:
    """The caller gets 502, the connection is given up, and the next request is served."""
    async with fault(hasty, upstream, BROKEN):
        assert code_of(await ask(hasty.port, chat(name, stream=streams))) == UNAVAILABLE


@pytest.mark.parametrize("name", INTERRUPTED)
async def test_fault_in_a_stream_is_an_error_event(
    upstream: ScriptedUpstream, hasty: Gateway, name: str
) -> None:
    """The caller gets what came whole, then an error event, and no ``[DONE]``."""
    async with fault(hasty, upstream, INTERRUPTED):
        given = await ask(hasty.port, chat(name, stream=True))
        assert ending_of(given) == (delta("Hi"), UNAVAILABLE[1])


@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
async def test_stalls_before_the_answer_are_504(
    upstream: ScriptedUpstream, hasty: Gateway, streams: bool
) -> None:
    """An upstream that stalls or drips in any phase, all phases at once, is timed out."""
    async with fault(hasty, upstream, STALLED):
        requests = [ask(hasty.port, chat(name, stream=streams)) for name in STALLED]
        answers = zip(STALLED, await asyncio.gather(*requests), strict=True)
        assert {name: code_of(given) for name, given in answers} == dict.fromkeys(
            STALLED, TIMED_OUT
        )


async def test_stalls_in_a_stream_are_error_events(
    upstream: ScriptedUpstream, hasty: Gateway
) -> None:
    """A stream that stalls or drips, in an event or between two, ends in an error event."""
    async with fault(hasty, upstream, QUIET):
        requests = [ask(hasty.port, chat(name, stream=True)) for name in QUIET]
        answers = zip(QUIET, await asyncio.gather(*requests), strict=True)
        assert {name: ending_of(given) for name, given in answers} == dict.fromkeys(
            QUIET, (delta("Hi"), TIMED_OUT[1])
        )


async def test_what_is_endless_is_cut(upstream: ScriptedUpstream, hasty: Gateway) -> None:
    """A body or an event larger than what is kept is passed on, and cut when the time is over."""
    async with fault(hasty, upstream, {"body": LARGE_BODY, "event": LARGE_EVENT}):
        body, event = await asyncio.gather(
            ask(hasty.port, chat("body")), ask(hasty.port, chat("event", stream=True))
        )
        assert (body.status, body.complete) == (200, False)
        assert len(body.body) >= LARGE_BYTES
        assert event.body.count(b"x") > LARGE_BYTES - KEPT_BYTES
        assert b'"code":"upstream_timeout"' in event.body[-1000:]


# --- Upstreams that can't be reached --------------------------------------------------------------


async def test_unknown_name_is_502(start_gateway: StartGateway) -> None:
    """Where the upstream's name doesn't resolve, each request gets 502, and nothing is left."""
    gateway = await start_gateway(HASTY, OPENAI_BASE_URL="http://upstream.invalid/v1")
    await ask(gateway.port, chat())  # what resolving opens once and keeps
    async with no_leak(gateway) as clock:
        for streams in (False, True, False):
            assert code_of(await clock.ask(chat(stream=streams))) == UNAVAILABLE


async def test_unknown_name_is_no_harm_where_there_is_another(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """With a second upstream the request is served by that: nothing had been sent."""
    lost = '[[upstream]]\nname = "lost"\nbase_url = "http://upstream.invalid/v1"\nfree = true\n'
    found = lost.replace("lost", "found").replace("http://upstream.invalid", "http://127.0.0.1:%d")
    gateway = await start_gateway(lost + found % upstream.port + "priority = 2\n" + HASTY)
    for number in range(4):
        assert (await ask(gateway.port, chat(str(number)))).text() == str(number)
    assert len(upstream.requests) == 4


async def test_refused_connection_is_502_until_someone_listens(start_gateway: StartGateway) -> None:
    """Where nothing listens each request gets 502; as soon as something does, it is served."""
    upstream = ScriptedUpstream()
    async with AsyncExitStack() as at_end:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as later:
            later.bind(("127.0.0.1", 0))
            base_url = f"http://127.0.0.1:{later.getsockname()[1]}/v1"
            gateway = await start_gateway(HASTY, OPENAI_BASE_URL=base_url)
            async with no_leak(gateway) as clock:
                for streams in (False, True, False):
                    assert code_of(await clock.ask(chat(stream=streams))) == UNAVAILABLE
            later.listen()
            await upstream.listen(later.dup())
            at_end.push_async_callback(upstream.close)
        assert (await ask(gateway.port, chat())).text() == "Hi"


async def test_full_backlog_is_504_until_there_is_room(start_gateway: StartGateway) -> None:
    """While the kernel lets nobody in each request gets 504; afterwards it is served."""
    upstream = ScriptedUpstream()
    async with AsyncExitStack() as at_end:
        with listening_socket() as full:
            full.listen(0)
            port: int = full.getsockname()[1]
            gateway = await start_gateway(HASTY, OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1")
            # Connections that nobody accepts: as many as the kernel holds, and one that waits.
            for _ in range(3):
                filler = at_end.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            async with no_leak(gateway) as clock:
                for streams in (False, True):
                    assert code_of(await clock.ask(chat(stream=streams))) == TIMED_OUT
            await upstream.listen(full.dup())
            at_end.push_async_callback(upstream.close)
        assert (await ask(gateway.port, chat())).text() == "Hi"


# --- TLS ------------------------------------------------------------------------------------------


#: What is said instead of a handshake (an HTTP server, an alert, nothing), and what comes of it.
NO_TLS = {
    b"HTTP/1.1 400 Bad Request\r\n\r\n": UNAVAILABLE,
    b"\x15\x03\x01\x00\x02\x02\x28": UNAVAILABLE,
    b"": TIMED_OUT,
}


class NoTls(asyncio.Protocol):
    """Answers a TLS handshake with these bytes; none: never."""

    def __init__(self, words: bytes, opened: list[NoTls]) -> None:
        self._words = words
        self._opened = opened
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._opened.append(self)

    def data_received(self, data: bytes) -> None:
        """Say what there is to say."""
        self._transport.write(self._words)

    def connection_lost(self, exc: Exception | None) -> None:
        """The gateway has given up."""
        self.gone.set()


async def test_tls_that_fails_in_every_way_is_told_until_it_works(
    listener: socket.socket, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """No TLS, an alert, silence and a wrong certificate get 502 or 504; a good one is used."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    gateway = await start_gateway(
        HASTY,
        OPENAI_BASE_URL=f"https://localhost:{listener.getsockname()[1]}/v1",
        SSL_CERT_FILE=str(tmp_path / "authority.pem"),
    )
    async with no_leak(gateway) as clock:
        for words, expected in NO_TLS.items():
            async with no_tls(listener, words) as opened:
                assert code_of(await clock.ask(chat())) == expected
                await happens(opened[0].gone)
        async with tls_upstream(listener, authority.issue_cert("other.invalid")) as wrong:
            assert code_of(await clock.ask(chat())) == UNAVAILABLE
            assert wrong.requests == []
        async with tls_upstream(listener, authority.issue_cert("localhost")):
            assert (await clock.ask(chat())).text() == "Hi"


@asynccontextmanager
async def no_tls(listener: socket.socket, words: bytes) -> AsyncIterator[list[NoTls]]:
    """A server that isn't one of TLS; yields its connections."""
    opened: list[NoTls] = []
    server = await asyncio.get_running_loop().create_server(
        lambda: NoTls(words, opened), sock=listener.dup()
    )
    yield opened
    server.close()


@asynccontextmanager
async def tls_upstream(
    listener: socket.socket, certificate: trustme.LeafCert
) -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    upstream = ScriptedUpstream()
    await upstream.listen(listener.dup(), context)
    yield upstream
    await upstream.close()
