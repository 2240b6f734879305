"""The caller's socket: bytes in any cut, framing that is refused, time-outs, flow control.

Each refused request is checked in the same way: one answer in OpenAI's shape, then the connection
ends, and what followed on it was never taken for a request.
"""

from __future__ import annotations

import asyncio
import re
import socket

import pytest

from freeapi.http.connection import Connection
from tests.http.conftest import TEXT, Site, StartSite, alive, hold, uncollected, until
from tests.raw_client import Caller, post, request

GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
CL5 = b"content-length: 5"
TE = b"transfer-encoding: chunked"
BIG = 1_048_576


def chunks(*pieces: bytes) -> bytes:
    """A chunked POST."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + body


async def refusal(site: Site, caller: Caller, data: bytes) -> tuple[int, str]:
    """Send; returns status and label of the one answer, after which the connection ended."""
    await caller.send(data)
    answer = await caller.answer()
    error = answer.error()
    assert answer.header("connection") == "close"
    assert answer.header("x-request-id")
    assert await caller.closed() == b""
    [label] = site.refused
    assert "internal" not in error["code"]
    return answer.status, label


# --- Requests that are taken ----------------------------------------------------------------------

TAKEN = {
    "length": (
        b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello" + GET,
        [b"POST /p hello", b"GET /a "],
    ),
    "chunked": (chunks(b"hel", b"lo") + GET, [b"POST /c hello", b"GET /a "]),
    "extensions": (
        b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\n\r\n"
        b'5;a=b;c="d"\r\nhello\r\n0;e\r\nx-trailer: t\r\nhost: evil\r\n\r\n' + GET,
        [b"POST /c hello", b"GET /a "],
    ),
    "http10": (
        b"POST /o HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi" + GET,
        [b"POST /o hi", b"GET /a "],
    ),
    "leading blank line": (b"\r\n" + GET + b"\r\n" + GET, [b"GET /a ", b"GET /a "]),
}


@pytest.mark.parametrize("name", TAKEN)
async def test_any_cut_of_the_bytes_gives_the_same_requests(site: Site, name: str) -> None:
    """Two requests, cut in two at every byte, are understood as when they come at once."""
    data, expected = TAKEN[name]
    async with site.caller() as caller:
        for cut in range(1, len(data)):
            await caller.send(data[:cut])
            await asyncio.sleep(0)  # so that the second part is a read of its own, mostly
            await caller.send(data[cut:])
            bodies = [(await caller.answer()).body for _ in expected]
            assert bodies == expected
    assert site.refused == []
    assert {r.headers.get(b"host") for r, _ in site.calls} <= {b"x", None}


async def test_a_byte_at_a_time(site: Site) -> None:
    """A request that comes byte by byte is understood."""
    async with site.caller() as caller:
        for byte in chunks(b"hel", b"lo"):
            await caller.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await caller.answer()).body == b"POST /c hello"


@pytest.mark.parametrize("target", [b"/b?q=1", b"http://x/b?q=1", b"HTTPS://x:80/b"])
async def test_targets_give_their_path(site: Site, target: bytes) -> None:
    """The origin and the absolute form of a target name the same path, without its query."""
    async with site.caller() as caller:
        answer = await caller.ask(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % target)
        assert answer.body == b"GET /b "


async def test_asterisk_is_a_target_of_options(site: Site) -> None:
    """``OPTIONS *`` is a request like any other."""
    async with site.caller() as caller:
        assert (await caller.ask(request("OPTIONS", "*"))).body == b"OPTIONS * "


async def test_header_lines(site: Site) -> None:
    """Names are lower case, values trimmed, list lines joined, empty ones kept apart."""
    head = b"GET / HTTP/1.1\r\nHOST:x \r\nX-Empty:\r\nX-L: a\r\nx-l:\tb\t\r\nX-O: \xff\r\n\r\n"
    async with site.caller() as caller:
        await caller.ask(head)
    headers = site.calls[0][0].headers
    assert headers == {b"host": b"x", b"x-empty": b"", b"x-l": b"a, b", b"x-o": b"\xff"}


async def test_expectation_is_met_once(site: Site) -> None:
    """``Expect: 100-continue`` gets an interim answer before the body is sent."""
    async with site.caller() as caller:
        head, _, body = post("/e", b"{}", ("expect", "100-Continue")).rpartition(b"\r\n\r\n")
        await caller.send(head + b"\r\n\r\n")
        assert (await caller.head()).status == 100
        assert site.calls == []
        await caller.send(body)
        assert (await caller.answer()).body == b"POST /e {}"


async def test_upgrade_is_declined(site: Site) -> None:
    """A websocket or h2c upgrade is answered as plain HTTP, and what follows isn't read as HTTP."""
    for protocol in ("websocket", "h2c"):
        headers = (("connection", "Upgrade, HTTP2-Settings"), ("upgrade", protocol))
        async with site.caller() as caller:
            await caller.send(request("GET", "/u", *headers) + SMUGGLED)
            answer = await caller.answer()
            assert (answer.status, answer.body) == (200, b"GET /u ")
            assert answer.header("connection") == "close"
            assert await caller.closed() == b""
    assert len(site.calls) == 2


@pytest.mark.parametrize(
    "framed", [CL5 + b"\r\n\r\nhello", TE + b"\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"]
)
async def test_upgrade_with_a_body_has_its_body(site: Site, framed: bytes) -> None:
    """A POST that offers h2c, as each of Java's HttpClient does, arrives whole in any cut."""
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
    data = b"POST /u?q HTTP/1.1\r\nhost: x\r\n" + offer + framed
    for cut in range(90, len(data)):
        async with site.caller() as caller:
            await caller.send(data[:cut])
            await asyncio.sleep(0)
            await caller.send(data[cut:])
            answer = await caller.answer()
            assert (answer.status, answer.body) == (200, b"POST /u hello")
            assert answer.header("connection") == "close"


# --- Requests that are refused --------------------------------------------------------------------


def head(line: bytes = b"", first: bytes = b"POST / HTTP/1.1", host: bytes = b"host: x") -> bytes:
    """A request with one more header line."""
    return b"\r\n".join(part for part in (first, host, line) if part) + b"\r\n\r\n"


REFUSED: dict[str, tuple[bytes, int]] = {
    "bare LF": (b"GET / HTTP/1.1\nhost: x\n\n", 400),
    "bare LF in headers": (b"GET / HTTP/1.1\r\nhost: x\nx-a: b\r\n\r\n", 400),
    "bare CR": (head(b"x-a: b\rx-c: d"), 400),
    "obs-fold": (head(b"x-a: b\r\n folded"), 400),
    "space before colon": (head(b"x-a : b"), 400),
    "leading space": (b"GET / HTTP/1.1\r\n host: x\r\n\r\n", 400),
    "two Hosts": (head(b"host: y"), 400),
    "no Host": (head(host=b""), 400),
    "Host with a path": (head(host=b"host: x/y"), 400),
    "Host with userinfo": (head(host=b"host: u@x"), 400),
    "empty Host": (head(host=b"host:"), 400),
    "length and coding": (head(CL5 + b"\r\n" + TE), 400),
    "coding and length": (head(TE + b"\r\n" + CL5), 400),
    "unknown coding": (head(b"transfer-encoding: gzip"), 501),
    "coding before chunked": (head(b"transfer-encoding: gzip, chunked"), 501),
    "chunked twice": (head(b"transfer-encoding: chunked, chunked"), 400),
    "chunked in two lines": (head(TE + b"\r\n" + TE), 400),
    "chunked not last": (head(b"transfer-encoding: chunked, identity"), 400),
    "chunked misspelt": (head(b"transfer-encoding: xchunked"), 501),
    "chunked after a control": (head(b"transfer-encoding: \x0bchunked"), 400),
    "chunked and empty": (head(b"transfer-encoding: chunked,"), 400),
    "coding in HTTP/1.0": (head(TE, b"POST / HTTP/1.0"), 400),
    "length with +": (head(b"content-length: +5"), 400),
    "length with -": (head(b"content-length: -5"), 400),
    "length in hex": (head(b"content-length: 0x5"), 400),
    "length with space": (head(b"content-length: 5 5"), 400),
    "length as list": (head(b"content-length: 5, 5"), 400),
    "length empty": (head(b"content-length:"), 400),
    "lengths": (head(CL5 + b"\r\n" + CL5), 400),
    "lengths that differ": (head(CL5 + b"\r\ncontent-length: 6"), 400),
    "length too long a number": (head(b"content-length: " + b"0" * 18 + b"5"), 400),
    "length over 64 bits": (head(b"content-length: 99999999999999999999"), 400),
    "NUL in a value": (head(b"x-a: b\x00c"), 400),
    "control in a value": (head(b"x-a: b\x01c"), 400),
    "DEL in a value": (head(b"x-a: b\x7fc"), 400),
    "name not a token": (head(b"x(a): b"), 400),
    "name with NUL": (head(b"x\x00a: b"), 400),
    "no name": (head(b": b"), 400),
    "no colon": (head(b"x-a"), 400),
    "two authorizations": (head(b"authorization: a\r\nauthorization: b"), 400),
    "authority-form": (head(first=b"GET x:80 HTTP/1.1"), 400),
    "asterisk": (head(first=b"GET * HTTP/1.1"), 400),
    "other scheme": (head(first=b"GET ftp://x/ HTTP/1.1"), 400),
    "space in target": (head(first=b"GET /a b HTTP/1.1"), 400),
    "control in target": (head(first=b"GET /a\x01 HTTP/1.1"), 400),
    "obs-text in target": (head(first=b"GET /\xff HTTP/1.1"), 400),
    "CONNECT": (head(first=b"CONNECT x:80 HTTP/1.1"), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/0.9 by name": (head(first=b"GET / HTTP/0.9"), 505),
    "HTTP/1.2": (head(first=b"GET / HTTP/1.2"), 505),
    "HTTP/2.0": (head(first=b"GET / HTTP/2.0"), 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(30), 501),
    "unknown method": (head(first=b"BREW / HTTP/1.1"), 501),
    "lower-case method": (head(first=b"get / HTTP/1.1"), 501),
    "expectation": (head(b"expect: 200-ok\r\n" + CL5), 417),
    "65 headers": (head(b"\r\n".join(b"x-%d: a" % i for i in range(64))), 431),
    "long head": (head(b"\r\n".join(b"x-%d: %b" % (i, b"a" * 1000) for i in range(17))), 431),
    "long header": (head(b"x-a: " + b"a" * 16_384), 431),
    "endless header": (b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 40_000, 431),
    "long target": (head(first=b"GET /" + b"a" * 8_192 + b" HTTP/1.1"), 414),
    "endless target": (b"GET /" + b"a" * 100_000, 414),
    "long body": (head(b"content-length: %d" % (BIG + 1)), 413),
    "long chunk": (head(TE) + b"%x\r\n" % (BIG + 1) + b"a" * (BIG + 1) + b"\r\n0\r\n\r\n", 413),
    "chunk size with +": (head(TE) + b"+5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size in 0x": (head(TE) + b"0x5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size negative": (head(TE) + b"-5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size too big": (head(TE) + b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n", 400),
    "chunk without CRLF": (head(TE) + b"5\r\nhelloX", 400),
    "chunk with bare LF": (head(TE) + b"5\nhello\n0\n\n", 400),
    "chunk size with space": (head(TE) + b"5 \r\nhello\r\n0\r\n\r\n", 400),
    "bare LF in an extension": (head(TE) + b"5;a\nb\r\nhello\r\n0\r\n\r\n", 400),
    "control in a trailer": (head(TE) + b"0\r\nx-a: \x00\r\n\r\n", 400),
    "long trailers": (
        head(TE) + b"0\r\n" + b"".join(b"x-%d: %b\r\n" % (i, b"a" * 99) for i in range(200)),
        431,
    ),
    "endless trailer": (head(TE) + b"0\r\nx-a: " + b"a" * 100_000, 431),
    "endless extension": (head(TE) + b"5;" + b"a" * 100_000, 431),
    "endless blank lines": (b"\r\n" * 40_000, 431),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_ambiguous_is_refused(site: Site, name: str) -> None:
    """One error in OpenAI's shape, then the end: what follows is never taken for a request."""
    data, status = REFUSED[name]
    async with site.caller() as caller:
        assert (await refusal(site, caller, data + SMUGGLED))[0] == status
    assert site.calls == []


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nx-a: ",
        head(TE) + b"5;",
        head(TE) + b"5\r\nhello\r\n0\r\nx-a: ",
        head(TE) + b"5\r\nhello\r\n0\r\nx-a",
    ],
)
async def test_what_never_ends_is_bounded_in_bytes(site: Site, start: bytes) -> None:
    """An endless header, chunk extension or trailer is refused after some 32 KiB of it."""
    async with site.caller() as caller:
        assert await refusal(site, caller, start + b"a" * 70_000) == (431, "head_too_large")


async def test_large_head_behind_another_request_is_refused(site: Site) -> None:
    """Where its bytes are cut for the parser makes no head of 20 KB an acceptable one."""
    async with site.caller() as caller:
        await caller.send(GET + head(b"x-a: " + b"a" * 20_000) + SMUGGLED)
        assert (await caller.answer()).body == b"GET /a "
        assert (await caller.answer()).status == 431
        assert await caller.closed() == b""
    assert len(site.calls) == 1


async def test_refusal_comes_after_the_answers_before_it(site: Site) -> None:
    """What is wrong with the second of two pipelined requests doesn't cost the first its answer."""
    async with site.caller() as caller:
        await caller.send(GET + head(b"x-a : b") + SMUGGLED)
        assert (await caller.answer()).body == b"GET /a "
        assert (await caller.answer()).status == 400
        assert await caller.closed() == b""
    assert len(site.calls) == 1


async def test_refused_caller_may_finish_sending(site: Site) -> None:
    """A body far over the limit can be sent to its end: the answer is read, not a reset."""
    async with site.caller() as caller:
        await caller.send(head(b"content-length: 8000000") + b"a" * 8_000_000)
        assert (await caller.answer()).status == 413
        assert await caller.closed() == b""


async def test_refused_caller_is_cut_in_the_end(
    start_site: StartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that never closes is cut when lingering has lasted long enough."""
    monkeypatch.setattr("freeapi.http.connection._LINGER_S", 0.05)
    site = await start_site(shortest_s=0.05)
    async with site.caller() as caller:
        await caller.send(SMUGGLED[1:] + b"\x00")
        await until(lambda: site.refused and not site.connections)


# --- Order and bounds -----------------------------------------------------------------------------


async def test_thousands_of_pipelined_requests_are_answered_in_order(site: Site) -> None:
    """5,000 requests in one write are answered one by one, without a recursion."""
    async with site.caller() as caller:
        sent = b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % i for i in range(4_999))
        await caller.send(sent + b"GET /last HTTP/1.0\r\n\r\n")
        answers = await caller.closed()
    paths = re.findall(rb"GET /(\w+) ", answers)
    assert paths == [b"%d" % i for i in range(4_999)] + [b"last"]


async def test_next_request_waits_for_the_answer(start_site: StartSite) -> None:
    """A pipelined request reaches the application when the one before is answered."""
    site = await start_site(hold)
    async with site.caller() as caller:
        await caller.send(GET + GET)
        (await site.reply(0)).send(200, TEXT, b"1")
        assert (await caller.answer()).body == b"1"
        (await site.reply(1)).send(200, TEXT, b"2")
        assert (await caller.answer()).body == b"2"


async def test_reading_ahead_is_bounded(start_site: StartSite) -> None:
    """Who sends on while an answer is awaited is stopped by the kernel, and loses nothing."""
    site = await start_site(hold)
    message = post("/p", b"a" * 500_000)
    async with site.caller() as caller:
        sending = asyncio.gather(caller.send(message * 40))
        reply = await site.reply(0)
        server_side = next(iter(site.server._connections))
        await until(lambda: not server_side._reading)
        assert len(server_side._unparsed) < 1_000_000
        site.app = lambda request, reply: reply.send(200, TEXT, b"%d" % len(request.body))
        reply.send(200, TEXT, b"first")
        for _ in range(40):
            assert (await caller.answer()).body in (b"first", b"500000")
        await sending


# --- Ends -----------------------------------------------------------------------------------------


async def test_half_closed_caller_counts_as_gone(start_site: StartSite) -> None:
    """The end of the caller's bytes, while an answer is awaited, is its end; before that, not."""
    site = await start_site()
    async with site.caller() as caller:
        await caller.send(GET + GET)
        caller._writer.write_eof()
        assert [(await caller.answer()).body for _ in range(2)] == [b"GET /a "] * 2
    site.app = hold
    async with site.caller() as caller:
        await caller.send(GET)
        await site.reply(2)
        caller._writer.write_eof()
        await until(lambda: site.gone == [2])
        assert await caller.closed() == b""


async def test_requests_of_a_caller_that_left_are_dropped(start_site: StartSite) -> None:
    """What was pipelined behind an answer that nobody reads never reaches the application."""
    site = await start_site(lambda _, reply: reply.send(200, TEXT, b"a" * 20_000_000))
    with socket.create_connection(("127.0.0.1", site.port)) as quiet:
        quiet.sendall(GET + GET)
        await site.reply()
        quiet.shutdown(socket.SHUT_WR)
        server_side = next(iter(site.server._connections))
        await until(lambda: server_side._lingering)
    await until(lambda: not site.connections)
    assert len(site.calls) == 1


async def test_closed_connection_is_freed_at_once(site: Site) -> None:
    """What a caller sent isn't kept until the garbage collector comes by."""
    with uncollected():
        async with site.caller() as caller:
            await caller.ask(post("/p", b"a" * 100_000))
            assert alive(Connection) == 1
        await until(lambda: not alive(Connection))
