"""Promise: never over the cap, though three gateways spend it at once, and most of it can be spent.

The scripted upstream adds up the bill over all three. Its Valkey syncs each lease at once; the
default, once a second, is only slower.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.biller import DEAR, Biller
from tests.conftest import upstream_settings
from tests.crowd import caller_from
from tests.gateway import UNLIMITED_MODEL, Gateway
from tests.money import NANO, PRICES, assert_exhausted, cap, ceiling_nanousd
from tests.raw_client import Answer, ask, chat
from tests.replicas import replicas
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream
from tests.valkey_server import ValkeyServer, serving

CONFIG = UNLIMITED_MODEL + PRICES
SPENDERS = 12


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """A server for one test: sums live as long as it does."""
    with serving("--appendfsync", "always") as server:
        yield server


async def spend_all(gateway: Gateway, address: str) -> Answer:
    """Ask until no more can be had; returns the refusal. What may come back is waited for."""
    async with asyncio.timeout(2 * PATIENCE_S), caller_from(address, gateway.port) as connection:
        while True:
            answer = await connection.ask(DEAR)
            if answer.status != 200 and answer.header("x-should-retry") == "false":
                return answer
            if answer.status != 200:
                assert answer.error()["code"] == "capacity_exceeded", answer.body
                await asyncio.sleep(0.05)  # told to try again: requests under way may cost less


async def spent_by(trio: list[Gateway], spenders: int = SPENDERS) -> list[Answer]:
    """So many callers at each gateway spend all that they can; returns the refusals."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(spend_all(gateway, f"127.0.4.{number + 1}"))
            for number in range(spenders)
            for gateway in trio
        ]
    return [task.result() for task in tasks]


@pytest.mark.parametrize(
    ("cap_nanousd", "least"), [(200_000_000, 0.9), (10_000_000, 0.7)], ids=["93 requests", "4"]
)
async def test_cap_holds_over_all(
    upstream: ScriptedUpstream,
    server: ValkeyServer,
    tmp_path: Path,
    cap_nanousd: int,
    least: float,
) -> None:
    """The bill of all three is within the one cap, and no slice of it is stranded."""
    biller = Biller(upstream, random.Random(7))
    settings = cap(cap_nanousd)
    with replicas(tmp_path, upstream.port, server, CONFIG, settings) as trio:
        for refusal in await spent_by(trio):
            assert_exhausted(refusal)
    assert least * cap_nanousd <= biller.billed_nanousd <= cap_nanousd


async def test_callers_share_holds_over_all(
    upstream: ScriptedUpstream, server: ValkeyServer, tmp_path: Path
) -> None:
    """One caller at three gateways has its share of the day once, and others have theirs."""
    biller = Biller(upstream, random.Random(8))
    total, share = 400_000_000, 20_000_000
    settings = cap(total, FREEAPI_CALLER_DAILY_USD=f"{share / NANO:.9f}")
    with replicas(tmp_path, upstream.port, server, CONFIG, settings) as trio:
        for refusal in await spent_by(trio, 1):
            assert_exhausted(refusal, "your share of today's")
        worst = ceiling_nanousd(upstream.requests[0])
        assert share - worst < biller.billed_nanousd <= share
        assert [(await ask(one.port, DEAR)).status for one in trio] == [200] * len(trio)


#: A way that costs nothing, by another path of the same server, so that it is told apart.
FREE_TOO = """[[upstream]]
name = "paid"
keys_env = "OPENAI_API_KEYS"
base_url = "{url}/v1"
[[upstream]]
name = "lab"
base_url = "{url}/lab/v1"
priority = 2
free = true
"""


async def test_without_a_share_free_upstreams_go_on(
    upstream: ScriptedUpstream, server: ValkeyServer, tmp_path: Path
) -> None:
    """A caller whose share is spent still has what costs nothing, as where a gateway is alone."""
    config = CONFIG + FREE_TOO.format(url=f"http://127.0.0.1:{upstream.port}")
    settings = cap(NANO, FREEAPI_CALLER_DAILY_USD="0.000000001", OPENAI_BASE_URL="")
    with replicas(tmp_path, upstream.port, server, config, settings) as trio:
        statuses = [(await ask(one.port, chat())).status for one in trio]
    assert statuses == [200] * len(trio)
    assert {seen.target for seen in upstream.requests} == {"/lab/v1/chat/completions"}


async def test_without_a_share_the_embedded_model_goes_on(
    upstream: ScriptedUpstream, server: ValkeyServer, tmp_path: Path
) -> None:
    """Where the operator lets it stand in, it does so for a caller whose share is spent, too."""
    config = CONFIG + '[policy]\nwhen_exhausted = "local"\n'
    settings = cap(NANO, FREEAPI_CALLER_DAILY_USD="0.000000001", FREEAPI_STATE=server.url)
    gateway = await asyncio.to_thread(
        Gateway, tmp_path, {**upstream_settings(upstream.port), **settings}, config
    )
    answer = await ask(gateway.port, chat(max_tokens=4))
    await asyncio.to_thread(gateway.stop)
    assert (answer.status, answer.header("x-freeapi-served-by")) == (200, "local")
    assert not upstream.requests
