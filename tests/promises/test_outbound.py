"""Promise: an upstream is reached the way that the operator wrote down, and by no other.

Azure's header and query, and an outbound proxy with a password: each goes where it belongs, and
nothing of them comes out anywhere else.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator

import pytest

from tests.conftest import StartGateway
from tests.connect_proxy import ConnectProxy
from tests.gateway import POOL_KEY
from tests.raw_client import ask, chat
from tests.scripted_upstream import ScriptedUpstream

PASSWORD = "lab:canary-password"
AZURE = """
[[upstream]]
name = "azure"
base_url = "http://upstream.invalid:8080/openai/deployments/mini"
keys_env = "OPENAI_API_KEYS"
auth = "api-key"
api_version = "2024-10-21"
proxy = "http://127.0.0.1:{port}"
proxy_auth_env = "LAB_PROXY"
"""


@pytest.fixture
async def proxy(upstream: ScriptedUpstream) -> AsyncIterator[ConnectProxy]:
    """A proxy whose tunnels lead to the scripted upstream."""
    proxy = ConnectProxy(upstream.port)
    await proxy.listen()
    yield proxy
    proxy.close()


async def test_azure_behind_a_proxy(
    upstream: ScriptedUpstream, proxy: ConnectProxy, start_gateway: StartGateway
) -> None:
    """The proxy gets its password, Azure its key in ``api-key`` and its version: no more."""
    gateway = await start_gateway(AZURE.format(port=proxy.port), LAB_PROXY=PASSWORD)
    for _ in range(2):
        assert (await ask(gateway.port, chat())).text() == "Hi"
    (asked,) = proxy.asked
    authorization = b64encode(PASSWORD.encode())
    assert asked == (
        b"CONNECT upstream.invalid:8080 HTTP/1.1\r\nhost: upstream.invalid:8080\r\n"
        b"proxy-authorization: Basic %b\r\n\r\n" % authorization
    )
    for request in upstream.requests:
        assert request.target == (
            "/openai/deployments/mini/chat/completions?api-version=2024-10-21"
        )
        headers = {name.lower(): value for name, value in request.headers}
        assert headers["api-key"] == POOL_KEY
        assert headers["host"] == "upstream.invalid:8080"
        assert not {"authorization", "proxy-authorization"} & headers.keys()
    assert "through proxy 127.0.0.1" in gateway.output()
    assert "canary-password" not in gateway.output()


async def test_refusing_proxy_is_a_clear_error(
    upstream: ScriptedUpstream, proxy: ConnectProxy, start_gateway: StartGateway
) -> None:
    """Its words, its status and our password reach neither the caller nor the log."""
    proxy.answer, proxy.then = [b"HTTP/1.1 407 canary-words\r\n\r\ncanary-body"], "close"
    gateway = await start_gateway(
        AZURE.format(port=proxy.port), LAB_PROXY=PASSWORD, FREEAPI_LOG="debug"
    )
    answer = await ask(gateway.port, chat())
    assert answer.status == 502
    assert answer.error()["code"] == "upstream_unavailable"
    await asyncio.to_thread(gateway.stop)
    told = gateway.output() + repr(answer)
    assert "canary-" not in told.replace(POOL_KEY, "")
    assert b64encode(PASSWORD.encode()).decode() not in told
    assert upstream.requests == []


async def test_proxies_of_the_environment_are_not_used(
    upstream: ScriptedUpstream, proxy: ConnectProxy, start_gateway: StartGateway
) -> None:
    """A proxy that other programs are told to use sees nothing of ours."""
    names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
    gateway = await start_gateway(**dict.fromkeys(names, f"http://127.0.0.1:{proxy.port}"))
    assert (await ask(gateway.port, chat())).text() == "Hi"
    assert proxy.asked == []
    assert len(upstream.requests) == 1
