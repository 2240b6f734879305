"""The connection to the shared store, against a real Valkey that is paused and killed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import libvalkey
import pytest
import trustme

from freeapi.state import valkey
from freeapi.state.valkey import Script, Store, StoreError, StoreUnavailable
from tests.valkey_server import ValkeyServer, serving

#: Short, since tests wait for it; a paused server answers never.
TIMEOUT_S = 0.2


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """A server that a test may treat badly."""
    with serving() as server:
        yield server


class Heard:
    """What the store reports, and a way to wait for it."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._new = asyncio.Event()

    def __call__(self, word: str) -> None:
        self.words.append(word)
        self._new.set()

    async def until(self, count: int) -> None:
        """Wait until so many were reported."""
        while len(self.words) < count:
            self._new.clear()
            await self._new.wait()


async def started(server: ValkeyServer, heard: Heard) -> Store:
    """A store that is up."""
    store = Store(server.url, timeout_s=TIMEOUT_S, report=heard)
    await store.start()
    return store


def answers(futures: list[asyncio.Future[Any]]) -> Awaitable[list[Any]]:
    """All of them, errors as values."""
    return asyncio.gather(*futures, return_exceptions=True)


async def test_answers_come_in_the_order_of_the_calls(server: ValkeyServer) -> None:
    """Two hundred calls made in one turn of the loop get each its own answer."""
    store = await started(server, Heard())
    calls = [store.command(b"ECHO", b"%d" % number) for number in range(200)]
    assert await answers(calls) == [b"%d" % number for number in range(200)]
    await store.close()


async def test_calls_of_one_turn_leave_in_one_write(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is called before the loop turns goes out in a single write."""
    store = await started(server, Heard())
    flushes = 0
    flush = valkey._Pipe._flush

    def counted(pipe: valkey._Pipe) -> None:
        nonlocal flushes
        flushes += 1
        flush(pipe)

    monkeypatch.setattr(valkey._Pipe, "_flush", counted)
    await answers([store.command(b"PING") for _ in range(64)])
    assert flushes == 1
    await store.close()


async def test_script_runs_and_survives_being_forgotten(server: ValkeyServer) -> None:
    """A function that the server has forgotten is sent again, and its call is answered."""
    store = await started(server, Heard())
    script = Script(b"return {KEYS[1], ARGV[1]}", b"0" * 40)
    known = store.know("meter", "join")
    assert len(known.sha) == 40
    assert await store.call(script, b"n", b"a") == [b"n", b"a"]
    await store.command(b"SCRIPT", b"FLUSH")
    assert await store.call(script, b"n", b"b") == [b"n", b"b"]
    await store.close()


async def test_a_mistake_in_a_call_is_told(server: ValkeyServer) -> None:
    """An error of the server's about the call itself reaches whoever called, and nobody else."""
    store = await started(server, Heard())
    wrong, right = await answers([store.command(b"NOSUCH"), store.command(b"PING")])
    assert isinstance(wrong, libvalkey.ReplyError)
    assert right == b"PONG"
    bad = store.call(Script(b"return nil .. 1", b"0" * 40), b"n", b"a")
    with pytest.raises(libvalkey.ReplyError):
        await bad
    assert store.is_up
    await store.close()


@pytest.mark.parametrize("harm", ["pause", "kill"])
async def test_calls_fail_in_time_and_it_recovers_by_itself(
    server: ValkeyServer, harm: str
) -> None:
    """Calls to a server that hangs or dies fail within the time-out; later ones at once; and when
    it is back so is the store, after its steps for a new connection."""
    heard = Heard()
    store = await started(server, heard)
    steps: list[bytes] = []

    async def step() -> None:
        steps.append(await store.call_early(Script(b"return 'hi'", b"1" * 40), b"n", b""))
        assert not store.is_up, "nobody else may call before the steps are done"

    store.on_up.append(step)
    getattr(server, harm)()
    start_s = asyncio.get_running_loop().time()
    failed = await answers([store.command(b"PING") for _ in range(10)])
    assert asyncio.get_running_loop().time() - start_s < 5 * TIMEOUT_S
    assert all(isinstance(error, StoreUnavailable) for error in failed)
    assert not store.is_up
    with pytest.raises(StoreUnavailable):
        await store.call(Script(b"", b""), b"n", b"")
    (server.resume if harm == "pause" else server.start)()
    await heard.until(3)
    assert heard.words == ["ok", "timeout" if harm == "pause" else "closed", "ok"]
    assert await store.command(b"PING") == b"PONG"
    assert steps == [b"hi"]
    await store.close()


async def test_server_that_loads_its_file_counts_as_away(server: ValkeyServer) -> None:
    """Answers that say that nobody can be served now end the connection, rather than the call."""
    heard = Heard()
    store = await started(server, heard)
    await store.command(b"CONFIG", b"SET", b"min-replicas-to-write", b"0")
    script = Script(b"return redis.error_reply('LOADING it loads')", b"2" * 40)
    with pytest.raises(StoreUnavailable):
        await store.call(script, b"n", b"")
    await heard.until(3)
    assert heard.words == ["ok", "loading", "ok"]
    await store.close()


async def test_closing_fails_what_is_open_and_stays_closed(server: ValkeyServer) -> None:
    """After the end open calls have failed, and no connection is made again."""
    store = await started(server, Heard())
    server.pause()
    call = store.command(b"PING")
    await store.close()
    with pytest.raises(StoreUnavailable):
        await call
    server.resume()
    assert "down" in repr(store)
    with pytest.raises(StoreUnavailable):
        await store.command(b"PING")


async def test_closing_while_it_connects(server: ValkeyServer) -> None:
    """The end stops the attempts to connect again."""
    heard = Heard()
    store = await started(server, heard)
    server.kill()
    await heard.until(2)
    await store.close()
    assert not store.is_up


@pytest.mark.parametrize(
    "url", ["valkey+sentinel://h/m", "http://h", "memory", "valkey://h:port/", "cluster://h"]
)
async def test_other_urls_are_refused(url: str) -> None:
    """What isn't a URL of one server is refused, with what is allowed."""
    with pytest.raises(StoreError, match="FREEAPI_STATE"):
        Store(url)


async def test_start_without_a_server_says_what_to_do(tmp_path: Path) -> None:
    """A store that isn't there stops the start with a sentence for the operator."""
    store = Store(f"unix://{tmp_path}/none", timeout_s=TIMEOUT_S)
    with pytest.raises(StoreError, match="check FREEAPI_STATE"):
        await store.start()
    await store.close()


@pytest.mark.parametrize(
    ("login", "is_right"), [(":right@", True), (":wrong@", False), ("", False)]
)
async def test_password_and_database_of_the_url(login: str, is_right: bool) -> None:
    """The URL's password is used, and a wrong or missing one stops the start."""
    with serving("--requirepass", "right") as server:
        store = Store(f"unix://{login}{server.socket}?db=2", timeout_s=TIMEOUT_S)
        if is_right:
            await store.start()
            info: bytes = await store.command(b"CLIENT", b"INFO")
            assert b" db=2 " in info
        else:
            with pytest.raises(StoreError, match="password"):
                await store.start()
        await store.close()


async def test_garbage_closes_the_connection(tmp_path: Path) -> None:
    """A server that speaks something else is left, and its calls fail."""
    said = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4_096):
            if b"PING" in data:
                said.set()
                writer.write(b"what?\r\n")
            else:
                writer.write(b"+OK\r\n" * data.count(b"*"))
        writer.close()

    path = tmp_path / "s"
    listener = await asyncio.start_unix_server(talk, path)
    heard = Heard()
    store = Store(f"unix://{path}", timeout_s=TIMEOUT_S, report=heard)
    await store.start()
    with pytest.raises(StoreUnavailable):
        await store.command(b"PING")
    assert said.is_set()
    await heard.until(2)
    assert heard.words[:2] == ["ok", "garbage"]
    await store.close()
    listener.close()


async def test_tls(server: ValkeyServer, tmp_path: Path) -> None:
    """``rediss://`` is TLS, with the server's certificate checked against the URL's authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_unix_connection(server.socket)
        await asyncio.gather(pump(reader, behind[1]), pump(behind[0], writer))

    # The server of tests has no TLS of its own.
    front = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    port = front.sockets[0].getsockname()[1]
    url = f"rediss://localhost:{port}/0?ssl_ca_certs="
    store = Store(f"{url}{tmp_path}/ca.pem")
    await store.start()
    assert await store.command(b"ECHO", b"x" * 100_000) == b"x" * 100_000
    await store.close()
    stranger = Store(f"rediss://localhost:{port}/0")
    with pytest.raises(StoreError):
        await stranger.start()
    await stranger.close()
    front.close()
    await front.wait_closed()
