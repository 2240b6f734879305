"""What gateways tell each other: keys' health and the secret; and what stays in the store."""

from __future__ import annotations

import asyncio

from freeapi.policy.limits import CallerLimits
from freeapi.policy.meter import Rates
from freeapi.state.valkey_limits import Report
from tests.scripted_upstream import PATIENCE_S
from tests.sharers import Limiters, ask, asked, beat, slow
from tests.valkey_server import ValkeyServer


async def test_news_of_keys_reach_the_others_and_late_comers(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """Each report is heard once by every other gateway, by one that comes later as it stands."""
    heard: list[Report] = []
    own: list[Report] = []
    teller = await gateways.start(server, own)
    listener = await gateways.start(server, heard)
    await teller.publish(Report("key1", "", "dead", 3600.0))
    await teller.publish(Report("key1", "m", "cooling", 30.0))
    await beat(listener)
    await beat(teller)
    assert heard == [Report("key1", "", "dead", 3600.0), Report("key1", "m", "cooling", 30.0)]
    assert own == []
    await teller.publish(Report("key1", "", "ok", 0.0))
    gateways.now_s += 10
    late: list[Report] = []
    await beat(await gateways.start(server, late))
    await beat(listener)
    assert late == [Report("key1", "m", "cooling", 20.0), Report("key1", "", "ok", 0.0)]
    assert heard[2:] == [Report("key1", "", "ok", 0.0)]


async def test_a_beat_tells_what_all_have_used_of_a_model(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """A gateway knows what another's requests have left of a model's limits, and of no other's."""
    rates = Rates(60, 600)
    busy, idle = await gateways.start(server), await gateways.start(server)
    idle.models = ("m", "unused")
    await beat(idle)
    loop = asyncio.get_running_loop()
    assert rates.left(idle.meter("m"), loop.time()) == (10, 600)
    for _ in range(3):
        await busy.admit(ask(rates=rates, tokens=100))
    await beat(idle)
    assert rates.left(idle.meter("m"), loop.time()) == (7, 300)
    assert rates.left(idle.meter("unused"), loop.time()) == (10, 600)


async def test_it_beats_by_itself(server: ValkeyServer, gateways: Limiters) -> None:
    """Once begun, news arrive without being asked for."""
    heard: list[Report] = []
    listener = await gateways.start(server, heard)
    listener.begin()
    await (await gateways.start(server)).publish(Report("key1", "", "dead", 1.0))
    async with asyncio.timeout(PATIENCE_S):
        while not heard:
            await listener.secret(0)
    assert heard[0].state == "dead"


async def test_secret_is_one_for_all_and_another_each_day(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """All gateways get the same random 32 bytes, another day others, and they expire."""
    one, other = await gateways.start(server), await gateways.start(server)
    first, second = await asyncio.gather(one.secret(5), other.secret(5))
    assert first == second
    assert len(first) == 32
    assert await one.secret(6) != first
    ttl_s = await one._store.command(b"TTL", b"%b:secret:5" % one._namespace)
    assert 86_400 < ttl_s <= 93_600


async def test_everything_in_the_store_expires_but_the_gateways(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """What callers leave behind is gone after two days; no key holds more than sums and tags."""
    shared = await gateways.start(server)
    limits = CallerLimits(rpm=20, tpm=40_000, rpd=10, concurrency=4)
    await shared.admit(ask(limits=limits, rates=Rates(6, None), nanousd=1, share=9))
    await asked(shared, slow(caller=b"w"), 100)
    keys = await shared._store.command(b"KEYS", shared._namespace + b"*")
    lasting = [key for key in keys if await shared._store.command(b"TTL", key) < 0]
    names = {key.split(b":")[1] for key in lasting}
    assert names <= {b"alive", b"nodes", b"epoch", b"tickets", b"waiting"}
    assert {key.split(b":")[1] for key in keys} >= {b"caller", b"model", b"lane", b"turn"}
