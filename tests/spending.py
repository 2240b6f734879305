"""Callers that spend all there is, and what the journal says meanwhile."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.biller import DEAR
from tests.crowd import number
from tests.gateway import Gateway
from tests.raw_client import Answer, caller
from tests.scripted_upstream import PATIENCE_S

#: Over as many tenths of a second the store has been asked again, twice.
_REFUSALS = 25


def assert_away(answer: Answer) -> None:
    """It is the refusal that says: not now, but soon."""
    assert (answer.status, answer.error()["code"]) == (503, "upstream_unavailable"), answer.body
    assert 1 <= number(answer, "retry-after") <= 10
    assert answer.header("x-should-retry") != "false"


async def spend_rest(gateway: Gateway) -> None:
    """Ask until there is no more, though what a dead one had reserved is thought to come back."""
    refused = 0
    async with asyncio.timeout(2 * PATIENCE_S):
        while refused < _REFUSALS:
            answer = await _ask(gateway.port)
            if answer is None:
                continue
            if answer.status == 503:  # limits are back, and leases a moment later
                assert_away(answer)
                continue
            refused = 0 if answer.status == 200 else refused + 1
            if answer.header("x-should-retry") == "false":
                return
            if refused:
                await asyncio.sleep(0.1)


async def _ask(port: int) -> Answer | None:
    """Over a connection of its own; None: whoever had accepted it is dead."""
    try:
        async with caller(port) as connection:
            return await connection.ask(DEAR)
    except (OSError, EOFError):
        return None


def journal(gateway: Gateway, name: str) -> list[dict[str, Any]]:
    """The events of this name so far."""
    lines = [json.loads(line) for line in list(gateway.stderr) if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


async def logged(gateway: Gateway, name: str, count: int) -> None:
    """Wait until there are so many events of this name."""
    async with asyncio.timeout(PATIENCE_S):
        while (found := len(journal(gateway, name))) < count:
            assert found < count
            await asyncio.sleep(0.005)  # a journal can only be looked at
