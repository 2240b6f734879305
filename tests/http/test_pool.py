"""What becomes of a connection: kept, reused, paused, timed out, abandoned.

No test sleeps: each waits for what the upstream or the sink sees.
"""

from __future__ import annotations

import asyncio

import pytest

from freeapi.errors import ClientGone, UpstreamCut, UpstreamTimeout
from freeapi.http.pool import IDLE_MAX, Origin, ProxyAddress, UpstreamPool
from freeapi.http.upstream import UpstreamConnection
from tests.answers import chunked
from tests.http.conftest import (
    FINAL_S,
    OK,
    NewPool,
    Taken,
    alive,
    ask,
    begin,
    uncollected,
    until,
)
from tests.scripted_upstream import (
    PATIENCE_S,
    ScriptedUpstream,
    Step,
    close,
    hang,
    happens,
    pause,
    reset,
    send,
)

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

# --- The pool -------------------------------------------------------------------------------------


async def test_last_used_connection_is_taken_first(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """Idle connections are a stack, and one is reused for the next exchange."""
    upstream.plays([send(OK)])
    first, second = await pool.connect(), await pool.connect()
    await begin(first, Taken())
    await begin(second, Taken())
    assert (first.reused, repr(pool)) == (True, "<UpstreamPool 2 open, 2 idle>")
    assert pool.take() is second
    assert pool.take() is first
    assert pool.take() is None
    await begin(first, Taken())
    assert [r.connection for r in upstream.requests].count(0) == 2


async def test_stale_connection_dies_without_an_answer(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """The proxy can tell that a reused connection was dead: it was reused, and nothing came."""
    upstream.plays([send(OK)], [reset()])
    await ask(pool)
    connection = pool.take()
    assert connection is not None
    assert connection.reused
    with pytest.raises(UpstreamCut):
        await begin(connection, Taken())
    assert connection.answered_s is None


@pytest.mark.parametrize("said", [b"x", OK])
async def test_words_without_a_request_close_the_connection(
    said: bytes, upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """A late or unasked answer is never read as the next one's."""
    late = asyncio.Event()
    upstream.plays([send(OK), pause(late), send(said), hang()])
    await ask(pool)
    assert repr(pool).endswith("1 idle>")
    late.set()
    await until(lambda: repr(pool) == "<UpstreamPool 0 open, 0 idle>")
    await happens(upstream.exchanges[0].gone)


async def test_idle_connection_closed_by_the_upstream_is_forgotten(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """A proper end while idle takes it out of the pool."""
    upstream.plays([send(OK), close()])
    await ask(pool)
    await until(lambda: repr(pool) == "<UpstreamPool 0 open, 0 idle>")
    assert pool.take() is None


@pytest.mark.parametrize(("hint", "is_kept"), [(b"timeout=1", False), (b"max=9, timeout=3", True)])
async def test_keep_alive_hint_is_honoured(
    hint: bytes, is_kept: bool, upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """A connection isn't used in the last second of the time that the upstream grants."""
    upstream.plays([send(OK.replace(b"\r\n\r\n", b"\r\nkeep-alive: %b\r\n\r\n" % hint))])
    await ask(pool)
    connection = pool.take()
    assert (connection is not None) == is_kept
    if connection is not None:
        assert connection.deadline_s <= asyncio.get_running_loop().time() + 2
        connection.close()


async def test_idle_connections_are_bounded(
    upstream: ScriptedUpstream, pool: UpstreamPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound the one longest idle is closed."""
    assert IDLE_MAX == 256
    monkeypatch.setattr("freeapi.http.pool.IDLE_MAX", 2)
    upstream.plays([send(OK)])
    connections = [await pool.connect() for _ in range(3)]
    for connection in connections:
        await begin(connection, Taken())
    await until(lambda: repr(pool) == "<UpstreamPool 2 open, 2 idle>")
    assert not connections[0].is_open


async def test_retired_pool_keeps_nothing_idle(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """After a reload that replaced it, idle connections go, and busy ones after their answer."""
    finish = asyncio.Event()
    upstream.plays([send(OK)], [send(OK[:-1]), pause(finish), send(OK[-1:])])
    busy, idle, sink = await pool.connect(), await pool.connect(), Taken()
    await begin(idle, Taken())
    done = begin(busy, sink)
    await until(lambda: sink.pieces)
    pool.retire()
    assert pool.take() is None
    assert busy.is_open
    finish.set()
    await asyncio.wait_for(done, PATIENCE_S)
    assert sink.body == b"hello"
    await until(lambda: repr(pool) == "<UpstreamPool 0 open, 0 idle>")
    for exchange in upstream.exchanges:
        await happens(exchange.gone)


async def test_retired_pool_still_connects(upstream: ScriptedUpstream, pool: UpstreamPool) -> None:
    """A request that was on its way when its upstream went may still go there, once."""
    upstream.plays([send(OK)])
    pool.retire()
    assert (await ask(pool)).body == b"hello"
    await until(lambda: repr(pool) == "<UpstreamPool 0 open, 0 idle>")


def test_origins_are_compared_by_all_they_say() -> None:
    """A reload keeps a pool only if its origin is the same, the proxy and its password included."""

    def origin(port: int = 443, proxy_port: int = 3128, password: bytes = b"a") -> Origin:
        proxy = ProxyAddress(host="proxy", port=proxy_port, authorization=password)
        return Origin(host="h", port=port, tls=True, proxy=proxy)

    assert origin() == origin()
    others = (origin(port=444), origin(proxy_port=1), origin(password=b"b"))
    assert origin() not in (*others, Origin(host="h", port=443, tls=True))


# --- Time, flow, and leaving ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "seconds", "within_s"),
    [
        ([], {"first_byte_s": 0.05}, FINAL_S),
        ([send(OK[:-1])], {"idle_s": 0.05}, FINAL_S),
        ([send(OK[:-1])], {}, 0.1),
        ([], {}, 0.05),
    ],
)
async def test_silence_is_timed_out(
    steps: list[Step],
    seconds: dict[str, float],
    within_s: float,
    upstream: ScriptedUpstream,
    new_pool: NewPool,
) -> None:
    """No first byte, no further byte, or no end in time: the exchange fails and is closed."""
    pool = new_pool(upstream.port, **seconds)
    upstream.plays([*steps, hang()])
    with pytest.raises(UpstreamTimeout):
        await begin(await pool.connect(), Taken(), within_s=within_s)
    await happens(upstream.exchanges[0].gone)


async def test_idle_connection_is_closed_in_time(
    upstream: ScriptedUpstream, pool: UpstreamPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that nobody needs is closed before the upstream would."""
    monkeypatch.setattr("freeapi.http.upstream.IDLE_S", 0.05)
    upstream.plays([send(OK)])
    await ask(pool)
    await happens(upstream.exchanges[0].gone)
    assert repr(pool) == "<UpstreamPool 0 open, 0 idle>"


async def test_pause_stops_the_upstream(upstream: ScriptedUpstream, new_pool: NewPool) -> None:
    """While paused nothing is read, the kernel stops the upstream, and no time-out runs."""
    pool = new_pool(upstream.port, idle_s=0.05)
    piece = chunked(b"a" * 65_536)
    long = [send(CHUNKED), *[send(piece)] * 400, send(b"0\r\n\r\n")]
    upstream.plays(long, [send(OK[:-1]), hang()])
    sink, connection = Taken(), await pool.connect()
    done = begin(connection, sink)
    await until(lambda: sink.pieces)
    connection.pause_reading()
    connection.pause_reading()
    exchange = await upstream.exchange()
    await until(lambda: not exchange._connection._writable.is_set())
    held_bytes = len(sink.body)
    with pytest.raises(UpstreamTimeout):  # so idle_s is over for the paused one, too
        await begin(await pool.connect(), Taken())
    assert len(sink.body) == held_bytes < exchange.sent_bytes < 400 * 65_536
    connection.resume_reading()
    connection.resume_reading()
    await asyncio.wait_for(done, PATIENCE_S)
    assert len(sink.body) == 400 * 65_536


async def test_pause_after_the_end_is_none_of_the_next(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """A caller who still reads a finished answer can't stop the connection's next exchange."""
    upstream.plays([send(OK)])
    connection = await pool.connect()
    await begin(connection, Taken())
    connection.pause_reading()
    assert pool.take() is connection
    sink = Taken()
    await asyncio.wait_for(begin(connection, sink), PATIENCE_S)
    assert sink.body == b"hello"


async def test_pause_at_the_last_read_is_undone(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """A connection that was paused when its answer ended reads again for the next."""
    upstream.plays([send(OK)])
    connection = await pool.connect()

    class Slow(Taken):
        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            connection.pause_reading()

    for _ in range(2):
        sink = Slow()
        await asyncio.wait_for(begin(connection, sink), PATIENCE_S)
        assert pool.take() is connection


@pytest.mark.parametrize("steps", [[], [send(OK[:-1])], [send(CHUNKED + chunked(b"a"))]])
async def test_abandoned_exchange_is_closed_in_the_same_tick(
    steps: list[Step], upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """The transport is closing when ``abandon`` returns, and the upstream sees it."""
    upstream.plays([*steps, hang()])
    connection, sink = await pool.connect(), Taken()
    done = begin(connection, sink)
    exchange = await upstream.exchange()
    await until(lambda: sink.pieces or not steps)
    connection.abandon(sink)
    assert not connection.is_open
    assert done.done()
    with pytest.raises(ClientGone):
        await done
    await happens(exchange.gone)
    connection.abandon(sink)


async def test_late_abandon_spares_the_connections_next_exchange(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """A caller who leaves just after its answer was complete doesn't cut somebody else's."""
    upstream.plays([send(OK)])
    connection, first, second = await pool.connect(), Taken(), Taken()
    await begin(connection, first)
    taken = pool.take()
    assert taken is connection
    done = begin(taken, second)
    connection.abandon(first)
    await asyncio.wait_for(done, PATIENCE_S)
    assert second.is_ended


async def test_nobody_waiting_is_no_trouble(upstream: ScriptedUpstream, pool: UpstreamPool) -> None:
    """A cancelled wait leaves the exchange to its end."""
    upstream.plays([send(OK)])
    sink = Taken()
    begin(await pool.connect(), sink).cancel()
    await until(lambda: sink.is_ended)


async def test_closed_pool_ends_its_exchanges(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """``close`` ends busy connections too; their exchanges are told that they were cut."""
    upstream.plays([hang()])
    done = begin(await pool.connect(), Taken())
    exchange = await upstream.exchange()
    pool.close()
    with pytest.raises(UpstreamCut):
        await asyncio.wait_for(done, PATIENCE_S)
    await happens(exchange.gone)


async def test_closed_connection_is_freed_at_once(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """What an upstream sent isn't kept until the garbage collector comes by."""
    upstream.plays([send(OK)])
    with uncollected():
        await ask(pool)
        assert alive(UpstreamConnection) == 1
        pool.close()
        await until(lambda: not alive(UpstreamConnection))
