"""HTTP/1.1 as bytes, without I/O: requests as values, heads rendered, framing rules checked.

llhttp (through httptools) finds the boundaries; what it leaves open is decided here: one valid
Host, at most one of each header that can't be a list, no transfer coding but ``chunked``, limits
on everything. Anything ambiguous is refused and its connection closed, since an intermediary
before us may have read it another way (request smuggling).

Source: RFC 9110 (semantics), RFC 9112 (message syntax and routing).
"""

from __future__ import annotations

import http
import ipaddress
import re
from typing import TYPE_CHECKING, Final

from freeapi.errors import (
    BadHttp,
    ExpectationFailed,
    HeadTooLarge,
    HttpVersionNotSupported,
    NotImplementedHttp,
)

if TYPE_CHECKING:
    from freeapi.http.upload import Upload

#: Request line and headers together; 16 KiB is Node's default, nginx takes 4 x 8 KiB.
HEAD_BYTES_MAX: Final = 16_384
#: The SDKs send about 20 headers, browsers behind a CDN about 40.
HEADERS_MAX: Final = 64
#: Longer targets can't be a route of ours; RFC 9112 section 3 recommends taking 8,000 octets.
TARGET_BYTES_MAX: Final = 8_192
assert TARGET_BYTES_MAX < HEAD_BYTES_MAX

STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in http.HTTPStatus
}
#: A write is a system call: a shorter body is copied behind its head, to leave with it in one.
COPIED_BYTES_MAX: Final = 65_536
#: Of chunks that are shorter; those of a stream of text have some 300 bytes.
_SIZE_LINES: Final = tuple([b"%x\r\n" % size for size in range(1_024)])
LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

#: Names of headers as clients write them, to the one object that is looked up by: no
#: copy, and its hash is known.
LOWER_CASE: Final = {
    spelling: name.encode()
    for name in (
        *("accept", "accept-encoding", "accept-language", "authorization", "connection"),
        *("content-length", "content-type", "expect", "host", "transfer-encoding", "user-agent"),
        *("x-forwarded-for", "x-stainless-arch", "x-stainless-async", "x-stainless-lang"),
        "x-stainless-os",
        *("x-stainless-package-version", "x-stainless-read-timeout", "x-stainless-retry-count"),
        *("x-stainless-runtime", "x-stainless-runtime-version"),
    )
    for spelling in (name.encode(), name.title().encode())
}

#: Headers that must not appear twice, since their lines can't be joined to one meaning.
_SINGLE: Final = frozenset(
    (b"host", b"authorization", b"content-type", b"content-length", b"transfer-encoding", b"expect")
)
#: More of a length would be past any limit of bytes.
LENGTH_DIGITS_MAX: Final = 18
#: Headers about changing the protocol; ``expect`` was met when they were read, but for an upload.
_OFFERING: Final = frozenset((b"connection", b"upgrade", b"expect"))
#: reg-name, IPv4 or bracketed IPv6, and a port (RFC 3986 section 3.2.2, without userinfo).
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")


class Peer:
    """The other end of a connection, for as long as it lasts."""

    __slots__ = ("address", "host", "memo")

    def __init__(self, address: str) -> None:
        """``address``: in text; empty on a Unix socket."""
        self.address = address
        #: The valid Host that was named last.
        self.host: bytes | None = None
        #: The application's own, to find something out once per connection.
        self.memo: object = None


class Request:
    """One request, complete with its body. ``headers`` has lower-case names."""

    __slots__ = (
        "body",
        "headers",
        "http10",
        "keep_alive",
        "method",
        "path",
        "peer",
        "received_s",
        "upload",
    )

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.method = b""
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        #: The body, if it isn't complete but comes piece by piece; ``body`` is empty then.
        self.upload: Upload | None = None
        self.http10 = False
        self.keep_alive = False
        #: Monotonic seconds at which the last byte of it was there (of an upload: of its head).
        self.received_s = 0.0

    def add_header(self, name: bytes, value: bytes) -> None:
        """Store a header line; repeated lines of a list-valued header are joined by a comma.

        The parser has seen to it that neither holds what it may not (RFC 9110 section 5.5).
        Raises BadHttp. O(length). Source: RFC 9110 section 5.3.
        """
        name = name.lower()
        value = value.strip(b" \t")
        headers = self.headers
        if name not in headers:
            headers[name] = value
        elif name in _SINGLE:
            raise BadHttp(problem=f"the header {name.decode('ascii', 'replace')} is repeated")
        else:
            headers[name] += b", " + value

    def head_bytes(self, target: bytes) -> int:
        """About as many as the head had: without the white space that means nothing."""
        lines = sum(len(name) + len(value) + 4 for name, value in self.headers.items())
        return len(self.method) + len(target) + lines + 14

    def head_without_upgrade(self, target: bytes) -> bytes:
        """The head as it would be from a caller who offers no change of protocol."""
        line = b"%b %b HTTP/1.%d\r\n" % (self.method, target, 0 if self.http10 else 1)
        dropped = _OFFERING if self.upload is None else _OFFERING - {b"expect"}
        kept = [
            b"%b: %b\r\n" % header for header in self.headers.items() if header[0] not in dropped
        ]
        return line + b"".join(kept) + b"connection: close\r\n\r\n"


def check_head(request: Request, target: bytes, version: str) -> int | None:
    """Check all that decides framing and routing, and split the target into the path.

    Returns the body's announced length, or None for a chunked body.
    Raises BadHttp; the connection must be closed then.
    """
    request.http10 = version == "1.0"
    if version not in ("1.1", "1.0"):
        raise HttpVersionNotSupported(problem="only HTTP/1.1 and HTTP/1.0 are spoken here")
    request.path = _path(request.method, target)
    headers = request.headers
    if len(headers) > HEADERS_MAX:
        raise HeadTooLarge(problem=f"it has more than {HEADERS_MAX} headers")
    host = headers.get(b"host")
    if host is None:
        if not request.http10:
            raise BadHttp(problem="the Host header is missing")
    elif host != request.peer.host:
        if not _HOST.fullmatch(host):
            raise BadHttp(problem="the Host header is not a valid host")
        request.peer.host = host
    expect = headers.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise ExpectationFailed(problem="the only expectation met here is 100-continue")
    return _body_length(request)


def _body_length(request: Request) -> int | None:
    """RFC 9112 section 6.3, without its leniencies."""
    length = request.headers.get(b"content-length")
    coding = request.headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise BadHttp(problem="both Content-Length and Transfer-Encoding are given")
        if request.http10:
            raise BadHttp(problem="HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise NotImplementedHttp(problem="the only transfer coding known here is chunked")
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > LENGTH_DIGITS_MAX:
        raise BadHttp(problem="Content-Length is not a number")
    return int(length)


def _path(method: bytes, target: bytes) -> bytes:
    """The path of an origin-form or absolute-form target, without its query."""
    if target[:1] == b"/":
        return target.partition(b"?")[0]
    if target == b"*" and method == b"OPTIONS":
        return target
    scheme, found, rest = target.partition(b"://")
    if found and scheme.lower() in (b"http", b"https"):
        _, slash, path = rest.partition(b"/")
        return (slash + path).partition(b"?")[0] or b"/"
    raise BadHttp(problem="the request target is neither a path nor an http URL")


def network(address: str) -> str:
    """What one subscriber holds: an IPv4 address, or the /64 of an IPv6 one (RFC 6177).

    >>> network("192.0.2.1"), network("2001:db8::1") == network("2001:db8::ffff")
    ('192.0.2.1', True)
    """
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    return str(parsed.ipv4_mapped or int(parsed) >> 64)


def chunk(data: bytes) -> bytes:
    """``data`` (not empty, which would end the body) as one chunk (RFC 9112 section 7.1)."""
    size = len(data)
    if size < len(_SIZE_LINES):
        return b"%b%b\r\n" % (_SIZE_LINES[size], data)
    return b"%x\r\n%b\r\n" % (size, data)
