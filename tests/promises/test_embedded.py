"""Promise: it works before there is a key.

``freeapi serve`` without any setting answers by a real language model; the first thing that a
newcomer types is the README's curl line, so it is run here as it stands there.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path

import pytest

from tests.gateway import Gateway
from tests.raw_client import ask, chat, request

README = Path(__file__).parents[2] / "README.md"
CURL_MAX_S = 60.0


async def curl(*arguments: str) -> str:
    """Run the real curl; returns what it printed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("curl", "-sS", *arguments, stdout=pipe)
    async with asyncio.timeout(CURL_MAX_S):
        printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode()


def readmes_curl_line(gateway: Gateway) -> list[str]:
    """The arguments of README's line for a chat completion, sent to this gateway instead."""
    text = README.read_text().replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    command = next(line for line in lines if line.startswith("curl ") and "completions" in line)
    _, *arguments = shlex.split(command)
    return [word.replace("http://127.0.0.1:8080/v1", gateway.base_url) for word in arguments]


async def test_readmes_curl_line_works_as_printed(embedded: Gateway) -> None:
    """README's line, with nothing changed but the address, gets a real answer with its usage.

    It is the line that callers have copied since the project began.
    """
    arguments = readmes_curl_line(embedded)
    assert "Authorization: Bearer sk-free-api" in arguments
    assert any("gpt-3.5-turbo-16k-0613" in word and "你好?" in word for word in arguments)
    completion = json.loads(await curl(*arguments))
    assert completion["object"] == "chat.completion"
    assert completion["choices"][0]["message"]["content"].strip()
    usage = completion["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] > 0


async def test_it_streams_when_asked(embedded: Gateway) -> None:
    """With ``"stream": true`` events come, each with a choice, and [DONE] is the last."""
    asked = chat("你好?", stream=True, model="gpt-3.5-turbo-16k-0613", max_tokens=20)
    answer = await ask(embedded.port, asked)
    *events, last = answer.events()
    assert last == b"[DONE]"
    chunks = [json.loads(event) for event in events]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


@pytest.mark.parametrize("authorization", [None, "Bearer sk-free-api", "Bearer x", "Basic eDp5"])
async def test_any_key_or_none_is_good(embedded: Gateway, authorization: str | None) -> None:
    """Callers need no key; whatever they send as one is ignored."""
    headers = (("authorization", authorization),) if authorization else ()
    assert (await ask(embedded.port, chat("Hi", *headers, max_tokens=2))).status == 200


async def test_banner_says_what_is_served(embedded: Gateway) -> None:
    """The start prints where it listens, that the embedded model answers, and a line to try."""
    banner = "".join(embedded.stdout)
    assert f"http://127.0.0.1:{embedded.port}" in banner
    assert "curl" in banner
    assert "smollm2" in banner.lower()


async def test_it_is_ready_when_it_listens(embedded: Gateway) -> None:
    """The address is printed when requests can be served, not before."""
    assert (await ask(embedded.port, request("GET", "/readyz"))).status == 200


async def test_too_long_a_prompt_is_the_callers_mistake(embedded: Gateway) -> None:
    """More than the model's context is a 400 in OpenAI's shape, not a failure of the instance."""
    answer = await ask(embedded.port, chat("word " * 20_000))
    assert answer.status == 400
    assert "context" in answer.error()["message"]


async def test_nothing_said_to_the_model_is_printed(embedded: Gateway) -> None:
    """The embedded model's own log, if it has one, doesn't hold the prompt."""
    await ask(embedded.port, chat("canary-prompt-of-the-embedded-model", max_tokens=2))
    assert "canary-prompt" not in embedded.output()
