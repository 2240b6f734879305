"""Promise: every stream of OpenAI's API, and every helper of its SDK for Python, works here.

The helpers build objects out of events, so an event that was lost, doubled or reordered on its way
makes them fail or differ. Tools and structured outputs are here too, streamed and not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.answers import (
    DONE,
    STREAM_HEAD,
    answer,
    chat_json,
    response_json,
    response_stream,
)
from tests.endpoints import chat_event, chat_events, response_events
from tests.gateway import Gateway
from tests.scripted_upstream import ScriptedUpstream, chunk, close, send, stream
from tests.sdk_calls import FUNCTION, MP3, async_client

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
WEATHER = '{"city":"Köln","warm":true}'


class Weather(BaseModel):
    """What a model is made to answer."""

    city: str
    warm: bool


@pytest.fixture
async def client(endpoints: Gateway) -> AsyncIterator[AsyncOpenAI]:
    """The asynchronous SDK in front of all endpoints."""
    async with async_client(endpoints) as client:
        yield client


# --- Chat -----------------------------------------------------------------------------------------


async def test_chat_stream_helper(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """``chat.completions.stream`` sees each piece and builds the whole."""
    async with client.chat.completions.stream(model="talker", messages=HELLO) as stream:
        pieces = [one.delta async for one in stream if one.type == "content.delta"]
        whole = await stream.get_final_completion()
    assert pieces == ["H", "i"]
    assert whole.choices[0].message.content == "Hi"
    assert whole.usage is None
    sent = upstream.requests[0]
    assert sent.json()["stream_options"] == {"include_usage": True}
    assert sent.header("accept") == "text/event-stream"


async def test_chat_stream_options(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """Who asks for the usage gets it, and obfuscation is the caller's own choice."""
    options: Any = {"include_usage": True, "include_obfuscation": False}
    stream = await client.chat.completions.create(
        model="talker", messages=HELLO, stream=True, stream_options=options
    )
    *_, last = [one async for one in stream]
    assert last.usage is not None
    assert last.usage.completion_tokens == 7
    assert upstream.requests[0].json()["stream_options"] == options


async def test_structured_output(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """``parse`` sends the whole schema and makes an object of the answer; so does the stream."""
    upstream.plays(
        [send(answer(200, chat_json(WEATHER)))], stream(*chat_events(WEATHER[:5], WEATHER[5:]))
    )
    parsed = await client.chat.completions.parse(
        model="talker", messages=HELLO, response_format=Weather
    )
    assert parsed.choices[0].message.parsed == Weather(city="Köln", warm=True)
    async with client.chat.completions.stream(
        model="talker", messages=HELLO, response_format=Weather
    ) as events:
        whole = await events.get_final_completion()
    assert whole.choices[0].message.parsed == Weather(city="Köln", warm=True)
    for seen in upstream.requests:
        schema = seen.json()["response_format"]["json_schema"]
        assert schema["strict"] is True
        assert schema["schema"]["required"] == ["city", "warm"]


async def test_calls_of_tools(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """Arguments that come in pieces are put together, and what the tool says goes back."""
    call = {"index": 0, "id": "call_1", "type": "function"}
    upstream.plays(
        stream(
            chat_event(delta={"tool_calls": [{**call, "function": {"name": "weather"}}]}),
            chat_event(delta={"tool_calls": [{"index": 0, "function": {"arguments": '{"c'}}]}),
            chat_event(delta={"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]}),
            chat_event(delta={}, finish_reason="tool_calls"),
            DONE,
        ),
        [send(answer(200, chat_json("sunny")))],
    )
    tools: Any = [
        openai.pydantic_function_tool(Weather),
        {"type": "function", "function": FUNCTION},
    ]
    tools[1]["function"] = {**FUNCTION, "strict": True}
    async with client.chat.completions.stream(
        model="talker", messages=HELLO, tools=tools, tool_choice="required"
    ) as events:
        whole = await events.get_final_completion()
    (asked,) = whole.choices[0].message.tool_calls or []
    assert (asked.function.name, asked.function.arguments) == ("weather", '{"c":1}')
    assert [one["function"]["name"] for one in upstream.requests[0].json()["tools"]] == [
        "Weather",
        "weather",
    ]
    told: Any = [
        *HELLO,
        {"role": "assistant", "tool_calls": [asked.model_dump(exclude={"parsed_arguments"})]},
        {"role": "tool", "tool_call_id": asked.id, "content": "sunny"},
    ]
    done = await client.chat.completions.create(model="talker", messages=told)
    assert done.choices[0].message.content == "sunny"
    assert upstream.requests[1].json()["messages"][2]["tool_call_id"] == "call_1"


async def test_logprobs(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """Each token's probability and its rivals come through, as a string of bytes does."""
    token = {"token": "H", "logprob": -0.5, "bytes": [72]}
    body = json.loads(chat_json("H"))
    body["choices"][0]["logprobs"] = {"content": [{**token, "top_logprobs": [token]}]}
    upstream.plays([send(answer(200, json.dumps(body).encode()))])
    told = await client.chat.completions.create(
        model="talker", messages=HELLO, logprobs=True, top_logprobs=1
    )
    assert told.choices[0].logprobs is not None
    ((found,),) = (told.choices[0].logprobs.content or [],)
    assert (found.logprob, found.bytes, found.top_logprobs[0].token) == (-0.5, [72], "H")
    sent = upstream.requests[0].json()
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 1)


# --- Completions and responses --------------------------------------------------------------------


async def test_completions_stream(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """The older endpoint streams too, without the usage that only we have asked for."""
    stream = await client.completions.create(model="talker", prompt="Once", stream=True)
    pieces = [one async for one in stream]
    assert [one.choices[0].text for one in pieces] == ["H", "i"]
    assert upstream.requests[0].json()["stream_options"] == {"include_usage": True}


async def test_responses_stream_helper(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """``responses.stream`` sees every event by its name and builds the response."""
    async with client.responses.stream(model="talker", input="Hi") as stream:
        seen = [one.type async for one in stream]
        whole = await stream.get_final_response()
    assert whole.output_text == "Hi"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 7
    assert seen == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    sent = upstream.requests[0].json()
    assert (sent["stream"], sent["store"]) == (True, False)


async def test_responses_structured(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """``responses.parse``, and the stream with a type, make objects of the answers."""
    upstream.plays([send(answer(200, response_json(WEATHER)))], stream(*response_events(WEATHER)))
    parsed = await client.responses.parse(model="talker", input="Hi", text_format=Weather)
    assert parsed.output_parsed == Weather(city="Köln", warm=True)
    async with client.responses.stream(model="talker", input="Hi", text_format=Weather) as events:
        whole = await events.get_final_response()
    assert whole.output_parsed == Weather(city="Köln", warm=True)
    for seen in upstream.requests:
        assert seen.json()["text"]["format"]["schema"]["required"] == ["city", "warm"]


async def test_conversation_without_memory(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """What a response said can be sent back as it is: the SDK's objects are good input."""
    reasoning = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "gAAA"}
    said = json.loads(response_json("Hi"))
    said["output"].insert(0, reasoning)
    upstream.plays([send(answer(200, json.dumps(said).encode()))])
    first = await client.responses.create(
        model="talker", input="Hi", include=["reasoning.encrypted_content"]
    )
    going_on: Any = [
        {"role": "user", "content": "Hi"},
        *(one.model_dump(exclude_none=True) for one in first.output),
        {"role": "user", "content": "And?"},
    ]
    await client.responses.create(model="talker", input=going_on)
    sent = upstream.requests[1].json()["input"]
    assert [one.get("type") for one in sent] == [None, "reasoning", "message", None]
    assert sent[1]["encrypted_content"] == "gAAA"


@pytest.mark.parametrize("last", ["failed", "incomplete"])
async def test_responses_that_end_badly_say_so(
    upstream: ScriptedUpstream, client: AsyncOpenAI, last: str
) -> None:
    """A failed response has its code and our words; an incomplete one has its reason."""
    more: dict[str, Any] = {"incomplete_details": {"reason": "max_output_tokens"}}
    if last == "failed":
        more = {"error": {"code": "server_error", "message": "canary of the organisation"}}
    upstream.plays(stream(*response_stream("Hi", last, **more)))
    events = await client.responses.create(model="talker", input="Hi", stream=True)
    seen: list[Any] = [one async for one in events]
    end = seen[-1]
    assert end.type == f"response.{last}"
    assert end.response.status == last
    if last == "failed":
        assert end.response.error is not None
        assert end.response.error.code == "server_error"
        assert "canary" not in end.response.error.message
    else:
        assert end.response.incomplete_details is not None
        assert end.response.incomplete_details.reason == "max_output_tokens"


# --- Images and audio -----------------------------------------------------------------------------


async def test_images_stream(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """A partial image comes, then the whole one with its usage."""
    stream = await client.images.generate(
        model="painter", prompt="a cat", stream=True, partial_images=1
    )
    partial, whole = [one async for one in stream]
    assert partial.type == "image_generation.partial_image"
    assert whole.type == "image_generation.completed"
    assert whole.b64_json == "iVBORw0K"
    assert whole.usage.output_tokens == 7
    assert upstream.requests[0].json()["partial_images"] == 1


async def test_speech_as_events(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """``stream_format="sse"`` gives the events, which the SDK leaves to its caller to read."""
    async with client.audio.speech.with_streaming_response.create(
        model="speaker", input="Hi", voice="alloy", stream_format="sse"
    ) as answered:
        assert answered.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in answered.iter_lines() if line.startswith("data: ")]
    assert [json.loads(line[6:])["type"] for line in lines] == [
        "speech.audio.delta",
        "speech.audio.done",
    ]
    assert upstream.requests[0].json()["stream_format"] == "sse"


async def test_transcription_stream(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """The text comes in pieces, then as a whole."""
    stream = await client.audio.transcriptions.create(model="listener", file=MP3, stream=True)
    seen: list[Any] = [one async for one in stream]
    piece, whole = seen
    assert (piece.type, piece.delta) == ("transcript.text.delta", "Hi")
    assert (whole.type, whole.text) == ("transcript.text.done", "Hi")
    assert upstream.requests[0].header("accept") == "text/event-stream"


async def test_stream_that_is_cut_is_an_error(
    upstream: ScriptedUpstream, fresh_endpoints: Gateway
) -> None:
    """On each endpoint: a stream without its end raises, and never passes for a short answer."""
    begun = [send(STREAM_HEAD), chunk(response_stream("Hi")[0]), close()]
    upstream.plays(begun)
    async with async_client(fresh_endpoints) as client:
        streams: list[Any] = [
            client.chat.completions.create(model="talker", messages=HELLO, stream=True),
            client.completions.create(model="talker", prompt="Hi", stream=True),
            client.responses.create(model="talker", input="Hi", stream=True),
            client.images.generate(model="painter", prompt="Hi", stream=True),
            client.audio.transcriptions.create(model="listener", file=MP3, stream=True),
        ]
        for asked in streams:
            events = await asked
            with pytest.raises(openai.APIError):
                [one async for one in events]
    assert len(upstream.requests) == len(streams)


async def test_synchronous_streams(upstream: ScriptedUpstream, endpoints: Gateway) -> None:
    """The other SDK's helpers read the same events."""

    def read() -> tuple[str | None, str, list[str], str, bytes]:
        with OpenAI(base_url=endpoints.base_url, api_key="any", max_retries=0) as client:
            with client.chat.completions.stream(model="talker", messages=HELLO) as chat:
                said = chat.get_final_completion().choices[0].message.content
            with client.responses.stream(model="talker", input="Hi") as response:
                answered = response.get_final_response().output_text
            with client.images.generate(model="painter", prompt="a cat", stream=True) as images:
                drawn: list[str] = [one.type for one in images]
            with client.audio.transcriptions.create(
                model="listener", file=MP3, stream=True
            ) as heard:
                text = "".join(one.delta for one in heard if one.type == "transcript.text.delta")
            with client.audio.speech.with_streaming_response.create(
                model="speaker", input="Hi", voice="alloy"
            ) as speech:
                spoken = b"".join(speech.iter_bytes())
        return said, answered, drawn, text, spoken

    said, answered, drawn, text, spoken = await asyncio.to_thread(read)
    assert (said, answered, text) == ("Hi", "Hi", "Hi")
    assert drawn == ["image_generation.partial_image", "image_generation.completed"]
    assert len(spoken) == 256 * 40
