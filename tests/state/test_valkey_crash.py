"""Never over the cap and nothing counted twice, though gateways and the store die at any time."""

from __future__ import annotations

import asyncio
import random

import pytest

from freeapi.errors import BudgetBusy, BudgetExhausted, LedgerUnavailable
from freeapi.policy.budget import Caps
from freeapi.state import valkey_purse
from freeapi.state.valkey_slices import SharedReservation
from tests.sharers import Purses
from tests.valkey_server import ValkeyServer


@pytest.mark.parametrize("seed", range(2))
async def test_never_over_the_cap_through_crashes(
    bad_purses: Purses, bad_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Gateways that die and a store that is killed and paused under them never spend more."""
    asyncio.get_running_loop().set_debug(False)
    monkeypatch.setattr(valkey_purse, "RETRY_S", 0.01)
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

    for turn in range(60):
        if turn % 20 == 10:
            bad_server.kill()
        elif turn % 20 == 13:
            bad_server.start()
        elif turn % 20 == 17:
            purses[chance.randrange(3)] = await bad_purses.start(caps)  # the old one is dead
        async with asyncio.TaskGroup() as crowd:
            for _ in range(8):
                crowd.create_task(spend(chance.randrange(3)))
    assert served > 50
    leased = await bad_purses.leased(), await bad_purses.leased("upstream:donor")
    assert bill["donor"] + bill["other"] <= leased[0] <= 20_000
    assert bill["donor"] <= leased[1] <= 9_000
