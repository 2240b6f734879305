"""The caps hold over all gateways, through a store that goes and comes, and strand little."""

from __future__ import annotations

import asyncio

import pytest

from freeapi.errors import BudgetBusy, BudgetExhausted, LedgerUnavailable, ShuttingDown
from freeapi.policy.budget import Caps
from freeapi.state import valkey_purse
from freeapi.state.valkey import StoreUnavailable
from freeapi.state.valkey_slices import SharedReservation
from tests.scripted_upstream import PATIENCE_S
from tests.sharers import CAP, TIMEOUT_S, Heard, Purses, idle, started
from tests.valkey_server import ValkeyServer, serving


async def test_cap_of_a_few_requests_is_shared_to_the_last(purses: Purses) -> None:
    """Three gateways spend a cap of ten requests' worst cases in any order, all of it."""
    three = [await purses.start() for _ in range(3)]
    for number in range(10):
        (await three[number % 3].reserve("up", b"", 100)).settle(100)
    with pytest.raises(BudgetExhausted) as refused:
        await three[0].reserve("up", b"", 100)
    assert refused.value.facts["resets_at"] == "2026-11-24T00:00:00Z"
    assert refused.value.retry_after_s == 43_200


async def test_requests_that_cost_less_let_more_through(purses: Purses) -> None:
    """What comes back of reservations reaches the other purses."""
    three = [await purses.start() for _ in range(3)]
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


async def test_held_by_requests_under_way_is_busy_not_exhausted(purses: Purses) -> None:
    """While another gateway's reservation may come back, the caller is told to try again."""
    one, other = await purses.start(), await purses.start()
    held = await one.reserve("up", b"", 900)
    with pytest.raises(BudgetBusy):
        await other.reserve("up", b"", 200)
    held.settle(None)
    with pytest.raises(BudgetBusy):  # believed for a second, without a question
        await other.reserve("up", b"", 200)


async def test_more_than_the_cap_is_exhausted_at_once(purses: Purses) -> None:
    """A request that costs more than the cap asks the store nothing."""
    purse = await purses.start()
    with pytest.raises(BudgetExhausted):
        await purse.reserve("up", b"", 1_001)
    assert "waiting=0" in repr(purse)


async def test_warm_slice_costs_no_round_trip(purses: Purses) -> None:
    """With a slice in hand a reservation doesn't wait, and takes what it costs in the end."""
    purse = await purses.start(Caps(daily_nanousd=1_000_000))
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


async def test_free_upstream_costs_nothing(purses: Purses) -> None:
    """An amount of 0 is never refused, nor asked for."""
    purse = await purses.start(Caps(daily_nanousd=0))
    (await purse.reserve("local", b"", 0)).release()


async def test_closing_gives_back_what_is_not_used(purses: Purses) -> None:
    """Only what was spent, or is reserved still, stays leased; nothing is reserved any more."""
    purse = await purses.start(Caps(daily_nanousd=1_000_000))
    (await purse.reserve("up", b"", 100)).settle(40)
    await purse.reserve("up", b"", 2)
    await purse.close()
    assert await purses.leased() == 42
    with pytest.raises(ShuttingDown):
        await purse.reserve("up", b"", 1_000_000)


async def test_dead_gateways_slice_counts_as_spent(purses: Purses) -> None:
    """A gateway that never gives back has spent its slice, at most 2 % of the cap."""
    dead = await purses.start(Caps(daily_nanousd=100_000))
    await dead.reserve("up", b"", 11)
    await idle(dead)
    leased = await purses.leased()
    assert 11 <= leased <= 2_000
    alive = await purses.start(Caps(daily_nanousd=100_000))
    with pytest.raises(BudgetBusy):  # for a minute it might live
        await alive.reserve("up", b"", 100_000 - leased + 1)
    (await alive.reserve("up", b"", 100_000 - leased)).release()


async def test_upstreams_cap_and_month_hold_too(purses: Purses) -> None:
    """A request needs room in each cap that applies; the words are the cap's that refuses."""
    caps = Caps(daily_nanousd=900, monthly_nanousd=1_000, upstream_daily_nanousd={"donor": 300})
    purse = await purses.start(caps)
    (await purse.reserve("donor", b"", 300)).settle(300)
    with pytest.raises(BudgetExhausted) as refused:
        await purse.reserve("donor", b"", 100)
    assert refused.value.facts["whose"] == "the upstream's daily"
    (await purse.reserve("other", b"", 600)).settle(600)
    status = purse.status()
    assert (status.left_today_nanousd, status.upstream_left_nanousd) == (0, {"donor": 0})
    purses.utc_s += 43_200
    with pytest.raises(BudgetExhausted) as refused:
        await purse.reserve("other", b"", 101)
    assert refused.value.facts["whose"] == "this instance's monthly"
    assert refused.value.facts["resets_at"] == "2026-12-01T00:00:00Z"
    (await purse.reserve("donor", b"", 100)).settle(100)


async def test_caps_change_without_forgetting(purses: Purses) -> None:
    """A lowered cap refuses what was spent beyond it already; a raised one lets go on."""
    purse = await purses.start()
    (await purse.reserve("up", b"", 600)).settle(600)
    purse.reconfigure(Caps(daily_nanousd=500))
    with pytest.raises(BudgetExhausted):
        await purse.reserve("up", b"", 10)
    purse.reconfigure(Caps(daily_nanousd=2_000))
    (await purse.reserve("up", b"", 1_400)).settle(1_400)
    purse.reconfigure(Caps())
    await purse.reserve("up", b"", 10**9)
    assert purse.status().left_today_nanousd is None


async def test_order_that_is_not_on_disk_is_not_spent_from(
    purses: Purses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its append-only file the server's word isn't enough, and the request is refused."""
    monkeypatch.setattr(valkey_purse, "RETRY_S", 0.01)
    monkeypatch.setattr(valkey_purse, "PATIENCE_S", 0.0)
    with serving("--appendonly", "no") as server:
        purses._server = server
        purse = await purses.start()
        with pytest.raises(LedgerUnavailable):
            await purse.reserve("up", b"", 10)
        with pytest.raises(LedgerUnavailable):
            await purse.reserve("up", b"", 10)
        assert purses.reports == ["unavailable"]
        await purse.close()


async def test_caller_who_goes_while_it_waits_keeps_nothing(purses: Purses) -> None:
    """A reservation that is made for someone who has gone is released."""
    purse = await purses.start()
    task = asyncio.get_running_loop().create_task(purse.reserve("up", b"", 100))
    await asyncio.sleep(0)
    waiter = purse._waiters.popleft()
    reservation = SharedReservation((), 0, purse.order_soon)
    waiter.result.set_result(reservation)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not reservation._is_open
    await idle(purse)


async def test_store_that_dies_and_comes_back(
    bad_purses: Purses, bad_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is leased may be spent while the store is away, no more; then it goes on by itself."""
    monkeypatch.setattr(valkey_purse, "RETRY_S", 0.05)
    monkeypatch.setattr(valkey_purse, "PATIENCE_S", 0.0)
    purse = await bad_purses.start(Caps(daily_nanousd=1_000_000))
    (await purse.reserve("up", b"", 100)).settle(100)
    await idle(purse)
    bad_server.kill()
    (await purse.reserve("up", b"", 1_000)).settle(1_000)
    with pytest.raises(LedgerUnavailable):
        await purse.reserve("up", b"", 100_000)
    bad_server.start()
    async with asyncio.timeout(PATIENCE_S):
        while bad_purses.reports != ["unavailable", "ok"]:
            await asyncio.wait([purse._writing] if purse._writing else [], timeout=0.05)
    (await purse.reserve("up", b"", 100_000)).settle(100_000)
    await purse.close()
    assert await bad_purses.leased() == 101_100


async def test_store_that_stalls_refuses_nobody(
    bad_purses: Purses, bad_server: ValkeyServer
) -> None:
    """A request waits for a disk that is slow for longer than any other call would."""
    purse, heard = await bad_purses.start(), Heard()
    hasty = await started(bad_server, heard, timeout_s=TIMEOUT_S)
    await idle(purse)
    bad_server.pause()
    waiting = asyncio.get_running_loop().create_task(purse.reserve("up", b"", 100))
    with pytest.raises(StoreUnavailable):
        await hasty.command(b"PING")
    assert heard.words == ["ok", "timeout"]
    await hasty.close()
    assert "waiting=1" in repr(purse)
    bad_server.resume()
    (await waiting).settle(100)
    assert bad_purses.reports == []


async def test_connection_that_breaks_refuses_nobody(
    bad_purses: Purses, bad_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that meets a store which is just restarting waits for it, and is then served."""
    monkeypatch.setattr(valkey_purse, "PATIENCE_S", 60.0)  # a start of the server takes long here
    purse = await bad_purses.start()
    await idle(purse)
    bad_server.kill()
    waiting = asyncio.get_running_loop().create_task(purse.reserve("up", b"", 100))
    while purse._failing_s is None:
        await asyncio.wait([waiting], timeout=0.01)
    assert "waiting=1" in repr(purse)
    await asyncio.to_thread(bad_server.start)
    (await waiting).settle(100)
    assert bad_purses.reports == []


async def test_gateway_that_starts_knows_what_others_have_spent(purses: Purses) -> None:
    """What is left is right at once at a new gateway, and in time at one that nobody asks."""
    one, idle_one = await purses.start(), await purses.start()
    (await one.reserve("up", b"", 700)).settle(700)
    await idle(one)
    new = await purses.start()
    await idle(new)
    assert new.status().left_today_nanousd == 300
    (account,) = idle_one._accounts
    account.heard_s = -1e9  # long ago
    idle_one.status()
    await idle(idle_one)
    assert idle_one.status().left_today_nanousd == 300


async def test_cap_that_is_off_for_a_while_does_not_forget(purses: Purses) -> None:
    """What was spent of a cap before it was switched off counts when it is on again."""
    purse = await purses.start()
    (await purse.reserve("up", b"", 600)).settle(600)
    purse.reconfigure(Caps())
    await purse.reserve("up", b"", 10**9)
    purse.reconfigure(CAP)
    with pytest.raises(BudgetExhausted):
        await purse.reserve("up", b"", 401)
    await idle(purse)
    assert await purses.leased() == 600


async def test_clock_that_is_set_back_over_midnight_does_not_forget(purses: Purses) -> None:
    """Yesterday's sums are those that yesterday had."""
    purse = await purses.start()
    (await purse.reserve("up", b"", 600)).settle(600)
    purses.utc_s += 43_200
    (await purse.reserve("up", b"", 1_000)).settle(1_000)
    purses.utc_s -= 1
    purse.reconfigure(CAP)
    with pytest.raises(BudgetExhausted):
        await purse.reserve("up", b"", 401)
    assert await purses.leased() == 600
    assert await purses.leased(period="2026-11-24") == 1_000


async def test_slice_that_nobody_uses_goes_back_near_the_end(purses: Purses) -> None:
    """An idle gateway looks now and then whether what it holds should go back."""
    caps = Caps(daily_nanousd=100_000)
    idle_one, other = await purses.start(caps), await purses.start(caps)
    (await idle_one.reserve("up", b"", 100)).settle(100)
    await idle(idle_one)
    (await other.reserve("up", b"", 98_000)).settle(98_000)
    (account,) = idle_one._accounts
    assert account.left >= 8 * 100
    timer = idle_one._review_timer
    assert timer.when() - asyncio.get_running_loop().time() <= valkey_purse.REVIEW_S
    timer._run()
    await idle(idle_one)
    assert account.left < 8 * 100
    assert idle_one._review_timer is not timer
    (await other.reserve("up", b"", 1_100)).settle(1_100)
    await idle_one.close()
    assert idle_one._review_timer.cancelled()
