"""Promise: OpenAI's own SDK for Node works on every endpoint by changing the base URL.

``tests/node/endpoints.mjs`` holds the calls; this compares what they printed, and what was sent.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.endpoints import SOUND, form_of
from tests.gateway import Gateway
from tests.promises.test_sdk_node import NODE_MAX_S
from tests.scripted_upstream import ScriptedUpstream

SCRIPT = Path(__file__).parents[1] / "node" / "endpoints.mjs"
#: What each call prints where it works.
PRINTED: dict[str, Any] = {
    "chat_stream": ["Hi", ["H", "i"]],
    "completions": ["Hi", "Hi"],
    "embeddings": [[0.25, -0.5], 5],
    "moderations": 0.01,
    "responses": ["Hi", "Hi", 7, "response.completed"],
    "images": ["iVBORw0K", ["image_generation.partial_image", "image_generation.completed"]],
    "speech": [len(SOUND), SOUND[257], "audio/mpeg"],
    "transcriptions": ["Hi", ["transcript.text.delta", "transcript.text.done"]],
    "translations": "Hi",
}


async def printed_by(node: str, gateway: Gateway, *scenarios: str) -> list[Any]:
    """What each scenario printed."""
    process = await asyncio.create_subprocess_exec(
        node, SCRIPT, gateway.base_url, *scenarios, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(NODE_MAX_S):
        printed, _ = await process.communicate()
    assert process.returncode == 0, "what Node says about it is on stderr"
    return [json.loads(line) for line in printed.splitlines()]


async def test_every_endpoint_answers_node(
    upstream: ScriptedUpstream, node: str, endpoints: Gateway
) -> None:
    """Plain answers, streams, sound and forms are what the upstream said."""
    results = await printed_by(node, endpoints, *PRINTED)
    assert dict(zip(PRINTED, results, strict=True)) == PRINTED
    kept = [one.json() for one in upstream.requests if one.target == "/v1/responses"]
    assert [one["store"] for one in kept] == [False, False]
    forms = [form_of(one) for one in upstream.requests if one.target.startswith("/v1/audio/tran")]
    assert [form.fields[0] for form in forms] == [("model", "up-listener")] * 3
    assert {form.file for form in forms} == {b"ID3 not much of a sound"}
    assert ("timestamp_granularities[]", "word") in forms[0].fields


async def test_refusals_have_their_classes_in_node(
    upstream: ScriptedUpstream, node: str, endpoints: Gateway
) -> None:
    """What may not pass is BadRequestError with its parameter, what isn't there NotFoundError."""
    ((background, gif, other, unknown, retrieved, created),) = await printed_by(
        node, endpoints, "errors"
    )
    for refused, param in ((background, "background"), (gif, "output_format"), (other, "model")):
        assert (refused["error"], refused["param"]) == ("BadRequestError", param)
    assert (unknown["error"], unknown["code"]) == ("NotFoundError", "model_not_found")
    for absent in (retrieved, created):
        assert (absent["error"], absent["code"]) == ("NotFoundError", "not_found")
    assert upstream.requests == []
