"""Bodies that go up in pieces: framing, back-pressure, early answers, and each way to break off.

The upstream is a server that each test plays by hand, since the scripted one takes whole bodies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from freeapi.errors import ClientGone, UpstreamCut, UpstreamError, UpstreamTimeout
from freeapi.http.pool import UpstreamPool
from freeapi.http.reply import Reply
from freeapi.http.upstream import UpstreamConnection
from freeapi.http.wire import Request
from tests.http.conftest import FINAL_S, OK, TEXT, NewPool, StartSite, Taken, until
from tests.raw_client import post
from tests.scripted_upstream import PATIENCE_S

HEAD = b"POST /v1 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
REFUSED = b"HTTP/1.1 413 Large\r\ncontent-length: 5\r\n\r\nlarge"
PIECE = b"abcdefgh" * 8_192
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def upstream(
    new_pool: NewPool, serve: Serve, **seconds: float
) -> AsyncIterator[UpstreamPool]:
    """A server that plays ``serve`` on each connection, and the pool of connections to it."""

    playing: set[asyncio.Task[None]] = set()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        playing.add(task)
        with suppress(asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        writer.transport.abort()

    async with await asyncio.start_server(play, "127.0.0.1", 0, limit=1_024) as server:
        yield new_pool(server.sockets[0].getsockname()[1], **seconds)
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing)


async def body_of(reader: asyncio.StreamReader) -> list[bytes]:
    """The chunks of a body, to the last one; raises IncompleteReadError if that never comes."""
    chunks = []
    while size := int(await reader.readline(), 16):
        chunks.append(await reader.readexactly(size))
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return chunks


def begin(
    connection: UpstreamConnection, sink: Taken, final_s: float = FINAL_S
) -> asyncio.Future[None]:
    """Send the head of a request."""
    final_s += asyncio.get_running_loop().time()
    return connection.begin(HEAD, sink, final_s).future()


async def flood(connection: UpstreamConnection) -> int:
    """Send until no more is wanted; returns how many pieces went."""
    async with asyncio.timeout(PATIENCE_S):
        count = 0
        while await connection.send(PIECE):
            count += 1
        return count


async def wait_forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take nothing more and say nothing."""
    await asyncio.get_running_loop().create_future()


async def test_pieces_arrive_as_chunks(new_pool: NewPool) -> None:
    """The body ends with ``finish``; after its answer the connection is kept for the next."""
    bodies: list[list[bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await body_of(reader))
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        bodies.append(await body_of(reader))
        writer.write(OK)
        await reader.read()

    async with upstream(new_pool, serve) as pool:
        for number in range(2):
            sink = Taken()
            connection = pool.take() or await pool.connect()
            done = begin(connection, sink)
            assert await connection.send(b"hel")
            assert await connection.send(b"lo")
            assert repr(pool) == "<UpstreamPool 1 open, 0 idle>"
            connection.finish()
            await asyncio.wait_for(done, PATIENCE_S)
            assert (sink.status, sink.body) == (200, b"hello")
            assert bodies[number] == [b"hel", b"lo"]
            assert repr(pool) == "<UpstreamPool 1 open, 1 idle>"


async def test_slow_upstream_holds_the_sender(new_pool: NewPool) -> None:
    """What isn't taken isn't piled up: ``send`` waits, and goes on when the upstream does."""
    may_read = asyncio.Event()
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        received.extend(await body_of(reader))
        writer.write(OK)
        await writer.drain()

    async with upstream(new_pool, serve) as pool:
        connection = await pool.connect()
        done = begin(connection, Taken())
        sending = asyncio.gather(*[_send_many(connection, 400)])
        await until(lambda: connection._drained is not None)
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 65_536 + 2 * len(PIECE)
        assert not sending.done()
        may_read.set()
        await asyncio.wait_for(sending, PATIENCE_S)
        connection.finish()
        await asyncio.wait_for(done, PATIENCE_S)
    assert received == [PIECE] * 400


async def _send_many(connection: UpstreamConnection, count: int) -> None:
    for _ in range(count):
        assert await connection.send(PIECE)


async def test_upstream_that_takes_nothing_times_out(new_pool: NewPool) -> None:
    """After ``idle_s`` without room the exchange fails, and the sender is let go."""
    async with upstream(new_pool, wait_forever, idle_s=0.05) as pool:
        connection = await pool.connect()
        done = begin(connection, Taken())
        await flood(connection)
        with pytest.raises(UpstreamTimeout):
            await done
        assert not await connection.send(b"more")


async def test_whole_time_bounds_the_sending(new_pool: NewPool) -> None:
    """``final_s`` ends an exchange whose body is still under way."""
    async with upstream(new_pool, wait_forever) as pool:
        connection = await pool.connect()
        done = begin(connection, Taken(), final_s=0.05)
        with pytest.raises(UpstreamTimeout):
            await asyncio.wait_for(done, PATIENCE_S)


async def test_caller_may_be_slow(new_pool: NewPool) -> None:
    """Neither time-out of the upstream's runs between two pieces, even after an interim answer;
    the one to the first byte runs from ``finish``.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await wait_forever(reader, writer)

    async with upstream(new_pool, serve, first_byte_s=0.05, idle_s=0.05) as pool:
        connection, clock = await pool.connect(), await pool.connect()
        done = begin(connection, Taken())
        await until(lambda: connection.answered_s is not None)
        for _ in range(2):  # each as long as the time-outs
            other = clock.exchange(HEAD, b"0\r\n\r\n", Taken(), float("inf"))
            with pytest.raises(UpstreamError):
                await asyncio.wait_for(other.future(), PATIENCE_S)
            clock = await pool.connect()
        assert await connection.send(b"hello")
        assert not done.done()
        connection.finish()
        with pytest.raises(UpstreamTimeout):
            await asyncio.wait_for(done, PATIENCE_S)


async def test_early_answer_ends_the_sending(new_pool: NewPool) -> None:
    """It is taken as any answer, no more is sent, and the connection isn't kept."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REFUSED)
        while await reader.read(65_536):
            pass

    async with upstream(new_pool, serve) as pool:
        sink = Taken()
        connection = await pool.connect()
        done = begin(connection, sink)
        await flood(connection)
        await done
        assert (sink.status, sink.body, sink.is_ended) == (413, b"large", True)
        connection.finish()
        await until(lambda: repr(pool) == "<UpstreamPool 0 open, 0 idle>")


async def test_head_of_a_refusal_ends_the_sending(new_pool: NewPool) -> None:
    """No more is sent once the refusal has begun; its rest is still taken, in its time."""
    may_end = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REFUSED[:-2])
        await may_end.wait()
        writer.write(REFUSED[-2:])
        await reader.read()

    async with upstream(new_pool, serve) as pool:
        sink = Taken()
        connection = await pool.connect()
        done = begin(connection, sink)
        await until(lambda: sink.status)
        assert not await connection.send(PIECE)
        connection.finish()
        assert not done.done()
        may_end.set()
        await asyncio.wait_for(done, PATIENCE_S)
        assert sink.body == b"large"
        assert repr(pool).endswith("0 idle>")


async def test_refusal_that_stalls_times_out(new_pool: NewPool) -> None:
    """Once a refusal has begun, the delay is the upstream's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REFUSED[:-2])
        await wait_forever(reader, writer)

    async with upstream(new_pool, serve, idle_s=0.05) as pool:
        done = begin(await pool.connect(), Taken())
        with pytest.raises(UpstreamTimeout):
            await asyncio.wait_for(done, PATIENCE_S)


async def test_success_that_begins_early_takes_the_rest(new_pool: NewPool) -> None:
    """An upstream may begin to answer well while it still takes the body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK[:-5])
        assert await body_of(reader) == [b"hel", b"lo"]
        writer.write(OK[-5:])
        await reader.read()

    async with upstream(new_pool, serve) as pool:
        sink = Taken()
        connection = await pool.connect()
        done = begin(connection, sink)
        assert await connection.send(b"hel")
        await until(lambda: sink.status)
        assert await connection.send(b"lo")
        connection.finish()
        await asyncio.wait_for(done, PATIENCE_S)
        assert sink.body == b"hello"
        assert repr(pool) == "<UpstreamPool 1 open, 1 idle>"


async def test_reset_ends_the_sending(new_pool: NewPool) -> None:
    """A connection that dies under the body is a cut, and wakes the sender."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1_000)

    async with upstream(new_pool, serve) as pool:
        connection = await pool.connect()
        done = begin(connection, Taken())
        await flood(connection)
        with pytest.raises(UpstreamCut):
            await done


async def test_abandoned_body_is_never_whole(new_pool: NewPool) -> None:
    """Abandoning wakes the sender; the upstream sees the end without a last chunk."""
    may_read, cut = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
            await body_of(reader)
        cut.set()

    async with upstream(new_pool, serve) as pool:
        sink = Taken()
        connection = await pool.connect()
        done = begin(connection, sink)
        flooding = asyncio.gather(flood(connection))
        await until(lambda: connection._drained is not None)
        connection.abandon(sink)
        assert done.done()
        assert not connection.is_open
        with pytest.raises(ClientGone):
            await done
        await flooding
        connection.finish()
        may_read.set()
        await asyncio.wait_for(cut.wait(), PATIENCE_S)


async def test_slow_upstream_stops_the_caller(new_pool: NewPool, start_site: StartSite) -> None:
    """From one socket to the other: what the upstream doesn't take, the caller can't send."""
    may_read = asyncio.Event()
    received: list[bytes] = []
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        received.extend(await body_of(reader))
        writer.write(OK)
        await writer.drain()

    async with upstream(new_pool, serve) as pool:

        async def relay(request: Request, reply: Reply) -> None:
            connection = await pool.connect()
            done = begin(connection, Taken())
            assert request.upload is not None
            while data := await request.upload.read():
                assert await connection.send(data)
            connection.finish()
            await done
            reply.send(200, TEXT, b"taken")

        def app(request: Request, reply: Reply) -> None:
            tasks.append(asyncio.get_running_loop().create_task(relay(request, reply)))

        site = await start_site(app)
        site.server.is_upload = lambda request: True
        async with site.caller() as caller:
            sending = asyncio.gather(caller.send(post("/u", PIECE * 350)))
            await site.reply()
            [server_side] = site.server._connections
            await until(lambda: not server_side._reading)
            await until(lambda: pool._open and next(iter(pool._open))._drained is not None)
            assert not sending.done()
            may_read.set()
            assert (await caller.answer()).body == b"taken"
            await sending
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
    assert b"".join(received) == PIECE * 350
