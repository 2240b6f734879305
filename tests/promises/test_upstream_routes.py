"""Promise: every endpoint goes to the upstreams that the operator wrote down, in their order.

An upstream that can't is fallen back from where that is safe, to another one or to the embedded
model; what could be billed twice, or can't be sent again, isn't. Chat alone is in
``test_upstreams``, a proxy on the way in ``test_outbound``.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from freeapi.policy.models import PATHS, Endpoint
from tests.answers import answer, chat_json, error
from tests.endpoints import CONFIG, MODEL_OF, WHOLE, answer_any
from tests.form_parts import MODEL, file_part, post_form
from tests.gateway import Gateway
from tests.raw_client import Answer, ask, caller, post
from tests.scripted_upstream import Request, Script, ScriptedUpstream, listening_socket, send
from tests.sdk_calls import NEEDED, async_client

FORMS: tuple[Endpoint, ...] = ("transcriptions", "translations")
JSON_ENDPOINTS = [endpoint for endpoint in PATHS if endpoint not in FORMS]
SERVED_BY = "x-freeapi-served-by"
KEYS = {"KEYS_ONE": "sk-canary-one", "KEYS_TWO": "sk-canary-two", "FREEAPI_QUEUE_S": "0"}


@pytest.fixture
async def second() -> AsyncIterator[ScriptedUpstream]:
    """Another organisation's upstream, which answers everything."""
    upstream = ScriptedUpstream()
    upstream.script = answer_any
    await upstream.listen(listening_socket())
    yield upstream
    await upstream.close()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start gateways with a configuration of their own."""
    started: list[Gateway] = []

    async def start(config: str, **settings: str) -> Gateway:
        home = tmp_path / str(len(started))
        gateway = await asyncio.to_thread(Gateway, home, {**KEYS, **settings}, config)
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        await asyncio.to_thread(gateway.stop)


def upstream_table(name: str, port: int, more: str = "", path: str = "/v1") -> str:
    """One upstream at this port."""
    return (
        f'[[upstream]]\nname = "{name}"\nbase_url = "http://127.0.0.1:{port}{path}"\n'
        f'keys_env = "KEYS_{name.upper()}"\n{more}\n'
    )


def one_then_two(first: int, second: int) -> str:
    """Every endpoint at two upstreams, the second of which is for when the first can't."""
    return (
        CONFIG
        + upstream_table("one", first, "priority = 1")
        + upstream_table("two", second, "priority = 2")
    )


def asked(endpoint: Endpoint, **fields: object) -> bytes:
    """The bytes of a good request."""
    path = f"/v1{PATHS[endpoint]}"
    if endpoint in FORMS:
        return post_form(MODEL, file_part(), path=path)
    body = {"model": MODEL_OF[endpoint], **NEEDED[endpoint], **fields}
    return post(path, json.dumps(body).encode())


def answered(endpoint: Endpoint, served: Answer) -> bool:
    """Whether the upstream's answer arrived."""
    return served.status == 200 and WHOLE[endpoint].endswith(served.body)


FAILURES: dict[str, Script] = {
    "500": [send(answer(500, b"{}"))],
    "429": [send(error(429, "rate_limit_exceeded", "x", ("retry-after", "60")))],
    "quota": [send(error(429, "insufficient_quota", "x"))],
    "401": [send(error(401, "invalid_api_key", "x"))],
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_what_one_upstream_fails_the_other_answers(
    upstream: ScriptedUpstream, second: ScriptedUpstream, start: Any, failure: Script
) -> None:
    """On every endpoint with a body that is still there; a file that has left isn't sent again."""
    gateway = await start(one_then_two(upstream.port, second.port))
    upstream.plays(failure)
    async with caller(gateway.port) as connection:
        for number, endpoint in enumerate(JSON_ENDPOINTS, start=1):
            assert answered(endpoint, await connection.ask(asked(endpoint)))
            assert second.requests[-1].target == f"/v1{PATHS[endpoint]}"
            assert second.requests[-1].header("authorization") == "Bearer sk-canary-two"
            assert len(second.requests) == number
    assert {one.header("authorization") for one in upstream.requests} == {"Bearer sk-canary-one"}


async def test_file_is_sent_once(
    upstream: ScriptedUpstream, second: ScriptedUpstream, start: Any
) -> None:
    """A form that an upstream has failed is the caller's to send again; then the other has it."""
    gateway = await start(one_then_two(upstream.port, second.port))
    upstream.plays(FAILURES["401"])
    assert (await ask(gateway.port, asked("transcriptions"))).status == 503
    assert len(upstream.requests) == 1
    assert second.requests == []
    assert answered("transcriptions", await ask(gateway.port, asked("transcriptions")))
    assert len(upstream.requests) == 1


async def test_unreachable_upstream_is_fallen_back_from(
    upstream: ScriptedUpstream, start: Any
) -> None:
    """Where nothing listens nothing was sent: on every endpoint, forms too, the other answers."""
    upstream.script = answer_any
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gateway = await start(one_then_two(nobody.getsockname()[1], upstream.port))
        for endpoint in reversed(list(PATHS)):  # forms first, while nobody knows it
            assert answered(endpoint, await ask(gateway.port, asked(endpoint)))
    assert len(upstream.requests) == len(PATHS)


async def test_load_is_shared_as_the_operator_says(
    upstream: ScriptedUpstream, second: ScriptedUpstream, start: Any
) -> None:
    """Of equal priority, an upstream of share 3 gets three times what one of share 1 does."""
    upstream.script = answer_any
    gateway = await start(
        CONFIG
        + upstream_table("one", upstream.port, "share = 3")
        + upstream_table("two", second.port, "share = 1")
    )
    async with caller(gateway.port) as connection:
        for endpoint in ("embeddings", "speech") * 20:
            assert (await connection.ask(asked(endpoint))).status == 200
    assert len(upstream.requests) == pytest.approx(30, abs=2)
    assert len(upstream.requests) + len(second.requests) == 40


async def test_each_model_has_its_own_upstreams(
    upstream: ScriptedUpstream, second: ScriptedUpstream, start: Any
) -> None:
    """Words go to one, sound to another; neither is asked for the other's, whatever happens."""
    words = CONFIG.replace('name = "talker"', 'name = "talker"\nupstreams = ["one"]')
    both = words.replace('name = "speaker"', 'name = "speaker"\nupstreams = ["two"]')
    gateway = await start(
        both + upstream_table("one", upstream.port) + upstream_table("two", second.port)
    )
    upstream.script = answer_any
    assert answered("responses", await ask(gateway.port, asked("responses")))
    assert answered("speech", await ask(gateway.port, asked("speech")))
    second.plays(FAILURES["401"])
    assert (await ask(gateway.port, asked("speech"))).status == 503
    assert [one.target for one in upstream.requests] == ["/v1/responses"]
    assert [one.target for one in second.requests] == ["/v1/audio/speech"] * 2


AZURE = 'auth = "api-key"\napi_version = "2025-04-01-preview"'


async def test_azure_on_every_endpoint(upstream: ScriptedUpstream, start: Any) -> None:
    """Its key is in a header of its own, its version in the query, its deployment in the path."""
    path = "/openai/deployments/mini"
    gateway = await start(CONFIG + upstream_table("one", upstream.port, AZURE, path))

    def good(request: Request) -> Script:
        endpoint = next(one for one in PATHS if f"{PATHS[one]}?" in request.target)
        return [send(WHOLE[endpoint])]

    upstream.script = good
    for number, endpoint in enumerate(PATHS):
        assert answered(endpoint, await ask(gateway.port, asked(endpoint)))
        seen = upstream.requests[number]
        assert seen.target == f"{path}{PATHS[endpoint]}?api-version=2025-04-01-preview"
        assert seen.header("api-key") == "sk-canary-one"
        assert seen.header("authorization") is None


#: Each model has an upstream that can't serve it for another reason, and then the embedded one.
LAST_RESORT = """
[[model]]
name = "cooling"
upstreams = ["one", "local"]
max_output_tokens = 5
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0

[[model]]
name = "poor"
upstreams = ["two", "local"]
max_output_tokens = 5
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0

[[model]]
name = "down"
upstreams = ["three", "local"]
endpoints = ["chat", "completions", "embeddings"]
max_output_tokens = 5
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
"""


async def test_embedded_model_is_the_last_resort(
    upstream: ScriptedUpstream, second: ScriptedUpstream, start: Any
) -> None:
    """Where the operator lists it, it answers for one that is cooling, out of money or down.

    Then a header says so; while the upstream answers there is none.
    """
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gateway = await start(
            LAST_RESORT
            + upstream_table("one", upstream.port)
            + upstream_table("two", second.port, "daily_usd = 0.001")
            + upstream_table("three", nobody.getsockname()[1]),
            KEYS_THREE="sk-canary-three",
        )
        good = [send(answer(200, chat_json("Hi from upstream")))]
        dear = [send(answer(200, chat_json("Hi from upstream", 0, 500)))]
        upstream.plays(good, FAILURES["429"])
        second.plays(dear)
        for model, asked_before in (("cooling", upstream), ("poor", second)):
            body = json.dumps({"model": model, **NEEDED["chat"], "max_tokens": 5}).encode()
            by_upstream = await ask(gateway.port, post("/v1/chat/completions", body))
            assert by_upstream.text() == "Hi from upstream"
            assert by_upstream.header(SERVED_BY) is None
            for _ in range(2):
                served = await ask(gateway.port, post("/v1/chat/completions", body))
                assert served.header(SERVED_BY) == "local"
                assert served.text() != "Hi from upstream"
            # The cooling one was asked once more, which is how it came to cool.
            assert len(asked_before.requests) == (2 if model == "cooling" else 1)
        async with async_client(gateway) as client:
            embedded = await client.embeddings.with_raw_response.create(model="down", input="Hi")
            assert embedded.headers[SERVED_BY] == "local"
            assert len(embedded.parse().data[0].embedding) > 100
            stream = await client.completions.with_raw_response.create(
                model="down", prompt="Once", max_tokens=5, stream=True
            )
            assert stream.headers[SERVED_BY] == "local"
            assert [piece async for piece in stream.parse()]
