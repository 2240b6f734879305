"""Promise: a stream arrives whole, unchanged and at once, or ends in a clear error.

The bytes are cut wherever a network may cut them; what the caller gets must not depend on it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from tests.answers import DONE, LAST_CHUNK, STREAM_HEAD, chunked, delta, event, usage, usage_event
from tests.conftest import StartGateway
from tests.gateway import MODEL, Gateway
from tests.raw_client import Answer, ask, caller, chat, request
from tests.scripted_upstream import (
    PATIENCE_S,
    Exchange,
    Request,
    Script,
    ScriptedUpstream,
    Step,
    chunk,
    close,
    hang,
    pause,
    reset,
    says,
    send,
    stream,
)
from tests.spending import journal, logged


def small(text: str) -> bytes:
    """An event with nothing but its text, so that there are few places to cut it."""
    return event({"choices": [{"delta": {"content": text}}]})


#: Two-, three- and four-byte characters, so that cuts fall inside of each kind.
EVENTS = (
    small("né"),
    small("你好"),
    small("🦙\n\n"),
    event({"choices": [], "usage": usage(5, 7)}),
    DONE,
)
#: What the caller gets of them: the usage event, which it didn't ask for, is held back.
SEEN = (*EVENTS[:3], DONE)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WIRE = HEAD + b"".join(chunked(one) for one in EVENTS) + LAST_CHUNK
#: The upstream is done when all of ``[DONE]`` has come, though the last chunk's framing has not.
LAST_CUT = WIRE.index(DONE) + len(DONE)


def cut_upstream(ending: Step) -> Callable[[Request], Script]:
    """Answers that stop after as many bytes as the prompt says."""

    def script(request: Request) -> Script:
        if request.prompt() == "all is well":
            return [send(WIRE)]
        return [send(WIRE[: int(request.prompt())]), ending]

    return script


def seen_before(cut: int) -> bytes:
    """The whole events, without the one held back, of which every byte comes before the cut."""
    ends_at, seen = len(HEAD), b""
    for one in EVENTS:
        # An event is whole without the line end that closes its chunk.
        ends_at += len(chunked(one))
        if ends_at - 2 <= cut and one in SEEN:
            seen += one
    return seen


async def answers_at_every_cut(gateway: Gateway, cuts: range) -> dict[int, Answer]:
    """Ask for a stream cut at each of these bytes.

    Three at a time, with a success after each failure: more failures in a row would make the
    gateway leave the upstream alone for a while.
    """
    answers: dict[int, Answer] = {}
    waiting = iter(cuts)

    async def work() -> None:
        async with caller(gateway.port) as well:
            for cut in waiting:
                answers[cut] = await ask(gateway.port, chat(str(cut), stream=True))
                assert (await well.ask(chat("all is well", stream=True))).status == 200

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(work())
    return answers


@pytest.mark.parametrize("ending", [close(), reset()], ids=["close", "reset"])
async def test_stream_cut_at_every_byte_ends_in_an_error_event(
    upstream: ScriptedUpstream, fresh_gateway: Gateway, ending: Step
) -> None:
    """Wherever the upstream dies, the caller gets whole events, then an error and no [DONE]."""
    upstream.script = cut_upstream(ending)
    answers = await answers_at_every_cut(fresh_gateway, range(len(HEAD), LAST_CUT))
    for cut, answer in answers.items():
        assert answer.status == 200
        *whole, last = answer.events()
        sent = b"".join(b"data: " + data + b"\n\n" for data in whole)
        assert sent == seen_before(cut), cut
        error = json.loads(last)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "upstream_unavailable"


async def test_answer_cut_in_its_head_is_502(
    upstream: ScriptedUpstream, fresh_gateway: Gateway
) -> None:
    """An upstream that dies before its head is complete gives a 502, and isn't asked again."""
    upstream.script = cut_upstream(close())
    answers = await answers_at_every_cut(fresh_gateway, range(len(HEAD)))
    for cut, answer in answers.items():
        assert answer.status == 502, cut
        assert answer.error()["code"] == "upstream_unavailable"
    seen = [request.prompt() for request in upstream.requests]
    assert sorted(seen) == sorted([*map(str, range(len(HEAD))), *["all is well"] * len(HEAD)])


async def test_stream_split_at_every_byte_arrives_identical(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A stream read in two pieces, split anywhere, reaches the caller as the same bytes."""
    async with caller(gateway.port) as connection, caller(gateway.port) as clock:

        async def until_read(_exchange: Exchange) -> None:
            # The first piece is in the gateway's kernel; two answers on another connection later
            # its event loop has been round once, and has read it.
            for _ in range(2):
                await clock.ask(request("GET", "/healthz"))

        for at in range(1, len(WIRE)):
            upstream.plays([send(WIRE[:at]), until_read, send(WIRE[at:])])
            answer = await connection.ask(chat(stream=True))
            assert answer.body == b"".join(SEEN), at
            assert answer.complete


async def test_stream_byte_by_byte_arrives_identical(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A stream whose every byte is an HTTP chunk of its own reaches the caller unchanged."""
    body = b"".join(EVENTS)
    upstream.plays(stream(*(body[i : i + 1] for i in range(len(body)))))
    answer = await ask(gateway.port, chat(stream=True))
    assert answer.body == b"".join(SEEN)


async def test_events_arrive_as_they_are_sent(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """Each event reaches the caller before the upstream has sent the next one."""
    events = [delta(f"piece {number}") for number in range(50)]
    received = [asyncio.Event() for _ in events]
    steps = [send(STREAM_HEAD)]
    for one, arrived in zip(events, received, strict=True):
        steps += [chunk(one), pause(arrived)]
    upstream.plays([*steps, chunk(DONE), send(LAST_CHUNK)])
    async with caller(gateway.port) as connection:
        await connection.send(chat(stream=True))
        answer = await connection.head()
        for one, arrived in zip(events, received, strict=True):
            await connection.receive_until(answer, one)
            arrived.set()
        await connection.receive_until(answer, DONE)
    assert answer.body == b"".join([*events, DONE])


async def test_answer_head_arrives_before_the_first_event(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """The head of a stream is passed on at once, so that SDKs see that the answer has begun."""
    go_on = asyncio.Event()
    upstream.plays([send(STREAM_HEAD), pause(go_on), chunk(DONE), send(LAST_CHUNK)])
    async with caller(gateway.port) as connection:
        await connection.send(chat(stream=True))
        answer = await connection.head()
        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        go_on.set()
        await connection.receive_until(answer, DONE)


async def test_usage_is_asked_for_and_held_back(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """Usage is asked for on the caller's behalf; its extra event is kept from the caller."""
    upstream.plays(stream(delta("Hi"), usage_event(), DONE))
    answer = await ask(gateway.port, chat(stream=True))
    assert upstream.requests[0].json()["stream_options"] == {"include_usage": True}
    assert answer.body == delta("Hi") + DONE


async def test_usage_is_passed_on_to_who_asked(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A caller that asks for usage gets the usage event, unchanged."""
    upstream.plays(stream(delta("Hi"), usage_event(), DONE))
    answer = await ask(gateway.port, chat(stream=True, stream_options={"include_usage": True}))
    assert answer.body == delta("Hi") + usage_event() + DONE


async def test_other_stream_options_are_kept(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """Asking for usage doesn't lose the caller's other stream options."""
    upstream.plays(stream(delta("Hi"), DONE))
    await ask(gateway.port, chat(stream=True, stream_options={"include_obfuscation": False}))
    options = upstream.requests[0].json()["stream_options"]
    assert options == {"include_obfuscation": False, "include_usage": True}


async def test_event_of_100_kilobytes_arrives_identical(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A line of 100 KB, longer than any one read, reaches the caller unchanged."""
    long = delta("语" * 33_400)
    assert len(long) > 100_000
    upstream.plays(stream(long, delta("!"), usage_event(), DONE))
    answer = await ask(gateway.port, chat(stream=True))
    assert answer.body == long + delta("!") + DONE


async def test_event_over_the_holding_limit_is_passed_on(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """An event of 3 MB is more than is ever held back, and arrives all the same."""
    huge = delta("x" * 3_000_000)
    upstream.plays(stream(huge, usage_event(), DONE))
    answer = await ask(gateway.port, chat(stream=True))
    assert answer.body == huge + DONE


async def test_stream_without_done_is_passed_on_as_it_is(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A stream that ends properly, but without [DONE], isn't made to look broken or repaired."""
    upstream.plays(stream(delta("Hi")))
    answer = await ask(gateway.port, chat(stream=True))
    assert answer.body == delta("Hi")
    assert answer.complete


async def test_error_event_of_the_upstream_is_reworded(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """An upstream's own error inside a stream stays an error, without its words."""
    trouble = {"message": "org-canary", "type": "server_error", "param": None, "code": None}
    upstream.plays(stream(delta("Hi"), event({"error": trouble})))
    answer = await ask(gateway.port, chat(stream=True))
    error = json.loads(answer.events()[-1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert b"canary" not in answer.body
    assert DONE not in answer.body


async def test_cut_stream_is_counted_as_cut(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """For the operator a stream that ended in an error isn't one that went well."""
    gateway = await start_gateway(FREEAPI_REQUEST_LOG="on")
    begun = [send(STREAM_HEAD), chunk(delta("Hi"))]
    for script in ([*begun, reset()], [*begun, chunk(DONE), reset()], stream(delta("Hi"), DONE)):
        upstream.plays(script)
        await ask(gateway.port, chat(stream=True))
    await logged(gateway, "request", 3)
    assert [line["label"] for line in journal(gateway, "request")] == ["upstream_cut", "ok", "ok"]


async def test_cut_after_done_is_no_error(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """Once [DONE] has come the caller has everything, so a cut of the framing takes nothing."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("Hi")), chunk(DONE), close()])
    answer = await ask(gateway.port, chat(stream=True))
    assert answer.body == delta("Hi") + DONE


async def test_event_stream_with_a_length_is_relayed(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A stream framed by Content-Length rather than by chunks loses nothing."""
    body = delta("Hi") + usage_event() + DONE
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
    upstream.plays([send(head % len(body) + body)])
    answer = await ask(gateway.port, chat(stream=True))
    assert answer.body == delta("Hi") + DONE
    assert answer.complete


async def test_event_stream_ended_by_close_is_relayed(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A stream of an upstream that has no framing but the connection's end loses nothing."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    upstream.plays([send(head + delta("Hi") + usage_event() + DONE), close()])
    answer = await ask(gateway.port, chat(stream=True))
    assert answer.body == delta("Hi") + DONE


async def test_300_streams_at_once(upstream: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """300 callers stream at the same time, all of them at their first event before any goes on."""
    gateway = await start_gateway(FREEAPI_MAX_CONNECTIONS_PER_ADDRESS="1000")
    all_begun = asyncio.Event()
    begun_count = 0

    def script(request: Request) -> Script:
        mine = delta(request.prompt())
        begin, rest = [send(STREAM_HEAD), chunk(mine)], [chunk(mine * 3), chunk(DONE)]
        return [*begin, pause(all_begun), *rest, send(LAST_CHUNK)]

    async def one(number: int) -> None:
        nonlocal begun_count
        mine = delta(f"caller {number}")
        async with caller(gateway.port) as connection:
            await connection.send(chat(f"caller {number}", stream=True))
            answer = await connection.head()
            await connection.receive_until(answer, mine)
            begun_count += 1
            if begun_count == 300:
                all_begun.set()
            await connection.receive_until(answer, DONE)
        assert answer.body == mine * 4 + DONE

    upstream.script = script
    async with asyncio.TaskGroup() as group:
        for number in range(300):
            group.create_task(one(number))


async def test_not_streaming_is_passed_on_unchanged(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A plain answer of 2 MB arrives with its length and every byte."""
    upstream.plays(says("好" * 700_000))
    answer = await ask(gateway.port, chat())
    assert answer.text() == "好" * 700_000
    assert answer.header("content-length") == str(len(answer.body))


async def test_stream_that_goes_quiet_ends_in_an_error_event(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """An upstream that hangs in mid-stream gives an error event after ``idle_s``."""
    gateway = await start_gateway("[timeouts]\nidle_s = 0.3\n")
    upstream.plays([send(STREAM_HEAD), chunk(delta("Hi")), hang()])
    answer = await ask(gateway.port, chat(stream=True))
    first, last = answer.events()
    assert b"data: " + first + b"\n\n" == delta("Hi")
    assert json.loads(last)["error"]["code"] == "upstream_timeout"
    async with asyncio.timeout(PATIENCE_S):
        await upstream.exchanges[0].gone.wait()


async def test_long_stream_ends_at_the_total_time_out(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A stream that never falls quiet, and never ends, gives an error event after ``total_s``."""
    gateway = await start_gateway("[timeouts]\ntotal_s = 1\n")

    async def babble(exchange: Exchange) -> None:
        async with caller(gateway.port) as clock:
            while not exchange.gone.is_set():
                await exchange.send(chunked(delta("and ")))
                await clock.ask(request("GET", "/healthz"))

    upstream.plays([send(STREAM_HEAD), babble])
    answer = await ask(gateway.port, chat(stream=True))
    assert json.loads(answer.events()[-1])["error"]["code"] == "upstream_timeout"


async def test_model_of_the_answer_is_left_alone(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """What is sent upstream names the mapped model; the answer's bytes are the upstream's."""
    upstream.plays(stream(delta("Hi"), DONE))
    answer = await ask(gateway.port, chat(stream=True))
    assert upstream.requests[0].json()["model"] != MODEL
    assert json.loads(answer.events()[0])["model"] == "gpt-4o-mini-2024-07-18"
