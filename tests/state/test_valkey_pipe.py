"""One connection to a real Valkey: calls, answers, mistakes, and who may connect."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from freeapi.state.valkey import Call, Script, Store, StoreError, StoreRefused, StoreUnavailable
from freeapi.state.valkey_pipe import ValkeyPipe
from tests.sharers import Heard, answers, started
from tests.valkey_server import ValkeyServer, serving


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
    flush = ValkeyPipe._flush

    def counted(pipe: ValkeyPipe) -> None:
        nonlocal flushes
        flushes += 1
        flush(pipe)

    monkeypatch.setattr(ValkeyPipe, "_flush", counted)
    await answers([store.command(b"PING") for _ in range(64)])
    assert flushes == 1
    await store.close()


class Broken(Call):
    """Whoever waits for it has a bug."""

    def failed(self, error: Exception) -> None:
        raise RuntimeError("a bug")


async def test_a_bug_behind_one_failure_keeps_no_other_waiting(bad_server: ValkeyServer) -> None:
    """When the connection is lost each call is told, whatever another one's caller makes of it."""
    store = await started(bad_server, Heard())
    bugs: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: bugs.append(context["exception"]))
    bad_server.pause()
    script = store.know("meter", "join")
    before = store.command(b"PING")
    store.run(script, b"n", b"", Broken())
    store.run(script, b"n", b"", Broken())
    after = store.command(b"PING")
    bad_server.kill()
    errors = await answers([before, after])
    assert [type(error) for error in errors] == [StoreUnavailable, StoreUnavailable]
    assert len(bugs) == 2
    await store.close()


async def test_what_is_packed_already_keeps_its_place(server: ValkeyServer) -> None:
    """It leaves at once, but after what was to leave at the end of the turn."""
    store = await started(server, Heard())
    script = Script(b"return redis.call('APPEND', KEYS[1], ARGV[1])", b"4" * 40)
    for _ in range(2):
        first = store.command(b"APPEND", b"order", b"1")
        store.run(script, b"order", b"2", Call())
        last = store.command(b"APPEND", b"order", b"3")
        await answers([first, last])
        # A server that doesn't know a function gets it after all that was sent with it.
        script = Script(script.source, await store.command(b"SCRIPT", b"LOAD", script.source))
    assert await store.command(b"GETDEL", b"order") == b"132" + b"123"
    await store.close()


async def test_a_mistake_in_a_call_is_told(server: ValkeyServer) -> None:
    """An error of the server's about the call itself reaches whoever called, and nobody else."""
    store = await started(server, Heard())
    wrong, right = await answers([store.command(b"NOSUCH"), store.command(b"PING")])
    assert isinstance(wrong, StoreRefused)
    assert right == b"PONG"
    bad = store.call(Script(b"return nil .. 1", b"0" * 40), b"n", b"a")
    with pytest.raises(StoreRefused):
        await bad
    assert store.is_up
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
    store = Store(f"unix://{path}", report=heard)
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


@pytest.mark.parametrize(
    ("login", "is_right"), [(":right@", True), (":wrong@", False), ("", False)]
)
async def test_password_and_database_of_the_url(login: str, is_right: bool) -> None:
    """The URL's password is used, and a wrong or missing one stops the start."""
    with serving("--requirepass", "right") as server:
        store = Store(f"unix://{login}{server.socket}?db=2")
        if is_right:
            await store.start()
            info: bytes = await store.command(b"CLIENT", b"INFO")
            assert b" db=2 " in info
        else:
            with pytest.raises(StoreError, match="password"):
                await store.start()
        await store.close()


@pytest.mark.parametrize(
    "url", ["valkey+sentinel://h/m", "http://h", "memory", "valkey://h:port/", "cluster://h"]
)
async def test_other_urls_are_refused(url: str) -> None:
    """What isn't a URL of one server is refused, with what is allowed."""
    with pytest.raises(StoreError, match="FREEAPI_STATE"):
        Store(url)
