"""Promise: OpenAI's own SDK for Node works by changing the base URL, and nothing else.

``tests/node/sdk.mjs`` holds the scenarios; each test runs one in a real Node process and compares
what it printed. The scenarios mirror those of ``test_sdk_python``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.answers import STREAM_HEAD, delta, error
from tests.gateway import MODEL, Gateway
from tests.scripted_upstream import ScriptedUpstream, chunk, close, hang, happens, send

SCRIPT = Path(__file__).parents[1] / "node" / "sdk.mjs"
#: Node itself takes a good part of a second to start on a busy machine.
NODE_MAX_S = 30.0
SAID = "你好 🦙"


@asynccontextmanager
async def running(node: str, gateway: Gateway, *scenarios: str) -> AsyncIterator[list[Any]]:
    """Run scenarios; gives what each printed while the process is still there."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        node, SCRIPT, gateway.base_url, *scenarios, stdin=pipe, stdout=pipe
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(NODE_MAX_S):
            printed = [await process.stdout.readline() for _ in scenarios]
        yield [json.loads(line or "null") for line in printed]
    finally:
        async with asyncio.timeout(NODE_MAX_S):
            await process.communicate(b"end\n")
        assert process.returncode == 0, "what Node says about it is on stderr"


async def results(node: str, gateway: Gateway, *scenarios: str) -> list[Any]:
    """What the scenarios printed."""
    async with running(node, gateway, *scenarios) as printed:
        return printed


async def test_embedded_model_answers_node(node: str, embedded: Gateway) -> None:
    """The real model answers plainly, streams, tells its usage if asked, and lists its names."""
    scenarios = ("plain", "stream_with_usage", "models")
    plain, streamed, models = await results(node, embedded, *scenarios)
    assert plain["text"]
    assert plain["usage"]["completion_tokens"] > 0
    assert streamed["text"]
    assert streamed["chunks"] > 2
    assert streamed["usage"]["completion_tokens"] > 0
    assert models["ids"][0] == models["one"] == MODEL


async def test_callers_mistakes_have_their_classes_in_node(node: str, gateway: Gateway) -> None:
    """Wrong model, wrong value and wrong route are NotFoundError and BadRequestError."""
    ((model, value, route),) = await results(node, gateway, "errors")
    assert (model["error"], model["code"]) == ("NotFoundError", "model_not_found")
    assert (value["error"], value["param"]) == ("BadRequestError", "messages")
    assert (route["error"], route["status"]) == ("NotFoundError", 404)


async def test_text_comes_through_node_unchanged(node: str, gateway: Gateway) -> None:
    """Text with characters of every length is the same plainly, streamed and with its response."""
    scenarios = ("plain", "stream", "with_response")
    plain, streamed, with_response = await results(node, gateway, *scenarios)
    assert plain["text"] == SAID
    assert (streamed["text"], streamed["usage"]) == (SAID, None)
    assert with_response == {"text": SAID, "status": 200, "same": True}


async def test_troubles_have_their_classes_in_node(
    upstream: ScriptedUpstream, node: str, fresh_gateway: Gateway
) -> None:
    """Each kind of trouble is the SDK's own class, a stream that dies included."""
    upstream.plays(
        [send(STREAM_HEAD), chunk(delta("Hi")), close()],
        [send(error(400, "invalid_value", "sk-canary"))],
        [send(error(500, None, "sk-canary"))],
        [send(error(429, "rate_limit_exceeded", "sk-canary"))],
    )
    failed = await results(node, fresh_gateway, "failed_stream", "failed", "failed", "failed")
    assert [(one["error"], one["code"]) for one in failed] == [
        ("APIError", "upstream_unavailable"),
        ("BadRequestError", "invalid_value"),
        ("InternalServerError", "upstream_unavailable"),
        ("RateLimitError", "capacity_exceeded"),
    ]


async def test_leaving_in_node_closes_the_upstream(
    upstream: ScriptedUpstream, node: str, gateway: Gateway
) -> None:
    """A time-out, and breaking out of a stream, end the upstream's work while the process lives."""
    upstream.plays([hang()], [send(STREAM_HEAD), chunk(delta("Hi")), hang()])
    async with running(node, gateway, "timeout", "leave") as (timed_out, left):
        assert timed_out["error"] == "APIConnectionTimeoutError"
        assert left == {"first": "Hi"}
        for exchange in upstream.exchanges:
            await happens(exchange.gone)
    assert len(upstream.exchanges) == 2
