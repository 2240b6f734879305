"""Promise: what the limits let through is the same for three gateways as for one.

One Valkey is behind all three. Callers have access tokens with limits of their own, so that one set
of processes serves every test: a token's limits hold over all three only if it is one caller at
each. Bounds as in ``test_limits``.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from tests.answers import answer, chat_json, error
from tests.crowd import number
from tests.free_ports import free_port
from tests.gateway import Gateway
from tests.operator_view import Pool, by_key, keys_text, tail_of
from tests.raw_client import Answer, ask, chat
from tests.replicas import COUNT, replicas
from tests.scripted_upstream import ScriptedUpstream, pause, says, send
from tests.valkey_server import serving

#: As many for each gateway as it takes to pass every limit here.
ASKED = 50 * COUNT
RPM, TPM, RPD, CONCURRENCY = 600, 60_000, 100, 8
#: "A second later", and one for a busy machine.
NEWS_MAX_S = 2.0
TOKENS = f"""
tok-rpm rpm={RPM}
tok-tpm tpm={TPM}
tok-rpd rpd={RPD}
tok-concurrency concurrency={CONCURRENCY}
tok-headers rpm={RPM}
tok-any
"""
CONFIG = f"""
[[model]]
name = "free-for-all"
upstream_model = "gpt-4o-mini"
[[model]]
name = "few-requests"
upstream_model = "gpt-4o-mini"
rpm = {RPM}
[[model]]
name = "few-tokens"
upstream_model = "gpt-4o-mini"
tpm = {TPM}
"""


@pytest.fixture(scope="module")
def admin_ports() -> list[int]:
    """One for each gateway."""
    return [free_port() for _ in range(COUNT)]


@pytest.fixture(scope="module")
def trio(
    listener: socket.socket, tmp_path_factory: pytest.TempPathFactory, admin_ports: list[int]
) -> Iterator[list[Gateway]]:
    """Three gateways with the same tokens, each with a file of its own."""
    folder = tmp_path_factory.mktemp("trio")
    (folder / "tokens").write_text(TOKENS)
    settings = {
        "FREEAPI_ACCESS_TOKENS_FILE": str(folder / "tokens"),
        "FREEAPI_QUEUE_S": "0",
        "OPENAI_API_KEYS": keys_text("AAAA", "BBBB"),
    }
    port: int = listener.getsockname()[1]
    with (
        serving() as server,
        replicas(folder, port, server, CONFIG, settings, admin_ports) as gateways,
    ):
        yield gateways


def asks(token: str, model: str = "free-for-all", **fields: object) -> bytes:
    """A request with this access token."""
    return chat("Hi", ("authorization", f"Bearer {token}"), model=model, **fields)


async def at_all(trio: list[Gateway], data: bytes, count: int = ASKED) -> list[Answer]:
    """The same request so many times at once, spread over the gateways."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(trio[n % COUNT].port, data)) for n in range(count)]
    return [task.result() for task in tasks]


def admitted(answers: list[Answer], code: str) -> int:
    """How many got an answer; all the others must have been refused with this code."""
    refused = [one for one in answers if one.status != 200]
    assert {one.status for one in refused} == {429}
    assert {one.error()["code"] for one in refused} == {code}
    return len(answers) - len(refused)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (asks("tok-rpm"), "rate_limit_exceeded"),
        (asks("tok-any", "few-requests"), "capacity_exceeded"),
    ],
    ids=["of a caller", "of a model"],
)
async def test_requests_a_minute_hold_over_all(
    upstream: ScriptedUpstream, trio: list[Gateway], data: bytes, code: str
) -> None:
    """Of a crowd at three gateways one burst (limit / 6) gets in, and what the clock refills."""
    start_s = time.monotonic()
    answers = await at_all(trio, data)
    elapsed_s = time.monotonic() - start_s
    count = admitted(answers, code)
    assert RPM / 6 <= count <= RPM / 6 + 1 + RPM / 60 * elapsed_s
    assert len(upstream.requests) == count


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (asks("tok-tpm", max_tokens=1_000), "rate_limit_exceeded"),
        (asks("tok-any", "few-tokens", max_tokens=1_000), "capacity_exceeded"),
    ],
    ids=["of a caller", "of a model"],
)
async def test_tokens_a_minute_hold_over_all(
    upstream: ScriptedUpstream, trio: list[Gateway], data: bytes, code: str
) -> None:
    """Of a crowd at three gateways as many get in as one minute's tokens are enough for."""
    # All that was reserved is used, or what is given back would let in more.
    upstream.plays([send(answer(200, chat_json("Hi", 30, 1_000)))])
    start_s = time.monotonic()
    answers = await at_all(trio, data)
    elapsed_s = time.monotonic() - start_s
    count = admitted(answers, code)
    assert len(upstream.requests) == count
    reserved_tokens = 1_000 + len(upstream.requests[0].body) // 4
    assert TPM // reserved_tokens <= count <= (TPM + TPM / 60 * elapsed_s) / 1_000


async def test_requests_a_day_hold_over_all(
    upstream: ScriptedUpstream, trio: list[Gateway]
) -> None:
    """Of a crowd at three gateways exactly the day's number gets in."""
    first_day = time.time() // 86_400
    answers = await at_all(trio, asks("tok-rpd"))
    days = 1 + time.time() // 86_400 - first_day
    assert RPD <= admitted(answers, "rate_limit_exceeded") <= RPD * days
    assert {number(one, "retry-after") > 0 for one in answers if one.status == 429} == {True}


async def test_concurrency_holds_over_all(upstream: ScriptedUpstream, trio: list[Gateway]) -> None:
    """Of a crowd at three gateways exactly as many as may be are in flight; places come back."""
    release = asyncio.Event()
    upstream.plays([pause(release), *says("Hi")])
    refused: list[Answer] = []

    async def ask_and_count(port: int) -> Answer:
        given = await ask(port, asks("tok-concurrency"))
        refused.append(given)
        if len(refused) == ASKED - CONCURRENCY:
            release.set()
        return given

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask_and_count(trio[n % COUNT].port)) for n in range(ASKED)]
    answers = [task.result() for task in tasks]
    assert admitted(answers, "concurrency_exceeded") == len(upstream.requests) == CONCURRENCY
    again = await at_all(trio, asks("tok-concurrency"), CONCURRENCY)
    assert [one.text() for one in again] == ["Hi"] * CONCURRENCY


async def test_headers_count_what_was_asked_elsewhere(
    upstream: ScriptedUpstream, trio: list[Gateway]
) -> None:
    """What remains falls from answer to answer, though each is another gateway's."""
    start_s = time.monotonic()
    answers = [await ask(one.port, asks("tok-headers")) for one in trio * 3]
    refilled = RPM / 60 * (time.monotonic() - start_s)
    left = [number(one, "x-ratelimit-remaining-requests") for one in answers]
    assert RPM / 6 - len(answers) <= left[-1] <= RPM / 6 - len(answers) + refilled + 1


# --- Keys -----------------------------------------------------------------------------------------


async def test_key_that_is_dead_at_one_is_dead_at_all(
    upstream: ScriptedUpstream, trio: list[Gateway], admin_ports: list[int]
) -> None:
    """A key that one gateway's upstream has refused is asked by no other, a second later."""
    upstream.script = by_key({"AAAA": [send(error(401, "invalid_api_key", "x"))]})
    pools = [Pool(one, port) for one, port in zip(trio, admin_ports, strict=True)]
    while "AAAA" not in {tail_of(one) for one in upstream.requests}:
        assert (await ask(trio[0].port, asks("tok-any"))).text() == "Hi"
    async with asyncio.timeout(NEWS_MAX_S):
        for pool in pools:
            while not (state := await pool.states())["AAAA"].startswith("dead"):
                assert state["BBBB"] == "ok"
                await asyncio.sleep(0.01)  # a page can only be looked at
    answers = await at_all(trio, asks("tok-any"), 10 * COUNT)
    assert {one.text() for one in answers} == {"Hi"}
    assert [tail_of(one) for one in upstream.requests].count("AAAA") == 1
