"""Promise: when capacity is short, no caller can starve another.

The model's limit lets 40 requests a second through; callers ask again as soon as they are answered.
Nobody's own limits are on: what keeps a flood from the others is the queue alone.
"""

from __future__ import annotations

import asyncio

from tests.conftest import StartGateway
from tests.contest import CALLERS, COUNTED, Contest, jain
from tests.crowd import OPEN_DOOR, ask_from
from tests.gateway import Gateway
from tests.raw_client import chat
from tests.scripted_upstream import ScriptedUpstream

RPM = 2_400
#: What a bucket that was idle lets through at once.
BURST = RPM // 6
SETTINGS = {"FREEAPI_QUEUE_S": "30", **OPEN_DOOR}


async def use_up(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """Take what gathered while nobody asked."""
    loop = asyncio.get_running_loop()
    for _ in range(BURST // 100):
        tasks = [loop.create_task(ask_from("127.0.3.1", gateway.port, chat())) for _ in range(100)]
        await asyncio.gather(*tasks)
    assert len(upstream.requests) == BURST


async def test_a_flood_takes_nothing_from_others(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Beside 50 concurrent requests of one, each of nine with one gets 90 % of its equal share."""
    gateway = await start_gateway(f"rpm = {RPM}\n", **SETTINGS)
    await use_up(gateway, upstream)
    contest = Contest(gateway.port)
    flood, *others = CALLERS
    async with contest.between({flood: 50, **dict.fromkeys(others, 1)}):
        shares = await contest.shares()
    assert min(shares[address] for address in others) >= 0.9 * COUNTED / len(CALLERS), shares
    # Nor is the flood punished.
    assert shares[flood] >= 0.9 * COUNTED / len(CALLERS), shares


async def test_floods_get_the_same(upstream: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Jain's index of ten callers with twelve concurrent requests each is 0.98 or more."""
    gateway = await start_gateway(f"rpm = {RPM}\n", **SETTINGS)
    await use_up(gateway, upstream)
    contest = Contest(gateway.port)
    async with contest.between(dict.fromkeys(CALLERS, 12)):
        shares = await contest.shares()
    assert len(shares) == len(CALLERS)
    assert jain(shares) >= 0.98, shares


async def test_a_newcomer_does_not_wait_for_a_flood(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Who comes while nine floods wait is answered within two turns of each of them."""
    gateway = await start_gateway(f"rpm = {RPM}\n", **SETTINGS)
    await use_up(gateway, upstream)
    contest = Contest(gateway.port)
    newcomer, *floods = CALLERS
    async with contest.between(dict.fromkeys(floods, 12)):
        await contest.is_short()
        for _ in range(3):
            before = len(upstream.requests)
            assert (await ask_from(newcomer, gateway.port, chat())).status == 200
            assert len(upstream.requests) - before <= 2 * len(CALLERS)
