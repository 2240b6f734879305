"""Promise: the limits are what the gateway says they are, however many callers ask at once.

The bounds are DESIGN section 5's: limit / 6 requests at once and then one each 60 s / limit; a
minute's tokens at once and then as many a minute. A refusal says when to come back, or not to.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from itertools import repeat

import pytest

from tests.answers import DONE, STREAM_HEAD, answer, chat_json, delta, usage_event
from tests.conftest import StartGateway
from tests.crowd import ADDRESS, CLIENTS, OPEN_DOOR, ask_from, crowd, number
from tests.gateway import Gateway
from tests.raw_client import Answer, ask, caller, chat, post, request
from tests.scripted_upstream import (
    ScriptedUpstream,
    chunk,
    hang,
    happens,
    pause,
    says,
    send,
    stream,
)

NOT_JSON = post("/v1/chat/completions", b"{")
HEADERS = [
    f"x-ratelimit-{fact}-{what}"
    for what in ("requests", "tokens")
    for fact in ("limit", "remaining", "reset")
]
#: OpenAI's spelling: 12ms, 1s, 6m0s. Source: its guide "Rate limits".
RESET = re.compile(r"\d+ms|(\d+h)?(\d+m)?\d+s")
DAY_S = 86_400


def admitted(answers: list[Answer], code: str) -> int:
    """How many got an answer; all the others must have been refused with this code."""
    refused = [answer for answer in answers if answer.status != 200]
    assert {answer.status for answer in refused} == {429}
    assert {answer.error()["code"] for answer in refused} == {code}
    return len(answers) - len(refused)


# --- Under 500 clients at once --------------------------------------------------------------------


async def test_requests_a_minute_hold(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Of 500 at once the burst (limit / 6) gets in, and what the clock refills meanwhile."""
    gateway = await start_gateway(FREEAPI_CALLER_RPM="600", **OPEN_DOOR)
    start_s = time.monotonic()
    answers = await crowd(gateway.port, chat(), repeat(ADDRESS, CLIENTS))
    elapsed_s = time.monotonic() - start_s
    count = admitted(answers, "rate_limit_exceeded")
    assert 100 <= count <= 101 + 10 * elapsed_s
    assert len(upstream.requests) == count


async def test_tokens_a_minute_hold(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Of 500 at once as many get in as a minute's tokens are enough for, at their worst case."""
    gateway = await start_gateway(FREEAPI_CALLER_TPM="60000", **OPEN_DOOR)
    # All that was reserved is used, or what is given back would let in more.
    upstream.plays([send(answer(200, chat_json("Hi", 30, 1_000)))])
    start_s = time.monotonic()
    answers = await crowd(gateway.port, chat(max_tokens=1_000), repeat(ADDRESS, CLIENTS))
    elapsed_s = time.monotonic() - start_s
    count = admitted(answers, "rate_limit_exceeded")
    assert len(upstream.requests) == count
    reserved_tokens = 1_000 + len(upstream.requests[0].body) // 4
    assert 60_000 // reserved_tokens <= count <= (60_000 + 1_000 * elapsed_s) / 1_000


async def test_concurrency_holds(upstream: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Of 500 at once exactly as many as may be are in flight; places are free again at the end."""
    gateway = await start_gateway(FREEAPI_CALLER_CONCURRENCY="8", **OPEN_DOOR)
    release = asyncio.Event()
    upstream.plays([pause(release), *says("Hi")])
    answers: list[Answer] = []

    async def ask_and_count() -> None:
        answers.append(await ask(gateway.port, chat()))
        if len(answers) == CLIENTS - 8:
            release.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(ask_and_count())
    # All that were refused have been so before any of those in flight ended.
    assert {answer.status for answer in answers[:-8]} == {429}
    assert admitted(answers, "concurrency_exceeded") == len(upstream.requests) == 8
    answers = await crowd(gateway.port, chat(), repeat(ADDRESS, 8))
    assert [one.text() for one in answers] == ["Hi"] * 8


async def test_requests_a_day_hold(upstream: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Of 500 at once exactly the day's number gets in; the rest are told to wait for tomorrow."""
    gateway = await start_gateway(FREEAPI_CALLER_RPD="100", **OPEN_DOOR)
    first_day = time.time() // DAY_S
    answers = await crowd(gateway.port, chat(), repeat(ADDRESS, CLIENTS))
    now_s = time.time()
    days = 1 + now_s // DAY_S - first_day
    assert 100 <= admitted(answers, "rate_limit_exceeded") <= 100 * days
    refused = next(one for one in answers if one.status == 429)
    wait_s = number(refused, "retry-after")
    assert math.isclose(wait_s, DAY_S - now_s % DAY_S, abs_tol=10)
    assert (refused.header("x-should-retry") == "false") == (wait_s > 60)
    assert (await ask_from("127.0.0.2", gateway.port, chat())).status == 200


async def test_models_requests_hold_for_all_callers_together(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A hundred callers, each far below its own limit, share what the model may do."""
    own = {"FREEAPI_CALLER_RPM": "600", "FREEAPI_QUEUE_S": "0"}
    gateway = await start_gateway("rpm = 60\n", **own)
    start_s = time.monotonic()
    answers = await crowd(gateway.port, chat(), [f"127.0.1.{n}" for n in range(1, 101)])
    elapsed_s = time.monotonic() - start_s
    count = admitted(answers, "capacity_exceeded")
    assert 10 <= count <= 11 + elapsed_s
    # All or nothing: who was refused has spent nothing of its own.
    refused = [one for one in answers if one.status == 429]
    assert {number(one, "x-ratelimit-remaining-requests") for one in refused} == {100}
    assert all(0 < number(one, "retry-after-ms") <= 1_000 for one in refused)


async def test_models_tokens_hold_for_all_callers_together(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """The model's tokens a minute are shared too; a request larger than them isn't to come back."""
    gateway = await start_gateway("tpm = 6000\n", FREEAPI_QUEUE_S="0")
    upstream.plays([send(answer(200, chat_json("Hi", 30, 1_000)))])
    start_s = time.monotonic()
    addresses = [f"127.0.1.{n}" for n in range(1, 51)]
    answers = await crowd(gateway.port, chat(max_tokens=1_000), addresses)
    elapsed_s = time.monotonic() - start_s
    assert 5 <= admitted(answers, "capacity_exceeded") <= (6_000 + 100 * elapsed_s) / 1_000
    too_large = await ask(gateway.port, chat("x" * 30_000))
    assert too_large.error()["code"] == "rate_limit_exceeded"
    assert too_large.header("x-should-retry") == "false"


# --- What an answer says --------------------------------------------------------------------------


async def test_every_answer_tells_the_limits(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """All six headers, in OpenAI's format, are on 200s, streams, 400s, 404s, 415s and 429s."""
    gateway = await start_gateway(FREEAPI_CALLER_RPM="60", FREEAPI_CALLER_TPM="90000")
    plain = request("POST", "/chat/completions", ("content-type", "text/plain"), body=b"{}")
    async with caller(gateway.port) as connection:
        answers = [
            await connection.ask(data)
            for data in (chat(), chat(stream=True), NOT_JSON, chat(model="none"), plain)
        ]
        answers += [await connection.ask(chat()) for _ in range(12)]
    assert [one.status for one in answers[:5]] == [200, 200, 400, 404, 415]
    assert answers[-1].status == 429
    for one in answers:
        limit = {name: one.header(name) or "" for name in HEADERS}
        assert limit["x-ratelimit-limit-requests"] == "60"
        assert limit["x-ratelimit-limit-tokens"] == "90000"
        assert RESET.fullmatch(limit["x-ratelimit-reset-requests"])
        assert RESET.fullmatch(limit["x-ratelimit-reset-tokens"])
    assert number(answers[0], "x-ratelimit-remaining-requests") == 9
    assert 88_900 < number(answers[0], "x-ratelimit-remaining-tokens") < 90_000
    assert number(answers[-1], "x-ratelimit-remaining-requests") == 0


async def test_limits_that_are_off_are_not_told(
    gateway: Gateway, start_gateway: StartGateway
) -> None:
    """There is no header about a limit that is off, on answers and on errors."""
    only_requests = await start_gateway(FREEAPI_CALLER_RPM="60")
    for data in (chat(), NOT_JSON):
        unlimited = await ask(gateway.port, data)
        assert [name for name, _ in unlimited.headers if name.startswith("x-ratelimit")] == []
        limited = await ask(only_requests.port, data)
        told = [name for name, _ in limited.headers if name.startswith("x-ratelimit")]
        assert told == HEADERS[:3]


async def test_refusal_says_when_to_come_back(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """``retry-after`` is whole seconds, rounded up from ``retry-after-ms``, and is kept."""
    gateway = await start_gateway(FREEAPI_CALLER_RPM="120")
    answers = await crowd(gateway.port, chat(), repeat(ADDRESS, 40))
    refused = next(one for one in answers if one.status == 429)
    wait_ms = number(refused, "retry-after-ms")
    assert 0 < wait_ms <= 500
    assert number(refused, "retry-after") == 1
    assert refused.header("x-should-retry") is None
    assert refused.error()["type"] == "requests"


async def test_request_larger_than_the_limit_is_not_to_be_repeated(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """No wait helps: no ``retry-after``, ``x-should-retry: false``, and the numbers in words."""
    gateway = await start_gateway(FREEAPI_CALLER_TPM="500", FREEAPI_CALLER_RPM="60")
    refused = await ask(gateway.port, chat(max_tokens=1_000))
    assert refused.status == 429
    assert refused.error()["code"] == "rate_limit_exceeded"
    assert refused.error()["type"] == "tokens"
    assert refused.header("x-should-retry") == "false"
    assert refused.header("retry-after") is None
    requested = re.search(r"limit 500, requested (\d+)", refused.error()["message"])
    assert requested is not None
    assert 1_000 < int(requested[1]) < 1_100
    # It has taken nothing.
    assert number(refused, "x-ratelimit-remaining-requests") == 10
    assert number(refused, "x-ratelimit-remaining-tokens") == 500
    assert upstream.requests == []
    assert (await ask(gateway.port, chat(max_tokens=100))).status == 200


# --- Tokens by actual usage -----------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "plain"])
async def test_unused_tokens_are_given_back(
    upstream: ScriptedUpstream, start_gateway: StartGateway, streams: bool
) -> None:
    """An answer that used 10 of the 1,024 tokens reserved leaves all but 10 for the next."""
    gateway = await start_gateway(FREEAPI_CALLER_TPM="2000")
    if streams:
        upstream.plays(stream(delta("Hi"), usage_event(3, 7), DONE))
    else:
        upstream.plays([send(answer(200, chat_json("Hi", 3, 7)))])
    async with caller(gateway.port) as connection:
        served = await connection.ask(chat(stream=streams))
        assert number(served, "x-ratelimit-remaining-tokens") < 2_000 - 1_024
        left = number(await connection.ask(NOT_JSON), "x-ratelimit-remaining-tokens")
    assert 1_990 <= left <= 2_000


async def test_stream_without_usage_keeps_its_reservation(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """What nobody knows to be unused stays taken, and the clock alone gives it back."""
    gateway = await start_gateway(FREEAPI_CALLER_TPM="2000")
    upstream.plays(stream(delta("Hi"), DONE))
    start_s = time.monotonic()
    async with caller(gateway.port) as connection:
        assert (await connection.ask(chat(stream=True))).status == 200
        left = number(await connection.ask(NOT_JSON), "x-ratelimit-remaining-tokens")
    assert left <= 2_000 - 1_024 + 2_000 / 60 * (time.monotonic() - start_s)


async def test_aborted_stream_keeps_its_reservation(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Leaving a stream half-way isn't a way to get more tokens, and frees the caller's place."""
    gateway = await start_gateway(FREEAPI_CALLER_TPM="2000", FREEAPI_CALLER_CONCURRENCY="1")
    upstream.plays([send(STREAM_HEAD), chunk(delta("Hi")), hang()], says("next"))
    start_s = time.monotonic()
    async with caller(gateway.port) as leaving:
        await leaving.send(chat(stream=True))
        head = await leaving.head()
        await leaving.receive_until(head, b"\n\n")
        leaving.reset()
        await happens(upstream.exchanges[0].gone)
    refused = await ask(gateway.port, NOT_JSON)
    left = number(refused, "x-ratelimit-remaining-tokens")
    assert left <= 2_000 - 1_024 + 2_000 / 60 * (time.monotonic() - start_s)
    assert (await ask(gateway.port, chat(max_tokens=100))).text() == "next"


async def test_failed_request_gives_its_tokens_back(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """What the upstream refused before it did anything costs the caller no tokens."""
    gateway = await start_gateway(FREEAPI_CALLER_TPM="2000")
    upstream.plays([send(answer(400, b'{"error":{"message":"no","code":"bad"}}'))])
    async with caller(gateway.port) as connection:
        assert (await connection.ask(chat())).status == 400
        left = number(await connection.ask(NOT_JSON), "x-ratelimit-remaining-tokens")
    assert left == 2_000
