"""Promise: on every endpoint a request is paid for before it is sent, and never beyond the cap.

What a request may cost is reckoned here from what the upstream saw, and read in ``GET /status``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from freeapi.policy.models import PATHS, Endpoint
from tests import answers
from tests.answers import answer
from tests.conftest import upstream_settings
from tests.endpoints import (
    CONFIG,
    ENDPOINT_AT,
    FILE_NANOUSD,
    IMAGE_NANOUSD,
    IMAGE_TOKENS,
    IN_NANOUSD,
    MODEL_OF,
    OUT_NANOUSD,
    SOUND,
    SPEECH_NANOUSD,
    answer_any,
    sound_answer,
)
from tests.form_parts import MODEL, file_part, post_form
from tests.gateway import Gateway
from tests.money import cap, left_becomes, left_nanousd
from tests.raw_client import Answer, ask, post
from tests.scripted_upstream import Request, Script, ScriptedUpstream, pause, send
from tests.sdk_calls import NEEDED, PIXEL

ENDPOINTS: tuple[Endpoint, ...] = tuple(PATHS)
#: What a template may add to a message, of which a response has two (DESIGN section 5).
MESSAGE_TOKENS = 16


def asked(endpoint: Endpoint, **fields: object) -> bytes:
    """The bytes of a good request."""
    path = f"/v1{PATHS[endpoint]}"
    if endpoint in ("transcriptions", "translations"):
        return post_form(MODEL, file_part(), path=path)
    body = {"model": MODEL_OF[endpoint], **NEEDED[endpoint], **fields}
    return post(path, json.dumps(body).encode())


def _text_bound(seen: Request, messages: int, ceiling_tokens: int) -> int:
    prompt_tokens = len(seen.body) + messages * MESSAGE_TOKENS
    return prompt_tokens * IN_NANOUSD + ceiling_tokens * OUT_NANOUSD


#: The most that an upstream could bill for what it saw.
BOUNDS: dict[Endpoint, Callable[[Request], int]] = {
    "chat": lambda seen: _text_bound(seen, 1, seen.json()["max_tokens"]),
    "completions": lambda seen: _text_bound(seen, 0, seen.json()["max_tokens"]),
    "embeddings": lambda seen: len(seen.body) * IN_NANOUSD,
    "moderations": lambda seen: 0,
    "responses": lambda seen: _text_bound(seen, 2, seen.json()["max_output_tokens"]),
    "images": lambda seen: seen.json().get("n", 1) * IMAGE_NANOUSD,
    "speech": lambda seen: SPEECH_NANOUSD,
    "transcriptions": lambda seen: FILE_NANOUSD,
    "translations": lambda seen: FILE_NANOUSD,
}
#: What the answers of these tests cost, which say 5 tokens in and 7 out.
COSTS: dict[Endpoint, int] = {
    "chat": 5 * IN_NANOUSD + 7 * OUT_NANOUSD,
    "completions": 5 * IN_NANOUSD + 7 * OUT_NANOUSD,
    "embeddings": 5 * IN_NANOUSD,
    "moderations": 0,
    "responses": 5 * IN_NANOUSD + 7 * OUT_NANOUSD,
    "images": IMAGE_NANOUSD,
    "speech": SPEECH_NANOUSD,
    "transcriptions": FILE_NANOUSD,
    "translations": FILE_NANOUSD,
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_bound_is_reserved_and_then_settled(
    upstream: ScriptedUpstream, endpoints: Gateway, endpoint: Endpoint
) -> None:
    """While the upstream works its worst case is taken, after that what it says that it cost."""
    release = asyncio.Event()
    upstream.script = lambda request: [pause(release), *answer_any(request)]
    left = await left_nanousd(endpoints)
    asking = asyncio.get_running_loop().create_task(ask(endpoints.port, asked(endpoint)))
    seen = (await upstream.exchange()).request
    assert await left_nanousd(endpoints) == left - BOUNDS[endpoint](seen)
    assert BOUNDS[endpoint](seen) >= COSTS[endpoint]
    release.set()
    assert (await asking).status == 200
    await left_becomes(endpoints, left - COSTS[endpoint])


MORE: dict[str, tuple[Endpoint, dict[str, object], Callable[[Request], int]]] = {
    "images": ("images", {"n": 2}, lambda seen: 2 * IMAGE_NANOUSD),
    "completions": (
        "completions",
        {"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 10},
        lambda seen: _text_bound(seen, 0, 3 * 2 * 10),
    ),
    "best_of": ("completions", {"best_of": 2}, lambda seen: _text_bound(seen, 0, 2 * 16)),
    "picture": (
        "chat",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}
            ]
        },
        lambda seen: (
            _text_bound(seen, 1, 100) + (IMAGE_TOKENS - len(json.dumps(PIXEL))) * IN_NANOUSD
        ),
    ),
    "reasoning": (
        "responses",
        {"input": [{"type": "reasoning", "encrypted_content": "gAAA", "summary": []}]},
        # Packed text may be as long as anything that was made here.
        lambda seen: _text_bound(seen, 2, 100) + 100 * IN_NANOUSD,
    ),
}


@pytest.mark.parametrize(("endpoint", "fields", "bound"), MORE.values(), ids=MORE)
async def test_all_that_is_asked_for_is_reserved(
    upstream: ScriptedUpstream,
    endpoints: Gateway,
    endpoint: Endpoint,
    fields: dict[str, object],
    bound: Callable[[Request], int],
) -> None:
    """Each choice, prompt, picture and piece counts; an answer without usage costs all of it."""
    body = b'{"data":[],"choices":[]}'
    upstream.plays([send(answer(200, body))])
    left = await left_nanousd(endpoints)
    assert (await ask(endpoints.port, asked(endpoint, **fields))).status == 200
    await left_becomes(endpoints, left - bound(upstream.requests[0]))


#: Prices by the piece that are about those of a short text, so that none drowns the others.
CHEAP_NANOUSD = 200_000
CHEAP = CONFIG
for _dear in ("0.05", "0.02", "0.01"):
    CHEAP = CHEAP.replace(f"unit_usd = {_dear}\n", "unit_usd = 0.0002\n")
CAP_NANOUSD = 4_000_000


def worst_nanousd(seen: Request) -> int:
    """The same bound, with the cheap pieces."""
    endpoint = ENDPOINT_AT[seen.target]
    by_piece = endpoint in ("images", "speech", "transcriptions", "translations")
    return CHEAP_NANOUSD if by_piece else BOUNDS[endpoint](seen)


def says_no_usage(request: Request) -> Script:
    """An answer that leaves open what it cost."""
    if ENDPOINT_AT[request.target] == "speech":
        return [send(sound_answer(SOUND))]
    return [send(answer(200, b'{"text":"Hi","data":[],"choices":[],"output":[]}'))]


async def test_no_endpoint_is_a_way_past_the_cap(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Of 90 requests at once to all endpoints, those that are sent cost the cap at most."""
    settings = {**upstream_settings(upstream.port), **cap(CAP_NANOUSD)}
    gateway = await asyncio.to_thread(Gateway, tmp_path, settings, CHEAP)
    upstream.script = says_no_usage
    got: list[Answer] = []

    async def ask_one(endpoint: Endpoint) -> None:
        got.append(await ask(gateway.port, asked(endpoint)))

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            for endpoint in ENDPOINTS:
                group.create_task(ask_one(endpoint))
    refused = [one.error() for one in got if one.status != 200]
    assert {one["code"] for one in refused} <= {"budget_exhausted", "capacity_exceeded"}
    assert refused
    billed = sum(map(worst_nanousd, upstream.requests))
    assert CAP_NANOUSD * 0.9 < billed <= CAP_NANOUSD
    assert len(upstream.requests) == len(got) - len(refused)
    await left_becomes(gateway, CAP_NANOUSD - billed)
    # What costs nothing goes on.
    assert (await ask(gateway.port, asked("moderations"))).status == 200
    await asyncio.to_thread(gateway.stop)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_limits_are_told_on_every_endpoint(
    upstream: ScriptedUpstream, endpoints: Gateway, endpoint: Endpoint
) -> None:
    """Each answer says how much this caller has left, as we count it; a refusal does, too."""
    refusal = asked(endpoint).replace(MODEL_OF[endpoint].encode(), b"x" * len(MODEL_OF[endpoint]))
    for request, status in ((asked(endpoint), 200), (refusal, 404)):
        told = await ask(endpoints.port, request)
        assert told.status == status
        assert told.header("x-ratelimit-limit-requests") == "60000"
        assert told.header("x-ratelimit-limit-tokens") == "1000000000"
        for what in ("requests", "tokens"):
            assert int(told.header(f"x-ratelimit-remaining-{what}") or "-1") >= 0
            assert told.header(f"x-ratelimit-reset-{what}")


async def test_tokens_of_every_kind_count_against_the_limit(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """A caller's tokens per minute are taken by embeddings and responses as they are by chats."""
    settings = {**upstream_settings(upstream.port), "FREEAPI_CALLER_TPM": "1000"}
    gateway = await asyncio.to_thread(Gateway, tmp_path, settings, CHEAP)
    upstream.plays([send(answer(200, answers.embeddings_json([[0.5]], 600)))])
    assert (await ask(gateway.port, asked("embeddings"))).status == 200
    long = asked("responses", input="word " * 400)
    refused = await ask(gateway.port, long)
    assert (refused.status, refused.error()["code"]) == (429, "rate_limit_exceeded")
    assert refused.error()["type"] == "tokens"
    assert len(upstream.requests) == 1
    await asyncio.to_thread(gateway.stop)
