"""Promise: never over the cap, though the gateway is killed, over and over, under full load.

The scripted upstream adds up what it would bill over all lives: an answer that was complete at what
it said, any other request in full. The rest is what else can happen to what remembers the sum: a
second process, a damaged file, a full disk.
"""

from __future__ import annotations

import asyncio
import random
import resource
import signal
from pathlib import Path

import pytest

from tests.answers import answer, chat_json
from tests.biller import DEAR, Biller, Load
from tests.conftest import StartGateway, upstream_settings
from tests.crowd import events
from tests.gateway import TROUBLE, UNLIMITED_MODEL, Gateway, run
from tests.money import (
    PRICES,
    cap,
    cost_nanousd,
    left_becomes,
    left_nanousd,
)
from tests.raw_client import ask, caller
from tests.scripted_upstream import (
    PATIENCE_S,
    ScriptedUpstream,
    listening_socket,
    send,
)

#: Enough for 93 requests at their worst case; a slice is one request.
CAP = 200_000_000
#: So many ledgers, each for as many lives of a gateway. How often a ledger survives a kill at any
#: point is ``state/test_ledger_crash``'s: here it is the whole process.
CAREERS, LIVES = 3, 10
SPENDERS = 12
#: Of all callers in one life.
REQUESTS_MAX = 80


async def live(home: Path, biller: Biller, chance: random.Random) -> None:
    """One life of a gateway, which a signal ends amid the load."""
    settings = {**upstream_settings(biller.upstream.port), **cap(CAP, FREEAPI_DRAIN_S="0")}
    gateway = await asyncio.to_thread(Gateway, home, settings, UNLIMITED_MODEL + PRICES)
    load = Load(gateway.port)
    async with asyncio.TaskGroup() as group:
        for _ in range(SPENDERS):
            group.create_task(load.caller())
        await load.reaches(chance.randrange(REQUESTS_MAX))
        for _ in range(chance.randrange(30)):
            await asyncio.sleep(0)
        gateway.process.send_signal(signal.SIGTERM if chance.random() < 0.2 else signal.SIGKILL)
        await asyncio.to_thread(gateway.wait)
    assert not TROUBLE.search(gateway.output()), gateway.output()


async def career(home: Path, lives: int, seed: int) -> int:
    """Many lives with one ledger; returns what the upstream bills for all of them."""
    chance = random.Random(seed)
    upstream = ScriptedUpstream()
    await upstream.listen(listening_socket())
    biller = Biller(upstream, chance)
    for _ in range(lives):
        await live(home, biller, chance)
    await upstream.close()
    return biller.billed_nanousd


async def careers(folder: Path, count: int, lives: int) -> list[int]:
    """The bills of that many, at once: where one waits for its gateway's start, others go on."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(career(folder / str(seed), lives, seed)) for seed in range(count)
        ]
    return [task.result() for task in tasks]


@pytest.mark.timeout(300)  # 30 starts
async def test_no_kill_makes_it_spend_more_than_the_cap(tmp_path: Path) -> None:
    """Over 30 lives that end by SIGKILL or SIGTERM amid the load, no bill is above its cap."""
    asyncio.get_running_loop().set_debug(False)
    bills = await careers(tmp_path, CAREERS, LIVES)
    assert len(bills) == CAREERS
    assert max(bills) <= CAP
    # They did spend, rather than forfeit it all.
    assert sum(bills) > CAREERS * CAP / 2


# --- Starting anew --------------------------------------------------------------------------------

SPENT = cost_nanousd(30, 1_000)
PLENTY = 1_000_000_000


async def spend(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """One request, settled within what it had reserved."""
    upstream.plays([send(answer(200, chat_json("Hi", 30, 1_000)))])
    left = await left_nanousd(gateway)
    assert (await ask(gateway.port, DEAR)).status == 200
    await left_becomes(gateway, left - SPENT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
async def test_restart_keeps_what_was_spent(
    upstream: ScriptedUpstream, tmp_path: Path, number: signal.Signals
) -> None:
    """After SIGTERM exactly, after a kill within 2 % of the cap, and never less than was spent."""
    settings = {**upstream_settings(upstream.port), **cap(PLENTY)}
    left = PLENTY
    for _ in range(3):
        gateway = await asyncio.to_thread(Gateway, tmp_path, settings, UNLIMITED_MODEL + PRICES)
        found = await left_nanousd(gateway)
        assert found <= left
        assert found == left if number == signal.SIGTERM else found >= left - PLENTY * 0.02
        await spend(gateway, upstream)
        left = found - SPENT
        gateway.process.send_signal(number)
        await asyncio.to_thread(gateway.wait)


async def test_second_process_is_refused(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Two on one ledger would both spend the cap: the second says who has it and exits with 1."""
    first = await start_gateway(PRICES, **cap(PLENTY))
    settings = {**upstream_settings(upstream.port), **cap(PLENTY)}
    code, printed = await asyncio.to_thread(run, first.home, settings, UNLIMITED_MODEL + PRICES)
    assert code == 1
    assert f"in use by process {first.process.pid}" in printed
    assert "FREEAPI_DATA_DIR" in printed
    assert "Traceback" not in printed
    await spend(first, upstream)


@pytest.mark.parametrize("damage", ["overwritten", "cut", "empty"])
async def test_damaged_ledger_is_refused(
    upstream: ScriptedUpstream, start_gateway: StartGateway, damage: str
) -> None:
    """What was spent isn't known any more: the start says so, and what to do, and exits with 1."""
    gateway = await start_gateway(PRICES, **cap(PLENTY))
    await spend(gateway, upstream)
    await asyncio.to_thread(gateway.stop)
    file = gateway.home / "ledger.db"
    whole = file.read_bytes()
    damaged = {"overwritten": b"\xff" * len(whole), "cut": whole[: len(whole) // 2], "empty": b""}
    file.write_bytes(damaged[damage])
    settings = {**upstream_settings(upstream.port), **cap(PLENTY)}
    code, printed = await asyncio.to_thread(run, gateway.home, settings, UNLIMITED_MODEL + PRICES)
    assert code == 1
    assert "damaged" in printed
    assert "FREEAPI_DAILY_USD" in printed
    assert "Traceback" not in printed


def allow_files_of(gateway: Gateway, size_bytes: int) -> None:
    """Let the process write no further than this in any file, as on a full disk."""
    _, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


async def test_full_disk_stops_spending_and_mends_itself(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """What can't be written down isn't spent: 503, and answers again once there is room."""
    gateway = await start_gateway(PRICES, **cap(PLENTY))
    await spend(gateway, upstream)
    allow_files_of(gateway, 0)
    async with caller(gateway.port) as connection:
        answers = [await connection.ask(DEAR) for _ in range(5)]
        # A slice is 1 % of the cap, which is one such answer: what was leased is spent first.
        refused = answers[-1]
        assert refused.status == 503
        assert refused.error()["code"] == "upstream_unavailable"
        assert refused.header("retry-after") == "1"
        seen = len(upstream.requests)
        assert (await connection.ask(DEAR)).status == 503
        assert len(upstream.requests) == seen
        # Everything else goes on.
        assert await left_nanousd(gateway) > 0
        allow_files_of(gateway, resource.RLIM_INFINITY)
        async with asyncio.timeout(PATIENCE_S):
            answers = [await connection.ask(DEAR)]
            while answers[-1].status != 200:
                answers.append(await connection.ask(DEAR))
    await asyncio.to_thread(gateway.stop)
    # It was told when it began and when it was over.
    assert events(gateway, "ledger") == 2
