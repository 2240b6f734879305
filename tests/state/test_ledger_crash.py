"""A process that spends at full speed and is killed, over and over, against a real ledger."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from freeapi.errors import BudgetBusy, BudgetExhausted
from freeapi.policy.budget import Caps
from freeapi.state.ledger import Ledger, Purse, read_grants

ROOT = Path(__file__).parents[2]
#: 2026-11-23 12:00 UTC.
NOON_S = 1_795_435_200.0
CALLER = b"caller"
CAPS = Caps(daily_nanousd=1_000_000)


def spend_until_killed(folder: Path, pipe: int, seed: int) -> None:
    """Reserve and settle at full speed; tell of each request before it would be sent."""
    chance = random.Random(seed)

    async def spender(name: str, purse: Purse) -> None:
        for number in range(10**9):
            amount = chance.choice((10, 100, 1_000, 50_000))
            try:
                reservation = await purse.reserve("u", CALLER, amount)
            except BudgetBusy:
                await asyncio.sleep(0)
                continue
            if chance.random() < 0.1:
                reservation.release()
                continue
            os.write(pipe, b"+ %s.%d %d\n" % (name.encode(), number, amount))
            await asyncio.sleep(0)  # others go on; the kill may come here
            if chance.random() < 0.1:
                reservation.settle(None)
                continue
            actual = chance.randrange(amount + 1)
            os.write(pipe, b"= %s.%d %d\n" % (name.encode(), number, actual))
            reservation.settle(actual)

    async def live() -> None:
        purse = Purse(CAPS, Ledger(folder), lambda: NOON_S, lambda label: None)
        async with asyncio.TaskGroup() as group:
            for name in "abcdefgh":
                group.create_task(spender(name, purse))

    try:
        asyncio.run(live())
    except* BudgetExhausted:
        os._exit(0)


def bill_of_a_life(folder: Path, seed: int, life_s: float) -> int:
    """What the upstream would bill for a life that is killed some time after its first request."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        spend_until_killed(folder, writer, seed)
    os.close(writer)
    data, end_s = b"", time.monotonic() + 10
    while select.select([reader], [], [], max(0.0, end_s - time.monotonic()))[0]:
        piece = os.read(reader, 65_536)
        if not piece:
            break
        if not data:
            end_s = time.monotonic() + life_s
        data += piece
    os.kill(child, signal.SIGKILL)
    while piece := os.read(reader, 65_536):
        data += piece
    os.close(reader)
    os.waitpid(child, 0)
    bill: dict[bytes, int] = {}
    for line in data.splitlines():
        _, name, amount = line.split()
        bill[name] = int(amount)  # the worst case, until it is settled
    return sum(bill.values())


def many_lives() -> None:
    """In a process without threads, so that it can fork: print each life's bill, and what the
    ledger says was leased before it and after."""
    chance = random.Random()
    # Where it is in memory, many writes fit into a short life.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    for _ in range(10):
        with tempfile.TemporaryDirectory(dir=memory) as name:
            folder, before = Path(name), 0
            for _ in range(12):
                seed, life_s = chance.randrange(10**9), chance.uniform(0, 0.006)
                bill = bill_of_a_life(folder, seed, life_s)
                after = sum(row.leased_nanousd for row in read_grants(folder, NOON_S))
                print(bill, before, after)
                before = after


def test_no_kill_makes_it_spend_more_than_the_cap() -> None:
    """Over 120 lives that end with kill -9 amid full load, no ledger's bill exceeds its cap, and
    no life's bill what it has leased."""
    run = "from tests.state.test_ledger_crash import many_lives; many_lives()"
    done = subprocess.run(
        [sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lives = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert len(lives) == 120
    for bill, before, after in lives:
        assert bill <= after - before
    for first in range(0, 120, 12):
        assert sum(bill for bill, _, _ in lives[first : first + 12]) <= 1_000_000
    # They did spend, rather than forfeit it all.
    assert sum(bill for bill, _, _ in lives) > 10 * 100_000
