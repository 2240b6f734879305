"""The upstream's side: what an answer may look like, and how each way to break is told.

The upstream is scripted and real; the sink notes what reaches it.
"""

from __future__ import annotations

import asyncio

import pytest

from freeapi.errors import UpstreamCut, UpstreamError, UpstreamFailed, UpstreamGarbage
from freeapi.http.pool import UpstreamPool
from freeapi.http.upstream import UpstreamConnection
from tests.answers import chunked
from tests.http.conftest import HEAD, OK, NewPool, Taken, ask, begin, until
from tests.scripted_upstream import (
    PATIENCE_S,
    ScriptedUpstream,
    Step,
    close,
    hang,
    pause,
    reset,
    send,
)

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BARE = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n"


INTERIM = b"HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
ANSWERS: dict[str, tuple[bytes, bytes, bool]] = {
    "length": (OK, b"hello", True),
    "chunks": (CHUNKED + chunked(b"he") + chunked(b"llo") + b"0\r\nx-t: 1\r\n\r\n", b"hello", True),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "interim": (INTERIM + OK, b"hello", True),
    "close": (OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), b"hello", False),
    "http10": (OK.replace(b"1.1", b"1.0"), b"hello", False),
}


async def answered(connection: UpstreamConnection) -> None:
    """Wait for the answer's first byte."""
    await until(lambda: connection.answered_s is not None)


@pytest.mark.parametrize("name", ANSWERS)
async def test_any_cut_of_an_answer_is_the_same_answer(
    name: str, upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """Cut at every byte, an answer arrives whole; its connection is kept if both sides want to."""
    data, body, is_kept = ANSWERS[name]
    for cut in range(1, len(data)):
        seen = asyncio.Event()
        upstream.plays([send(data[:cut]), pause(seen), send(data[cut:])])
        sink = Taken()
        connection = pool.take() or await pool.connect()
        done = begin(connection, sink)
        await answered(connection)
        seen.set()
        await done
        assert (sink.status, sink.body) == (int(data.rpartition(b"HTTP/1.")[2][2:5]), body)
        assert b"link" not in sink.headers
        assert sink.is_ended
        assert repr(pool).endswith(f"{int(is_kept)} idle>")
    assert len(upstream.connections) == (1 if is_kept else len(data) - 1)


async def test_body_may_end_with_the_connection(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """Without a length the end of the connection is the end of the body."""
    upstream.plays([send(BARE), send(b"hel"), send(b"lo"), close()])
    sink = await ask(pool)
    assert (sink.body, sink.is_ended) == (b"hello", True)
    assert repr(pool).endswith("0 idle>")


async def test_large_request_leaves_whole(upstream: ScriptedUpstream, pool: UpstreamPool) -> None:
    """A body that goes in a write of its own arrives behind its head."""
    upstream.plays([send(OK)])
    await begin(await pool.connect(), Taken(), b"a" * 1_000_000)
    assert len(upstream.requests[0].body) == 1_000_000


async def test_answer_before_the_request_was_sent(new_pool: NewPool) -> None:
    """An early answer is taken; the connection, on which bytes are still waiting, isn't kept."""
    over = asyncio.Event()

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK.replace(b"200", b"413"))
        await over.wait()
        writer.transport.abort()

    async with await asyncio.start_server(hasty, "127.0.0.1", 0, limit=1_024) as server:
        pool = new_pool(server.sockets[0].getsockname()[1])
        sink = Taken()
        await begin(await pool.connect(), sink, b"a" * 20_000_000)
        assert (sink.status, sink.body) == (413, b"hello")
        assert repr(pool).endswith("0 idle>")
        over.set()


TWO_HEADS = CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n")
BROKEN: dict[str, tuple[list[Step], type[UpstreamError]]] = {
    "nothing": ([close()], UpstreamCut),
    "nothing but a reset": ([reset()], UpstreamCut),
    "head cut": ([send(OK[:20]), close()], UpstreamCut),
    "body cut": ([send(OK[:-1]), close()], UpstreamCut),
    "body reset": ([send(OK[:-1]), reset()], UpstreamCut),
    "chunk cut": ([send(CHUNKED + b"5\r\nhel"), close()], UpstreamCut),
    "no last chunk": ([send(CHUNKED + chunked(b"hello")), close()], UpstreamCut),
    "interim only": ([send(INTERIM), close()], UpstreamCut),
    "garbage": ([send(b"SSH-2.0-OpenSSH\r\n")], UpstreamGarbage),
    "HTTP/2": ([send(b"\0\0\x12\4\0\0\0\0\0")], UpstreamGarbage),
    "a request": ([send(HEAD)], UpstreamGarbage),
    "bad chunk": ([send(CHUNKED + b"xyz\r\n")], UpstreamGarbage),
    "bad length": ([send(OK.replace(b"5", b"5x"))], UpstreamGarbage),
    "two lengths": ([send(TWO_HEADS + b"hello")], UpstreamGarbage),
    "switch": ([send(b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\n\r\n")], UpstreamGarbage),
    "status that is none": ([send(b"HTTP/1.1 000 X\r\n\r\nhello"), close()], UpstreamGarbage),
    "interim with a body": ([send(OK.replace(b"200", b"103") + OK)], UpstreamGarbage),
    "endless head": ([send(OK[:17] + b"a" * 200_000), hang()], UpstreamGarbage),
    "endless heads": ([send(INTERIM * 2_000), hang()], UpstreamGarbage),
    "endless trailer": ([send(CHUNKED + b"0\r\na: "), send(b"a" * 200_000)], UpstreamGarbage),
    "endless extension": ([send(CHUNKED + b"5;a="), send(b"a" * 200_000)], UpstreamGarbage),
    "two answers": ([send(OK + OK)], UpstreamGarbage),
    "an answer and a half": ([send(OK + OK[:-1])], UpstreamGarbage),
    "an answer and a bit": ([send(OK + b"HTTP/1.1 2")], UpstreamGarbage),
    "more than was announced": ([send(OK + b" world")], UpstreamGarbage),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_answer_has_its_error(
    name: str, upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """Each way to break is told from the others, and such a connection is never used again."""
    steps, error = BROKEN[name]
    upstream.plays([*steps, hang()])
    connection = await pool.connect()
    with pytest.raises(UpstreamError) as raised:
        await asyncio.wait_for(begin(connection, Taken()), PATIENCE_S)
    assert type(raised.value) is error
    assert (connection.answered_s is None) == name.startswith("nothing")
    await until(lambda: repr(pool) == "<UpstreamPool 0 open, 0 idle>")


async def test_body_before_a_fault_is_passed_on(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """What came whole isn't lost by the garbage behind it in the same read."""
    upstream.plays([send(CHUNKED + chunked(b"hello") + b"xyz\r\n"), hang()])
    sink = Taken()
    with pytest.raises(UpstreamGarbage):
        await ask(pool, sink)
    assert sink.body == b"hello"
    assert not sink.is_ended


async def test_long_stream_of_small_chunks_is_no_endless_head(
    upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """The framing of a long answer may add up to more than a head may have."""
    tiny = b"1;%b\r\nx\r\n" % (b"e" * 10_000)
    upstream.plays([send(CHUNKED), *[send(tiny)] * 20, send(b"0\r\n\r\n")])
    assert (await ask(pool)).body == b"x" * 20


@pytest.mark.parametrize("where", ["head", "data", "end"])
async def test_error_of_the_sink_ends_the_exchange(
    where: str, upstream: ScriptedUpstream, pool: UpstreamPool
) -> None:
    """What the sink raises is what the future raises; nothing more reaches the sink."""
    upstream.plays([send(OK)])
    sink = Taken(refuses_in=where)
    with pytest.raises(UpstreamFailed):
        await ask(pool, sink)
    assert sink.is_ended == (where == "end")
