"""The admin pages over a real socket, and which addresses are one's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from freeapi.http.deadlines import Deadlines
from freeapi.http.server import Server, ServerLimits
from freeapi.pages.admin import AdminPages, is_loopback, is_own_address
from freeapi.policy import failures
from freeapi.policy.keys import KeyPool
from tests.operator_view import to_host
from tests.pools import upstream_keys
from tests.raw_client import ask

NOW_S = 1_000.0
LIMITS = ServerLimits(body_bytes_max=1_000, connections_max=10, connections_per_address_max=None)

StartPages = Callable[..., Awaitable[int]]


@asynccontextmanager
async def served(keys: KeyPool, *, local_only: bool) -> AsyncIterator[int]:
    """The port of the pages about these keys."""
    deadlines = Deadlines(asyncio.get_running_loop(), 1.0)
    pages = AdminPages(keys, {"listed"}, lambda: NOW_S, local_only=local_only)
    server = Server(pages, LIMITS, deadlines)
    try:
        yield (await server.listen("127.0.0.1", 0))[0][1]
    finally:
        await server.drain(0)
        deadlines.close()


@pytest.fixture
async def start() -> AsyncIterator[StartPages]:
    """Starts servers that end with the test."""
    async with AsyncExitStack() as stack:

        async def start(keys: KeyPool, *, local_only: bool = True) -> int:
            return await stack.enter_async_context(served(keys, local_only=local_only))

        yield start


def two_keys() -> KeyPool:
    """A pool with two keys of one upstream."""
    return KeyPool([upstream_keys("openai", ("AAAA", "BBBB"))], lambda: 0.0)


async def test_each_key_is_shown_in_words(start: StartPages) -> None:
    """Upstream, last characters, state and counts of each key, as JSON."""
    keys = two_keys()
    with keys.lease("listed", (), NOW_S) as lease:
        keys.failed(lease, failures.RATE_LIMITED, NOW_S, 7.0)
    port = await start(keys)
    shown = await ask(port, to_host("localhost", "GET", "/keys"))
    first = {"upstream": "openai", "tail": "AAAA", "state": "cooling for listed for 7 s"}
    second = {"upstream": "openai", "tail": "BBBB", "state": "ok"}
    counts = {"in_flight": 0, "requests": 0, "failures": 0}
    assert shown.header("content-type") == "application/json"
    assert shown.json() == {
        "keys": [{**first, **counts, "requests": 1, "failures": 1}, {**second, **counts}]
    }


async def test_names_of_callers_choice_are_not_shown(start: StartPages) -> None:
    """A model that isn't on the list is a caller's own word: it is counted, not named."""
    keys = two_keys()
    with keys.lease("canary-model", (), NOW_S) as lease:
        keys.failed(lease, failures.RATE_LIMITED, NOW_S, 7.0)
    shown = await ask(await start(keys), to_host("localhost", "GET", "/keys"))
    assert b"canary" not in shown.body
    assert shown.json()["keys"][0]["state"] == "cooling for models not listed (1)"


async def test_names_are_taken_where_the_port_is_not_local(start: StartPages) -> None:
    """Listening on a network is the operator's choice, and its name may lead there."""
    port = await start(two_keys(), local_only=False)
    for host in ("freeapi.internal:9464", "localhost", "10.0.0.7"):
        assert (await ask(port, to_host(host, "GET", "/keys"))).status == 200


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("HEAD", "/keys", 200),
        ("POST", "/keys", 405),
        ("GET", "/", 404),
        ("GET", "/keys/x", 404),
        ("GET", "/" + "x" * 5_000, 404),
    ],
)
async def test_anything_else_is_an_error(
    start: StartPages, method: str, target: str, status: int
) -> None:
    """A wrong path is 404, a wrong method 405 with what is allowed; both stay short."""
    shown = await ask(await start(two_keys()), to_host("[::1]:9464", method, target))
    assert shown.status == status
    assert len(shown.body) < 500
    assert shown.header("allow") == ("GET, HEAD" if status == 405 else None)


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost", True),
        ("localhost:9464", True),
        ("127.0.0.1", True),
        ("127.0.0.1:", True),
        ("[::1]:9464", True),
        ("10.1.2.3:9464", True),
        ("", False),
        ("evil.example", False),
        ("localhost.evil.example:9464", False),
        ("127.0.0.1.evil.example", False),
        ("127.1", False),
        ("0x7f.1", False),
        ("localhost:9464:9464", False),
    ],
)
def test_own_addresses(host: str, is_own: bool) -> None:
    """Only an address in full, or ``localhost``, can't have come out of somebody's DNS."""
    assert is_own_address(host) is is_own


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("freeapi.internal", False),
    ],
)
def test_loopback_addresses(host: str, expected: bool) -> None:
    """Addresses of all interfaces, and names that may mean anything, aren't this machine alone."""
    assert is_loopback(host) is expected
