"""Connecting through an outbound proxy: what it is asked, what it may answer, and what it can't do.

The proxy is a real one on its own port; the origins' names can't be resolved by anybody but it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import traceback
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
import trustme

from freeapi.errors import ConnectTimeout, UpstreamUnreachable
from freeapi.http.pool import UpstreamPool
from freeapi.http.tunnel import ANSWER_BYTES_MAX, ProxyAddress
from tests.connect_proxy import OPEN, ConnectProxy
from tests.http.conftest import (
    OK,
    NewPool,
    Taken,
    TlsUpstream,
    ask,
    begin,
    connect_and_cancel,
    sockets_count,
    until,
)
from tests.scripted_upstream import ScriptedUpstream, happens, send

NAME = "upstream.invalid"
SECRET = b"Basic dXNlcjpjYW5hcnk="


@pytest.fixture
async def proxy(upstream: ScriptedUpstream) -> AsyncIterator[ConnectProxy]:
    """A proxy whose tunnels lead to the scripted upstream."""
    proxy = ConnectProxy(upstream.port)
    upstream.plays([send(OK)])
    await proxy.listen()
    yield proxy
    proxy.close()


def through(proxy: ConnectProxy, authorization: bytes | None = None) -> ProxyAddress:
    """Its address."""
    return ProxyAddress(host="127.0.0.1", port=proxy.port, authorization=authorization)


async def test_origin_is_reached_through_the_proxy(
    new_pool: NewPool, proxy: ConnectProxy, upstream: ScriptedUpstream
) -> None:
    """A plain origin is tunnelled to, too; its name is the proxy's to resolve, and asked once."""
    pool = new_pool(8_080, host=NAME, proxy=through(proxy))
    for _ in range(2):
        assert (await ask(pool)).body == b"hello"
    authority = b"upstream.invalid:8080"
    assert proxy.asked == [b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (authority, authority)]
    assert [one.target for one in upstream.requests] == ["/v1", "/v1"]


async def test_password_is_for_the_proxy_alone(
    new_pool: NewPool, proxy: ConnectProxy, upstream: ScriptedUpstream
) -> None:
    """The proxy is told who we are; the origin behind it isn't, and no repr says it."""
    pool = new_pool(443, host="::1", proxy=through(proxy, SECRET))
    assert (await ask(pool)).body == b"hello"
    assert proxy.asked == [
        b"CONNECT [::1]:443 HTTP/1.1\r\nhost: [::1]:443\r\nproxy-authorization: %b\r\n\r\n" % SECRET
    ]
    assert not any("proxy" in name.lower() for name, _ in upstream.requests[0].headers)
    assert repr(pool.origin.proxy) == f"ProxyAddress(127.0.0.1:{proxy.port})"
    assert "Basic" not in repr(pool.origin) + repr(pool)


@pytest.mark.parametrize(
    "answer",
    [
        [OPEN],
        [OPEN[i : i + 1] for i in range(len(OPEN))],
        [b"HTTP/1.0 200\r\n\r\n"],
        [b"HTTP/1.1 299 \xff fine\r\nvia: 1.1 squid\r\n", b"content-length: 9\r\n\r", b"\n"],
    ],
)
async def test_any_2xx_opens_the_tunnel(
    answer: list[bytes], new_pool: NewPool, proxy: ConnectProxy
) -> None:
    """However it is cut and worded; a length has no meaning in such an answer (RFC 9110 9.3.6)."""
    proxy.answer = answer
    assert (await ask(new_pool(80, host=NAME, proxy=through(proxy)))).body == b"hello"


@pytest.mark.parametrize(
    ("answer", "then", "why"),
    [
        (b"HTTP/1.1 407 canary\r\nproxy-authenticate: Basic\r\n\r\n", "hang", "answered 407"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\ncanary", "hang", "answered 403"),
        (b"HTTP/1.1 502 canary\r\n", "hang", "answered 502"),
        (b"HTTP/1.1 301 canary\r\nlocation: http://canary/\r\n\r\n", "hang", "answered 301"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OPEN, "relay", "answered 100"),
        (b"HTTP/1.1 600 canary\r\n\r\n", "hang", "no HTTP"),
        (b"HTTP/2 200 canary\r\n\r\n", "relay", "no HTTP"),
        (b"HTTP/1.1 200 canary\n\n", "hang", "no HTTP"),
        (b"HTTP/1.1 2000 canary\r\n\r\n", "relay", "no HTTP"),
        (b"SSH-2.0-canary\r\n", "hang", "no HTTP"),
        (b"", "close", "no end"),
        (b"HTTP/1.1 200 can", "close", "no end"),
        (b"HTTP/1.1 200 OK\r\nvia: canary\r\n", "close", "no end"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * ANSWER_BYTES_MAX, "hang", "no end"),
        (b"a" * (ANSWER_BYTES_MAX + 1), "hang", "no end"),
        (OPEN + b"canary", "relay", "more than its answer"),
        (OPEN + b"\r\n\r\n", "relay", "more than its answer"),
    ],
)
async def test_refusal_is_unreachable(
    answer: bytes,
    then: Literal["relay", "hang", "close"],
    why: str,
    new_pool: NewPool,
    proxy: ConnectProxy,
    upstream: ScriptedUpstream,
) -> None:
    """Whatever isn't a tunnel ends the try at once; nothing that the proxy said is repeated."""
    proxy.answer, proxy.then = [answer], then
    before = sockets_count()
    pool = new_pool(80, host=NAME, proxy=through(proxy, SECRET))
    with pytest.raises(UpstreamUnreachable) as raised:
        await pool.connect()
    assert why in str(raised.value.__cause__)
    told = "".join(traceback.format_exception(raised.value)) + raised.value.message
    assert "canary" not in told
    assert SECRET.decode() not in told
    assert upstream.requests == []
    await until(lambda: sockets_count() <= before)


async def test_proxy_that_hangs_is_timed_out(new_pool: NewPool, proxy: ConnectProxy) -> None:
    """``connect_s`` covers the proxy's answer, and the proxy sees us go."""
    proxy.answer, proxy.then = [OPEN[:-1]], "hang"
    pool = new_pool(80, host=NAME, proxy=through(proxy), connect_s=0.1)
    with pytest.raises(ConnectTimeout):
        await pool.connect()
    await happens(proxy.gone)


async def test_proxy_that_is_not_there(new_pool: NewPool, free_port: int) -> None:
    """Nobody listens at the proxy's address, or it has none: unreachable, as an origin would be."""
    for host in ("127.0.0.1", "a..invalid"):
        address = ProxyAddress(host=host, port=free_port)
        with pytest.raises(UpstreamUnreachable):
            await new_pool(80, host=NAME, proxy=address).connect()


async def test_each_address_of_the_proxy_is_tried(
    new_pool: NewPool, proxy: ConnectProxy, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may stand for an address where nobody listens and for one where the proxy does."""
    ports = [free_port, proxy.port]
    loop = asyncio.get_running_loop()
    ask_resolver = loop.getaddrinfo

    async def resolved(host: str, port: int, **rest: Any) -> list[tuple[Any, ...]]:
        if host != "proxy.invalid":  # uvloop itself asks for what each address means
            return await ask_resolver(host, port, **rest)
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr(loop, "getaddrinfo", resolved)
    pool = new_pool(80, host=NAME, proxy=ProxyAddress(host="proxy.invalid", port=1))
    assert (await ask(pool)).body == b"hello"
    ports.clear()
    with pytest.raises(UpstreamUnreachable):
        await pool.connect()


async def test_small_writes_leave_at_once(new_pool: NewPool, proxy: ConnectProxy) -> None:
    """A tunnel is a socket like those that the loop opens itself: without Nagle's delay."""
    connection = await new_pool(80, host=NAME, proxy=through(proxy)).connect()
    assert connection._transport is not None
    tunnel = connection._transport.get_extra_info("socket")
    assert tunnel.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_long_answers_come_through_whole(
    new_pool: NewPool, proxy: ConnectProxy, upstream: ScriptedUpstream
) -> None:
    """Four megabytes in small reads: nothing is lost at the seam or after it."""
    body = bytes(range(256)) * 16_384
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    upstream.plays([send(head + body)])
    sink = await ask(new_pool(80, host=NAME, proxy=through(proxy)))
    assert sink.body == body


# --- TLS ------------------------------------------------------------------------------------------


async def test_tls_inside_the_tunnel(
    new_pool: NewPool, proxy: ConnectProxy, authority: trustme.CA, tls_upstream: TlsUpstream
) -> None:
    """The handshake is with the origin, by its own name, over HTTP/1.1, and the tunnel is kept."""
    await tls_upstream.present(authority.issue_cert(NAME))
    proxy.target_port = tls_upstream.port
    pool = new_pool(443, host=NAME, tls=True, proxy=through(proxy, SECRET))
    for _ in range(2):
        assert (await ask(pool)).body == b"hello"
    connection = pool.take()
    assert connection is not None
    assert connection._transport is not None
    tls = connection._transport.get_extra_info("ssl_object")
    assert tls.selected_alpn_protocol() == "http/1.1"
    assert (len(proxy.asked), len(tls_upstream.connections)) == (1, 1)
    done = begin(connection, Taken())
    await done


@pytest.mark.parametrize("flaw", ["name", "authority"])
async def test_proxy_cannot_stand_in_for_the_origin(
    flaw: str,
    new_pool: NewPool,
    proxy: ConnectProxy,
    authority: trustme.CA,
    tls_upstream: TlsUpstream,
) -> None:
    """A certificate of the proxy's own, or of an authority of its own, is none: nothing is sent."""
    issuer, name = (authority, "127.0.0.1") if flaw == "name" else (trustme.CA(), NAME)
    await tls_upstream.present(issuer.issue_cert(name))
    proxy.target_port = tls_upstream.port
    before = sockets_count()
    with pytest.raises(UpstreamUnreachable) as raised:
        await new_pool(443, host=NAME, tls=True, proxy=through(proxy)).connect()
    assert isinstance(raised.value.__cause__, ssl.SSLCertVerificationError)
    assert tls_upstream.requests == []
    await until(lambda: sockets_count() <= before)


async def test_handshake_without_end_in_the_tunnel_is_timed_out(
    new_pool: NewPool, proxy: ConnectProxy, authority: trustme.CA
) -> None:
    """A proxy that opens the tunnel and then says nothing is left in time."""
    proxy.then = "hang"
    before = sockets_count()
    pool = new_pool(443, host=NAME, tls=True, proxy=through(proxy), connect_s=0.1)
    with pytest.raises(ConnectTimeout):
        await pool.connect()
    await happens(proxy.gone)
    await until(lambda: sockets_count() <= before)


@pytest.mark.parametrize("kind", ["plain", "tls", "hanging"])
async def test_cancelled_connect_leaves_no_socket(
    kind: str,
    new_pool: NewPool,
    proxy: ConnectProxy,
    authority: trustme.CA,
    tls_upstream: TlsUpstream,
) -> None:
    """Cancelled at any tick of its way, ``connect`` closes what it had opened."""
    await tls_upstream.present(authority.issue_cert(NAME))
    if kind == "tls":
        proxy.target_port = tls_upstream.port
    if kind == "hanging":
        proxy.answer, proxy.then = [], "hang"
    pool: UpstreamPool = new_pool(80, host=NAME, tls=kind == "tls", proxy=through(proxy))
    before, ticks = sockets_count(), 0
    while not await connect_and_cancel(pool, ticks) and (kind != "hanging" or ticks < 60):
        ticks += 1 + ticks // 16  # each at first; a handshake takes as many as it likes
    assert ticks > 4
    await until(lambda: sockets_count() <= before)
    assert repr(pool) == "<UpstreamPool 0 open, 0 idle>"
