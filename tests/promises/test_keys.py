"""Promise: the pool of keys heals itself, and no caller can poison it.

The scripted upstream plays every failure that is known of OpenAI and of those who speak its
language; what the gateway makes of each is read where an operator would, at ``GET /keys``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import pytest

from tests.answers import answer, chat_json, error
from tests.conftest import StartGateway
from tests.crowd import number
from tests.operator_view import SECRET, ask_often, by_key, start_pool, tail_of
from tests.raw_client import ask, chat
from tests.scripted_upstream import (
    PATIENCE_S,
    Request,
    Script,
    ScriptedUpstream,
    close,
    reset,
    says,
    send,
)

#: What the scripted model is called upstream.
SENT = "gpt-4o-mini"
#: Words that have killed whole pools elsewhere.
POISON = "Your credit balance is too low: insufficient_quota, invalid_api_key, rate limit, banned."


def quota(code: str) -> bytes:
    """A 429 that no wait will cure, in OpenAI's words."""
    body = {"message": "x", "type": "insufficient_quota", "param": None, "code": code}
    return answer(429, json.dumps({"error": body}).encode())


def used_up(status: int, reset_in: bytes) -> bytes:
    """An answer whose headers say that nothing remains; without the canaries of ``answers``."""
    body = chat_json("Hi") if status == 200 else b'{"error":{"code":"rate_limit_exceeded"}}'
    return (
        b"HTTP/1.1 %d Scripted\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: %b\r\n\r\n%b"
        % (status, len(body), reset_in, body)
    )


DEAD = "dead, next probe in 60 min"
NO_QUOTA = "out of quota, next probe in 10 min"
#: Each failure of a key, and what it makes of the key.
FAILURES: list[tuple[bytes, str]] = [
    (error(401, "invalid_api_key", "x"), DEAD),
    (error(401, "account_deactivated", "x"), DEAD),
    (error(401, None, POISON), DEAD),
    (answer(401, b"<html>no JSON</html>"), DEAD),
    (error(403, "unsupported_country_region_territory", "x"), DEAD),
    (error(403, "model_not_found", "x"), f"cooling for {SENT} for 1 s"),
    (quota("insufficient_quota"), NO_QUOTA),
    (quota("credit_balance_exhausted"), NO_QUOTA),
    (quota("organization_spend_limit_exceeded"), NO_QUOTA),
    (quota("project_spend_limit_exceeded"), NO_QUOTA),
    (quota("organization_usage_limit_exceeded"), NO_QUOTA),
    (quota("a code of tomorrow"), NO_QUOTA),
    (error(429, "insufficient_quota", "x"), NO_QUOTA),
    (error(429, "billing_not_active", "x"), NO_QUOTA),
    (error(402, None, "x"), NO_QUOTA),
    (error(429, "rate_limit_exceeded", POISON, ("retry-after", "50")), f"cooling for {SENT} for"),
    (error(429, "slow_down", "x", ("retry-after-ms", "50000")), f"cooling for {SENT} for"),
    (error(503, "slow_down", "x", ("retry-after", "50")), f"cooling for {SENT} for"),
    (used_up(429, b"6m0s"), f"cooling for {SENT} for 6 min"),
    (answer(429, b""), f"cooling for {SENT} for 1 s"),
]


# --- One key's failure ----------------------------------------------------------------------------


async def test_each_failure_sets_its_key_aside_and_no_caller_sees_it(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Between good keys every failing one is asked once; all callers get their answer."""
    bad = {f"F{number:03}": failure for number, (failure, _) in enumerate(FAILURES)}
    tails = [tail for bad_one in bad for tail in (bad_one, bad_one.replace("F", "G"))]
    pool = await start_pool(start_gateway, *tails)
    upstream.script = by_key({tail: [send(failure)] for tail, failure in bad.items()})
    assert {one.text() for one in await ask_often(pool.port, len(bad))} == {"Hi"}
    seen = Counter(tail_of(request) for request in upstream.requests)
    assert [seen[tail] for tail in bad] == [1] * len(bad)
    states = await pool.states()
    for tail, (_, state) in zip(bad, FAILURES, strict=True):
        # Those of a second may be over by now.
        assert states[tail].startswith(state) or (states[tail], state[-7:]) == ("ok", "for 1 s")
    assert {states[tail] for tail in tails if tail.startswith("G")} == {"ok"}
    # They are left alone from now on, but for those whose second is over.
    again = {tail for tail, (_, state) in zip(bad, FAILURES, strict=True) if "1 s" in state}
    del upstream.exchanges[:]
    await ask_often(pool.port, len(bad))
    assert {tail_of(request) for request in upstream.requests} & set(bad) <= again


async def test_dead_key_is_passed_over_in_a_stream(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """The caller of a stream gets it by another key; the dead one isn't asked again."""
    pool = await start_pool(start_gateway, "AAAA", "BBBB")
    upstream.script = by_key({"AAAA": [send(error(401, "invalid_api_key", "sk-abc***wxyz"))]})
    answers = [await ask(pool.port, chat(stream=True)) for _ in range(3)]
    assert [one.events()[-1] for one in answers] == [b"[DONE]"] * 3
    assert [tail_of(request) for request in upstream.requests] == ["AAAA", "BBBB", "BBBB", "BBBB"]
    assert await pool.states() == {"AAAA": DEAD, "BBBB": "ok"}


async def test_callers_own_mistakes_never_change_a_key(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Hundreds of 400s whose words and codes look like a key's end leave every key as it was."""
    pool = await start_pool(start_gateway, "AAAA", "BBBB")
    mistakes: list[Script] = [
        [send(error(status, code, POISON))]
        for status in (400, 404, 409, 413, 422)
        for code in ("invalid_api_key", "insufficient_quota", "rate_limit_exceeded", None)
    ]
    upstream.plays(*mistakes * 10, says("Hi"))
    mistaken = await ask_often(pool.port, len(mistakes) * 10)
    assert {one.status for one in mistaken} == {400, 404, 409, 413, 422}
    assert len(upstream.requests) == len(mistaken), "none was tried again"
    keys = await pool.keys()
    assert [(key["state"], key["failures"]) for key in keys] == [("ok", 0)] * 2
    assert (await ask(pool.port, chat())).text() == "Hi"


async def test_key_cools_for_one_model_only(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """What one model's limit did to a key doesn't keep other models from it."""
    other = '[[model]]\nname = "other"\nupstream_model = "gpt-4.1-mini"\n'
    pool = await start_pool(start_gateway, "AAAA", config=other)
    upstream.plays([send(error(429, "rate_limit_exceeded", "x", ("retry-after", "50")))], says("a"))
    assert (await ask(pool.port, chat())).status == 429
    assert (await ask(pool.port, chat(model="other"))).text() == "a"
    assert (await ask(pool.port, chat())).status == 429
    assert len(upstream.requests) == 2
    assert (await pool.states())["AAAA"].startswith(f"cooling for {SENT} for")


async def test_used_up_key_is_left_for_last(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A key that says in its 200 that nothing remains isn't used while another has some left."""
    pool = await start_pool(start_gateway, "AAAA", "BBBB", "CCCC")
    upstream.script = by_key({"AAAA": [send(used_up(200, b"50s"))]})
    assert {one.text() for one in await ask_often(pool.port, 7)} == {"Hi"}
    assert Counter(map(tail_of, upstream.requests)) == {"AAAA": 1, "BBBB": 3, "CCCC": 3}


# --- No key is left -------------------------------------------------------------------------------


async def test_all_keys_cooling_is_429_with_the_first_ones_time(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Callers are told when the first key will be back, and the upstream is left in peace."""
    pool = await start_pool(start_gateway, "AAAA", "BBBB", "CCCC")
    waits = {"AAAA": "50", "BBBB": "40", "CCCC": "45"}
    upstream.script = by_key(
        {
            tail: [send(error(429, "rate_limit_exceeded", "x", ("retry-after", wait)))]
            for tail, wait in waits.items()
        }
    )
    for refused in await ask_often(pool.port, 2):
        assert (refused.status, refused.error()["code"]) == (429, "capacity_exceeded")
        assert 30 < number(refused, "retry-after") <= 40
        assert refused.header("x-should-retry") is None
    assert len(upstream.requests) == 3


@pytest.mark.parametrize(
    ("failure", "wait_s"),
    [(error(401, "invalid_api_key", "x"), 3_600), (quota("insufficient_quota"), 600)],
    ids=["dead", "out-of-quota"],
)
async def test_no_usable_key_is_503_with_the_next_probes_time(
    upstream: ScriptedUpstream, start_gateway: StartGateway, failure: bytes, wait_s: int
) -> None:
    """When all are dead or out of quota, callers hear when the next look will be taken."""
    pool = await start_pool(start_gateway, "AAAA", "BBBB", "CCCC")
    upstream.plays([send(failure)])
    for refused in await ask_often(pool.port, 2):
        assert (refused.status, refused.error()["code"]) == (503, "upstream_unavailable")
        assert wait_s - PATIENCE_S < number(refused, "retry-after") <= wait_s
        assert refused.header("x-should-retry") == "false"
    assert len(upstream.requests) == 3


async def test_caller_whose_tries_are_over_is_told_to_come_back_soon(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Where a fourth key is usable the waits of the three that were tried don't matter."""
    pool = await start_pool(start_gateway, "AAAA", "BBBB", "CCCC", "DDDD")
    busy = [send(error(429, "rate_limit_exceeded", "x", ("retry-after", "50")))]
    upstream.script = by_key(dict.fromkeys(("AAAA", "BBBB", "CCCC"), busy))
    refused, served = await ask_often(pool.port, 2)
    assert (refused.status, refused.header("retry-after")) == (429, "1")
    assert served.text() == "Hi"


async def test_key_comes_back_after_its_time(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """``retry-after-ms: 300`` keeps the only key away for 0.3 s, and not for good."""
    pool = await start_pool(start_gateway, "AAAA")
    upstream.plays(
        [send(error(429, "rate_limit_exceeded", "x", ("retry-after-ms", "300")))], says("back")
    )
    start_s = time.monotonic()
    refused = await ask(pool.port, chat())
    assert (refused.status, refused.error()["code"]) == (429, "capacity_exceeded")
    assert number(refused, "retry-after-ms") <= 300
    async with asyncio.timeout(PATIENCE_S):
        while (again := await ask(pool.port, chat())).status == 429:
            assert again.error()["code"] == "capacity_exceeded"
    assert again.text() == "back"
    assert time.monotonic() - start_s >= 0.3
    assert len(upstream.requests) == 2
    assert await pool.states() == {"AAAA": "ok"}


# --- What is tried again, and what isn't ----------------------------------------------------------


async def test_upstreams_failure_is_tried_twice_more_on_other_keys(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Three tries with three keys, no more; one success among them is the caller's answer."""
    pool = await start_pool(start_gateway, "AAAA", "BBBB", "CCCC", "DDDD")
    for status, code in ((500, None), (502, None), (503, "server_is_overloaded")):
        del upstream.exchanges[:]
        failing = [send(error(status, code, "x"))]
        upstream.plays(failing, failing, says("third"))
        assert (await ask(pool.port, chat())).text() == "third"
        upstream.plays(failing)
        refused = await ask(pool.port, chat())
        assert (refused.status, refused.error()["code"]) == (502, "upstream_unavailable")
        tails = [tail_of(request) for request in upstream.requests]
        assert len(tails) == 6
        assert len(set(tails[:3])) == len(set(tails[3:])) == 3
        assert set((await pool.states()).values()) == {"ok"}
        # Two more in a row would pause the upstream, which is another test's.
        upstream.plays(says("up again"))
        assert (await ask(pool.port, chat())).text() == "up again"


async def test_ambiguous_failure_is_never_sent_with_another_key(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A request that may be running upstream is seen there once, however many keys there are."""
    pool = await start_pool(start_gateway, "AAAA", "BBBB", "CCCC")
    begun = send(b"HTTP/1.1 200 OK\r\n")
    upstream.plays([close()], [reset()], [begun, close()], [begun, reset()])
    for refused in await ask_often(pool.port, 4):
        assert (refused.status, refused.error()["code"]) == (502, "upstream_unavailable")
    assert len(upstream.requests) == 4


async def test_stale_idle_connection_is_replaced_once(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A kept connection that the upstream gave up costs neither the caller nor the key anything."""
    pool = await start_pool(start_gateway, "AAAA")
    upstream.plays(says("first"), [close()], says("again"))
    assert [one.text() for one in await ask_often(pool.port, 2)] == ["first", "again"]
    assert [request.connection for request in upstream.requests] == [0, 0, 1]
    assert [(key["state"], key["failures"]) for key in await pool.keys()] == [("ok", 0)]


async def test_failing_upstream_is_paused_and_probed(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """After five failures in a row nothing is sent until one probe is; its success ends the pause.

    The pause is a second: short enough to be waited for here.
    """
    pool = await start_pool(start_gateway, "AAAA")
    upstream.plays([send(error(500, None, "x"))])
    assert {one.status for one in await ask_often(pool.port, 5)} == {502}
    paused = await ask(pool.port, chat())
    assert (paused.status, paused.error()["code"]) == (429, "capacity_exceeded")
    assert 0 < number(paused, "retry-after-ms") <= 1_000
    assert "upstream failing, next probe" in (await pool.states())["AAAA"]
    assert len(upstream.requests) == 5
    upstream.plays(says("up again"))
    async with asyncio.timeout(PATIENCE_S):
        while (probe := await ask(pool.port, chat())).status == 429:
            assert len(upstream.requests) == 5
    assert probe.text() == "up again"
    assert await pool.states() == {"AAAA": "ok"}


# --- What is shown --------------------------------------------------------------------------------


async def test_no_more_of_a_key_than_four_characters_comes_out(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Neither ``/keys`` nor the log nor an answer has more, whatever the upstream quotes."""

    def quoting(request: Request) -> Script:
        return [send(error(401, "invalid_api_key", f"{request.header('authorization')}"))]

    pool = await start_pool(start_gateway, "AAAA", "BBBB", FREEAPI_LOG="debug")
    upstream.script = quoting
    refused = await ask(pool.port, chat())
    assert SECRET.encode() not in refused.body
    keys = await pool.keys()
    assert [key["tail"] for key in keys] == ["AAAA", "BBBB"]
    assert [set(key) for key in keys] == [
        {"upstream", "tail", "state", "in_flight", "requests", "failures"}
    ] * 2
    assert [(key["requests"], key["failures"], key["in_flight"]) for key in keys] == [(1, 1, 0)] * 2
    await asyncio.to_thread(pool.gateway.stop)
    assert SECRET not in pool.gateway.output()
