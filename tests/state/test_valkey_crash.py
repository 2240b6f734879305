"""Never over the cap and nothing counted twice, though gateways and the store die at any time."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from freeapi.errors import BudgetBusy, BudgetExhausted, ConcurrencyExceeded, LedgerUnavailable
from freeapi.policy.budget import Caps
from freeapi.policy.limits import CallerLimits
from freeapi.state import valkey, valkey_leases, valkey_purse
from freeapi.state.valkey import StoreUnavailable
from freeapi.state.valkey_slices import SharedReservation
from tests.sharers import TIMEOUT_S, Limiters, Purses, ask, settled, up_again
from tests.valkey_server import ValkeyServer


@pytest.mark.parametrize("seed", range(2))
async def test_never_over_the_cap_through_crashes(
    bad_purses: Purses, bad_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Gateways that die and a store that is killed and paused under them never spend more."""
    asyncio.get_running_loop().set_debug(False)
    # Whoever meets the harm is refused soon; the test is about what was sent before.
    monkeypatch.setattr(valkey_purse, "RETRY_S", 0.01)
    monkeypatch.setattr(valkey_purse, "PATIENCE_S", 0.0)
    monkeypatch.setattr(valkey_leases, "SYNC_TIMEOUT_S", 0.3)
    bad_purses.timeout_s = 0.5
    chance = random.Random(seed)
    caps = Caps(daily_nanousd=20_000, upstream_daily_nanousd={"donor": 9_000})
    purses = [await bad_purses.start(caps) for _ in range(3)]
    bill = {"donor": 0, "other": 0}
    served = 0

    async def spend(place: int) -> None:
        nonlocal served
        upstream, amount = chance.choice(list(bill)), chance.randrange(20, 400)
        try:
            reservation: SharedReservation = await purses[place].reserve(upstream, b"", amount)
        except (BudgetBusy, BudgetExhausted, LedgerUnavailable):
            return
        served += 1
        await asyncio.sleep(0)
        cost = chance.randrange(amount + 1)
        is_known = chance.random() < 0.9
        bill[upstream] += cost if is_known else amount
        reservation.settle(cost if is_known else None)

    async def crowd() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(spend(chance.randrange(3)))

    for turn in range(60):
        if turn == 4:
            bad_server.pause()
        elif turn == 6:
            bad_server.resume()  # and it reads what was sent before it was given up
        elif turn % 20 == 13:
            bad_server.start()
        elif turn % 20 == 17:
            purses[chance.randrange(3)] = await bad_purses.start(caps)  # the old one is dead
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd())
            if turn % 20 == 10:
                await asyncio.sleep(0)
                bad_server.kill()  # with orders under way
    assert served > 50
    leased = await bad_purses.leased(), await bad_purses.leased("upstream:donor")
    assert bill["donor"] + bill["other"] <= leased[0] <= 20_000
    assert bill["donor"] <= leased[1] <= 9_000


@pytest.mark.parametrize("seed", range(2))
async def test_nothing_is_left_behind_or_counted_twice_through_crashes(
    gateways: Limiters, bad_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """However the store dies under them: never more in flight than allowed, and in the end each
    request is settled exactly once, to the last nano-dollar."""
    monkeypatch.setattr(valkey, "RETRY_MAX_S", 0.1)
    chance = random.Random(seed)
    three = [
        await gateways.start(bad_server, own_time=False, timeout_s=TIMEOUT_S) for _ in range(3)
    ]
    limits = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=4)
    request = ask(limits=limits, nanousd=50, share=10**9)
    in_flight = served = spent = refused = 0

    async def spend() -> None:
        nonlocal in_flight, served, spent, refused
        try:
            admission = await chance.choice(three).admit(request)
        except (StoreUnavailable, ConcurrencyExceeded):
            refused += 1
            return
        served += 1
        in_flight += 1
        assert in_flight <= 4
        await asyncio.sleep(0)
        in_flight -= 1
        if chance.random() < 0.2:
            admission.cancel()
        else:
            cost = chance.randrange(50)
            spent += cost
            admission.settle(1, cost)

    loop = asyncio.get_running_loop()
    for turn in range(40):
        tasks = [loop.create_task(spend()) for _ in range(12)]
        await asyncio.sleep(0)
        for task in chance.sample(tasks, 2):  # their callers go, whatever the store does with them
            task.cancel()
        harm = {5: bad_server.kill, 15: bad_server.pause, 25: bad_server.kill}.get(turn)
        if harm is not None:
            harm()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not [one for one in tasks if not one.cancelled() and one.exception()]
        if harm is not None:
            (bad_server.resume if harm == bad_server.pause else bad_server.start)()
            await asyncio.gather(*map(up_again, three))
    await asyncio.gather(*map(settled, three))
    assert served > 60
    assert refused > 60
    store, namespace = three[0]._store, three[0]._namespace
    packed = await store.command(b"GET", namespace + b":caller:" + request.caller.hex().encode())
    _, _, begun, *_, spent_there, held = msgspec.msgpack.decode(packed)
    assert (begun, spent_there, held) == (0, spent, 0)
    assert await store.command(b"KEYS", namespace + b":tickets:*") == []
