"""The caps hold over all gateways, through crashes of each and of the store, and strand little."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import msgspec
import pytest

from freeapi.errors import BudgetBusy, BudgetExhausted, LedgerUnavailable, ShuttingDown
from freeapi.policy.budget import Caps
from freeapi.state import valkey_purse
from freeapi.state.valkey import Store, StoreUnavailable
from freeapi.state.valkey_purse import Leased, LeaseStore, Order, SharedPurse, SharedReservation
from tests.valkey_server import ValkeyServer, serving

#: 2026-11-23, 12:00 UTC.
NOON_S = 1_795_435_200.0
DAY = Caps(daily_nanousd=1_000)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ValkeyServer]:
    """One server that syncs at once, so that no test waits for its second."""
    with serving("--appendfsync", "always") as server:
        yield server


@pytest.fixture
def bad_server() -> Iterator[ValkeyServer]:
    """A server that a test may treat badly."""
    with serving("--appendfsync", "always") as server:
        yield server


class Gateways:
    """As many as a test wants, over one clock and one set of caps."""

    def __init__(self, stack: AsyncExitStack, server: ValkeyServer) -> None:
        self._stack = stack
        self._server = server
        self.namespace = b"{%x}" % random.getrandbits(64)
        self.utc_s = NOON_S
        self.reports: list[str] = []

    async def leases(self) -> LeaseStore:
        """A connection and its leases."""
        store = Store(self._server.url, timeout_s=0.5)
        leases = LeaseStore(store, namespace=self.namespace)
        await store.start()
        self._stack.push_async_callback(store.close)
        return leases

    async def start(self, caps: Caps = DAY) -> SharedPurse:
        """One more purse."""
        leases = await self.leases()
        return SharedPurse(caps, leases, lambda: self.utc_s, self.reports.append)

    async def leased(self, scope: str = "all", period: str = "2026-11-23") -> int:
        """What the store says is leased to all."""
        (answer,) = await (await self.leases()).write([Order(scope, period, 0, 0, 0, 0)])
        return answer.others


@pytest.fixture
async def gateways(shared_server: ValkeyServer) -> AsyncIterator[Gateways]:
    """Over the good server."""
    async with AsyncExitStack() as stack:
        yield Gateways(stack, shared_server)


@pytest.fixture
async def bad_gateways(bad_server: ValkeyServer) -> AsyncIterator[Gateways]:
    """Over the one that is treated badly."""
    async with AsyncExitStack() as stack:
        yield Gateways(stack, bad_server)


async def idle(purse: SharedPurse) -> None:
    """Wait until its orders are through."""
    while purse._writing is not None:
        await asyncio.wait([purse._writing])


async def test_cap_of_a_few_requests_is_shared_to_the_last(gateways: Gateways) -> None:
    """Three gateways spend a cap of ten requests' worst cases in any order, all of it."""
    three = [await gateways.start() for _ in range(3)]
    for number in range(10):
        (await three[number % 3].reserve("up", b"", 100)).settle(100)
    with pytest.raises(BudgetExhausted) as refused:
        await three[0].reserve("up", b"", 100)
    assert refused.value.facts["resets_at"] == "2026-11-24T00:00:00Z"
    assert refused.value.retry_after_s == 43_200


async def test_requests_that_cost_less_let_more_through(gateways: Gateways) -> None:
    """What comes back of reservations reaches the other gateways."""
    three = [await gateways.start() for _ in range(3)]
    spent = 0
    for number in range(90):
        purse = three[number % 3]
        try:
            (await purse.reserve("up", b"", 100)).settle(13)
        except BudgetExhausted:
            break
        spent += 13
        await idle(purse)
    assert spent > 1_000 - 100 - 13 - 60, "less than one worst case and three slices are left"


async def test_held_by_requests_under_way_is_busy_not_exhausted(gateways: Gateways) -> None:
    """While another gateway's reservation may come back, the caller is told to try again."""
    one, other = await gateways.start(), await gateways.start()
    held = await one.reserve("up", b"", 900)
    with pytest.raises(BudgetBusy):
        await other.reserve("up", b"", 200)
    held.settle(None)
    with pytest.raises(BudgetBusy):  # believed for a second, without a question
        await other.reserve("up", b"", 200)


async def test_more_than_the_cap_is_exhausted_at_once(gateways: Gateways) -> None:
    """A request that costs more than the cap asks the store nothing."""
    purse = await gateways.start()
    with pytest.raises(BudgetExhausted):
        await purse.reserve("up", b"", 1_001)
    assert "waiting=0" in repr(purse)


async def test_warm_slice_costs_no_round_trip(gateways: Gateways) -> None:
    """With a slice in hand a reservation doesn't wait, and takes what it costs in the end."""
    purse = await gateways.start(Caps(daily_nanousd=1_000_000))
    (await purse.reserve("up", b"", 100)).settle(10)
    reservation = purse._reserve("up", 5_000)
    assert reservation is not None
    assert reservation.settle(5_500) == 500
    assert reservation.settle(0) == 0, "only once"
    with await purse.reserve("up", b"", 1) as kept:
        pass
    assert kept.amount_nanousd == 1
    await idle(purse)
    assert purse.status().left_today_nanousd == 1_000_000 - 10 - 5_500 - 1


async def test_free_upstream_costs_nothing(gateways: Gateways) -> None:
    """An amount of 0 is never refused, nor asked for."""
    purse = await gateways.start(Caps(daily_nanousd=0))
    (await purse.reserve("local", b"", 0)).release()


async def test_closing_gives_back_what_is_not_used(gateways: Gateways) -> None:
    """Only what was spent, or is reserved still, stays leased; nothing is reserved any more."""
    purse = await gateways.start(Caps(daily_nanousd=1_000_000))
    (await purse.reserve("up", b"", 100)).settle(40)
    await purse.reserve("up", b"", 2)
    await purse.close()
    assert await gateways.leased() == 42
    with pytest.raises(ShuttingDown):
        await purse.reserve("up", b"", 1_000_000)


async def test_dead_gateways_slice_counts_as_spent(gateways: Gateways) -> None:
    """A gateway that never gives back has spent its slice, at most 2 % of the cap."""
    dead = await gateways.start(Caps(daily_nanousd=100_000))
    await dead.reserve("up", b"", 11)
    await idle(dead)
    leased = await gateways.leased()
    assert 11 <= leased <= 2_000
    alive = await gateways.start(Caps(daily_nanousd=100_000))
    with pytest.raises(BudgetBusy):  # for a minute it might live
        await alive.reserve("up", b"", 100_000 - leased + 1)
    (await alive.reserve("up", b"", 100_000 - leased)).release()


async def test_upstreams_cap_and_month_hold_too(gateways: Gateways) -> None:
    """A request needs room in each cap that applies; the words are the cap's that refuses."""
    caps = Caps(daily_nanousd=900, monthly_nanousd=1_000, upstream_daily_nanousd={"donor": 300})
    purse = await gateways.start(caps)
    (await purse.reserve("donor", b"", 300)).settle(300)
    with pytest.raises(BudgetExhausted) as refused:
        await purse.reserve("donor", b"", 100)
    assert refused.value.facts["whose"] == "the upstream's daily"
    (await purse.reserve("other", b"", 600)).settle(600)
    status = purse.status()
    assert (status.left_today_nanousd, status.upstream_left_nanousd) == (0, {"donor": 0})
    gateways.utc_s += 43_200
    with pytest.raises(BudgetExhausted) as refused:
        await purse.reserve("other", b"", 101)
    assert refused.value.facts["whose"] == "this instance's monthly"
    assert refused.value.facts["resets_at"] == "2026-12-01T00:00:00Z"
    (await purse.reserve("donor", b"", 100)).settle(100)


async def test_caps_change_without_forgetting(gateways: Gateways) -> None:
    """A lowered cap refuses what was spent beyond it already; a raised one lets go on."""
    purse = await gateways.start()
    (await purse.reserve("up", b"", 600)).settle(600)
    purse.reconfigure(Caps(daily_nanousd=500))
    with pytest.raises(BudgetExhausted):
        await purse.reserve("up", b"", 10)
    purse.reconfigure(Caps(daily_nanousd=2_000))
    (await purse.reserve("up", b"", 1_400)).settle(1_400)
    purse.reconfigure(Caps())
    await purse.reserve("up", b"", 10**9)
    assert purse.status().left_today_nanousd is None


async def test_order_that_comes_late_is_ignored(gateways: Gateways) -> None:
    """An order of a connection that was given up can't undo a later one."""
    leases = await gateways.leases()
    assert await leases.write([Order("all", "2026-11-23", 100, 50, 0, 0)]) == [Leased(50, 0, 0)]
    leases._number -= 1
    with pytest.raises(StoreUnavailable):
        await leases.write([Order("all", "2026-11-23", 100, 10, 0, 0)])
    assert await gateways.leased() == 50


async def test_order_that_is_not_on_disk_is_not_spent_from(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its append-only file the server's word isn't enough, and the request is refused."""
    monkeypatch.setattr(valkey_purse, "RETRY_S", 0.01)
    with serving("--appendonly", "no") as server:
        gateways._server = server
        purse = await gateways.start()
        with pytest.raises(LedgerUnavailable):
            await purse.reserve("up", b"", 10)
        with pytest.raises(LedgerUnavailable):
            await purse.reserve("up", b"", 10)
        assert gateways.reports == ["unavailable"]
        await purse.close()


async def test_caller_who_goes_while_it_waits_keeps_nothing(gateways: Gateways) -> None:
    """A reservation that is made for someone who has gone is released."""
    purse = await gateways.start()
    task = asyncio.get_running_loop().create_task(purse.reserve("up", b"", 100))
    await asyncio.sleep(0)
    waiter = purse._waiters.popleft()
    reservation = SharedReservation(purse, (), 0)
    waiter.result.set_result(reservation)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not reservation._is_open
    await idle(purse)


async def test_store_that_dies_and_comes_back(
    bad_gateways: Gateways, bad_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is leased may be spent while the store is away, no more; then it goes on by itself."""
    monkeypatch.setattr(valkey_purse, "RETRY_S", 0.05)
    purse = await bad_gateways.start(Caps(daily_nanousd=1_000_000))
    (await purse.reserve("up", b"", 100)).settle(100)
    await idle(purse)
    bad_server.kill()
    (await purse.reserve("up", b"", 1_000)).settle(1_000)
    with pytest.raises(LedgerUnavailable):
        await purse.reserve("up", b"", 100_000)
    bad_server.start()
    async with asyncio.timeout(20):
        while bad_gateways.reports != ["unavailable", "ok"]:
            await asyncio.wait([purse._writing] if purse._writing else [], timeout=0.05)
    (await purse.reserve("up", b"", 100_000)).settle(100_000)
    await purse.close()
    assert await bad_gateways.leased() == 101_100


@pytest.mark.parametrize("seed", range(2))
async def test_never_over_the_cap_through_crashes(
    bad_gateways: Gateways, bad_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Gateways that die and a store that is killed and paused under them never spend more."""
    asyncio.get_running_loop().set_debug(False)
    monkeypatch.setattr(valkey_purse, "RETRY_S", 0.01)
    chance = random.Random(seed)
    caps = Caps(daily_nanousd=20_000, upstream_daily_nanousd={"donor": 9_000})
    purses = [await bad_gateways.start(caps) for _ in range(3)]
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
            purses[chance.randrange(3)] = await bad_gateways.start(caps)  # the old one is dead
        async with asyncio.TaskGroup() as crowd:
            for _ in range(8):
                crowd.create_task(spend(chance.randrange(3)))
    assert served > 50
    leased = await bad_gateways.leased(), await bad_gateways.leased("upstream:donor")
    assert bill["donor"] + bill["other"] <= leased[0] <= 20_000
    assert bill["donor"] <= leased[1] <= 9_000


def test_orders_are_whole_numbers() -> None:
    """An order is exact at sums that a float of 24 bits would round."""
    order = Order("all", "2026-11-23", 9_007_199_254_740_991, 9_007_199_254_740_990, 1, 0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(order))["wanted"] == order.wanted
