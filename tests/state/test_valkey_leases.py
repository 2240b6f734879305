"""Orders of money: durable, repeatable, and never undone by one that comes late."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from freeapi.state.valkey import Store, StoreUnavailable
from freeapi.state.valkey_leases import SYNC_TIMEOUT_S, Leased, LeaseStore, Order
from tests.sharers import Purses
from tests.valkey_server import ValkeyServer


async def test_order_that_comes_late_is_ignored(purses: Purses) -> None:
    """An order of a connection that was given up can't undo a later one."""
    leases = await purses.leases()
    assert await leases.write([Order("all", "2026-11-23", 100, 50, 0, 0)]) == [Leased(50, 0, 0)]
    leases._number -= 1
    with pytest.raises(StoreUnavailable):
        await leases.write([Order("all", "2026-11-23", 100, 10, 0, 0)])
    assert await purses.leased() == 50


def test_orders_are_whole_numbers() -> None:
    """An order is exact at sums that a float of 24 bits would round."""
    order = Order("all", "2026-11-23", 9_007_199_254_740_991, 9_007_199_254_740_990, 1, 0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(order))["wanted"] == order.wanted


async def test_sum_over_all_gateways_is_never_above_the_cap(purses: Purses) -> None:
    """Gateways that ask at once get what is left, one after the other, and know of the others."""
    three = [await purses.leases() for _ in range(3)]
    order = Order("all", "2026-11-23", 100, 45, 0, 45)
    answers = await asyncio.gather(*(one.write([order]) for one in three))
    assert sorted(answer[0].mine for answer in answers) == [10, 45, 45]
    assert [answer[0].mine + answer[0].others for answer in answers] == [45, 90, 100]
    assert answers[2][0].pending == 90


async def test_order_that_is_repeated_changes_nothing(purses: Purses) -> None:
    """An order states sums: made twice, as after an answer that was lost, it leases once."""
    leases = await purses.leases()
    for _ in range(2):
        (answer,) = await leases.write([Order("all", "2026-11-23", 100, 50, 0, 0)])
        assert answer == Leased(50, 0, 0)
    assert await purses.leased() == 50


async def test_store_that_forgot_learns_what_may_be_reserved(purses: Purses) -> None:
    """What a gateway says that it has is taken over, also above the cap: it may be spent."""
    leases, other = await purses.leases(), await purses.leases()
    await other.write([Order("all", "2026-11-23", 100, 80, 0, 0)])
    (answer,) = await leases.write([Order("all", "2026-11-23", 100, 60, 50, 0)])
    assert answer == Leased(50, 80, 0)


async def test_gateway_without_money_leaves_no_trace(purses: Purses) -> None:
    """One that has given all back, or never had any, takes no place in the store."""
    leases = await purses.leases()
    await leases.write([Order("all", "2026-11-23", 100, 50, 0, 0)])
    await leases.write([Order("all", "2026-11-23", 100, 0, 0, 0)])
    key = purses.namespace + b":money:2026-11-23"
    assert await leases._store.command(b"HGETALL", key) == [b"all", b"0"]


async def test_sync_comes_after_what_was_written(purses: Purses) -> None:
    """The function's source goes with each order: one called by its hash may be forgotten, and
    would be sent again after the sync."""
    leases = await purses.leases()
    await leases._store.command(b"CONFIG", b"RESETSTAT")
    assert await leases.write([Order("all", "2026-11-23", 100, 50, 0, 0)]) == [Leased(50, 0, 0)]
    stats: bytes = await leases._store.command(b"INFO", b"commandstats")
    calls = [line.split(b"calls=")[1].split(b",")[0] for line in stats.split() if b"_eval" in line]
    assert calls == [b"1"]
    assert b"cmdstat_evalsha" not in stats


async def test_connection_that_gives_up_before_the_disk_is_refused(
    durable_server: ValkeyServer,
) -> None:
    """A time-out that a slow sync would trip is our own mistake, and is told at once."""
    store = Store(durable_server.url, timeout_s=SYNC_TIMEOUT_S)
    with pytest.raises(AssertionError, match="slow disk"):
        LeaseStore(store)
    await store.close()
