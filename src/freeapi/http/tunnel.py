"""An outbound HTTP proxy: a connection to the origin through it, by ``CONNECT``.

Plan: connect to the proxy by a plain socket, ask, read the head of its answer. The socket is then
as good as one that was connected to the origin, and the pool goes on with it the same way: TLS,
then the protocol.

What this is not: it speaks no TLS to the proxy itself, and takes no proxy from the environment.

Invariants:
- No byte is lost: in TLS and HTTP/1.1 the client speaks first, so one that comes together with the
  proxy's answer is nobody's, and the tunnel is refused.
- Neither what the proxy said nor what it was told of a password is in an exception or a ``repr``.
- What is read of an answer is bounded here, the time that it takes by who calls.

Source: RFC 9110 section 9.3.6.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Final

import msgspec

#: Real answers have a hundred bytes; the longest that Squid adds stay under 2 KiB.
ANSWER_BYTES_MAX: Final = 8_192
_END: Final = b"\r\n\r\n"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: [^\r\n]*)?\r\n")


class ProxyRefused(OSError):
    """The proxy opened no tunnel; the text has at most its status."""


class ProxyAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the proxy listens, and what it is told of us."""

    host: str
    port: int
    #: The value of ``Proxy-Authorization``.
    authorization: bytes | None = None

    def __repr__(self) -> str:
        return f"ProxyAddress({_authority(self.host, self.port)})"


async def open_tunnel(proxy: ProxyAddress, host: str, port: int) -> socket.socket:
    """A socket whose other end is the origin's, with nothing sent or read yet.

    Raises OSError (ProxyRefused where the proxy didn't want to); then no socket is left.
    """
    loop = asyncio.get_running_loop()
    tunnel = await _connect(loop, proxy)
    try:
        await loop.sock_sendall(tunnel, _request(proxy, _authority(host, port).encode()))
        await _read_answer(loop, tunnel)
    except BaseException:
        tunnel.close()
        raise
    return tunnel


async def _connect(loop: asyncio.AbstractEventLoop, proxy: ProxyAddress) -> socket.socket:
    """To the first of the proxy's addresses that takes it, as ``create_connection`` would."""
    found = await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    failure = OSError("the proxy's name has no address")
    for family, kind, protocol, _, address in found:
        candidate = socket.socket(family, kind, protocol)
        candidate.setblocking(False)
        try:
            await loop.sock_connect(candidate, address)
        except OSError as error:
            candidate.close()
            failure = error
        except BaseException:
            candidate.close()
            raise
        else:
            return candidate
    raise failure


def _request(proxy: ProxyAddress, authority: bytes) -> bytes:
    shown = proxy.authorization
    authorization = b"" if shown is None else b"proxy-authorization: %b\r\n" % shown
    return b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (authority, authority, authorization)


async def _read_answer(loop: asyncio.AbstractEventLoop, tunnel: socket.socket) -> None:
    """Read to the end of the head, and not one byte further."""
    answer = b""
    while _END not in answer:
        piece = await loop.sock_recv(tunnel, ANSWER_BYTES_MAX)
        answer += piece
        if b"\n" in answer:
            _check_status(answer)
        if not piece or len(answer) > ANSWER_BYTES_MAX:
            raise ProxyRefused("the proxy's answer has no end")
    if answer.index(_END) != len(answer) - len(_END):
        raise ProxyRefused("the proxy said more than its answer")


def _check_status(answer: bytes) -> None:
    line = _STATUS_LINE.match(answer)
    if line is None:
        raise ProxyRefused("the proxy's answer is no HTTP/1.1")
    if not line[1].startswith(b"2"):
        raise ProxyRefused(f"the proxy answered {int(line[1])}")


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
