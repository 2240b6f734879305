"""Promise: OpenAI's own SDKs see our limits as OpenAI's, wait when it helps and give up when not.

How often a caller came back is counted in the gateway's own log of requests. An SDK's own back-off
is 0.4 to 0.5 s for its first retry: too early for the waits used here, so that a request that
succeeds at the second try was told when to come.
"""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai import AsyncOpenAI

from tests.conftest import StartGateway
from tests.crowd import events
from tests.gateway import MODEL, Gateway
from tests.promises.test_sdk_node import results
from tests.scripted_upstream import ScriptedUpstream

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
#: More than come in at once with 60 a minute, so that the next has to wait for nearly a second.
FLOOD = 20
#: Each is no use to wait for: a request larger than the limit, and tomorrow.
POINTLESS = [{"FREEAPI_CALLER_TPM": "20"}, {"FREEAPI_CALLER_RPD": "1"}]


async def requests_seen(gateway: Gateway) -> int:
    """End the gateway and count the requests in its log."""
    await asyncio.to_thread(gateway.stop)
    return events(gateway, "request")


def client_of(gateway: Gateway) -> AsyncOpenAI:
    """The SDK with its default retries."""
    return AsyncOpenAI(base_url=gateway.base_url, api_key="sk-free-api")


async def complete(client: AsyncOpenAI) -> str | None:
    """The text of one completion."""
    completion = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=16)
    return completion.choices[0].message.content


async def test_python_sdk_waits_as_told(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """After ``retry-after-ms``, and not before, the one retry of the Python SDK is answered."""
    gateway = await start_gateway(FREEAPI_CALLER_RPM="60", FREEAPI_REQUEST_LOG="on")
    async with client_of(gateway) as client:
        hasty = client.with_options(max_retries=0)
        flood = await asyncio.gather(
            *(complete(hasty) for _ in range(FLOOD)), return_exceptions=True
        )
        assert openai.RateLimitError in map(type, flood)
        assert await complete(client.with_options(max_retries=1)) == "Hi"
    assert await requests_seen(gateway) == FLOOD + 2


@pytest.mark.parametrize("settings", POINTLESS, ids=["too-large", "tomorrow"])
async def test_python_sdk_gives_up_where_waiting_is_pointless(
    upstream: ScriptedUpstream, start_gateway: StartGateway, settings: dict[str, str]
) -> None:
    """``RateLimitError`` comes at once, with our code and headers, and isn't followed by a try."""
    gateway = await start_gateway(FREEAPI_REQUEST_LOG="on", **settings)
    served = settings.get("FREEAPI_CALLER_RPD", "0")
    async with client_of(gateway) as client:
        for _ in range(int(served)):
            assert await complete(client) == "Hi"
        with pytest.raises(openai.RateLimitError) as caught:
            await complete(client)
    assert caught.value.code == "rate_limit_exceeded"
    headers = caught.value.response.headers
    assert headers["x-should-retry"] == "false"
    assert ("x-ratelimit-limit-tokens" in headers) == ("FREEAPI_CALLER_TPM" in settings)
    assert await requests_seen(gateway) == int(served) + 1


async def test_node_sdk_waits_as_told(
    upstream: ScriptedUpstream, start_gateway: StartGateway, node: str
) -> None:
    """After ``retry-after-ms``, and not before, the one retry of the Node SDK is answered."""
    gateway = await start_gateway(FREEAPI_CALLER_RPM="60", FREEAPI_REQUEST_LOG="on")
    ((refused, text),) = await results(node, gateway, "patient")
    assert refused == ["RateLimitError"]
    assert text
    assert await requests_seen(gateway) == FLOOD + 2


@pytest.mark.parametrize("settings", POINTLESS, ids=["too-large", "tomorrow"])
async def test_node_sdk_gives_up_where_waiting_is_pointless(
    upstream: ScriptedUpstream, start_gateway: StartGateway, node: str, settings: dict[str, str]
) -> None:
    """``RateLimitError`` comes at once with its headers, even where Node ignores long waits."""
    gateway = await start_gateway(FREEAPI_REQUEST_LOG="on", **settings)
    is_spent_first = "FREEAPI_CALLER_RPD" in settings
    scenarios = ("plain", "limited") if is_spent_first else ("limited",)
    *_, limited = await results(node, gateway, *scenarios)
    assert (limited["error"], limited["code"]) == ("RateLimitError", "rate_limit_exceeded")
    assert limited["headers"]["x-should-retry"] == "false"
    assert await requests_seen(gateway) == len(scenarios)
