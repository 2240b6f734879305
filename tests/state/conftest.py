"""Real Valkey servers for the tests of the shared store, and gateways' parts over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.sharers import Limiters, Purses
from tests.valkey_server import ValkeyServer, serving


@pytest.fixture(scope="session")
def server() -> Iterator[ValkeyServer]:
    """One server; each test has a namespace of its own in it."""
    with serving("--appendonly", "no") as server:
        yield server


@pytest.fixture(scope="session")
def durable_server() -> Iterator[ValkeyServer]:
    """One that syncs at once, so that no test waits for its second."""
    with serving("--appendfsync", "always") as server:
        yield server


@pytest.fixture
def bad_server() -> Iterator[ValkeyServer]:
    """A server that a test may treat badly."""
    with serving("--appendfsync", "always") as server:
        yield server


@pytest.fixture
async def gateways() -> AsyncIterator[Limiters]:
    """Closed at the end."""
    # Debug mode makes thousands of calls ten times slower, and other tests have it on.
    asyncio.get_running_loop().set_debug(False)
    async with AsyncExitStack() as stack:
        yield Limiters(stack)


@pytest.fixture
async def purses(durable_server: ValkeyServer) -> AsyncIterator[Purses]:
    """Over the good server."""
    async with AsyncExitStack() as stack:
        yield Purses(stack, durable_server)


@pytest.fixture
async def bad_purses(bad_server: ValkeyServer) -> AsyncIterator[Purses]:
    """Over the one that is treated badly."""
    async with AsyncExitStack() as stack:
        yield Purses(stack, bad_server)
