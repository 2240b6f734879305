"""Promise: ``--workers 3`` is one gateway: its limits, its cap, its reloads and its admin port.

One supervisor and its workers, on one port, with a Valkey of their own that nobody configured. The
module's tests share one such instance as far as they leave it as they found it.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.answers import DONE, LAST_CHUNK, STREAM_HEAD, delta
from tests.biller import DEAR, Biller
from tests.conftest import upstream_settings
from tests.crowd import ADDRESS, OPEN_DOOR, crowd
from tests.free_ports import free_port
from tests.gateway import SERVE, UNLIMITED_MODEL, Gateway, run
from tests.money import NANO, PRICES, cap, left_nanousd
from tests.operator_view import Pool, to_host
from tests.raw_client import Answer, ask, caller, chat, request
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream, chunk, pause, send
from tests.spending import journal, logged, spend_rest

WORKERS = 3
COMMAND = (*SERVE, "--workers", str(WORKERS))
CONFIG = UNLIMITED_MODEL + PRICES
#: For tests that count: nobody else asks for these.
COUNTED_MODELS = "".join(f'[[model]]\nname = "{name}"\n{PRICES}' for name in ("m1", "m2"))
NAMES = ["gpt-3.5-turbo", "m1", "m2", "m3"]
#: One request, and the next ten seconds later.
SLOW_MODEL = f'[[model]]\nname = "m3"\nrpm = 6\n{PRICES}'
COUNTED = r'freeapi_requests_total\{endpoint="chat",'
#: For processes to end that have nothing left to do.
MOMENT_S = 5.0


def children(pid: int) -> dict[int, str]:
    """The processes that this one has started, and their commands."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {int(one): Path(f"/proc/{one}/cmdline").read_bytes() for one in pids}
    return {one: command.replace(b"\0", b" ").decode() for one, command in commands.items()}


def workers_of(gateway: Gateway) -> list[int]:
    """Its workers that have started, by process."""
    return [pid for pid, command in children(gateway.process.pid).items() if "--worker" in command]


async def metric(pool: Pool, line: str) -> float:
    """The sum of all samples whose line begins so, as ``GET /metrics`` says."""
    shown = await ask(pool.admin_port, to_host("localhost", "GET", "/metrics"))
    assert shown.status == 200
    found = re.findall(rf"^{line}\S* (\S+)$", shown.body.decode(), re.MULTILINE)
    return sum(map(float, found))


async def metric_becomes(pool: Pool, line: str, value: float) -> None:
    """Wait for a metric: an answer arrives just before it is counted."""
    async with asyncio.timeout(PATIENCE_S):
        while (now := await metric(pool, line)) != value:
            assert now < value, f"{line}: {now}"
            await asyncio.sleep(0.02)


def start(folder: Path, port: int, config: str = CONFIG, **settings: str) -> Pool:
    """A supervisor and its workers."""
    admin_port = free_port()
    chosen = {
        **upstream_settings(port),
        **OPEN_DOOR,
        "FREEAPI_ADMIN_ADDR": f"{ADDRESS}:{admin_port}",
        "FREEAPI_QUEUE_S": "0",
        **settings,
    }
    return Pool(Gateway(folder, chosen, config, COMMAND), admin_port)


@pytest.fixture(scope="module")
def shared_pool(
    listener: socket.socket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pool]:
    """The instance of all tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("workers")
    settings = cap(100 * NANO, FREEAPI_CALLER_RPM="600")
    pool = start(
        folder, listener.getsockname()[1], CONFIG + COUNTED_MODELS + SLOW_MODEL, **settings
    )
    yield pool
    pool.gateway.stop()


@pytest.fixture
def pool(upstream: ScriptedUpstream, shared_pool: Pool) -> Pool:
    """The same, with this test's upstream behind it."""
    assert shared_pool.gateway.process.poll() is None, shared_pool.gateway.output()
    return shared_pool


async def test_limits_hold_over_all_workers(upstream: ScriptedUpstream, pool: Pool) -> None:
    """Of 300 at once, over all workers, one burst (limit / 6) gets in, and what refills."""
    start_s = time.monotonic()
    answers = await crowd(pool.port, chat(), ["127.0.5.1"] * 300)
    elapsed_s = time.monotonic() - start_s
    count = sum(one.status == 200 for one in answers)
    assert 100 <= count <= 101 + 10 * elapsed_s
    assert {one.error()["code"] for one in answers if one.status != 200} == {"rate_limit_exceeded"}
    assert len(upstream.requests) == count


async def test_connections_are_spread_and_metrics_added_up(
    upstream: ScriptedUpstream, pool: Pool
) -> None:
    """All workers serve; the admin port shows their sum, and each key's."""
    addresses = [f"127.0.6.{number}" for number in range(1, 61)]
    idle_s = [cpu_s(one) for one in workers_of(pool.gateway)]
    assert {one.status for one in await crowd(pool.port, chat(model="m1"), addresses)} == {200}
    # At once: it is asked of the workers, whose own reports are a second apart.
    assert await metric(pool, COUNTED + 'model="m1"') == 60
    (key,) = await pool.keys()
    assert int(key["requests"]) >= 60
    assert await metric(pool, "freeapi_upstream_tries_total") == key["requests"]
    # Of 60 connections, a worker would get none once in ten billion times.
    assert all(cpu_s(one) > was for one, was in zip(workers_of(pool.gateway), idle_s, strict=True))


async def test_status_tells_what_is_left_of_models_limits(pool: Pool) -> None:
    """What one worker has let in is missing from what the page of any of them shows."""
    assert (await ask(pool.port, chat(model="m3"))).status == 200
    for _ in range(10):  # connections, and so workers
        await left_becomes_none(pool, "m3")
    assert await left_of(pool, "m1") is None


async def left_becomes_none(pool: Pool, model: str) -> None:
    """Wait until no request for the model would be let in: workers hear of it twice a second."""
    async with asyncio.timeout(PATIENCE_S):
        while await left_of(pool, model) != 0:  # noqa: ASYNC110 - the news is in another process
            await asyncio.sleep(0.02)


async def left_of(pool: Pool, model: str) -> int | None:
    """How many requests for a model ``GET /status`` says would be let in."""
    status = (await ask(pool.port, request("GET", "/status"))).json()
    (left,) = [one["requests_left"] for one in status["models"] if one["name"] == model]
    assert left is None or isinstance(left, int)
    return left


def cpu_s(pid: int) -> float:
    """The processor time of a process, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def test_killed_worker_is_replaced(upstream: ScriptedUpstream, pool: Pool) -> None:
    """After kill -9 of a worker another takes its place; no count of the dead is lost."""
    addresses = [f"127.0.7.{number}" for number in range(1, 31)]
    data, counted = chat(model="m2"), COUNTED + 'model="m2"'
    await crowd(pool.port, data, addresses)
    await metric_becomes(pool, counted, 30)
    victim, *others = workers_of(pool.gateway)
    exits = len(journal(pool.gateway, "worker_exit"))
    readies = len(journal(pool.gateway, "worker_ready"))
    os.kill(victim, signal.SIGKILL)
    await logged(pool.gateway, "worker_exit", exits + 1)
    assert await metric(pool, counted) == 30
    await logged(pool.gateway, "worker_ready", readies + 1)
    now = workers_of(pool.gateway)
    assert len(now) == WORKERS
    assert victim not in now
    assert set(others) < set(now)
    assert {one.status for one in await crowd(pool.port, data, addresses)} == {200}
    await metric_becomes(pool, counted, 60)


async def test_reload_reaches_all_and_a_bad_file_is_refused_once(
    upstream: ScriptedUpstream, pool: Pool
) -> None:
    """SIGHUP and a changed file change all workers; what can't be used changes none, said once."""
    file = pool.gateway.home / "freeapi.toml"
    good = file.read_text()
    count = len(journal(pool.gateway, "reloaded"))
    file.write_text(good + '\n[[model]]\nname = "new"\n' + PRICES)
    pool.gateway.process.send_signal(signal.SIGHUP)
    await logged(pool.gateway, "reloaded", count + 1 + WORKERS)
    models = [await listed(pool) for _ in range(12)]
    assert models == [[*NAMES, "new"]] * 12
    file.write_text(good + "nonsense = 1\n")
    await logged(pool.gateway, "reload_refused", 1)
    file.write_text(good)  # seen without a signal
    await logged(pool.gateway, "reloaded", count + 2 * (1 + WORKERS))
    assert [await listed(pool) for _ in range(12)] == [NAMES] * 12
    assert len(journal(pool.gateway, "reload_refused")) == 1
    assert await metric(pool, r'freeapi_reloads_total\{result="refused"') == 1
    assert await metric(pool, r'freeapi_reloads_total\{result="ok"') == 2


async def listed(pool: Pool) -> list[str]:
    """The models, over a new connection, so by any worker."""
    shown: dict[str, Any] = (await ask(pool.port, request("GET", "/v1/models"))).json()
    return [one["id"] for one in shown["data"]]


# --- Starts and ends ------------------------------------------------------------------------------


async def test_cap_holds_over_all_workers_and_a_killed_one(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """The bill stays within the cap through kill -9 of a worker, and after a restart alone."""
    total = 80_000_000
    biller = Biller(upstream, random.Random(3))
    pool = await asyncio.to_thread(start, tmp_path, upstream.port, **cap(total))
    async with asyncio.TaskGroup() as group:
        spending = [group.create_task(spend_rest(pool.gateway)) for _ in range(6)]
        await upstream.exchange(20)
        os.kill(workers_of(pool.gateway)[0], signal.SIGKILL)
    assert {one.done() for one in spending} == {True}
    assert 0.6 * total <= biller.billed_nanousd <= total
    left = await left_nanousd(pool.gateway)
    await asyncio.to_thread(pool.gateway.stop)
    settings = {**upstream_settings(upstream.port), **cap(total)}
    alone = await asyncio.to_thread(Gateway, tmp_path, settings, CONFIG)
    assert await left_nanousd(alone) <= max(left, total - biller.billed_nanousd)
    await spend_rest(alone)
    await asyncio.to_thread(alone.stop)
    assert biller.billed_nanousd <= total


async def test_day_is_kept_from_alone_to_workers_and_back(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """What workers have spent is known exactly to the one that comes after them."""
    total = 1_000_000_000
    settings = {**upstream_settings(upstream.port), **cap(total)}
    biller = Biller(upstream, random.Random(4))
    for command in (SERVE, COMMAND, SERVE):
        gateway = await asyncio.to_thread(Gateway, tmp_path, settings, CONFIG, command)
        left = await left_nanousd(gateway)
        if command is SERVE:
            assert left == total - biller.billed_nanousd
        assert [(await ask(gateway.port, DEAR)).status for _ in range(6)] == [200] * 6
        await asyncio.to_thread(gateway.stop)


async def test_drain_reaches_all_workers(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """After SIGTERM open streams at all workers end whole, and then everything is gone."""
    pool = await asyncio.to_thread(start, tmp_path, upstream.port, UNLIMITED_MODEL)
    go_on = asyncio.Event()
    upstream.plays(
        [send(STREAM_HEAD), chunk(delta("one")), pause(go_on), chunk(DONE), send(LAST_CHUNK)]
    )
    started = children(pool.gateway.process.pid)

    async def hear() -> Answer:
        async with caller(pool.port) as connection:
            await connection.send(chat(stream=True))
            answer = await connection.head()
            await connection.receive_until(answer, delta("one"))
            await connection.receive_until(answer, DONE)
            return answer

    async with asyncio.TaskGroup() as group:
        hearing = [group.create_task(hear()) for _ in range(9)]
        await upstream.exchange(8)
        pool.gateway.terminate()
        await logged(pool.gateway, "drain", 1 + WORKERS)
        go_on.set()
    assert {task.result().body for task in hearing} == {delta("one") + DONE}
    assert await asyncio.to_thread(pool.gateway.wait) == 0, pool.gateway.output()
    assert not any(map(is_alive, started))


async def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    """After kill -9 of the supervisor no worker, no Valkey and no model is left a moment later."""
    pool = await asyncio.to_thread(start, tmp_path, 9, "", OPENAI_API_KEYS="", OPENAI_BASE_URL="")
    assert (await ask(pool.port, chat(max_tokens=1))).status == 200
    left = children(pool.gateway.process.pid)
    assert len(left) == WORKERS + 2
    pool.gateway.process.kill()
    await asyncio.to_thread(pool.gateway.process.wait)
    async with asyncio.timeout(MOMENT_S):
        while alive := [pid for pid in left if is_alive(pid)]:
            assert set(alive) <= set(left)
            await asyncio.sleep(0.02)
    await asyncio.to_thread(pool.gateway.wait)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which its new parent may be slow to bury, doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_killed_store_is_replaced(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Without its Valkey nothing is let in; another is started, and callers are who they were."""
    pool = await asyncio.to_thread(start, tmp_path, upstream.port, FREEAPI_CALLER_RPD="100")
    (store,) = (p for p, name in children(pool.gateway.process.pid).items() if "valkey" in name)
    assert (await ask(pool.port, chat())).status == 200
    os.kill(store, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await ask(pool.port, chat())).status != 503:
            assert answer.status == 200
        assert answer.error()["code"] == "upstream_unavailable"
        while (answer := await ask(pool.port, chat())).status != 200:
            assert answer.status == 503
            await asyncio.sleep(0.05)
    assert len(journal(pool.gateway, "store_exit")) == 1
    await asyncio.to_thread(pool.gateway.stop)


def test_second_instance_is_refused(tmp_path: Path, shared_pool: Pool) -> None:
    """The ledger's folder and the port are one instance's: each is told of with the setting."""
    settings = {**upstream_settings(9), **cap(NANO)}
    home = {"FREEAPI_DATA_DIR": str(shared_pool.gateway.home)}
    code, printed = run(tmp_path, {**settings, **home}, CONFIG, COMMAND)
    assert (code, "FREEAPI_DATA_DIR" in printed, "Traceback" in printed) == (1, True, False)
    assert f"in use by process {shared_pool.gateway.process.pid}" in printed
    port = {"PORT": str(shared_pool.port)}
    code, printed = run(tmp_path, {**settings, **port}, CONFIG, COMMAND)
    assert (code, "HOST and PORT" in printed, "Traceback" in printed) == (1, True, False)
