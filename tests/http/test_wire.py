"""Requests as values: which heads are taken, what their body's length and their path are.

The same rules are tried over a socket in test_connection.py; here are those that llhttp refuses
before ours are asked, which must hold without it.
"""

from __future__ import annotations

import http

import pytest

from freeapi.errors import (
    BadHttp,
    ExpectationFailed,
    FreeApiError,
    HeadTooLarge,
    HttpVersionNotSupported,
    NotImplementedHttp,
)
from freeapi.http import wire


def asked(*headers: tuple[bytes, bytes], method: bytes = b"POST") -> wire.Request:
    """A request with these header lines."""
    made = wire.Request(wire.Peer("127.0.0.1"))
    made.method = method
    for name, value in headers:
        made.add_header(name, value)
    return made


def length(*headers: tuple[bytes, bytes], version: str = "1.1") -> int | None:
    """The body's length as the head announces it."""
    return wire.check_head(asked((b"Host", b"x"), *headers), b"/", version)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((), 0),
        (((b"Content-Length", b"0"),), 0),
        (((b"content-length", b" 0010\t"),), 10),
        (((b"content-length", b"9" * 18),), 999_999_999_999_999_999),
        (((b"Transfer-Encoding", b"CHUNKED"),), None),
        (((b"expect", b"100-Continue"),), 0),
    ],
)
def test_length_of_the_body(headers: tuple[tuple[bytes, bytes], ...], expected: int | None) -> None:
    """No header, a number of up to 18 digits, or chunks."""
    assert length(*headers) == expected


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *[(v, BadHttp) for v in (b"", b"+1", b"-1", b"1, 1", b"0x1", b"1_0", b"\xb2", b"0" * 19)],
    ],
)
def test_length_that_is_no_number_or_too_large(value: bytes, error: type[FreeApiError]) -> None:
    """Only digits are a length."""
    with pytest.raises(error):
        length((b"content-length", value))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        (b"transfer-encoding", b"gzip, chunked", NotImplementedHttp),
        (b"transfer-encoding", b"", NotImplementedHttp),
        (b"expect", b"200-maybe", ExpectationFailed),
        (b"expect", b"", ExpectationFailed),
    ],
)
def test_codings_and_expectations_unknown_here(
    name: bytes, value: bytes, error: type[FreeApiError]
) -> None:
    """What can't be done is refused."""
    with pytest.raises(error):
        length((name, value))


def test_length_and_coding_exclude_each_other() -> None:
    """Both together are the classic of request smuggling."""
    with pytest.raises(BadHttp):
        length((b"content-length", b"1"), (b"transfer-encoding", b"chunked"))


def test_http10_has_no_coding_and_needs_no_host() -> None:
    """HTTP/1.0 differs in these two ways."""
    with pytest.raises(BadHttp):
        length((b"transfer-encoding", b"chunked"), version="1.0")
    old = asked()
    assert wire.check_head(old, b"/", "1.0") == 0
    assert old.http10


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", ""])
def test_other_versions(version: str) -> None:
    """Other versions of HTTP are refused by number."""
    with pytest.raises(HttpVersionNotSupported):
        length(version=version)


@pytest.mark.parametrize(
    "host",
    [b"x", b"x:", b"x:80", b"a-b.example:8080", b"127.0.0.1", b"[::1]:8080", b"xn--a", b"%41"],
)
def test_valid_hosts(host: bytes) -> None:
    """Names, addresses, ports."""
    assert wire.check_head(asked((b"host", host)), b"/", "1.1") == 0


@pytest.mark.parametrize(
    "host",
    [b"", b"a b", b"a/b", b"u@a", b"a:b", b"a:123456", b"[::1", b"::1", b"a\xff", b"a?b", b"a#b"],
)
def test_hosts_that_are_none(host: bytes) -> None:
    """Anything else could mean another host to someone else."""
    with pytest.raises(BadHttp):
        wire.check_head(asked((b"host", host)), b"/", "1.1")


def test_host_is_needed() -> None:
    """HTTP/1.1 has one."""
    with pytest.raises(BadHttp):
        wire.check_head(asked(), b"/", "1.1")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", b"/"),
        (b"/v1/a?b?c", b"/v1/a"),
        (b"//a", b"//a"),
        (b"/a%2Fb", b"/a%2Fb"),
        (b"http://x", b"/"),
        (b"http://x?q", b"/"),
        (b"http://x/a?q", b"/a"),
        (b"HTTPS://x/a/b", b"/a/b"),
        (b"/http://x/", b"/http://x/"),
    ],
)
def test_path_of_a_target(target: bytes, path: bytes) -> None:
    """The query goes, encoding stays as it is."""
    made = asked((b"host", b"x"))
    wire.check_head(made, target, "1.1")
    assert made.path == path


@pytest.mark.parametrize("target", [b"", b"a", b"x:80", b"*", b"ftp://x/"])
def test_targets_that_are_none(target: bytes) -> None:
    """Neither a path nor an http URL, or with bytes that must be encoded."""
    with pytest.raises(BadHttp):
        wire.check_head(asked((b"host", b"x")), target, "1.1")


def test_asterisk_is_for_options() -> None:
    """``*`` asks about the server itself."""
    made = asked((b"host", b"x"), method=b"OPTIONS")
    wire.check_head(made, b"*", "1.1")
    assert made.path == b"*"


def test_tab_and_obs_text_in_a_value() -> None:
    """They are visible enough (RFC 9110 section 5.5)."""
    assert asked((b"x-a", b"\t b\tc\xff ")).headers == {b"x-a": b"b\tc\xff"}


@pytest.mark.parametrize(
    "name",
    [
        b"Host",
        b"Authorization",
        b"Content-Type",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Expect",
    ],
)
def test_headers_that_appear_once(name: bytes) -> None:
    """Two lines of these have no one meaning, even if they are equal."""
    with pytest.raises(BadHttp):
        asked((name, b"1"), (name.lower(), b"1"))


def test_other_headers_are_joined() -> None:
    """Lines of a list are one list (RFC 9110 section 5.3)."""
    assert asked((b"X-A", b"1"), (b"x-a", b"2")).headers == {b"x-a": b"1, 2"}


def test_number_of_headers_is_bounded() -> None:
    """64 are taken, 65 are not; a further line of a known one counts in bytes only."""
    headers = [(b"host", b"x"), *((b"x-%d" % i, b"") for i in range(wire.HEADERS_MAX - 1))]
    made = asked(*headers, headers[1])
    wire.check_head(made, b"/", "1.1")
    made.add_header(b"one-more", b"")
    with pytest.raises(HeadTooLarge):
        wire.check_head(made, b"/", "1.1")


def test_head_without_upgrade() -> None:
    """The same request, from a caller who offers no other protocol and asks to close."""
    made = asked(
        (b"host", b"x"),
        (b"Connection", b"Upgrade, HTTP2-Settings"),
        (b"Upgrade", b"h2c"),
        (b"Expect", b"100-continue"),
        (b"Content-Length", b"2"),
    )
    rewritten = b"POST /a?b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"
    assert made.head_without_upgrade(b"/a?b") == rewritten
    made.http10 = True
    assert made.head_without_upgrade(b"/a").startswith(b"POST /a HTTP/1.0\r\n")


def test_status_lines_are_complete() -> None:
    """Every status of HTTP has its line."""
    assert wire.STATUS_LINES[429] == b"HTTP/1.1 429 Too Many Requests\r\n"
    assert set(wire.STATUS_LINES) == {status.value for status in http.HTTPStatus}


def test_chunk() -> None:
    """Length in hex, data, line end (RFC 9112 section 7.1)."""
    assert wire.chunk(b"a" * 26) == b"1a\r\n" + b"a" * 26 + b"\r\n"
