"""Connecting: TCP, Unix sockets, TLS; what can refuse, and that nothing is left when it fails."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from freeapi.errors import ConnectTimeout, UpstreamUnreachable
from tests.http.conftest import (
    OK,
    NewPool,
    TlsUpstream,
    ask,
    connect_and_cancel,
    sockets_count,
    until,
)
from tests.scripted_upstream import ScriptedUpstream, send


async def test_refused(new_pool: NewPool, free_port: int) -> None:
    """Nobody listens: unreachable, and the reason stays inside."""
    with pytest.raises(UpstreamUnreachable) as raised:
        await new_pool(free_port).connect()
    assert str(free_port) not in raised.value.message
    assert isinstance(raised.value.__cause__, ConnectionRefusedError)


@pytest.mark.parametrize("host", ["a" * 64 + ".invalid", "a." * 200 + "invalid", "a..invalid"])
async def test_name_that_cannot_be_resolved(new_pool: NewPool, host: str) -> None:
    """A name that is none (no question leaves this machine) is as good as unreachable."""
    with pytest.raises(UpstreamUnreachable):
        await new_pool(443, host=host).connect()


async def test_unix_socket(new_pool: NewPool, tmp_path: Path) -> None:
    """The embedded model listens on one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(OK)
        writer.close()

    path = str(tmp_path / "socket")
    async with await asyncio.start_unix_server(serve, path):
        assert (await ask(new_pool(socket_path=path))).body == b"hello"
    with pytest.raises(UpstreamUnreachable):
        await new_pool(socket_path=path + "x").connect()


async def test_ipv6(new_pool: NewPool) -> None:
    """An upstream may listen on IPv6 only."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    upstream = ScriptedUpstream()
    await upstream.listen(listener)
    upstream.plays([send(OK)])
    assert (await ask(new_pool(upstream.port, host="::1"))).body == b"hello"
    await upstream.close()


# --- TLS ------------------------------------------------------------------------------------------


async def test_tls(new_pool: NewPool, authority: trustme.CA, tls_upstream: TlsUpstream) -> None:
    """A trusted certificate of the right name is spoken to, over HTTP/1.1, again and again."""
    await tls_upstream.present(authority.issue_cert("127.0.0.1"))
    pool = new_pool(tls_upstream.port, tls=True)
    for _ in range(2):
        assert (await ask(pool)).body == b"hello"
    connection = pool.take()
    assert connection is not None
    assert connection._transport is not None
    tls = connection._transport.get_extra_info("ssl_object")
    assert tls.selected_alpn_protocol() == "http/1.1"
    assert len(tls_upstream.connections) == 1
    connection.close()


@pytest.mark.parametrize("flaw", ["name", "authority"])
async def test_tls_with_a_bad_certificate(
    flaw: str, new_pool: NewPool, authority: trustme.CA, tls_upstream: TlsUpstream
) -> None:
    """Another's name or an unknown authority: nothing is sent."""
    issuer, name = (authority, "other.invalid") if flaw == "name" else (trustme.CA(), "127.0.0.1")
    await tls_upstream.present(issuer.issue_cert(name))
    pool = new_pool(tls_upstream.port, tls=True)
    with pytest.raises(UpstreamUnreachable) as raised:
        await pool.connect()
    assert isinstance(raised.value.__cause__, ssl.SSLCertVerificationError)
    assert tls_upstream.requests == []


async def test_tls_with_a_plain_server(new_pool: NewPool, upstream: ScriptedUpstream) -> None:
    """A server that answers a handshake with something else is unreachable."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        with pytest.raises(UpstreamUnreachable):
            await new_pool(server.sockets[0].getsockname()[1], tls=True).connect()


async def test_handshake_without_end_is_timed_out(new_pool: NewPool, silent_port: int) -> None:
    """``connect_s`` covers the handshake, and no socket is left."""
    before = sockets_count()
    pool = new_pool(silent_port, tls=True, connect_s=0.05)
    with pytest.raises(ConnectTimeout):
        await pool.connect()
    await until(lambda: sockets_count() == before)


# --- Cancelled ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix", "silent tls", "tls"])
async def test_cancelled_connect_leaves_no_socket(
    kind: str,
    new_pool: NewPool,
    silent_port: int,
    tmp_path: Path,
    authority: trustme.CA,
    tls_upstream: TlsUpstream,
) -> None:
    """Cancelled at any tick of its way, ``connect`` closes what it had opened."""
    await tls_upstream.present(authority.issue_cert("127.0.0.1"))
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1_000)
        pool = {
            "tcp": lambda: new_pool(silent_port),
            "unix": lambda: new_pool(socket_path=path),
            "silent tls": lambda: new_pool(silent_port, tls=True),
            "tls": lambda: new_pool(tls_upstream.port, tls=True),
        }[kind]()
        before = sockets_count()
        ended = [await connect_and_cancel(pool, ticks) for ticks in range(40)]
        assert not ended[0]
        for connection in tls_upstream.connections:
            await connection.gone.wait()
        await until(lambda: sockets_count() <= before)
        assert repr(pool) == "<UpstreamPool 0 open, 0 idle>"
