"""Promise: what only the operator may see is never on the public port, nor in a stranger's browser.

The admin port answers no caller of the API; the public port shows no page of the operator's.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.conftest import StartGateway
from tests.crowd import ADDRESS, CLIENTS, OPEN_DOOR, crowd
from tests.gateway import POOL_KEY, run
from tests.operator_view import Pool, start_pool, to_host
from tests.raw_client import ask, chat, post, request
from tests.scripted_upstream import ScriptedUpstream


@pytest.fixture
async def pool(upstream: ScriptedUpstream, start_gateway: StartGateway) -> Pool:
    """A gateway with two keys and its admin port on."""
    return await start_pool(start_gateway, "AAAA", "BBBB", **OPEN_DOOR)


async def test_ports_have_no_route_in_common(upstream: ScriptedUpstream, pool: Pool) -> None:
    """Each port's routes are 404 on the other, in OpenAI's shape."""
    for target in ("/keys", "/v1/keys", "/metrics", "/keys/"):
        assert (await ask(pool.port, request("GET", target))).error()["code"] == "not_found"
    for target in ("/v1/models", "/models", "/healthz", "/readyz", "/v1/keys", "/keys/", "//keys"):
        shown = await ask(pool.admin_port, to_host("localhost", "GET", target))
        assert (shown.status, shown.error()["code"]) == (404, "not_found")
    body = b'{"model":"gpt-3.5-turbo","messages":[]}'
    for target in ("/v1/chat/completions", "/chat/completions"):
        asked = post(target, body).replace(b"test.invalid", b"localhost")
        assert (await ask(pool.admin_port, asked)).status == 404
    assert upstream.requests == []


async def test_names_led_here_by_dns_are_refused(pool: Pool) -> None:
    """A ``Host`` that is a name is 404: a page of that name has had its DNS point to loopback."""
    for host in ("evil.example", "evil.example:9464", "127.0.0.1.evil.example", "localhost.evil"):
        refused = await ask(pool.admin_port, to_host(host, "GET", "/keys"))
        assert refused.status == 404
        assert b"AAAA" not in refused.body
    for host in ("localhost", f"localhost:{pool.admin_port}", "127.0.0.1", "[::1]:9464"):
        assert (await ask(pool.admin_port, to_host(host, "GET", "/keys"))).status == 200


async def test_other_sites_may_not_read_the_pages(pool: Pool) -> None:
    """Unlike the public port, the admin port has no CORS header, and takes no method but GET."""
    shown = await ask(pool.admin_port, to_host("localhost", "GET", "/keys"))
    assert shown.header("access-control-allow-origin") is None
    for method in ("OPTIONS", "POST", "DELETE"):
        refused = await ask(pool.admin_port, to_host("localhost", method, "/keys"))
        assert (refused.status, refused.header("access-control-allow-origin")) == (405, None)


async def test_pages_are_told_the_load(upstream: ScriptedUpstream, pool: Pool) -> None:
    """After 500 requests at once the keys have shared them, and none is counted as in flight."""
    await crowd(pool.port, chat(), [ADDRESS] * CLIENTS)
    keys = await pool.keys()
    assert [key["in_flight"] for key in keys] == [0, 0]
    counts = [key["requests"] for key in keys]
    assert sum(counts) == CLIENTS
    assert abs(counts[0] - counts[1]) <= CLIENTS // 10


def test_busy_admin_port_is_told(tmp_path: Path) -> None:
    """An admin address that was asked for and can't be had ends the start with words, code 1."""
    with socket.create_server((ADDRESS, 0)) as busy:
        address = f"{ADDRESS}:{busy.getsockname()[1]}"
        settings = {"FREEAPI_ADMIN_ADDR": address, "OPENAI_API_KEYS": POOL_KEY}
        code, printed = run(tmp_path, settings)
    assert code == 1
    assert "FREEAPI_ADMIN_ADDR" in printed
    assert "address already in use" in printed.lower()
    assert "Traceback" not in printed
