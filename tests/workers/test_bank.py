"""The workers' money: what the bank leases is on disk, within the cap, whoever asks and dies."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from pathlib import Path

import pytest

from freeapi.state.ledger import Ledger
from freeapi.state.valkey import StoreUnavailable
from freeapi.state.valkey_leases import Leased, Order
from freeapi.workers.bank import Bank, LinkLeases
from freeapi.workers.link import LeaseAnswer
from tests.workers.lines import pair

DAY = time.strftime("%Y-%m-%d", time.gmtime())
CAP = 1_000


def order(wanted: int, kept: int = 0, reserved: int = 0, cap: int = CAP) -> Order:
    """An order of today's cap over all upstreams."""
    return Order("all", DAY, cap, wanted, kept, reserved)


class Office:
    """A bank over a real ledger, and what it reported."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder)
        self.reports: list[str] = []
        self.bank = Bank(self.ledger, time.time, self.reports.append)

    async def lease(self, worker: int, one: Order) -> Leased:
        """One order, which can be written."""
        answers = await self.bank.lease(worker, [one])
        assert answers is not None
        (answer,) = answers
        assert self.on_disk() >= answer.mine + answer.others
        return answer

    def on_disk(self) -> int:
        """What the file says is leased."""
        return sum(one.leased_nanousd for one in self.ledger.grants(time.time()))


@pytest.fixture
async def office(tmp_path: Path) -> Office:
    """One for a test."""
    return Office(tmp_path)


async def test_workers_share_one_cap(office: Office) -> None:
    """The second gets what the first has left, and hears how much of it may come back."""
    assert await office.lease(0, order(700, reserved=50)) == (700, 0, 0)
    assert await office.lease(1, order(700)) == (300, 700, 50)
    assert await office.lease(0, order(200)) == (200, 300, 0)
    assert await office.lease(1, order(900)) == (800, 200, 0)


async def test_dead_workers_part_stays_spent(office: Office) -> None:
    """What a worker had when it died can't be leased, and its successor begins with nothing."""
    await office.lease(0, order(700, reserved=700))
    office.bank.forget(0)
    assert await office.lease(0, order(700)) == (300, 700, 0)


async def test_next_life_of_the_bank_begins_with_the_file(office: Office, tmp_path: Path) -> None:
    """What was leased before a restart is the others' for all workers."""
    await office.lease(0, order(600))
    await office.bank.close()
    assert await Office(tmp_path).lease(0, order(CAP)) == (400, 600, 0)


async def test_what_is_kept_is_never_taken(office: Office) -> None:
    """Under a cap that was lowered a worker keeps what it may have reserved, and no more."""
    await office.lease(0, order(700))
    assert await office.lease(0, order(700, kept=500, cap=400)) == (500, 0, 0)


async def test_unwritable_ledger_leases_nothing(office: Office) -> None:
    """An order that can't be written changes nothing; it is reported once, and so is the end."""
    await office.lease(0, order(100))
    works = office.ledger.write

    def fails(grants: object) -> None:
        raise sqlite3.OperationalError

    office.ledger.write = fails  # type: ignore[method-assign]
    assert await office.bank.lease(0, [order(500)]) is None
    assert await office.bank.lease(1, [order(500)]) is None
    office.ledger.write = works  # type: ignore[method-assign]
    assert await office.lease(1, order(CAP)) == (900, 100, 0)
    assert office.reports == ["OperationalError", "ok"]


async def test_never_over_the_cap_in_any_order(office: Office) -> None:
    """Over random orders and deaths all parts and the dead's sum up to at most the cap."""
    chance = random.Random(5)
    alive: dict[int, int] = {}
    dead = 0
    for _ in range(300):
        worker = chance.randrange(4)
        if chance.random() < 0.05:
            dead += alive.pop(worker, 0)
            office.bank.forget(worker)
            continue
        kept = chance.randrange(alive.get(worker, 0) + 1)
        answer = await office.lease(worker, order(chance.randrange(kept, CAP), kept))
        assert answer.mine >= kept
        alive[worker] = answer.mine
        assert dead + sum(alive.values()) == answer.mine + answer.others == office.on_disk() <= CAP


async def test_answers_find_their_orders() -> None:
    """Two orders at once get each its own answer, in whichever order they come."""
    ours, theirs = await pair()
    leases = LinkLeases(theirs)
    loop = asyncio.get_running_loop()
    asking = [loop.create_task(leases.write([order(wanted)])) for wanted in (1, 2)]
    asks = [await ours.hear(), await ours.hear()]
    for ask in reversed(asks):
        assert hasattr(ask, "number")
        leases.answered(LeaseAnswer(ask.number, [Leased(ask.number, 0, 0)]))
    assert [await one for one in asking] == [[(1, 0, 0)], [(2, 0, 0)]]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("is_late", [False, True])
async def test_orders_without_a_supervisor_fail(is_late: bool) -> None:
    """An order under way when the line is cut fails, and so does a later one, at once."""
    ours, theirs = await pair()
    leases = LinkLeases(theirs)
    asking = asyncio.get_running_loop().create_task(leases.write([order(1)]))
    await ours.hear()
    leases.cut()
    with pytest.raises(StoreUnavailable):
        await asking
    if is_late:
        with pytest.raises(StoreUnavailable):
            await leases.write([order(1)])
    ours.close()
    theirs.close()


async def test_order_that_cannot_be_written_fails() -> None:
    """The bank's None is the store's being away."""
    ours, theirs = await pair()
    leases = LinkLeases(theirs)
    asking = asyncio.get_running_loop().create_task(leases.write([order(1)]))
    await ours.hear()
    leases.answered(LeaseAnswer(1, None))
    with pytest.raises(StoreUnavailable):
        await asking
    ours.close()
    theirs.close()
