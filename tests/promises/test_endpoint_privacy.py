"""Promise: on every endpoint nothing about the caller leaves, nothing of the account comes back.

Canaries are in every header that callers are known to send, in the fields that name them, in
fields nobody knows, and in the name of their file; the upstream has some in all of its headers.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from freeapi.policy.models import PATHS, Endpoint
from tests import answers
from tests.answers import answer
from tests.endpoints import MODEL_OF, response_events
from tests.form_parts import FORM_TYPE, MODEL, file_part, form_of_parts, part
from tests.gateway import POOL_KEY, Gateway
from tests.promises.test_privacy_headers import CALLERS_HEADERS, GIVEN_HEADERS, SENT_HEADERS
from tests.raw_client import Answer, ask, post, request
from tests.scripted_upstream import ScriptedUpstream, send, stream
from tests.sdk_calls import NEEDED

FORMS: tuple[Endpoint, ...] = ("transcriptions", "translations")
#: Fields that say who is asking, or which requests belong together.
WHO: dict[str, Any] = {
    "user": "canary-user",
    "safety_identifier": "canary-safety",
    "metadata": {"canary": "canary"},
    "prompt_cache_key": "canary-cache",
}
NAMED = "user=dropped, safety_identifier=dropped, metadata=dropped, prompt_cache_key=dropped"


def assert_nothing_left(upstream: ScriptedUpstream) -> None:
    """No canary in the one request that was sent, and no header but ours."""
    (seen,) = upstream.requests
    headers = {name.lower(): value for name, value in seen.headers}
    length = "transfer-encoding" if "transfer-encoding" in headers else "content-length"
    assert set(headers) == (SENT_HEADERS - {"content-length"}) | {length}
    assert headers["authorization"] == f"Bearer {POOL_KEY}"
    told = repr((seen.target, headers, seen.body)).replace(POOL_KEY, "")
    assert "canary" not in told
    assert "192.0.2.77" not in told


def assert_nothing_came(served: Answer) -> None:
    """Of the upstream's headers, all of which have a canary, none is in the answer."""
    assert served.status == 200
    assert {name for name, _ in served.headers} <= GIVEN_HEADERS
    assert "canary" not in repr(served)


def asked_with_canaries(endpoint: Endpoint, **fields: object) -> bytes:
    """A good request that says who is asking wherever it can."""
    path = f"/v1{PATHS[endpoint]}?canary=canary"
    if endpoint in FORMS:
        who = [part(name, str(value).encode()) for name, value in WHO.items()]
        body = form_of_parts(MODEL, *who, part("canary_field", b"canary"), file_part())
        return request("POST", path, FORM_TYPE, *CALLERS_HEADERS, body=body)
    asked = {"model": MODEL_OF[endpoint], **NEEDED[endpoint], **WHO, "canary_field": "canary"}
    return post(path, json.dumps({**asked, **fields}).encode(), *CALLERS_HEADERS)


@pytest.mark.parametrize("endpoint", PATHS)
async def test_request_says_nothing_of_its_caller(
    upstream: ScriptedUpstream, endpoints: Gateway, endpoint: Endpoint
) -> None:
    """Headers, query, naming and unknown fields stay here; what was dropped is named or counted.

    So do a form's boundary, its part headers and its file's name.
    """
    served = await ask(endpoints.port, asked_with_canaries(endpoint))
    assert_nothing_came(served)
    assert_nothing_left(upstream)
    assert served.header("x-freeapi-adjusted") == f"{NAMED}, +1"


STREAMING: dict[Endpoint, dict[str, object]] = {
    "chat": {"stream": True},
    "completions": {"stream": True},
    "responses": {"stream": True},
    "images": {"stream": True},
    "speech": {"stream_format": "sse"},
}


@pytest.mark.parametrize("endpoint", STREAMING)
async def test_streams_say_nothing_either(
    upstream: ScriptedUpstream, endpoints: Gateway, endpoint: Endpoint
) -> None:
    """The same, where the answer is a stream of events."""
    served = await ask(endpoints.port, asked_with_canaries(endpoint, **STREAMING[endpoint]))
    assert (served.header("content-type") or "").startswith("text/event-stream")
    assert_nothing_came(served)
    assert_nothing_left(upstream)


CACHED = {
    **answers.spent(2_000, 7),
    "input_tokens_details": {"cached_tokens": 1_920, "text_tokens": 2_000},
}


async def test_cached_tokens_of_responses_are_hidden(
    upstream: ScriptedUpstream, endpoints: Gateway
) -> None:
    """Whether others have lately sent the same prompt isn't told, streamed or not."""
    upstream.plays(
        [send(answer(200, answers.response_json("Hi", usage=CACHED)))],
        stream(*response_events("Hi", usage=CACHED)),
    )
    body = {"model": "talker", "input": "Hi"}
    plain = await ask(endpoints.port, post("/v1/responses", json.dumps(body).encode()))
    body_of_stream = json.dumps({**body, "stream": True}).encode()
    streamed = await ask(endpoints.port, post("/v1/responses", body_of_stream))
    last = streamed.body.strip().rpartition(b"data: ")[2]
    for usage in (plain.json()["usage"], json.loads(last)["response"]["usage"]):
        assert usage["input_tokens_details"] == {"cached_tokens": 0, "text_tokens": 2_000}
        assert usage["input_tokens"] == 2_000
    assert b"1920" not in plain.body + streamed.body


async def test_errors_of_the_upstream_say_nothing_of_the_account(
    upstream: ScriptedUpstream, endpoints: Gateway
) -> None:
    """On each endpoint a mistake's words come back without the key and organisation in them."""
    told = "Bad voice for org-canary1234 with sk-canary1234 in proj_canary1234"
    upstream.plays([send(answers.error(400, None, told))])
    for endpoint in PATHS:
        served = await ask(endpoints.port, asked_with_canaries(endpoint))
        assert served.status == 400
        removed = "Bad voice for [removed] with [removed] in [removed]"
        assert served.error()["message"] == removed
    assert len(upstream.requests) == len(PATHS)


async def test_log_has_no_word_of_it(upstream: ScriptedUpstream, fresh_endpoints: Gateway) -> None:
    """What all of these send, and what the upstream says, is in no line of the log."""
    for endpoint in PATHS:
        assert (await ask(fresh_endpoints.port, asked_with_canaries(endpoint))).status == 200
    await asyncio.to_thread(fresh_endpoints.stop)
    assert len(upstream.requests) == len(PATHS)
    assert "canary" not in fresh_endpoints.output()
