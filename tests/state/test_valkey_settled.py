"""What was let in is settled exactly once, whatever dies: gateway, connection or store."""

from __future__ import annotations

import asyncio

import pytest

from freeapi import errors
from freeapi.policy.limits import CallerLimits
from freeapi.state.valkey import StoreUnavailable
from freeapi.state.valkey_limits import ALIVE_S
from freeapi.state.valkey_questions import UNKNOWN_NODE
from tests.sharers import Limiters, ask, beat, refusal, settled, up_again, waiting
from tests.valkey_server import ValkeyServer


async def test_end_that_is_repeated_counts_once(server: ValkeyServer, gateways: Limiters) -> None:
    """The store ignores an end that it has heard before, and a second one of the same request."""
    shared = await gateways.start(server)
    limits = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=2)
    first, _ = [await shared.admit(ask(limits=limits)) for _ in range(2)]
    first.settle(1, 1)
    first.cancel()
    (end,) = shared._batches._batch.items
    shared._batches.end(end)
    await settled(shared)
    shared._batches.end(end)
    await shared.admit(ask(limits=limits))
    assert isinstance(await refusal(shared, ask(limits=limits)), errors.ConcurrencyExceeded)


@pytest.mark.parametrize("harm", ["pause", "kill"])
async def test_ends_are_kept_while_the_store_is_away(
    bad_server: ValkeyServer, gateways: Limiters, harm: str
) -> None:
    """What ends while the store is away is told as soon as it is back, and nothing begins."""
    shared = await gateways.start(bad_server, timeout_s=0.3)
    limits = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=3)
    open_ = [await shared.admit(ask(limits=limits)) for _ in range(3)]
    getattr(bad_server, harm)()
    with pytest.raises(StoreUnavailable):
        await shared.admit(ask(limits=limits))
    for admission in open_:
        admission.settle(1, 1)
    with pytest.raises(StoreUnavailable):
        await shared.admit(ask(limits=limits))
    assert shared.unconfirmed <= 4, "only what was sent, not what was refused at once"
    (bad_server.resume if harm == "pause" else bad_server.start)()
    await up_again(shared)
    await settled(shared)
    again = [await shared.admit(ask(limits=limits)) for _ in range(3)]
    assert len(again) == 3


async def test_question_of_a_lost_connection_is_not_heard_later(
    bad_server: ValkeyServer, gateways: Limiters
) -> None:
    """A request that nobody waits for any more takes nothing, though the server reads it late."""
    shared = await gateways.start(bad_server, timeout_s=0.3)
    limits = CallerLimits(rpm=6, tpm=None, rpd=1, concurrency=1)
    bad_server.pause()
    with pytest.raises(StoreUnavailable):
        await shared.admit(ask(limits=limits))
    bad_server.resume()
    await up_again(shared)
    await settled(shared)
    await shared.admit(ask(limits=limits))


async def test_question_of_an_earlier_connection_is_not_granted(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """Once a gateway has connected anew, what it had sent before is refused, however late."""
    shared = await gateways.start(server)
    epoch = shared._batches.epoch
    await shared._join()
    late = waiting(ask(), 100)
    late.future = asyncio.get_running_loop().create_future()
    shared._batches.epoch = epoch
    shared._batches.ask(late)
    await late.future
    assert late.answer == [UNKNOWN_NODE]


async def test_caller_who_goes_while_it_asks_takes_nothing(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """A request cancelled before its answer is given back."""
    shared = await gateways.start(server)
    limits = CallerLimits(rpm=6, tpm=None, rpd=1, concurrency=1)
    for _ in range(2):
        task = asyncio.get_running_loop().create_task(shared.admit(ask(limits=limits)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await shared.admit(ask(limits=limits))


async def test_dead_gateways_requests_count_as_used(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """Not heard for ALIVE_S, a gateway's slots are free, and its tokens and money are spent."""
    dead, alive = await gateways.start(server), await gateways.start(server)
    limits = CallerLimits(rpm=None, tpm=600, rpd=None, concurrency=1)
    request = ask(limits=limits, tokens=500, nanousd=60, share=100)
    ghost = await dead.admit(request)
    assert isinstance(await refusal(alive, ask(limits=limits)), errors.ConcurrencyExceeded)
    gateways.now_s += ALIVE_S - 1
    await beat(alive)
    assert isinstance(await refusal(alive, ask(limits=limits)), errors.ConcurrencyExceeded)
    gateways.now_s += 2
    await beat(alive)
    assert isinstance(await refusal(alive, request), errors.TokenRateExceeded)
    gateways.now_s += 60
    assert isinstance(await refusal(alive, request), errors.BudgetExhausted)
    # It wasn't dead, after all: what it says of that request comes too late, but it may ask again.
    ghost.settle(0, 0)
    await settled(dead)
    assert isinstance(await refusal(dead, request), errors.BudgetExhausted)
    await dead.admit(ask(limits=limits))


async def test_store_that_lost_everything_is_joined_again(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """After a flush the next questions, all at once, are answered, and each end is confirmed."""
    shared = await gateways.start(server)
    before = await shared.admit(ask())
    await shared._store.command(b"FLUSHALL")
    results = await asyncio.gather(*(shared.admit(ask()) for _ in range(20)))
    assert len(results) == 20
    before.settle(1, 1)
    await settled(shared)
    await shared._store.command(b"FLUSHALL")
    await beat(shared)
    await shared.close()
    assert shared._batches.epoch > 0
