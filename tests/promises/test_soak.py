"""Promise: it can run for months: memory stays flat, and any number of restarts leaves nothing.

The loads are those of ``bench/soak``, which has the full size of issue 5 (200,000 requests, 10,000
aborted streams, 1,000 restarts); here they are a tenth and less, after a warm-up of their own.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench.soak import (
    CONNECTIONS,
    abort_streams,
    answer_requests,
    quick_upstream,
    reserved_port,
    restart,
    streams_open,
    use_once,
)
from tests.answers import DONE, STREAM_HEAD, delta
from tests.conftest import StartGateway, upstream_settings
from tests.gateway import UNLIMITED_MODEL, Gateway
from tests.raw_client import Caller, ask, caller, chat
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream, chunk, hang, send

#: "RSS growth under 5 %" (issue 5).
GROWTH_MAX = 0.05
REQUESTS, STREAMS = 20_000, 1_000
UPSTREAM_RESTARTS = 1_000
#: Rounds after which memory is looked at for the first time.
WARM_UP_ROUNDS = 100
RESTARTS, MODEL_RESTARTS = 8, 2


@pytest.fixture(scope="module")
def quick_port() -> Iterator[int]:
    """An upstream that keeps up with the load, in a process of its own."""
    with quick_upstream() as port:
        yield port


@pytest.fixture(scope="module")
def loaded(quick_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway in front of it."""
    home = tmp_path_factory.mktemp("loaded")
    gateway = Gateway(home, upstream_settings(quick_port), UNLIMITED_MODEL)
    yield gateway
    gateway.stop()


@pytest.fixture(autouse=True)
async def _fast_loop() -> None:
    """asyncio's debug mode is for our own code, which doesn't run in this process here."""
    asyncio.get_running_loop().set_debug(False)


async def test_memory_is_flat_over_many_requests(loaded: Gateway) -> None:
    """20,000 requests later the process is as large as before, and holds no more descriptors."""
    files = loaded.open_files()
    await answer_requests(loaded.port, REQUESTS // 10)
    before_bytes = loaded.resident_bytes()
    await answer_requests(loaded.port, REQUESTS)
    assert loaded.resident_bytes() < before_bytes * (1 + GROWTH_MAX)
    async with asyncio.timeout(PATIENCE_S):
        while loaded.open_files() > files + CONNECTIONS:  # the kept-alive ones to the upstream
            await answer_requests(loaded.port, 1)


async def test_memory_is_flat_over_aborted_streams(loaded: Gateway, quick_port: int) -> None:
    """The same of 1,000 streams that their callers left, all of which are closed upstream."""
    await abort_streams(loaded.port, STREAMS // 10)
    before_bytes = loaded.resident_bytes()
    await abort_streams(loaded.port, STREAMS)
    assert loaded.resident_bytes() < before_bytes * (1 + GROWTH_MAX)
    async with asyncio.timeout(PATIENCE_S):
        while await asyncio.to_thread(streams_open, quick_port):
            pass


# --- Restarts of the upstream ---------------------------------------------------------------------


async def dies_between_requests(upstream: ScriptedUpstream, asking: Caller) -> None:
    """Nobody notices."""
    await upstream.close()


async def dies_before_its_answer(upstream: ScriptedUpstream, asking: Caller) -> None:
    """The caller who waits is told."""
    upstream.plays([hang()])
    await asking.send(chat())
    await upstream.exchange(1)
    await upstream.close()
    assert (await asking.answer()).status == 502


async def dies_in_a_stream(upstream: ScriptedUpstream, asking: Caller) -> None:
    """The caller has what came whole, and is told."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("Hi")), hang()])
    await asking.send(chat(stream=True))
    given = await asking.head()
    await asking.receive_until(given, delta("Hi"))
    await upstream.close()
    while await asking.piece(given):
        pass
    assert given.body.startswith(delta("Hi") + b'data: {"error":')
    assert DONE not in given.body


async def is_missed(upstream: ScriptedUpstream, asking: Caller) -> None:
    """A caller who comes while nothing listens is told."""
    await upstream.close()
    assert (await asking.ask(chat())).status == 502


DEATHS = (dies_between_requests, dies_before_its_answer, dies_in_a_stream, is_missed)


async def test_upstream_may_die_a_thousand_times(start_gateway: StartGateway) -> None:
    """However it dies, it is used again as soon as it is back; memory and descriptors stay flat."""
    with reserved_port() as port:
        gateway = await start_gateway(OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1")
        before_bytes = files = 0
        for number in range(UPSTREAM_RESTARTS):
            upstream = ScriptedUpstream()
            await upstream.listen(listening_again(port))
            async with caller(gateway.port) as asking:
                assert (await asking.ask(chat(str(number)))).text() == str(number)
                await DEATHS[number % len(DEATHS)](upstream, asking)
            if number == WARM_UP_ROUNDS:
                before_bytes, files = gateway.resident_bytes(), gateway.open_files()
    assert gateway.resident_bytes() < before_bytes * (1 + GROWTH_MAX)
    assert gateway.open_files() <= files + 1  # a caller's that it hasn't seen to be closed yet


def listening_again(port: int) -> socket.socket:
    """A socket that listens where one did a moment ago."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


# --- Restarts of the gateway ----------------------------------------------------------------------


def test_restarts_leave_nothing(quick_port: int, tmp_path: Path) -> None:
    """Each of eight restarts on one port serves, ends cleanly, and leaves no file or process."""
    settings = {**upstream_settings(quick_port), "TMPDIR": str(tmp_path)}
    restart(tmp_path / "home", settings, RESTARTS, use_once)
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "freeapi.toml"]


def test_restarts_with_the_embedded_model_leave_nothing(tmp_path: Path) -> None:
    """The same with a model of our own, which has a process and a socket."""
    with tempfile.TemporaryDirectory() as short:  # a Unix socket's path has at most 107 bytes

        def ask_the_model(gateway: Gateway) -> None:
            assert asyncio.run(ask(gateway.port, chat(max_tokens=1))).status == 200
            assert len(processes_naming(short)) == 1

        restart(tmp_path, {"TMPDIR": short}, MODEL_RESTARTS, ask_the_model)
        assert processes_naming(short) == []
        assert list(Path(short).iterdir()) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["freeapi.toml"]


def processes_naming(folder: str) -> list[str]:
    """The command lines in which this folder stands, as in that of a model's process."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if folder in line]
