"""The ledger on disk, and the purse that leases ahead: locks, damage, a full disk."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from freeapi.errors import (
    BudgetBusy,
    BudgetExhausted,
    LedgerUnavailable,
    ShuttingDown,
)
from freeapi.policy.budget import Caps, Grant, Reservation
from freeapi.state import ledger as module
from freeapi.state.ledger import Ledger, LedgerError, Purse, read_grants

#: 2026-11-23 12:00 UTC.
NOON_S = 1_795_435_200.0
DAY = "2026-11-23"
CALLER = b"caller"
CAPS = Caps(daily_nanousd=1_000_000)
SLICE = 10_000


def rows(folder: Path) -> dict[str, int]:
    """What is leased, by period."""
    return {row.period: row.leased_nanousd for row in read_grants(folder, NOON_S)}


def purse(ledger: Ledger, report: Callable[[str], None] = print) -> Purse:
    """A purse on a clock that stands."""
    return Purse(CAPS, ledger, lambda: NOON_S, report)


async def take(purse: Purse, amount: int) -> Reservation:
    """Reserve as one caller."""
    return await purse.reserve("u", CALLER, amount)


# --- The file -------------------------------------------------------------------------------------


def test_rows_survive(tmp_path: Path) -> None:
    """What was written is there after a restart; months that are over aren't read."""
    ledger = Ledger(tmp_path / "new" / "folder")
    written = [Grant("all", DAY, 1), Grant("all", "2026-11", 2), Grant("all", "2026-10-31", 3)]
    ledger.write(written)
    ledger.write([Grant("all", DAY, 4)])
    ledger.close()
    again = Ledger(tmp_path / "new" / "folder")
    assert set(again.grants(NOON_S)) == {Grant("all", DAY, 4), Grant("all", "2026-11", 2)}
    again.close()


def test_write_is_all_or_nothing(tmp_path: Path) -> None:
    """If one row can't be written, none is, and the next write works."""
    with closing(Ledger(tmp_path)) as ledger:
        with pytest.raises(sqlite3.IntegrityError):
            ledger.write([Grant("all", DAY, 1), Grant("all", DAY, -1)])
        assert ledger.grants(NOON_S) == []
        ledger.write([Grant("all", DAY, 1)])
        assert ledger.grants(NOON_S) == [Grant("all", DAY, 1)]


def test_every_write_is_synced(tmp_path: Path) -> None:
    """The connection writes ahead and syncs at each commit."""
    with closing(Ledger(tmp_path)) as ledger:
        pragma = ledger._connection.execute
        assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)
        assert pragma("PRAGMA synchronous").fetchone() == (2,)


def test_second_process_is_refused(tmp_path: Path) -> None:
    """Another process on the same folder is told whose it is; after that one's end it may."""
    open_it = "import sys, pathlib, freeapi.state.ledger as l; l.Ledger(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", open_it, str(tmp_path)]
    ledger = Ledger(tmp_path)
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    ledger.close()
    assert f"in use by process {os.getpid()}" in refused.stderr
    assert "FREEAPI_DATA_DIR" in refused.stderr
    assert subprocess.run(command, check=False).returncode == 0


def damage_garbage(path: Path) -> None:
    """Overwrite all of it."""
    path.write_bytes(random.Random(1).randbytes(8192))


def damage_empty(path: Path) -> None:
    """Cut it to nothing."""
    path.write_bytes(b"")


def damage_half(path: Path) -> None:
    """Cut its last page off."""
    path.write_bytes(path.read_bytes()[:-4096])


def damage_row(path: Path) -> None:
    """Put a number in that can't be."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        connection.execute("UPDATE lease SET leased_nanousd = -5")


def damage_missing(path: Path) -> None:
    """Take the file and leave its journal."""
    path.rename(path.with_name("ledger.db-wal"))


def damage_other(path: Path) -> None:
    """Put another program's database there."""
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (x)")
        connection.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize(
    "damage",
    [damage_garbage, damage_empty, damage_half, damage_row, damage_missing, damage_other],
)
def test_damaged_ledger_stops_the_start(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """A ledger that isn't whole is refused with what to do, every time, and the lock is let go."""
    with closing(Ledger(tmp_path)) as ledger:
        ledger.write([Grant("all", DAY, 7)])
    damage(tmp_path / "ledger.db")
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"is damaged .* move .*ledger.db\* away"):
            Ledger(tmp_path)


def test_other_version_stops_the_start(tmp_path: Path) -> None:
    """A ledger of a version that isn't known is refused, and left as it is."""
    Ledger(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(LedgerError, match="is of version 2"):
        Ledger(tmp_path)


def test_folder_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    """Where a file stands in the folder's place, the start is refused with what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="check the permissions"):
        Ledger(tmp_path / "file")
    with pytest.raises(LedgerError, match="check the permissions"):
        Ledger(tmp_path / "file" / "below")


def test_full_disk_stops_the_start(tmp_path: Path) -> None:
    """A ledger that can't be made for want of space is refused, and none is left half made."""
    with full_disk(), pytest.raises(LedgerError, match="free space"):
        Ledger(tmp_path)
    Ledger(tmp_path).close()


def test_rows_can_be_read_while_another_holds_the_ledger(tmp_path: Path) -> None:
    """To show what is left needs no lock; no ledger is no rows, a damaged one is refused."""
    assert read_grants(tmp_path, NOON_S) == []
    ledger = Ledger(tmp_path)
    ledger.write([Grant("all", DAY, 5)])
    assert read_grants(tmp_path, NOON_S) == [Grant("all", DAY, 5)]
    ledger.close()
    assert read_grants(tmp_path, NOON_S) == [Grant("all", DAY, 5)]
    damage_garbage(tmp_path / "ledger.db")
    with pytest.raises(LedgerError, match="is damaged"):
        read_grants(tmp_path, NOON_S)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow: the same errors as on a disk without space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- The purse ------------------------------------------------------------------------------------


async def test_lease_is_on_disk_before_it_is_reserved(tmp_path: Path) -> None:
    """Whatever is reserved, the ledger's row covers it; once warm, nobody waits."""
    money = purse(Ledger(tmp_path))
    reserved = 0
    for amount in (1, 4_000, 4_000, 4_000, 30_000, 1, 200_000):
        reserved += (await take(money, amount)).amount_nanousd
        assert reserved <= rows(tmp_path)[DAY] <= reserved + 2 * SLICE
    assert money.status().left_today_nanousd == 1_000_000 - reserved
    await money.close()
    assert rows(tmp_path) == {DAY: reserved}


async def test_warm_lease_needs_no_wait(tmp_path: Path) -> None:
    """A reservation out of a warm lease ends without going through the event loop."""
    money = purse(Ledger(tmp_path))
    await take(money, 1)
    coroutine = take(money, 1)
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    assert isinstance(ended.value.value, Reservation)
    await money.close()


async def test_waiters_are_served_in_their_order(tmp_path: Path) -> None:
    """A large request isn't passed by small ones that come after it."""
    money = purse(Ledger(tmp_path))
    served: list[int] = []

    async def one(amount: int) -> None:
        await take(money, amount)
        served.append(amount)

    amounts = [100_000, 3, 50_000, 5, 6_000, 7_000, 8]
    async with asyncio.TaskGroup() as group:
        for amount in amounts:
            group.create_task(one(amount))
    assert served == amounts
    await money.close()


async def test_free_request_passes_those_that_wait(tmp_path: Path) -> None:
    """What costs nothing doesn't wait for a lease."""
    money = purse(Ledger(tmp_path))
    waiting = asyncio.get_running_loop().create_task(take(money, 1))
    await asyncio.sleep(0)
    with pytest.raises(StopIteration):
        money.reserve("local", CALLER, 0).send(None)
    assert (await waiting).amount_nanousd == 1
    await money.close()


async def test_caller_who_goes_while_waiting_takes_nothing(tmp_path: Path) -> None:
    """Cancelled before its lease, or in the very tick in which it is served: all is given back."""
    money = purse(Ledger(tmp_path))
    loop = asyncio.get_running_loop()
    early, first, late = (loop.create_task(take(money, amount)) for amount in (10, 200, 3_000))
    await asyncio.sleep(0)
    early.cancel()
    served = money._waiters[2].result
    # Both are served by one write, and the later one is cancelled before it wakes up.
    money._waiters[1].result.add_done_callback(lambda _: late.cancel())
    for task in (early, late):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert served.result().amount_nanousd == 3_000
    assert (await first).amount_nanousd == 200
    assert money.status().left_today_nanousd == 1_000_000 - 200
    await money.close()


async def test_exhausted_while_waiting(tmp_path: Path) -> None:
    """Of those that wait together, the ones for whom nothing is left are refused."""
    money = purse(Ledger(tmp_path))
    results = await asyncio.gather(
        *(take(money, 600_000) for _ in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [Reservation, BudgetBusy, BudgetBusy]
    await money.close()


async def test_full_disk_stops_spending_and_mends_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no space, no more is reserved than is leased; with space, all works again."""
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    reports: asyncio.Queue[str] = asyncio.Queue()
    money = purse(Ledger(tmp_path), report=reports.put_nowait)
    reserved = (await take(money, 1)).amount_nanousd
    with full_disk():
        results = await asyncio.gather(
            *(take(money, 1_000) for _ in range(20)), return_exceptions=True
        )
        reserved += 1_000 * sum(isinstance(result, Reservation) for result in results)
        assert isinstance(results[-1], LedgerUnavailable)
        with pytest.raises(LedgerUnavailable) as caught:
            await take(money, SLICE * 2)
        assert caught.value.retry_after_s == 0.02
    assert reserved <= rows(tmp_path)[DAY]
    assert (await reports.get()).startswith("SQLITE_")
    assert await reports.get() == "ok"
    reserved += (await take(money, SLICE * 2)).amount_nanousd
    await money.close()
    assert rows(tmp_path)[DAY] == reserved


async def test_new_caps_are_kept_to_at_once_and_on_disk(tmp_path: Path) -> None:
    """After a change the new cap holds, what was spent stays, and the ledger follows."""
    money = purse(Ledger(tmp_path))
    (await take(money, 30_000)).settle(20_000)
    money.reconfigure(Caps(daily_nanousd=25_000))
    with pytest.raises(BudgetExhausted):
        await take(money, 5_001)
    assert (await take(money, 5_000)).amount_nanousd == 5_000
    money.reconfigure(Caps(daily_nanousd=1_000_000))
    await take(money, 600_000)
    await money.close()
    assert rows(tmp_path) == {DAY: 625_000}


async def test_who_waits_for_a_lease_is_decided_by_the_new_caps(tmp_path: Path) -> None:
    """A lowered cap refuses those that wait, and without caps they are served."""
    money = purse(Ledger(tmp_path))
    loop = asyncio.get_running_loop()
    refused = loop.create_task(take(money, 600_000))
    await asyncio.sleep(0)
    money.reconfigure(Caps(daily_nanousd=1_000))
    with pytest.raises(BudgetExhausted):
        await refused
    served = loop.create_task(take(money, 700))
    await asyncio.sleep(0)
    money.reconfigure(Caps())
    assert (await served).amount_nanousd == 700
    assert (await take(money, 10**15)).amount_nanousd == 10**15
    await money.close()


async def test_close_on_a_full_disk_forfeits_the_lease(tmp_path: Path) -> None:
    """If the end can't be written down the rest of the lease is lost, and nothing else."""
    reports: asyncio.Queue[str] = asyncio.Queue()
    money = purse(Ledger(tmp_path), report=reports.put_nowait)
    await take(money, 1)
    await take(money, SLICE // 2)
    with full_disk():
        await money.close()
    assert (await reports.get()).startswith("SQLITE_")
    assert rows(tmp_path)[DAY] >= SLICE
    Ledger(tmp_path).close()


async def test_close_refuses_those_that_wait(tmp_path: Path) -> None:
    """At the end whoever waits, or comes later, is told that the instance stops."""
    money = purse(Ledger(tmp_path))
    waiting = asyncio.get_running_loop().create_task(take(money, 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await money.close()
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await take(money, 1)
    assert rows(tmp_path)[DAY] == 0


async def test_crash_forfeits_two_slices_at_most(tmp_path: Path) -> None:
    """What a process that just ends had leased without using is at most 2 % of the cap."""
    ledger = Ledger(tmp_path)
    money = purse(ledger)
    used = 0
    for amount in (100, 400_000, 3_000, 9_000, 70_000):
        reservation = await take(money, amount)
        reservation.settle(amount // 10)
        used += amount // 10
    await asyncio.sleep(0)  # lets what is due begin
    while money._write is not None:
        await asyncio.wait([money._write])
        await asyncio.sleep(0)
    assert used <= rows(tmp_path)[DAY] <= used + 2 * SLICE
    await money.close()
