"""Promise: when a model's capacity is short, no caller can starve another at any gateway.

As ``test_fairness``, with each caller's loops spread over three gateways that share a Valkey. An
address is one caller at all of them, or a flood would have three shares.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.contest import CALLERS, COUNTED, Contest, jain
from tests.crowd import ask_from
from tests.gateway import UNLIMITED_MODEL, Gateway
from tests.raw_client import chat
from tests.replicas import replicas
from tests.scripted_upstream import ScriptedUpstream
from tests.valkey_server import serving

RPM = 2_400
BURST = RPM // 6
CONFIG = f"{UNLIMITED_MODEL}rpm = {RPM}\n"
SETTINGS = {"FREEAPI_QUEUE_S": "30"}


async def use_up(trio: list[Gateway], upstream: ScriptedUpstream) -> None:
    """Take what gathered while nobody asked."""
    ports = [one.port for one in trio]
    async with asyncio.TaskGroup() as group:
        for number in range(BURST // 10):
            for _ in range(10):
                address = f"127.0.3.{number + 1}"  # at most 8 of each could wait
                group.create_task(ask_from(address, ports[number % len(ports)], chat()))
    assert len(upstream.requests) == BURST


async def test_floods_at_all_gateways_get_the_same(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Ten callers, each with a dozen requests over all three, are served alike: Jain >= 0.98.

    Where one of them floods, and the others have three each, they get 90 % of their equal share.
    """
    with (
        serving() as server,
        replicas(tmp_path, upstream.port, server, CONFIG, SETTINGS) as trio,
    ):
        await use_up(trio, upstream)
        ports = [one.port for one in trio]
        contest = Contest(*ports)
        async with contest.between(dict.fromkeys(CALLERS, 12)):
            alike = await contest.shares()
        # Other callers: a request that was cut above counts as much as it had reserved.
        flood, *others = [one.replace("127.0.2.", "127.0.4.") for one in CALLERS]
        contest = Contest(*ports)
        async with contest.between({flood: 50, **dict.fromkeys(others, 3)}):
            shares = await contest.shares()
    assert len(alike) == len(CALLERS)
    assert jain(alike) >= 0.98, alike
    assert min(shares[one] for one in others) >= 0.9 * COUNTED / len(CALLERS), shares
