"""Uploads: bodies read piece by piece, over real sockets.

Most tests play the application of ``reading``, which answers with the body's size and checksum, or
with the error that reading it raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from freeapi.errors import ClientGone
from freeapi.http.connection import Connection
from freeapi.http.upload import UNREAD_BYTES_MAX, Upload
from tests.http.conftest import TEXT, Site, StartSite, alive, hold, uncollected, until
from tests.http.reading import Readers, chunked, summary
from tests.raw_client import Caller, post, request
from tests.scripted_upstream import PATIENCE_S

GET = request("GET", "/a")
LIMIT = 4_000_000


StartReading = Callable[..., Awaitable[tuple[Site, Readers]]]


@pytest.fixture
async def start_reading(start_site: StartSite) -> AsyncIterator[StartReading]:
    """Start servers where ``/u`` takes uploads; no reading may fail in a way of its own."""
    all_readers: list[Readers] = []

    async def start(**limits: float) -> tuple[Site, Readers]:
        readers = Readers()
        all_readers.append(readers)
        site = await start_site(readers, **{"upload_bytes_max": LIMIT, **limits})
        site.server.is_upload = lambda request: request.path == b"/u"
        return site, readers

    yield start
    for readers in all_readers:
        readers.may_read.set()
        await asyncio.wait_for(asyncio.gather(*readers.tasks), PATIENCE_S)


async def stopped(site: Site) -> Connection:
    """The server's end of the only connection, once it reads no more."""
    [connection] = site.server._connections
    await until(lambda: not connection._reading)
    return connection


def upload_of(site: Site) -> Upload:
    """What the first call got."""
    upload = site.calls[0][0].upload
    assert upload is not None
    return upload


async def is_closed(caller: Caller) -> bool:
    """Whether the connection ended without another byte."""
    return await caller.closed() == b""


# --- Uploads that arrive --------------------------------------------------------------------------

FRAMED = {
    "length": post("/u", b"hello"),
    "chunks": chunked(b"hel", b"lo"),
    "trailer": chunked(b"hel", b"lo").removesuffix(b"\r\n") + b"x-a: b\r\n\r\n",
    "http10": b"POST /u HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("name", FRAMED)
async def test_any_cut_of_an_upload_is_the_same(start_reading: StartReading, name: str) -> None:
    """Between other requests on one connection, cut at every byte or glued, nothing is lost."""
    site, _ = await start_reading()
    data = FRAMED[name] * 2 + GET
    expected = [summary(b"hello"), summary(b"hello"), b"/a "]
    async with site.caller() as caller:
        for cut in range(1, len(FRAMED[name]) + 9):
            await caller.send(data[:cut])
            await asyncio.sleep(0)  # so that the second part is a read of its own, mostly
            await caller.send(data[cut:])
            assert [(await caller.answer()).body for _ in expected] == expected
        for byte in FRAMED[name]:
            await caller.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await caller.answer()).body == summary(b"hello")
    assert site.refused == []


async def test_empty_uploads_are_uploads(start_reading: StartReading) -> None:
    """A body of no bytes, announced, chunked or not mentioned, is read as one that ends at once."""
    site, _ = await start_reading()
    bare = b"POST /u HTTP/1.1\r\nhost: x\r\n\r\n"
    announced = bare.replace(b"\r\n\r\n", b"\r\ncontent-length: 0\r\n\r\n")
    async with site.caller() as caller:
        await caller.send(announced + chunked() + bare)
        assert [(await caller.answer()).body for _ in range(3)] == [summary(b"")] * 3


@pytest.mark.parametrize("framed", [post("/u", b"ab" * 1_900_000), chunked(*[b"abc" * 999] * 999)])
async def test_large_uploads_arrive_whole(start_reading: StartReading, framed: bytes) -> None:
    """Megabytes pass, behind others too; the limit for bodies isn't theirs."""
    site, _ = await start_reading(body_bytes_max=5)
    body = b"ab" * 1_900_000 if b"content-length" in framed else b"abc" * 999 * 999
    async with site.caller() as caller:
        for _ in range(2):
            sending = asyncio.gather(caller.send(framed + GET))
            assert (await caller.answer()).body == summary(body)
            assert (await caller.answer()).body == b"/a "
            await sending


async def test_other_requests_are_no_uploads(start_reading: StartReading) -> None:
    """What ``is_upload`` says no to comes with its body, and has its own limit."""
    site, _ = await start_reading(body_bytes_max=5)
    async with site.caller() as caller:
        assert (await caller.ask(post("/p", b"hello"))).body == b"/p hello"
        assert (await caller.ask(post("/p", b"hello!"))).status == 413


async def test_unread_bytes_are_bounded(start_reading: StartReading) -> None:
    """While the application doesn't read, the caller is stopped; it loses nothing."""
    site, readers = await start_reading(upload_bytes_max=20_000_000)
    readers.may_read.clear()
    body = b"abcdefgh" * 2_500_000
    async with site.caller() as caller:
        sending = asyncio.gather(caller.send(post("/u", body)))
        await site.reply()
        connection = await stopped(site)
        upload = upload_of(site)
        assert len(upload._unread) <= 2 * UNREAD_BYTES_MAX
        assert len(connection._unparsed) <= 262_144
        assert not sending.done()
        readers.may_read.set()
        assert (await caller.answer()).body == summary(body)
        await sending
        assert (await caller.ask(GET)).body == b"/a "


async def test_upload_waits_for_the_answer_before_it(start_reading: StartReading) -> None:
    """A pipelined upload reaches the application in its turn, and its body is bounded till then."""
    site, readers = await start_reading()
    site.app = hold
    body = b"a" * 3_000_000
    async with site.caller() as caller:
        sending = asyncio.gather(caller.send(GET + post("/u", body) + GET))
        reply = await site.reply()
        connection = await stopped(site)
        assert len(connection._unparsed) <= 65_536 + 262_144
        site.app = readers
        reply.send(200, TEXT, b"first")
        assert (await caller.answer()).body == b"first"
        assert (await caller.answer()).body == summary(body)
        assert (await caller.answer()).body == b"/a "
        await sending


async def test_cancelled_read_loses_nothing(start_site: StartSite) -> None:
    """Who stops waiting for a piece gets it with the next read."""
    site = await start_site(hold)
    site.server.is_upload = lambda request: True
    async with site.caller() as caller:
        await caller.send(post("/u", b"hello").removesuffix(b"hello"))
        reply = await site.reply()
        upload = upload_of(site)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(upload.read(), 0.01)
        await caller.send(b"hello")
        assert await upload.read() == b"hello"
        assert [await upload.read() for _ in range(2)] == [b"", b""]
        reply.send(200, TEXT, b"done")
        assert (await caller.answer()).body == b"done"


async def test_expectation_is_met_when_the_upload_is_read(start_reading: StartReading) -> None:
    """``Expect: 100-continue`` gets its interim answer at the first read, not before."""
    site, readers = await start_reading()
    readers.may_read.clear()
    head, _, body = post("/u", b"hello", ("expect", "100-continue")).partition(b"hello")
    async with site.caller() as caller:
        await caller.send(head)
        await site.reply()
        assert not caller._reader._buffer  # type: ignore[attr-defined]  # nothing was said yet
        readers.may_read.set()
        assert (await caller.head()).status == 100
        await caller.send(b"hello" + body)
        assert (await caller.answer()).body == summary(b"hello")
        await caller.send(GET)
        assert (await caller.answer()).body == b"/a "


async def test_refusal_spares_the_upload(start_site: StartSite) -> None:
    """Answered without a read, a caller that expects 100 isn't asked for its body."""
    site = await start_site(lambda _, reply: reply.send(404, TEXT, b"no"))
    site.server.is_upload = lambda request: True
    async with site.caller() as caller:
        head = post("/u", b"hello", ("expect", "100-continue")).removesuffix(b"hello")
        answer = await caller.ask(head)
        assert (answer.status, answer.header("connection")) == (404, "close")
        assert await is_closed(caller)


async def test_upload_that_offers_an_upgrade(start_reading: StartReading) -> None:
    """As with any request the offer is declined; an expectation beside it is still met."""
    site, _ = await start_reading()
    offer = (("connection", "Upgrade"), ("upgrade", "h2c"), ("expect", "100-continue"))
    async with site.caller() as caller:
        await caller.send(post("/u", b"hello", *offer).removesuffix(b"hello"))
        assert (await caller.head()).status == 100
        await caller.send(b"hello")
        answer = await caller.answer()
        assert (answer.body, answer.header("connection")) == (summary(b"hello"), "close")


# --- Uploads that fail ----------------------------------------------------------------------------


async def test_too_large_by_its_length_is_refused_at_once(start_reading: StartReading) -> None:
    """The application never hears of it; the caller may send on and reads its 413."""
    site, _ = await start_reading()
    async with site.caller() as caller:
        answer = await caller.ask(post("/u", b"a" * (LIMIT + 1)))
        assert (answer.status, answer.error()["code"]) == (413, "request_too_large")
        assert str(LIMIT) in answer.error()["message"]
        assert await is_closed(caller)
    assert site.calls == []
    assert site.refused == ["body_too_large"]


BROKEN: dict[str, tuple[bytes, int, str]] = {
    "too large": (chunked(*[b"a" * 100_000] * 41), 413, "body_too_large"),
    "bad chunk": (chunked(b"hello").replace(b"\r\n0\r", b"X\r\n0\r"), 400, "bad_http"),
    "endless extension": (chunked()[:-5] + b"5;" + b"a" * 100_000, 431, "head_too_large"),
    "endless trailer": (chunked()[:-2] + b"x-a: " + b"a" * 100_000, 431, "head_too_large"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_upload_raises_in_its_reader(start_reading: StartReading, name: str) -> None:
    """The reader learns what is wrong, its answer is seen without a reset, then the end."""
    data, status, label = BROKEN[name]
    site, readers = await start_reading()
    async with site.caller() as caller:
        sending = asyncio.gather(caller.send(data + GET))
        answer = await caller.answer()
        assert (answer.status, answer.header("connection")) == (status, "close")
        assert await is_closed(caller)
        await sending
    assert readers.ends == [label]
    assert len(site.calls) == 1


async def test_stalled_upload_times_out(start_reading: StartReading) -> None:
    """Who sends nothing while it is waited for gets 408; who isn't waited for has time."""
    site, readers = await start_reading(body_s=0.05, shortest_s=0.05)
    readers.may_read.clear()
    head = post("/u", b"hello").removesuffix(b"hello")
    async with site.caller() as patient, site.caller() as stalled:
        await patient.send(head)
        await site.reply(0)
        readers.may_read = asyncio.Event()
        readers.may_read.set()
        await stalled.send(head + b"hel")
        answer = await stalled.answer()
        assert (answer.status, answer.error()["code"]) == (408, "request_timeout")
        assert await is_closed(stalled)
        assert readers.ends == ["request_timeout"]
        site.calls[0][1].send(200, TEXT, b"late")
        assert (await patient.answer()).body == b"late"
        readers.tasks[0].cancel()
        await until(readers.tasks[0].done)
        del readers.tasks[0]


async def test_trickling_upload_times_out(start_reading: StartReading) -> None:
    """Who sends a byte now and then is stopped when the whole has taken too long."""
    site, readers = await start_reading(upload_s=0.2, shortest_s=0.05)
    async with site.caller() as caller:
        await caller.send(post("/u", b"a" * 1_000_000).rstrip(b"a"))
        answering = asyncio.gather(caller.answer())
        while not answering.done():
            await caller.send(b"a")
            await asyncio.wait([answering], timeout=0.01)
        assert answering.result()[0].status == 408
    assert readers.ends == ["request_timeout"]


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_caller_that_goes_midway(start_reading: StartReading, how: str) -> None:
    """Its reader gets ClientGone, and ``on_gone`` is called as for any request."""
    site, readers = await start_reading()
    async with site.caller() as caller:
        await caller.send(post("/u", b"hello")[:-1])
        await site.reply()
        if how == "half-close":
            caller._writer.write_eof()
        else:
            getattr(caller, how)()
        await until(lambda: readers.ends)
    assert readers.ends == ["client_gone"]
    assert site.gone == [0]
    await until(lambda: not site.connections)


async def test_early_answer_is_seen_by_a_caller_that_sends_on(start_site: StartSite) -> None:
    """It is read whole, with no reset; the connection ends, and reading on is of no use."""
    site = await start_site(hold)
    site.server.is_upload = lambda request: True
    async with site.caller() as caller:
        sending = asyncio.gather(caller.send(post("/u", b"a" * 8_000_000)))
        reply = await site.reply()
        upload = upload_of(site)
        assert await upload.read()
        reply.send(403, TEXT, b"no")
        with pytest.raises(ClientGone):
            await upload.read()
        answer = await caller.answer()
        assert (answer.status, answer.body) == (403, b"no")
        assert answer.header("connection") == "close"
        await sending
        assert await is_closed(caller)
    assert site.gone == []


async def test_streamed_early_answer_ends_the_connection(start_site: StartSite) -> None:
    """An answer that began before the body's end closes, even if the body ended meanwhile."""
    site = await start_site(hold)
    site.server.is_upload = lambda request: True
    async with site.caller() as caller:
        await caller.send(post("/u", b"hello")[:-1])
        reply = await site.reply()
        reply.start(200, TEXT, None)
        await caller.send(b"o" + GET)
        upload = upload_of(site)
        while await upload.read():
            pass
        reply.write(b"streamed")
        reply.end()
        answer = await caller.answer()
        assert (answer.body, answer.header("connection")) == (b"streamed", "close")
        assert await is_closed(caller)
    assert len(site.calls) == 1


async def test_refused_upload_that_was_whole_keeps_the_connection(start_site: StartSite) -> None:
    """Where the body came with its head, an answer without a read costs no connection."""
    site = await start_site(lambda _, reply: reply.send(404, TEXT, b"no"))
    site.server.is_upload = lambda request: True
    async with site.caller() as caller:
        for _ in range(2):
            answer = await caller.ask(post("/u", b"hello"))
            assert (answer.status, answer.header("connection")) == (404, None)


@pytest.mark.parametrize("sent", [post("/u", b"hello"), post("/u", b"hello")[:-1]])
async def test_connection_of_an_upload_is_freed_at_once(
    start_reading: StartReading, sent: bytes
) -> None:
    """Neither a whole nor a cut upload keeps its connection until the garbage collector comes."""
    site, readers = await start_reading()
    with uncollected():
        async with site.caller() as caller:
            await caller.send(sent + GET[:5])
            await site.reply()
            assert alive(Connection) == 1
            if sent.endswith(b"hello"):
                assert (await caller.answer()).body == summary(b"hello")
        await until(lambda: readers.ends and all(task.done() for task in readers.tasks))
        await until(lambda: not alive(Connection))
