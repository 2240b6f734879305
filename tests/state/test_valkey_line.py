"""The fair queue in the store: who waits at any gateway is served in turn."""

from __future__ import annotations

import asyncio

import pytest

from freeapi.errors import CapacityExceeded
from freeapi.policy.limits import CallerLimits
from freeapi.policy.meter import Rates
from freeapi.state.valkey_limits import SharedAdmission
from tests.sharers import Limiters, ask, asked, refusal, settled, slow, waiting
from tests.valkey_server import ValkeyServer


async def test_least_served_caller_is_next_over_all_gateways(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """Whichever gateway asks first, turns go to the waiting caller with the least cost served."""
    here, there = await gateways.start(server), await gateways.start(server)
    await here.admit(slow())  # the model is short from now on
    for number in range(3):
        assert (await asked(here, slow(caller=b"greedy"), 100 + number, 99)).kind == 2
    assert (await asked(there, slow(caller=b"modest"), 200, 99)).kind == 2
    served = []
    for _ in range(4):
        gateways.now_s += 10
        for shared, caller, ticket in (
            (here, b"greedy", 100),
            (here, b"greedy", 101),
            (here, b"greedy", 102),
            (there, b"modest", 200),
        ):
            if ticket in served:
                continue
            if (await asked(shared, slow(caller=caller), ticket, 99)).kind == 0:
                served.append(ticket)
    assert served == [100, 200, 101, 102]


async def test_newcomer_does_not_pass_those_who_wait(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """A free place belongs to who waits; but where there are enough for both, both are let in."""
    shared = await gateways.start(server)
    rates = Rates(12, None)  # two at once, one in 5 s
    for _ in range(2):
        await shared.admit(ask(rates=rates, tokens=1))
    old = ask(b"old", rates=rates, tokens=1)
    new = ask(b"new", rates=rates, tokens=1)
    assert (await asked(shared, old, 101, 99)).kind == 2
    gateways.now_s += 5
    assert (await asked(shared, new, 102, 99)).kind == 2
    gateways.now_s += 5
    assert (await asked(shared, new, 102, 99)).kind == 0
    assert (await asked(shared, old, 101, 99)).kind == 0


async def test_large_request_is_not_overtaken(server: ValkeyServer, gateways: Limiters) -> None:
    """Small requests behind a large one wait until there is enough for it."""
    shared = await gateways.start(server)
    rates = Rates(None, 600)
    await shared.admit(ask(rates=rates, tokens=600))
    large = ask(b"large", rates=rates, tokens=500, cost=1)
    small = ask(b"small", rates=rates, tokens=10, cost=1)
    assert (await asked(shared, large, 101, 99)).kind == 2
    for _ in range(4):
        gateways.now_s += 10
        assert (await asked(shared, small, 102, 99)).kind == 2
    gateways.now_s += 10
    assert (await asked(shared, large, 101, 99)).kind == 0


async def test_waiter_that_dies_does_not_stall_the_rest(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """Who doesn't ask again is out of the line once its place expires."""
    dead, alive = await gateways.start(server), await gateways.start(server)
    await dead.admit(slow())
    for number in range(8):
        assert (await asked(dead, slow(caller=b"dead"), 100 + number)).kind == 2
    assert (await asked(alive, slow(caller=b"live"), 101, 99)).kind == 2
    gateways.now_s += 10.1
    assert (await asked(alive, slow(caller=b"live"), 101, 99)).kind == 0


async def test_cost_is_corrected_at_the_end(server: ValkeyServer, gateways: Limiters) -> None:
    """Who used less than it reserved is before who used it all; unknown costs stay as reserved."""
    shared = await gateways.start(server)
    await shared.admit(slow())
    callers = {b"saver": 100, b"waster": 200}
    for caller, ticket in callers.items():
        for number in range(2):
            assert (await asked(shared, slow(100, caller), ticket + number, 999)).kind == 2
    for caller, ticket in callers.items():
        gateways.now_s += 10
        assert (await asked(shared, slow(100, caller), ticket, 999)).kind == 0
        SharedAdmission(shared._batches, ticket).settle(1, 0, 5 if caller == b"waster" else None)
        await settled(shared)
    gateways.now_s += 10
    assert (await asked(shared, slow(100, b"saver"), 101, 999)).kind == 2
    assert (await asked(shared, slow(100, b"waster"), 201, 999)).kind == 0


async def test_line_is_bounded_per_caller_and_in_all(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """A caller's ninth request is refused, and the 1,001st of all; who leaves makes room."""
    shared = await gateways.start(server)
    await shared.admit(slow())
    for number in range(8):
        assert (await asked(shared, slow(caller=b"first"), 100 + number, 99)).kind == 2
    assert (await asked(shared, slow(caller=b"first"), 108, 99)).kind == 3
    full = await refusal(shared, slow(caller=b"first"), 100.0)
    assert isinstance(full, CapacityExceeded)
    for n in range(992):
        assert (await asked(shared, slow(caller=b"c%d" % n), 1_000 + n, 99)).kind == 2
    assert (await asked(shared, slow(caller=b"late"), 2_000, 99)).kind == 3
    shared._withdraw(waiting(slow(caller=b"c0"), 1_000))
    assert (await asked(shared, slow(caller=b"late"), 2_000, 99)).kind == 2


async def test_waits_for_its_turn_and_gets_it(server: ValkeyServer, gateways: Limiters) -> None:
    """Two gateways' requests for a short model are all served, without a refusal, in the end."""
    two = [await gateways.start(server, own_time=False) for _ in range(2)]
    rates = Rates(1_200, None)  # 200 at once, 20 a second
    for _ in range(200):
        await two[0].admit(ask(rates=rates, tokens=1))
    waits = [shared.admit(ask(b"c%d" % n, rates=rates), 10.0) for n in range(5) for shared in two]
    assert len(await asyncio.gather(*waits)) == 10
    assert [shared.waiting for shared in two] == [0, 0]


async def test_hopeless_request_is_refused_at_once(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """Where its turn can't come in time it is told when, and leaves no trace in the line."""
    shared = await gateways.start(server)
    await shared.admit(slow())
    error = await refusal(shared, slow(), 5.0)
    assert isinstance(error, CapacityExceeded)
    assert error.retry_after_s == pytest.approx(10.0, abs=1e-5)
    await settled(shared)
    gateways.now_s += 10
    await shared.admit(slow(caller=b"other"))


async def test_caller_who_leaves_the_line_is_forgotten(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """A request cancelled while it waits leaves the line to the others."""
    shared = await gateways.start(server)
    await shared.admit(slow())
    task = asyncio.get_running_loop().create_task(shared.admit(slow(caller=b"gone"), 60.0))
    while not shared.waiting:
        await shared.secret(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(shared)
    gateways.now_s += 10
    await shared.admit(slow(caller=b"other"))


async def test_who_is_over_its_own_limit_leaves_the_line(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """A waiter whose caller has used up its day meanwhile is told so, and is in nobody's way."""
    shared = await gateways.start(server)
    await shared.admit(slow())
    limits = CallerLimits(rpm=None, tpm=None, rpd=1, concurrency=None)
    waiting = ask(b"w", limits=limits, rates=Rates(6, None), tokens=1)
    assert (await asked(shared, waiting, 101, 99)).kind == 2
    await shared.admit(ask(b"w", limits=limits, model="other"))
    assert (await asked(shared, waiting, 101, 99)).kind == 1
    gateways.now_s += 10
    await shared.admit(slow(caller=b"other"))
