"""Many callers at once, from as many addresses as a test wants.

All of 127.0.0.0/8 is this machine (Linux), so a caller can have an address of its own without any
header that claims one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from tests.gateway import Gateway
from tests.raw_client import Answer, Caller
from tests.scripted_upstream import PATIENCE_S

#: Who asks if a test doesn't say.
ADDRESS = "127.0.0.1"
#: "The limits hold under 500 concurrent clients" (issue 3).
CLIENTS = 500
#: So many come from one address here, which the connection cap would else refuse first.
OPEN_DOOR = {"FREEAPI_MAX_CONNECTIONS_PER_ADDRESS": "2000"}


@asynccontextmanager
async def caller_from(address: str, port: int) -> AsyncIterator[Caller]:
    """A connection to the gateway from this address, closed at the end."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(ADDRESS, port, local_addr=(address, 0))
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask_from(address: str, port: int, data: bytes) -> Answer:
    """One request over a connection of its own."""
    async with caller_from(address, port) as connection:
        return await connection.ask(data)


async def crowd(port: int, data: bytes, addresses: Iterable[str]) -> list[Answer]:
    """The same request from each of the addresses, each on a connection of its own, all at once."""
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(ask_from(address, port, data)) for address in addresses]
    return [task.result() for task in asking]


def number(answer: Answer, header: str) -> int:
    """The header's value, a whole number."""
    value = answer.header(header)
    assert value is not None, answer.headers
    assert value.isdecimal(), value
    return int(value)


def events(gateway: Gateway, name: str) -> int:
    """How many lines of this event the log has; all are there once the gateway has ended."""
    return sum(f'"event":"{name}"' in line for line in gateway.stderr)
