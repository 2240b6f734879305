"""One answer from the upstream to the caller: kept or passed on, refused, cut.

The caller's side is a real connection; the upstream's side is played by calling the relay as
``UpstreamConnection`` does, one call a read.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from freeapi.errors import UpstreamCut, UpstreamGarbage
from freeapi.http.answers import Usage
from freeapi.http.relay import COLLECT_BYTES_MAX, ERROR_BYTES_MAX, Relay
from freeapi.http.sse import error_event
from tests.answers import (
    DONE,
    chat_json,
    delta,
    response_json,
    response_stream,
    speech_stream,
    spent,
    usage_event,
)
from tests.http.conftest import Site, StartSite, alive, hold, uncollected, until
from tests.raw_client import Answer, Caller, request

JSON = {b"content-type": b"application/json"}
SSE = {b"content-type": b"text/event-stream; charset=utf-8"}
OURS = b"x-freeapi-adjusted: max_tokens=1\r\n"
LEAK = {b"openai-organization": b"org-canary", b"set-cookie": b"canary=1"}


class Asked:
    """A caller who has asked, and the relay for the answer."""

    def __init__(self, site: Site, caller: Caller) -> None:
        self.site = site
        self.caller = caller
        self.relay = Relay(site.calls[0][1], OURS, hides_usage=True)

    def read(self, *pieces: bytes) -> None:
        """As many reads of the body."""
        for piece in pieces:
            self.relay.on_data(piece)


@pytest.fixture
async def asked(start_site: StartSite) -> AsyncIterator[Asked]:
    """One request under way."""
    site = await start_site(hold)
    async with site.caller() as caller:
        await caller.send(request("POST", "/v1", body=b"{}"))
        await site.reply()
        yield Asked(site, caller)


async def test_json_is_sent_whole_when_it_is_whole(asked: Asked) -> None:
    """Nothing goes out before the end; then one answer with its length, and the usage is known."""
    body = chat_json("hello", 3, 4)
    asked.relay.on_head(200, JSON | LEAK)
    asked.read(body[:50], body[50:80])
    assert not asked.relay.started
    asked.relay.on_end(body[80:])
    assert asked.relay.started
    answer = await asked.caller.answer()
    assert answer.body == body
    assert answer.header("content-length") == str(len(body))
    assert asked.relay.usage == Usage(prompt_tokens=3, completion_tokens=4)


async def test_only_our_headers_and_the_type_go_down(asked: Asked) -> None:
    """Of the upstream's head the caller sees the status and the content type."""
    asked.relay.on_head(201, {b"content-type": b"text/x"} | LEAK)
    asked.relay.on_end(b"")
    answer = await asked.caller.answer()
    assert answer.status == 201
    names = {name for name, _ in answer.headers}
    ours = {"date", "server", "x-request-id", "x-freeapi-adjusted"}
    assert names == ours | {"content-type", "content-length"}
    assert answer.header("content-type") == "text/x"


@pytest.mark.parametrize("has_length", [True, False])
async def test_long_json_is_passed_on(asked: Asked, has_length: bool) -> None:
    """Over the bound it goes out read by read, nothing is kept, and the usage is still found."""
    body = chat_json("a" * (COLLECT_BYTES_MAX + 100_000), 3, 4)
    pieces = [body[i : i + 65_536] for i in range(0, len(body), 65_536)]
    length = {b"content-length": b"%d" % len(body)} if has_length else {}
    asked.relay.on_head(200, JSON | length)
    assert asked.relay.started == has_length
    asked.read(*pieces[:-1])
    assert asked.relay.started
    assert len(asked.relay.error_body) < 10_000
    asked.read(pieces[-1][:20])
    asked.relay.on_end(pieces[-1][20:])
    answer = await asked.caller.answer()
    assert (answer.body, answer.complete) == (body, True)
    assert (answer.header("content-length") is not None) == has_length
    assert asked.relay.usage == Usage(prompt_tokens=3, completion_tokens=4)


async def test_json_at_the_bound_is_kept(asked: Asked) -> None:
    """A body of exactly the bound is sent whole."""
    asked.relay.on_head(200, JSON | {b"content-length": b"%d" % COLLECT_BYTES_MAX})
    asked.read(b"a" * COLLECT_BYTES_MAX)
    assert not asked.relay.started
    asked.relay.on_end(b"")
    assert len((await asked.caller.answer()).body) == COLLECT_BYTES_MAX


@pytest.mark.parametrize(
    "headers",
    [
        {b"content-encoding": b"gzip"},
        {b"content-encoding": b"identity, br"},
        {b"content-type": b"Text/HTML; charset=utf-8"},
    ],
)
async def test_what_can_be_no_answer_is_refused(asked: Asked, headers: dict[bytes, bytes]) -> None:
    """An encoding that we didn't ask for, or a web page, in place of an answer."""
    with pytest.raises(UpstreamGarbage):
        asked.relay.on_head(200, JSON | headers)
    assert not asked.relay.started


async def test_success_without_a_name_is_refused(asked: Asked) -> None:
    """A 2xx that HTTP doesn't know is no answer of the API."""
    with pytest.raises(UpstreamGarbage):
        asked.relay.on_head(299, JSON)
    assert not asked.relay.started


async def test_identity_is_no_encoding(asked: Asked) -> None:
    """Some servers say that they did nothing."""
    asked.relay.on_head(200, JSON | {b"content-encoding": b"Identity"})
    asked.relay.on_end(b"")
    assert (await asked.caller.answer()).status == 200


async def test_missing_type_is_json(asked: Asked) -> None:
    """An upstream that names no type is taken for JSON."""
    asked.relay.on_head(200, {})
    asked.relay.on_end(b"")
    assert (await asked.caller.answer()).header("content-type") == "application/json"


@pytest.mark.parametrize("status", [304, 400, 401, 429, 500])
async def test_error_is_kept_for_the_proxy(asked: Asked, status: int) -> None:
    """The caller sees nothing of it; a page or an encoding is no reason to fail here."""
    asked.relay.on_head(status, {b"content-type": b"text/html", b"content-encoding": b"gzip"})
    asked.read(b"sk-")
    asked.relay.on_end(b"canary")
    assert (asked.relay.status, asked.relay.error_body) == (status, b"sk-canary")
    assert not asked.relay.started
    assert asked.site.calls[0][1].status == 0


@pytest.mark.parametrize("status", [200, 500])
async def test_relay_is_freed_at_once(asked: Asked, status: int) -> None:
    """A request leaves nothing that only the garbage collector could free."""
    with uncollected():
        before = alive(Relay)
        relay = Relay(asked.site.calls[0][1], OURS, hides_usage=True)
        relay.on_head(status, JSON)
        relay.on_data(b"{}")
        assert alive(Relay) == before + 1
        del relay
        assert alive(Relay) == before


async def test_error_body_is_bounded(asked: Asked) -> None:
    """However much an upstream says about an error, a little is kept; over 1 MiB is garbage."""
    asked.relay.on_head(500, {})
    asked.read(*[b"a" * 30_000] * (COLLECT_BYTES_MAX // 30_000))
    assert 0 < len(asked.relay.error_body) <= ERROR_BYTES_MAX
    with pytest.raises(UpstreamGarbage):
        asked.read(b"a" * 30_000)


async def streamed(asked: Asked, *pieces: bytes) -> Answer:
    """Begin a stream; returns the caller's answer when it has the first piece."""
    asked.relay.on_head(200, SSE | {b"content-length": b"9"})
    asked.read(*pieces)
    answer = await asked.caller.head()
    await asked.caller.piece(answer)
    return answer


async def test_each_read_of_a_stream_is_on_its_way_at_once(asked: Asked) -> None:
    """An event is received before the next is read from the upstream; the usage is held back."""
    answer = await streamed(asked, delta("a"))
    assert answer.body == delta("a")
    assert answer.header("cache-control") == "no-cache"
    assert answer.header("transfer-encoding") == "chunked"
    assert answer.header("x-freeapi-adjusted") == "max_tokens=1"
    asked.read(delta("b"))
    assert await asked.caller.piece(answer) == delta("b")
    asked.read(usage_event(3, 4), DONE)
    asked.relay.on_end(b"")
    assert await asked.caller.piece(answer) == DONE
    assert await asked.caller.piece(answer) == b""
    assert answer.complete
    assert asked.relay.usage == Usage(prompt_tokens=3, completion_tokens=4)


async def test_end_may_come_in_one_read_with_the_last_of_a_body(asked: Asked) -> None:
    """Then it leaves in one piece with the caller's end, the usage still being held back."""
    answer = await streamed(asked, delta("a"))
    asked.relay.on_end(usage_event(3, 4) + DONE + b"data: b")
    assert await asked.caller.piece(answer) == DONE + b"data: b"
    assert await asked.caller.piece(answer) == b""
    assert asked.relay.usage == Usage(prompt_tokens=3, completion_tokens=4)


async def test_stream_that_ends_within_an_event_is_passed_on(asked: Asked) -> None:
    """A proper end in HTTP is believed, whatever is missing in the events."""
    answer = await streamed(asked, delta("a"), b"data: b")
    asked.relay.on_end(b"")
    assert await asked.caller.piece(answer) == b"data: b"
    assert await asked.caller.piece(answer) == b""
    assert answer.complete


async def test_cut_stream_ends_with_an_error_event(asked: Asked) -> None:
    """The broken event is dropped, the error told, the connection closed without ``[DONE]``."""
    answer = await streamed(asked, delta("a") + b'data: {"bro')
    asked.relay.fail(UpstreamCut())
    while await asked.caller.piece(answer):
        pass
    assert answer.body == delta("a") + error_event(UpstreamCut())
    assert await asked.caller.closed() == b""


async def test_usage_so_far_of_a_cut_stream_is_not_what_is_billed(asked: Asked) -> None:
    """Some upstreams send a usage with each event; before ``[DONE]`` it is only a part."""
    await streamed(asked, usage_event(3, 4) + delta("a"))
    asked.relay.fail(UpstreamCut())
    assert asked.relay.usage is None


async def test_stream_cut_after_its_end_is_whole(asked: Asked) -> None:
    """When ``[DONE]`` has passed, a cut is no error to the caller."""
    answer = await streamed(asked, delta("a") + usage_event(3, 4) + DONE)
    asked.relay.fail(UpstreamCut())
    assert await asked.caller.piece(answer) == b""
    assert (answer.body, answer.complete) == (delta("a") + DONE, True)
    assert asked.relay.usage == Usage(prompt_tokens=3, completion_tokens=4)


async def test_cut_body_is_cut_for_the_caller_too(asked: Asked) -> None:
    """A long JSON body that can't be completed ends before its length says so."""
    asked.relay.on_head(200, JSON | {b"content-length": b"2000000"})
    asked.read(b"a" * 1_000)
    answer = await asked.caller.head()
    await asked.caller.receive_until(answer, b"a" * 1_000)
    asked.relay.fail(UpstreamCut())
    assert await asked.caller.piece(answer) == b""
    assert not answer.complete
    await until(lambda: not asked.site.connections)


#: A completion whose prompt somebody else had sent before.
CACHED = chat_json("hello", 2006, 4).replace(
    b'"total_tokens"', b'"prompt_tokens_details": {"cached_tokens": 1920}, "total_tokens"'
)
HIDDEN = CACHED.replace(b"1920", b"0   ")
assert HIDDEN != CACHED


@pytest.mark.parametrize("kind", [JSON, {}, {b"content-type": b"application/vnd.x+json"}])
async def test_cache_count_of_json_is_hidden(asked: Asked, kind: dict[bytes, bytes]) -> None:
    """A JSON answer says 0 cached tokens, in as many bytes; what is billed is known as before."""
    asked.relay.on_head(200, kind | {b"content-length": b"%d" % len(CACHED)})
    asked.read(CACHED[:-30], CACHED[-30:])
    asked.relay.on_end(b"")
    answer = await asked.caller.answer()
    assert answer.body == HIDDEN
    assert answer.header("content-length") == str(len(CACHED))
    assert asked.relay.usage == Usage(prompt_tokens=2006, completion_tokens=4)


@pytest.mark.parametrize("has_length", [True, False])
async def test_cache_count_of_long_json_is_hidden(asked: Asked, has_length: bool) -> None:
    """Also of a body that is passed on read by read, with the usage cut in two anywhere."""
    long = b'{"filler":"%b",' % (b"a" * (COLLECT_BYTES_MAX + 10)) + CACHED[1:]
    length = {b"content-length": b"%d" % len(long)} if has_length else {}
    asked.relay.on_head(200, JSON | length)
    end = len(long) - 200
    asked.read(long[:end], *(long[i : i + 1] for i in range(end, len(long))))
    asked.relay.on_end(b"")
    answer = await asked.caller.answer()
    assert answer.body == long.replace(b"1920", b"0   ")
    assert answer.complete
    assert asked.relay.usage == Usage(prompt_tokens=2006, completion_tokens=4)


@pytest.mark.parametrize("end", [b'"', b'"usag', b'"usage": {"cached_tokens": 1920', b"\\"])
async def test_long_json_that_breaks_off_loses_nothing(asked: Asked, end: bytes) -> None:
    """A long body whose end is missing goes out to its last byte all the same."""
    long = b'{"filler":"%b' % (b"a" * (COLLECT_BYTES_MAX + 10)) + end
    asked.relay.on_head(200, JSON | {b"content-length": b"%d" % len(long)})
    asked.read(long)
    asked.relay.on_end(b"")
    answer = await asked.caller.answer()
    assert (answer.body, answer.complete) == (long, True)


async def test_what_isnt_json_passes_as_it_is(asked: Asked) -> None:
    """A transcription may say what it likes: no word of it is a count, an error or the bill."""
    said = CACHED + b'{"error":{"message":"x"}}'
    asked.relay.on_head(200, {b"content-type": b"text/plain; charset=utf-8"})
    asked.read(said)
    assert not asked.relay.started
    asked.relay.on_end(b"")
    assert (await asked.caller.answer()).body == said
    assert asked.relay.usage is None


@pytest.mark.parametrize("kind", [b"audio/mpeg", b"Audio/L16; rate=1", b"application/octet-stream"])
@pytest.mark.parametrize("has_length", [True, False])
async def test_sound_passes_read_by_read(asked: Asked, kind: bytes, has_length: bool) -> None:
    """Each read is on its way at once, any bytes, and nothing is kept or looked for in it."""
    length = {b"content-length": b"%d" % (len(CACHED) + 3)} if has_length else {}
    asked.relay.on_head(200, {b"content-type": kind} | length)
    answer = await asked.caller.head()
    assert answer.header("content-type") == kind.decode()
    assert (answer.header("content-length") is not None) == has_length
    for piece in (b"\x00\xff\n", CACHED):
        asked.read(piece)
        await asked.caller.receive_until(answer, piece)
    assert asked.relay.error_body == b""
    asked.relay.on_end(b"")
    assert await asked.caller.piece(answer) == b""
    assert (answer.body, answer.complete) == (b"\x00\xff\n" + CACHED, True)
    assert asked.relay.usage is None


async def test_sound_that_breaks_off_is_cut(asked: Asked) -> None:
    """The caller can't take half a recording for the whole."""
    asked.relay.on_head(200, {b"content-type": b"audio/mpeg"})
    asked.read(b"ID3")
    answer = await asked.caller.head()
    await asked.caller.receive_until(answer, b"ID3")
    asked.relay.fail(UpstreamCut())
    assert await asked.caller.piece(answer) == b""
    assert not answer.complete


async def test_error_in_a_200_is_told_in_our_words(asked: Asked) -> None:
    """A failed response is passed on as such, without the upstream's message; its usage counts."""
    error = {"code": "server_error", "message": "org-x"}
    asked.relay.on_head(200, JSON)
    asked.read(response_json("", status="failed", error=error, usage=spent(3, 4)))
    asked.relay.on_end(b"")
    assert asked.relay.usage == Usage(3, 4)
    told = json.loads((await asked.caller.answer()).body)
    assert told["status"] == "failed"
    assert "org-x" not in json.dumps(told)
    assert told["error"]["code"] == "server_error"


@pytest.mark.parametrize("usage_first", [True, False])
async def test_usage_of_long_images_is_found(asked: Asked, usage_first: bool) -> None:
    """Megabytes of base64 pass read by read, and what they cost stands on either side of them."""
    image = {"data": [{"b64_json": "a" * 2 * COLLECT_BYTES_MAX}]}
    bill = {"usage": spent(3, 4)}
    body = json.dumps(bill | image if usage_first else image | bill).encode()
    asked.relay.on_head(200, JSON | {b"content-length": b"%d" % len(body)})
    asked.read(*(body[i : i + 60_000] for i in range(0, len(body), 60_000)))
    asked.relay.on_end(b"")
    assert (await asked.caller.answer()).body == body
    assert asked.relay.usage == Usage(3, 4)


@pytest.mark.parametrize("events", [response_stream("hi"), speech_stream()])
async def test_other_streams_are_whole_after_their_last_event(
    asked: Asked, events: list[bytes]
) -> None:
    """A cut behind it is no error and takes no usage away; before it, it is one."""
    answer = await streamed(asked, *events)
    asked.relay.fail(UpstreamCut())
    while await asked.caller.piece(answer):
        pass
    assert (answer.body, answer.complete) == (b"".join(events), True)
    assert asked.relay.usage == Usage(5, 7)


async def test_response_cut_before_its_last_event_ends_with_an_error(asked: Asked) -> None:
    """There is no bill, and the caller is told as in a chat."""
    events = response_stream("hi")[:-1]
    answer = await streamed(asked, *events)
    asked.relay.fail(UpstreamCut())
    while await asked.caller.piece(answer):
        pass
    assert answer.body == b"".join((*events, error_event(UpstreamCut())))
    assert asked.relay.usage is None
