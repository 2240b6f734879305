"""How an error is told: the headers by which OpenAI's SDKs decide whether and when to come back.

The map of the routes is tested through the running gateway (``promises/test_errors``).
"""

from __future__ import annotations

import asyncio

import pytest

from freeapi import errors
from freeapi.http.deadlines import Deadlines
from freeapi.http.server import Server, ServerLimits
from freeapi.routes import refuse
from tests.raw_client import Answer, ask, request

LIMITS = ServerLimits(body_bytes_max=1_000, connections_max=10, connections_per_address_max=None)


async def told(error: errors.FreeApiError) -> Answer:
    """What a caller gets to see of an error."""
    deadlines = Deadlines(asyncio.get_running_loop(), 1.0)
    server = Server(lambda _, reply: refuse(reply, error, b"x-ours: 1\r\n"), LIMITS, deadlines)
    try:
        port = (await server.listen("127.0.0.1", 0))[0][1]
        return await ask(port, request("GET", "/"))
    finally:
        await server.drain(0)
        deadlines.close()


@pytest.mark.parametrize(
    ("wait_s", "seconds", "milliseconds", "should_retry"),
    [
        (None, None, None, None),
        (0.0, "1", "1", None),
        (0.0001, "1", "1", None),
        (0.2501, "1", "251", None),
        (1.0, "1", "1000", None),
        (0.300_000_000_1, "1", "300", None),  # what the difference of two times may be
        (1.0001, "2", "1001", None),
        (60.0, "60", "60000", None),
        (60.5, "61", "60500", "false"),
        (86_400.0, "86400", "86400000", "false"),
    ],
)
async def test_waits_are_rounded_up(
    wait_s: float | None, seconds: str | None, milliseconds: str | None, should_retry: str | None
) -> None:
    """Who comes back when told to is never too early; waits over a minute are to give up."""
    answer = await told(errors.CapacityExceeded(retry_after_s=wait_s))
    assert answer.header("retry-after") == seconds
    assert answer.header("retry-after-ms") == milliseconds
    assert answer.header("x-should-retry") == should_retry
    assert (answer.status, answer.header("x-ours")) == (429, "1")
    assert answer.error()["code"] == "capacity_exceeded"


async def test_pointless_without_a_wait_is_to_give_up() -> None:
    """Where no time helps there is none, and no retry either."""
    answer = await told(
        errors.RequestAboveTokenLimit(limit_name="x", limit=1, requested=2, should_retry=False)
    )
    assert answer.header("x-should-retry") == "false"
    assert answer.header("retry-after") is None
    assert answer.error()["type"] == "tokens"


async def test_wrong_method_names_the_right_ones() -> None:
    """405 carries ``Allow`` (RFC 9110 section 15.5.6)."""
    answer = await told(errors.MethodNotAllowed(method="PUT", path="/x", allow="GET, OPTIONS"))
    assert (answer.status, answer.header("allow")) == (405, "GET, OPTIONS")
