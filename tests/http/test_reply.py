"""How an answer is framed for each kind of caller, and what is left of it when they leave."""

from __future__ import annotations

from freeapi.http.reply import Reply
from freeapi.http.wire import Request
from tests.http.conftest import TEXT, Site, StartSite, hold, until
from tests.raw_client import request

GET = request("GET", "/a")


async def test_head_has_the_length_and_no_body(site: Site) -> None:
    """HEAD is answered as GET would be, without the body, and the connection goes on."""
    async with site.caller() as caller:
        answer = await caller.ask(request("HEAD", "/a"))
        assert (answer.header("content-length"), answer.body) == ("8", b"")
        assert (await caller.ask(GET)).body == b"GET /a "


async def test_no_content_has_no_length(start_site: StartSite) -> None:
    """204 carries neither body nor length (RFC 9110 section 8.6), and the connection goes on."""
    site = await start_site(lambda _, reply: reply.send(204, b"", b""))
    async with site.caller() as caller:
        for _ in range(2):
            answer = await caller.ask(GET)
            assert (answer.status, answer.header("content-length")) == (204, None)


async def test_http10_is_closed_unless_it_asks(site: Site) -> None:
    """HTTP/1.0 keeps the connection by asking, and is told so."""
    async with site.caller() as caller:
        answer = await caller.ask(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
        assert answer.header("connection") == "keep-alive"
        answer = await caller.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert answer.header("connection") == "close"
        assert await caller.closed() == b""


async def test_http11_may_ask_to_close(site: Site) -> None:
    """``Connection: close`` is obeyed and echoed; without it nothing is said."""
    async with site.caller() as caller:
        assert (await caller.ask(GET)).header("connection") is None
        answer = await caller.ask(request("GET", "/", ("connection", "close")))
        assert answer.header("connection") == "close"
        assert await caller.closed() == b""


def streamed(_: Request, reply: Reply) -> None:
    """An answer in pieces."""
    reply.start(200, TEXT, None)
    reply.write(b"one ")
    reply.write(b"two")
    reply.end()


async def test_stream_is_chunked(start_site: StartSite) -> None:
    """A body without a length goes in chunks, and the connection goes on."""
    site = await start_site(streamed)
    async with site.caller() as caller:
        for _ in range(2):
            answer = await caller.ask(GET)
            assert answer.header("transfer-encoding") == "chunked"
            assert (answer.body, answer.complete) == (b"one two", True)


async def test_stream_to_http10_ends_with_the_connection(start_site: StartSite) -> None:
    """HTTP/1.0 knows no chunks: the body is bare and ends when the connection does."""
    site = await start_site(streamed)
    async with site.caller() as caller:
        answer = await caller.ask(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        assert answer.header("transfer-encoding") is None
        assert answer.header("connection") == "close"
        assert answer.body == b"one two"


async def test_body_of_known_length_is_bare(start_site: StartSite) -> None:
    """With a length given, the pieces go out as they are."""
    site = await start_site(hold)
    async with site.caller() as caller:
        await caller.send(GET)
        reply = await site.reply()
        reply.start(200, TEXT, 6)
        assert reply.status == 200
        answer = await caller.head()
        reply.write(b"abc")
        await caller.receive_until(answer, b"abc")  # each piece is sent when it is written
        reply.write(b"def")
        reply.end()
        await caller.receive_until(answer, b"def")
        assert answer.header("content-length") == "6"


async def test_cut_answer_is_seen_as_cut(start_site: StartSite) -> None:
    """``cut`` ends the connection before the framing does; the application isn't told of itself."""
    site = await start_site(hold)
    async with site.caller() as caller:
        await caller.send(GET)
        reply = await site.reply()
        reply.start(200, TEXT, None)
        reply.write(b"abc")
        answer = await caller.head()
        await caller.piece(answer)
        reply.cut()
        assert await caller.piece(answer) == b""
        assert not answer.complete
    await until(lambda: not site.connections)
    assert site.gone == []


async def test_gone_is_told_once_and_in_the_tick_of_the_loss(start_site: StartSite) -> None:
    """``on_gone`` runs inside the loop's callback, before anything else; later writes vanish."""
    site = await start_site(hold)
    seen: list[str] = []
    async with site.caller() as caller:
        await caller.send(GET)
        reply = await site.reply()
        server_side = next(iter(site.server._connections))

        def on_gone() -> None:
            seen.append(f"gone of {site.connections}")

        reply.on_gone = on_gone
        reply.start(200, TEXT, None)
        site.server.loop.call_soon(caller.reset)
        lose = server_side._lose
        await until(lambda: seen)
    await until(lambda: not site.connections)
    assert seen == ["gone of 1"]
    lose()
    reply.write(b"a")
    reply.end()
    reply.cut()
    reply.start(200, TEXT, None)
    reply.send(200, TEXT, b"")
    reply.gone()
    assert seen == ["gone of 1"]


async def test_answered_request_has_no_caller_to_lose(start_site: StartSite) -> None:
    """After the end of the answer ``on_gone`` is not called, whatever becomes of the connection."""
    site = await start_site(hold)
    async with site.caller() as caller:
        await caller.send(GET)
        reply = await site.reply()
        reply.send(200, TEXT, b"abc")
        await caller.answer()
        caller.reset()
        await until(lambda: not site.connections)
    assert (site.gone, reply.on_gone, reply.source) == ([], None, None)


class Tap:
    """A source that notes what flow control tells it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause_reading(self) -> None:
        """Noted."""
        self.told.append("pause")

    def resume_reading(self) -> None:
        """Noted."""
        self.told.append("resume")


async def test_source_follows_the_reader(start_site: StartSite) -> None:
    """The source is paused while the caller doesn't read, and resumed when it has caught up."""
    site = await start_site(hold)
    async with site.caller() as caller:
        await caller.send(GET)
        reply = await site.reply()
        tap = reply.source = Tap()
        reply.start(200, TEXT, None)
        while not tap.told:
            reply.write(b"a" * 100_000)
            await until(lambda: True)
        assert tap.told == ["pause"]
        answer = await caller.head()
        while tap.told == ["pause"]:
            await caller.piece(answer)
        assert tap.told == ["pause", "resume"]
        reply.end()
        while await caller.piece(answer):
            pass
        assert answer.complete
