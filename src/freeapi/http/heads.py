"""Heads that need no parser: a caller's that came before, and an upstream's of the plainest kind.

llhttp reads any head, at the price of a call for each header, and a body with several copies. Most
heads leave nothing to decide: over one connection a caller sends the same with each request
(``KnownHead``), and JSON answers come with a status, a few headers and a length
(``read_plain_head``). Whatever is unusual about either is left to llhttp, and what passes here it
would have read in the same way (``tests/fuzz`` compares them).

Pure: bytes in, values out.

Source: RFC 9112 (message syntax), sections 2 to 6 and 9.3.
"""

from __future__ import annotations

from typing import Final

from freeapi.http.wire import HEAD_BYTES_MAX, LENGTH_DIGITS_MAX, Request

_LENGTH_LINE: Final = "\r\ncontent-length: "
_HEAD_END: Final = b"\r\n\r\n"
_ZERO: Final = 0x30
_NINE: Final = 0x39
_PLAIN_STATUS: Final = b"HTTP/1.1 200 "
#: OpenAI's have about 1,200.
_PLAIN_BYTES_MAX: Final = 8_192
#: What a plain head is compared by: in lower case, and NUL for what isn't in one.
_LOWERED: Final = bytes(
    byte + 32 if 65 <= byte <= 90 else byte if 32 <= byte < 127 or byte in b"\r\n" else 0
    for byte in range(256)
)
_CODING: Final = b"transfer-encoding"
#: All that is read here of an upstream's head.
ANSWER_HEADERS: Final = (
    *(b"connection", b"content-encoding", b"content-length", b"content-type", b"date"),
    *(b"keep-alive", b"retry-after", b"retry-after-ms", _CODING),
    *(b"x-ratelimit-remaining-requests", b"x-ratelimit-remaining-tokens"),
    *(b"x-ratelimit-reset-requests", b"x-ratelimit-reset-tokens"),
)
#: By their names; others that are often there, which aren't read, have an empty one.
_ANSWER_NAMES: Final = {
    **{name.decode(): name for name in ANSWER_HEADERS},
    "proxy-connection": b"connection",  # the same to llhttp
    **dict.fromkeys(
        (
            *("access-control-expose-headers", "alt-svc", "cf-cache-status", "cf-ray"),
            *("openai-organization", "openai-processing-ms", "openai-project", "openai-version"),
            *("server", "set-cookie", "strict-transport-security", "vary", "via"),
            *("x-content-type-options", "x-envoy-upstream-service-time", "x-request-id"),
            *("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens"),
        ),
        b"",
    ),
}


class KnownHead:
    """The head of a request that was parsed and checked, to be known when it comes again.

    Over one connection a caller sends the same head with each request, but for the length of the
    body. What was found about one then holds for the other, byte for byte.
    """

    __slots__ = ("_after", "_before", "_request")

    def __init__(self, request: Request, before: bytes, after: bytes) -> None:
        """``before`` and ``after`` are what stands around the length."""
        self._request = request
        self._before = before
        self._after = after

    def find(self, data: bytes) -> tuple[int, int]:
        """Where the body begins behind this head, and its length; (0, 0): ``data`` is another."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return 0, 0
        length, end = _number_at(data, len(before))
        body = end + len(after)
        if end == len(before) or data[end:body] != after:
            return 0, 0
        return body, length

    def again(self, length: int) -> Request:
        """The request with this head and a body of this length, which is still to come."""
        known = self._request
        request = Request(known.peer)
        request.method = known.method
        request.path = known.path
        request.headers = {**known.headers, b"content-length": str(length).encode()}
        return request


def known_head(data: bytes, request: Request) -> KnownHead | None:
    """What to know the request's head by, with which ``data`` begins; None: it isn't plain enough.

    Plain is one of HTTP/1.1 with a length, that asks for nothing but an answer.
    """
    headers = request.headers
    if request.http10 or request.upload is not None or b"content-length" not in headers:
        return None
    if b"expect" in headers or b"upgrade" in headers or not _is_kept_alive(headers):
        return None
    head = data[: data.find(_HEAD_END) + len(_HEAD_END)]
    # Not so behind empty lines, which the parser passes over.
    if not head.startswith(request.method) or len(head) + LENGTH_DIGITS_MAX > HEAD_BYTES_MAX:
        return None
    line = head.decode("latin-1").lower().find(_LENGTH_LINE)
    start = line + len(_LENGTH_LINE)
    length = headers[b"content-length"]
    end = start + len(length)
    if line < 0 or head[start:end] != length or not head.startswith(b"\r\n", end):
        return None
    return KnownHead(request, head[:start], head[end:])


class PlainHead:
    """The head of an answer, read: ``size`` bytes, and ``length`` of a body behind them."""

    __slots__ = ("headers", "length", "size")

    def __init__(self, headers: dict[bytes, bytes], size: int, length: int) -> None:
        self.headers = headers
        self.size = size
        self.length = length


def read_plain_head(data: bytes) -> PlainHead | None:
    """The head with which an answer begins, if it is a plain one; else it is the parser's.

    Plain is a whole head of HTTP/1.1 with status 200 and one length, after which the connection is
    kept, all in ASCII and in lines that nobody could read another way. O(bytes). Lines are text,
    since compiled code calls the methods of str directly, those of bytes by their names.
    """
    end = data.find(_HEAD_END)
    if not 0 < end <= _PLAIN_BYTES_MAX or not data.startswith(_PLAIN_STATUS):
        return None
    head = data[:end]
    text = head.translate(_LOWERED).decode("ascii")
    if "\0" in text or text.find(_LENGTH_LINE) < 0:  # most without a length are streams
        return None
    headers: dict[bytes, bytes] = {}
    lines = text.splitlines()
    at = len(lines[0])
    for line in lines[1:]:
        at += len("\r\n")
        colon = line.find(":")
        name = _ANSWER_NAMES.get(line[:colon])
        if name is None:
            if not line[: max(colon, 0)].replace("-", "").isalnum():
                return None
        elif name:
            if name == _CODING:
                return None
            if name in headers or line[colon + 1 : colon + 2] != " " or line.endswith(" "):
                return None
            headers[name] = head[at + colon + 2 : at + len(line)]
        at += len(line)
    if at != end:  # some line ended with something else than CRLF
        return None
    digits = headers.get(b"content-length", b"")
    length, last = _number_at(digits, 0)
    if not digits or last != len(digits) or not _is_kept_alive(headers):
        return None
    return PlainHead(headers, end + len(_HEAD_END), length)


def answer_header(spelling: bytes) -> bytes:
    """The name of a header of an answer, if it is one of those that are read; else nothing."""
    return _ANSWER_NAMES.get(spelling.decode("latin-1").lower(), b"")


def _number_at(data: bytes, start: int) -> tuple[int, int]:
    """The number whose digits begin there, and where they end, or would be too many.

    Digit by digit: in compiled code a tenth of what ``find``, ``isdigit`` and ``int`` take.
    """
    at, end, number = start, min(len(data), start + LENGTH_DIGITS_MAX), 0
    while at < end and _ZERO <= data[at] <= _NINE:
        number = 10 * number + data[at] - _ZERO
        at += 1
    return number, at


def _is_kept_alive(headers: dict[bytes, bytes]) -> bool:
    """Whether HTTP/1.1 keeps the connection, and by nothing but the usual word (RFC 9112, 9.3)."""
    given = headers.get(b"connection")
    return given is None or given.lower() == b"keep-alive"
