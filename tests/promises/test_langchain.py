"""Promise: LangChain's OpenAI classes work by changing the base URL, and nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import tiktoken
import tiktoken.registry
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient
from pydantic import BaseModel, SecretStr

from tests.answers import answer, chat_json
from tests.gateway import Gateway
from tests.scripted_upstream import ScriptedUpstream, send


class City(BaseModel):
    """A place."""

    name: str


@tool
def weather(city: str) -> str:
    """What it is like outside."""
    return f"sunny in {city}"


@pytest.fixture
async def setting(endpoints: Gateway) -> AsyncIterator[dict[str, Any]]:
    """What its documentation has one set for another base URL.

    And connections that end with the test: its own are kept for the whole process, for all loops.
    """
    async with DefaultAsyncHttpxClient() as wires:
        with DefaultHttpxClient() as sync_wires:
            yield {
                "base_url": endpoints.base_url,
                "api_key": SecretStr("sk-free-api"),
                "http_async_client": wires,
                "http_client": sync_wires,
            }


@pytest.fixture
def model(setting: dict[str, Any]) -> ChatOpenAI:
    """Its chat model."""
    return ChatOpenAI(model="talker", max_retries=0, **setting)


@pytest.fixture
def bytes_as_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoding under the name that LangChain asks for: the real one would be downloaded."""
    encoding = tiktoken.Encoding(
        "cl100k_base",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={},
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", encoding)


async def test_chat_and_stream(upstream: ScriptedUpstream, model: ChatOpenAI) -> None:
    """Plain and streamed texts arrive, with the usage that it asks for by itself."""
    said = await model.ainvoke("Hi")
    assert said.text == "Hi"
    assert said.usage_metadata is not None
    assert said.usage_metadata["output_tokens"] == 7
    pieces = [piece async for piece in model.astream("Hi")]
    assert "".join(piece.text for piece in pieces) == "Hi"
    assert [one.json().get("stream", False) for one in upstream.requests] == [False, True]
    assert {one.json()["model"] for one in upstream.requests} == {"up-talker"}


async def test_tools(upstream: ScriptedUpstream, model: ChatOpenAI) -> None:
    """A model's call of a tool comes as LangChain's, and what the tool says goes back."""
    body = json.loads(chat_json(""))
    function = {"name": "weather", "arguments": '{"city":"Köln"}'}
    body["choices"][0]["message"]["tool_calls"] = [
        {"id": "call_1", "type": "function", "function": function}
    ]
    upstream.plays(
        [send(answer(200, json.dumps(body).encode()))],
        [send(answer(200, chat_json("Take a hat.")))],
    )
    equipped = model.bind_tools([weather])
    asked = await equipped.ainvoke("What is it like?")
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Köln"})
    told = await weather.ainvoke(call)
    done = await equipped.ainvoke([("user", "What is it like?"), asked, told])
    assert done.text == "Take a hat."
    sent: dict[str, Any] = upstream.requests[1].json()
    assert sent["messages"][-1]["content"] == "sunny in Köln"
    assert sent["tools"][0]["function"]["name"] == "weather"


async def test_structured_output(upstream: ScriptedUpstream, model: ChatOpenAI) -> None:
    """``with_structured_output`` sends the schema and gives an object."""
    upstream.plays([send(answer(200, chat_json('{"name":"Köln"}')))])
    assert await model.with_structured_output(City).ainvoke("Where?") == City(name="Köln")
    schema = upstream.requests[0].json()["response_format"]["json_schema"]
    assert schema["schema"]["required"] == ["name"]


async def test_responses_api(upstream: ScriptedUpstream, setting: dict[str, Any]) -> None:
    """Set to the Responses API it is answered too, without anything being stored."""
    model = ChatOpenAI(model="talker", use_responses_api=True, **setting)
    assert (await model.ainvoke("Hi")).text == "Hi"
    assert "".join([piece.text async for piece in model.astream("Hi")]) == "Hi"
    assert [one.target for one in upstream.requests] == ["/v1/responses"] * 2
    assert [one.json()["store"] for one in upstream.requests] == [False, False]


async def test_embeddings_by_tokens(
    upstream: ScriptedUpstream, setting: dict[str, Any], bytes_as_tokens: None
) -> None:
    """By default it sends lists of tokens, which are passed on as they are."""
    embeddings = OpenAIEmbeddings(model="embedder", **setting)
    assert await embeddings.aembed_query("Hi") == pytest.approx([0.25, -0.5])
    assert upstream.requests[0].json()["input"] == [[72, 105]]


async def test_embeddings_by_text(upstream: ScriptedUpstream, setting: dict[str, Any]) -> None:
    """Without its own check of the length it sends the texts."""
    embeddings = OpenAIEmbeddings(model="embedder", check_embedding_ctx_length=False, **setting)
    assert await embeddings.aembed_documents(["Hi"]) == [pytest.approx([0.25, -0.5])]
    assert upstream.requests[0].json()["input"] == ["Hi"]


async def test_refusals_are_the_sdks(model: ChatOpenAI) -> None:
    """What isn't let through is raised as OpenAI's own error."""
    with pytest.raises(openai.BadRequestError) as refused:
        await model.ainvoke("Hi", web_search_options={})
    assert refused.value.param == "web_search_options"
