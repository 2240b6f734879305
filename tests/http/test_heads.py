"""Heads that need no parser: which are known again, which are plain, and that all others aren't."""

from __future__ import annotations

import asyncio

import pytest

from freeapi.http import heads, wire
from freeapi.policy import failures
from tests.http.conftest import Site
from tests.raw_client import post

GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = (
    b"POST /v1/chat/completions?a=1 HTTP/1.1\r\nHost: x\r\nX-Before: content-length: 9\r\n"
    b"Content-Length: 300\r\nX-After: 300\r\n\r\n"
)


def parsed(*headers: tuple[bytes, bytes]) -> wire.Request:
    """As the parser gives it."""
    request = wire.Request(wire.Peer("192.0.2.1"))
    request.method = b"POST"
    request.path = b"/v1/chat/completions"
    request.headers = dict(headers) or {
        b"host": b"x",
        b"x-before": b"content-length: 9",
        b"content-length": b"300",
        b"x-after": b"300",
    }
    return request


def known() -> heads.KnownHead:
    """HEAD, once it was parsed."""
    found = heads.known_head(HEAD + b"{}", parsed())
    assert found is not None
    return found


# --- A caller's -----------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [b"300", b"0", b"7", b"1048576", b"000012", b"9" * 18])
def test_known_head_with_any_length(digits: bytes) -> None:
    """The same head is known whatever its length is, which it says."""
    head = HEAD.replace(b"Length: 300", b"Length: " + digits)
    assert known().find(head) == (len(head), int(digits))
    assert known().find(head + b"body") == (len(head), int(digits))


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"Length: 300", b"Length: "),
        HEAD.replace(b"Length: 300", b"Length: +5"),
        HEAD.replace(b"Length: 300", b"Length: 5 "),
        HEAD.replace(b"Length: 300", b"Length: 5, 5"),
        HEAD.replace(b"Length: 300", b"Length: 0x5"),
        HEAD.replace(b"Length: 300", b"Length: \xb2"),
        HEAD.replace(b"Length: 300", b"Length: " + b"9" * 19),
        HEAD.replace(b"X-After: 300", b"X-After: 301"),
        HEAD.replace(b"X-After: 300", b"X-After: 300\r\nexpect: 100-continue"),
        HEAD.replace(b"Host: x", b"Host: y"),
        HEAD.replace(b"Host: x", b"host: x"),
        HEAD.replace(b"a=1", b"a=2"),
        b"\r\n" + HEAD,
        HEAD[:-1],
        HEAD[: HEAD.index(b"300")],
        b"",
    ],
)
def test_another_head_is_not_known(head: bytes) -> None:
    """Anything else about it is the parser's to judge."""
    assert known().find(head) == (0, 0)


def test_request_with_a_known_head() -> None:
    """It is as it was parsed, but for its length; and the next one isn't touched by it."""
    first = parsed()
    found = heads.known_head(HEAD, first)
    assert found is not None
    again = found.again(5)
    assert again.headers == {**first.headers, b"content-length": b"5"}
    assert (again.method, again.path, again.peer) == (first.method, first.path, first.peer)
    assert (again.http10, again.upload, again.body) == (False, None, b"")
    again.headers[b"x"] = b"y"
    assert b"x" not in found.again(6).headers


@pytest.mark.parametrize(
    "more",
    [
        (b"expect", b"100-continue"),
        (b"upgrade", b"h2c"),
        (b"connection", b"close"),
        (b"connection", b"keep-alive, x"),
    ],
)
def test_head_that_asks_for_more_is_not_kept(more: tuple[bytes, bytes]) -> None:
    """Whatever needs more than an answer stays with the parser."""
    lines = b"%b: %b\r\n\r\n" % more
    plain = ((b"host", b"x"), (b"content-length", b"300"))
    head = HEAD[:-2] + lines
    assert heads.known_head(head, parsed(*plain)) is not None
    assert heads.known_head(head, parsed(*plain, more)) is None


def test_heads_that_cannot_be_kept() -> None:
    """HTTP/1.0, without a length, behind empty lines, spelled oddly, or nearly too long."""
    old = parsed()
    old.http10 = True
    assert heads.known_head(HEAD, old) is None
    assert heads.known_head(HEAD, parsed((b"host", b"x"))) is None
    assert heads.known_head(b"\r\n\r\n" + HEAD, parsed()) is None
    assert heads.known_head(HEAD.replace(b"Length: ", b"Length:"), parsed()) is None
    assert heads.known_head(HEAD.replace(b"Length: ", b"Length:  "), parsed()) is None
    assert heads.known_head(HEAD.replace(b"Length: 300", b"Length: 300 "), parsed()) is None
    long = HEAD[:-4] + b"a" * (wire.HEAD_BYTES_MAX - len(HEAD) - 17) + b"\r\n\r\n"
    assert heads.known_head(long, parsed()) is None
    assert heads.known_head(long[:-5] + b"\r\n\r\n", parsed()) is not None


# --- A caller's, by its connection ---------------------------------------------------------------


async def test_any_cut_of_a_known_head_gives_the_same_requests(site: Site) -> None:
    """Behind requests with the same head, bodies of other lengths are understood in any cut."""
    async with site.caller() as caller:
        for _ in range(2):
            await caller.ask(b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello")
        for body in (b"", b"h", b"hello, world"):
            head = b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
            data = head + body + GET
            for cut in range(1, len(data)):
                await caller.send(data[:cut])
                await asyncio.sleep(0)
                await caller.send(data[cut:])
                answers = [(await caller.answer()).body for _ in range(2)]
                assert answers == [b"POST /p " + body, b"GET /a "]
                await caller.ask(head + body)  # known again
                assert site.calls[-1][0].headers[b"content-length"] == str(len(body)).encode()
    assert site.refused == []


async def test_long_body_behind_a_known_head(site: Site) -> None:
    """It is collected without the parser, and what comes behind it is the next request."""
    body = bytes(range(256)) * 3_000
    async with site.caller() as caller:
        for _ in range(3):
            await caller.send(post("/p", body) + GET)
            assert (await caller.answer()).body == b"POST /p " + body
            assert (await caller.answer()).body == b"GET /a "


async def test_body_behind_a_known_head_is_bounded(site: Site) -> None:
    """A length over the limit is refused as by the parser."""
    async with site.caller() as caller:
        for _ in range(2):
            await caller.ask(b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello")
        answer = await caller.ask(
            b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n"
        )
        assert answer.status == 413
        assert await caller.closed() == b""
    assert site.refused == ["body_too_large"]


# --- An upstream's --------------------------------------------------------------------------------

ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Sat, 28 Nov 2026 20:00:00 GMT\r\nContent-Type: Application/JSON\r\n"
    b"Content-Length: 5\r\nConnection: Keep-Alive\r\nX-Unheard-Of: a:b\tc\r\n"
    b"X-RateLimit-Remaining-Requests: 0\r\n\r\n"
).replace(b"\t", b" ")


def test_plain_head() -> None:
    """Its size, its length, and the headers that are read, under their names, as they were."""
    head = heads.read_plain_head(ANSWER + b"hello")
    assert head is not None
    assert (head.size, head.length) == (len(ANSWER), 5)
    assert head.headers == {
        b"date": b"Sat, 28 Nov 2026 20:00:00 GMT",
        b"content-type": b"Application/JSON",
        b"content-length": b"5",
        b"connection": b"Keep-Alive",
        b"x-ratelimit-remaining-requests": b"0",
    }


def test_smallest_plain_head() -> None:
    """A length is all that it needs."""
    head = heads.read_plain_head(b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n")
    assert head is not None
    assert head.length == 0


NOT_PLAIN = {
    "another status": ANSWER.replace(b"200", b"201"),
    "a longer status": ANSWER.replace(b"200", b"2000"),
    "an older version": ANSWER.replace(b"1.1", b"1.0"),
    "incomplete": ANSWER[:-1],
    "nothing": b"",
    "no length": ANSWER.replace(b"Content-Length: 5\r\n", b""),
    "no number": ANSWER.replace(b"h: 5", b"h: 5x"),
    "an empty length": ANSWER.replace(b"h: 5", b"h: "),
    "a signed length": ANSWER.replace(b"h: 5", b"h: -5"),
    "an endless length": ANSWER.replace(b"h: 5", b"h: " + b"1" * 19),
    "two lengths": ANSWER.replace(b"h: 5\r\n", b"h: 5\r\ncontent-length: 5\r\n"),
    "two types": ANSWER[:-2] + b"content-type: text/plain\r\n\r\n",
    "chunks": ANSWER[:-2] + b"transfer-encoding: chunked\r\n\r\n",
    "chunks in capitals": ANSWER[:-2] + b"TRANSFER-ENCODING: chunked\r\n\r\n",
    "chunks, with a space": ANSWER[:-2] + b"transfer-encoding : chunked\r\n\r\n",
    "chunks, without one": ANSWER[:-2] + b"transfer-encoding:chunked\r\n\r\n",
    "closed": ANSWER.replace(b"Keep-Alive", b"close"),
    "closed by a proxy": ANSWER.replace(b"Connection: Keep-Alive", b"Proxy-Connection: close"),
    "several words": ANSWER.replace(b"Keep-Alive", b"keep-alive, close"),
    "a folded line": ANSWER.replace(b"a:b c", b"a\r\n b"),
    "a folded line by a tab": ANSWER.replace(b"a:b c", b"a\r\n\tb"),
    "a bare line feed": ANSWER.replace(b"a:b c", b"a\nb: c"),
    "a bare carriage return": ANSWER.replace(b"a:b c", b"a\rb: c"),
    "a line feed at the end": ANSWER[:-4] + b"\n\r\n\r\n",
    "no colon": ANSWER.replace(b"X-Unheard-Of:", b"X-Unheard-Of"),
    "no name": ANSWER.replace(b"X-Unheard-Of", b""),
    "a name with a space": ANSWER.replace(b"X-Unheard-Of", b"X Y"),
    "a name beyond ASCII": ANSWER.replace(b"X-Unheard-Of", b"X-\xe9"),
    "a value beyond ASCII": ANSWER.replace(b"a:b", b"\xe9"),
    "NUL": ANSWER.replace(b"a:b", b"a\0b"),
    "a control character": ANSWER.replace(b"a:b", b"a\x0bb"),
    "a tab": ANSWER.replace(b"a:b", b"a\tb"),
    "more spaces": ANSWER.replace(b"h: 5", b"h:  5"),
    "a space behind": ANSWER.replace(b"h: 5", b"h: 5 "),
    "too long": ANSWER.replace(b"a:b", b"a" * 9_000),
}


@pytest.mark.parametrize("why", NOT_PLAIN)
def test_head_that_is_not_plain(why: str) -> None:
    """What is unusual, or could be read another way, is left to the parser."""
    assert heads.read_plain_head(NOT_PLAIN[why] + b"hello") is None


def test_names_of_headers_that_are_read() -> None:
    """However they are spelled; others have none."""
    assert heads.answer_header(b"RETRY-After") == b"retry-after"
    assert heads.answer_header(b"x-request-id") == b""
    assert heads.answer_header(b"x-\xe9") == b""


def test_all_that_is_read_of_a_failure_is_kept() -> None:
    """Each header that ``policy.failures`` asks for is one of them."""

    class Asked(dict[bytes, bytes]):
        def get(self, name: bytes, default: object = None) -> object:  # type: ignore[override]
            names.add(name)
            return {b"x-ratelimit-remaining-requests": b"0"}.get(name, default)

    names: set[bytes] = set()
    failures.parse_wait(Asked(), 0.0)
    failures.exhausted_for_s(Asked())
    assert len(names) == 6
    assert names <= set(heads.ANSWER_HEADERS)
