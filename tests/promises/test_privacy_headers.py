"""Promise: nothing about the caller leaves, and nothing about the account comes back.

Headers pass by allow-list, both ways. Each test sends something recognisable in every header that
an SDK, a browser or a proxy is known to send, and looks for it on the other side and in the log.
"""

from __future__ import annotations

import json

import pytest

from tests.answers import DONE, STREAM_HEAD, delta, error
from tests.conftest import StartGateway
from tests.gateway import POOL_KEY, Gateway
from tests.raw_client import ask, chat, request
from tests.scripted_upstream import ScriptedUpstream, chunk, close, hang, says, send, stream

#: Headers of SDKs, browsers and proxies; OPENAI_FACTS, "What the SDKs do".
CALLERS_HEADERS = (
    ("authorization", "Bearer sk-canary-of-the-caller"),
    ("user-agent", "canary-agent/1.0"),
    ("x-stainless-lang", "canary-lang"),
    ("x-stainless-os", "canary-os"),
    ("x-stainless-runtime-version", "canary-runtime"),
    ("x-stainless-retry-count", "canary-retry"),
    ("openai-organization", "org-canary"),
    ("openai-project", "proj_canary"),
    ("openai-beta", "canary-beta"),
    ("cookie", "session=canary"),
    ("forwarded", "for=192.0.2.77;by=canary"),
    ("x-forwarded-for", "192.0.2.77"),
    ("x-real-ip", "192.0.2.77"),
    ("cf-connecting-ip", "192.0.2.77"),
    ("via", "1.1 canary"),
    ("referer", "https://canary.invalid/"),
    ("origin", "https://canary.invalid"),
    ("accept-language", "canary"),
    ("accept-encoding", "gzip, br, canary"),
    ("x-request-id", "canary-request"),
    ("idempotency-key", "canary-idempotency"),
    ("api-key", "canary-azure"),
    ("x-api-key", "canary-anthropic"),
    ("traceparent", "00-canary"),
    ("x-canary", "canary"),
)
#: What we send upstream: `content-type`, `accept` and our own. Source: DESIGN section 5, Privacy.
SENT_HEADERS = {
    "host",
    "authorization",
    "content-type",
    "content-length",
    "accept",
    "accept-encoding",
    "user-agent",
}
#: What a caller may see: the body's description and our own.
GIVEN_HEADERS = {
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "date",
    "server",
    "cache-control",
    "retry-after",
    "retry-after-ms",
    "x-accel-buffering",
    "x-content-type-options",
    "x-request-id",
    "x-should-retry",
    "x-freeapi-adjusted",
    "x-freeapi-served-by",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "access-control-allow-origin",
    "access-control-expose-headers",
}


@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
async def test_request_headers_are_ours_alone(
    upstream: ScriptedUpstream, gateway: Gateway, streams: bool
) -> None:
    """The upstream sees the allow-listed headers, with our values, and none of the caller's."""
    await ask(gateway.port, chat("Hi", *CALLERS_HEADERS, stream=streams))
    (seen,) = upstream.requests
    names = [name.lower() for name, _ in seen.headers]
    assert sorted(names) == sorted(SENT_HEADERS)
    assert seen.header("host") == f"127.0.0.1:{upstream.port}"
    assert seen.header("authorization") == f"Bearer {POOL_KEY}"
    assert seen.header("content-type") == "application/json"
    assert seen.header("accept-encoding") == "identity"
    assert seen.header("content-length") == str(len(seen.body))
    sent = str(seen.headers) + seen.target + seen.body.decode()
    assert "canary" not in sent.replace(POOL_KEY, "")
    assert "192.0.2.77" not in sent


@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
async def test_answer_headers_are_ours_alone(
    upstream: ScriptedUpstream, fresh_gateway: Gateway, streams: bool
) -> None:
    """The caller sees none of the account's headers, on good answers and on errors."""
    good = stream(delta("Hi"), DONE) if streams else says("Hi")
    upstream.plays(good, [send(error(400, None, "no"))], [send(error(500, None, "canary"))])
    for expected_status in (200, 400, 502):
        answer = await ask(fresh_gateway.port, chat("Hi", stream=streams))
        assert answer.status == expected_status
        names = [name for name, _ in answer.headers]
        assert set(names) <= GIVEN_HEADERS
        assert len(names) == len(set(names))
        assert "canary" not in str(answer.headers)


async def test_body_fields_about_the_caller_are_dropped(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """Fields that name or link callers don't go upstream, and nothing is stored there."""
    await ask(
        gateway.port,
        chat(
            "Hi",
            user="canary",
            safety_identifier="canary",
            metadata={"canary": "canary"},
            prompt_cache_key="canary",
            store=True,
            canary_field="canary",
        ),
    )
    (seen,) = upstream.requests
    assert b"canary" not in seen.body
    assert seen.json().get("store", False) is False


async def test_repeated_fields_cannot_smuggle(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """Of a repeated key one is left, so that two parsers can't read two different requests."""
    twice = b'{"role":"user","content":"canary","content":"Hi"}'
    body = b'{"model":"gpt-none","model":"gpt-3.5-turbo","messages":[%b]}' % twice
    raw = request("POST", "/v1/chat/completions", ("content-type", "application/json"), body=body)
    assert (await ask(gateway.port, raw)).text() == "Hi"
    (seen,) = upstream.requests
    pairs: list[list[str]] = []
    json.loads(seen.body, object_pairs_hook=lambda found: pairs.append([key for key, _ in found]))
    assert all(len(keys) == len(set(keys)) for keys in pairs)
    assert b"canary" not in seen.body


async def test_nothing_that_passes_is_printed_or_kept(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Prompt, answer, key, headers and address are in no output and no file, even when debugging.

    Success, refusal, an upstream's error, a cut and a caller that leaves are all on the way.
    """
    gateway = await start_gateway(
        "[timeouts]\nfirst_byte_s = 0.3\n",
        FREEAPI_LOG="debug",
        FREEAPI_REQUEST_LOG="on",
        FREEAPI_PROXY_HOPS="1",
    )
    said = delta("canary-answer")
    upstream.plays(
        stream(said, DONE),
        [send(error(401, "invalid_api_key", "canary sk-canary"))],
        [send(error(400, None, "canary-message"))],
        [send(STREAM_HEAD), chunk(said), close()],
        [send(b"canary-garbage\r\n\r\n")],
        [hang()],
    )
    asked = chat("canary-prompt", *CALLERS_HEADERS, stream=True, user="canary")
    for _ in range(6):
        await ask(gateway.port, asked)
    for odd in (
        chat("canary", model="canary-model"),
        request("GET", "/v1/canary?canary=1"),
        request("GET", "/v1/models/canary"),
        b"CANARY /canary HTTP/1.1\r\nhost: canary\r\n\r\n",
        request("POST", "/v1/chat/completions", ("content-type", "canary/canary"), body=b"canary"),
    ):
        await ask(gateway.port, odd)
    gateway.stop()
    assert "canary" not in gateway.output().lower()
    assert "192.0.2.77" not in gateway.output()
    files = [path for path in gateway.home.rglob("*") if path.is_file()]
    kept = b"".join(path.read_bytes() for path in files)
    assert b"canary" not in kept.lower()


async def test_keys_take_turns(upstream: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Each key of the pool carries the same share of a quiet instance's requests."""
    keys = [f"sk-test-canary-{number}-of-three" for number in range(3)]
    gateway = await start_gateway(OPENAI_API_KEYS=", ".join(keys))
    for _ in range(9):
        assert (await ask(gateway.port, chat())).text() == "Hi"
    used = [seen.header("authorization") for seen in upstream.requests]
    assert sorted(used, key=str) == [f"Bearer {key}" for key in keys for _ in range(3)]


async def test_upstream_without_keys_gets_no_authorization(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A local server that needs no key isn't sent one, nor the caller's."""
    gateway = await start_gateway(OPENAI_API_KEYS="")
    asked = chat("Hi", ("authorization", "Bearer sk-canary"))
    assert (await ask(gateway.port, asked)).text() == "Hi"
    assert upstream.requests[0].header("authorization") is None


async def test_proxies_of_the_environment_are_not_used(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """``http_proxy`` and its like send nobody's prompts elsewhere."""
    nowhere = "http://127.0.0.1:1"
    gateway = await start_gateway(HTTP_PROXY=nowhere, http_proxy=nowhere, ALL_PROXY=nowhere)
    assert (await ask(gateway.port, chat())).text() == "Hi"
