"""Promise: the keys and prompts go to the upstream that was configured, and to nobody else.

The certificates come from an authority made for the test; the gateway learns to trust it in the
way that an operator with a private authority would use, ``SSL_CERT_FILE``.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from tests.answers import DONE, STREAM_HEAD, delta, usage_event
from tests.conftest import StartGateway
from tests.raw_client import ask, caller, chat
from tests.scripted_upstream import (
    ScriptedUpstream,
    chunk,
    close,
    happens,
    listening_socket,
    send,
    stream,
)


@dataclass
class TlsUpstream(ScriptedUpstream):
    """A scripted upstream behind TLS, and what its handshakes said."""

    trusted: Path
    names: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin as any scripted upstream."""
        super().__init__()

    async def serve(self, certificate: trustme.LeafCert) -> None:
        """Listen with this certificate, and record the names asked for."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2", "http/1.1"])
        certificate.configure_cert(context)
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        await self.listen(listening_socket(), context)


@pytest.fixture
def authority() -> trustme.CA:
    """An authority of this test's own."""
    return trustme.CA()


@pytest.fixture
async def tls_upstream(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[TlsUpstream]:
    """An upstream that isn't listening yet: the test chooses the certificate."""
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(trusted)
    upstream = TlsUpstream(trusted)
    yield upstream
    await upstream.close()


def settings(upstream: TlsUpstream, host: str = "localhost") -> dict[str, str]:
    """The gateway's environment for this upstream."""
    base_url = f"https://{host}:{upstream.port}/v1"
    return {"OPENAI_BASE_URL": base_url, "SSL_CERT_FILE": str(upstream.trusted)}


async def test_upstream_with_a_good_certificate_is_used(
    tls_upstream: TlsUpstream, authority: trustme.CA, start_gateway: StartGateway
) -> None:
    """A trusted upstream is asked, by its name (SNI), over a connection that is reused."""
    await tls_upstream.serve(authority.issue_cert("localhost"))
    gateway = await start_gateway(**settings(tls_upstream))
    for _ in range(3):
        assert (await ask(gateway.port, chat())).text() == "Hi"
    big = delta("x" * 300_000)
    tls_upstream.plays(stream(delta("你"), big, usage_event(), DONE))
    assert (await ask(gateway.port, chat(stream=True))).body == delta("你") + big + DONE
    assert tls_upstream.names == ["localhost"]
    assert tls_upstream.connections[0].protocol == "http/1.1"
    assert len(tls_upstream.connections) == 1
    assert tls_upstream.requests[0].header("host") == f"localhost:{tls_upstream.port}"


async def test_upstream_by_address_is_checked_by_address(
    tls_upstream: TlsUpstream, authority: trustme.CA, start_gateway: StartGateway
) -> None:
    """A certificate for an address serves a base URL with that address."""
    await tls_upstream.serve(authority.issue_cert("127.0.0.1"))
    gateway = await start_gateway(**settings(tls_upstream, "127.0.0.1"))
    assert (await ask(gateway.port, chat())).text() == "Hi"


@pytest.mark.parametrize("wrong", ["other-name", "other-authority", "untrusted"])
async def test_upstream_with_a_wrong_certificate_gets_nothing(
    tls_upstream: TlsUpstream, authority: trustme.CA, start_gateway: StartGateway, wrong: str
) -> None:
    """A certificate that doesn't prove the name gives 502, and nothing of the request is sent."""
    issuer = trustme.CA() if wrong == "other-authority" else authority
    name = "other.invalid" if wrong == "other-name" else "localhost"
    await tls_upstream.serve(issuer.issue_cert(name))
    chosen = settings(tls_upstream)
    if wrong == "untrusted":
        del chosen["SSL_CERT_FILE"]
    gateway = await start_gateway(**chosen)
    answer = await ask(gateway.port, chat())
    assert answer.status == 502
    assert answer.error()["code"] == "upstream_unavailable"
    assert tls_upstream.requests == []


async def test_plain_upstream_at_a_tls_address_gets_nothing(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Where TLS was configured, nothing is ever sent in the clear."""
    base_url = f"https://127.0.0.1:{upstream.port}/v1"
    gateway = await start_gateway("[timeouts]\nconnect_s = 0.3\n", OPENAI_BASE_URL=base_url)
    answer = await ask(gateway.port, chat())
    assert answer.status in (502, 504)
    assert answer.error()["code"] in ("upstream_unavailable", "upstream_timeout")
    assert len(upstream.connections) > 0
    assert upstream.requests == []


async def test_caller_that_leaves_during_the_handshake_ends_it(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A connection that is still being made for a caller who has gone is given up."""
    gateway = await start_gateway(OPENAI_BASE_URL=f"https://127.0.0.1:{upstream.port}/v1")
    async with caller(gateway.port) as connection:
        await connection.send(chat())
        handshake = await upstream.connection()
        assert not handshake.gone.is_set()
    await happens(handshake.gone)


async def test_stream_cut_under_tls_ends_in_an_error_event(
    tls_upstream: TlsUpstream, authority: trustme.CA, start_gateway: StartGateway
) -> None:
    """A cut is seen under TLS as well, whether or not the upstream says goodbye."""
    await tls_upstream.serve(authority.issue_cert("localhost"))
    gateway = await start_gateway(**settings(tls_upstream))
    tls_upstream.plays([send(STREAM_HEAD), chunk(delta("Hi")), close()])
    answer = await ask(gateway.port, chat(stream=True))
    assert answer.body.startswith(delta("Hi") + b'data: {"error":')
