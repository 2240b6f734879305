"""Promise: speech is passed on as it is made: byte for byte, at once, and never cut unnoticed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI

from tests.answers import error, head
from tests.endpoints import SPEECH_NANOUSD
from tests.gateway import Gateway
from tests.money import left_becomes, left_nanousd
from tests.scripted_upstream import Script, ScriptedUpstream, chunk, close, pause, reset, send
from tests.sdk_calls import async_client

#: Longer than anything that is kept whole (an answer of JSON up to 1 MiB is).
SOUND = random.Random(3).randbytes(3_000_000)
CHUNKED = head(200, ("content-type", "audio/mpeg"), ("transfer-encoding", "chunked"))
LENGTH = head(200, ("content-type", "audio/wav"), ("content-length", str(len(SOUND))))
LAST_CHUNK = b"0\r\n\r\n"


@pytest.fixture
async def client(endpoints: Gateway) -> AsyncIterator[AsyncOpenAI]:
    """The asynchronous SDK in front of all endpoints."""
    async with async_client(endpoints) as client:
        yield client


async def test_every_byte_arrives(
    upstream: ScriptedUpstream, client: AsyncOpenAI, endpoints: Gateway
) -> None:
    """3 MB of noise, with or without a length, are the same at the other end, for one price."""
    pieces = [chunk(SOUND[at : at + 65_536]) for at in range(0, len(SOUND), 65_536)]
    upstream.plays([send(LENGTH), send(SOUND)], [send(CHUNKED), *pieces, send(LAST_CHUNK)])
    left = await left_nanousd(endpoints)
    for number, kind in enumerate(("audio/wav", "audio/mpeg"), start=1):
        spoken = await client.audio.speech.create(model="speaker", input="Hi", voice="alloy")
        assert spoken.content == SOUND
        assert spoken.response.headers["content-type"] == kind
        await left_becomes(endpoints, left - number * SPEECH_NANOUSD)
    assert upstream.requests[0].header("accept") == "*/*"


async def test_words_that_look_like_json_are_not_touched(
    upstream: ScriptedUpstream, client: AsyncOpenAI
) -> None:
    """Sound that happens to spell what is hidden or held back elsewhere comes through unchanged."""
    sound = b'{"usage":{"prompt_tokens_details":{"cached_tokens":77}}} data: {"error":{}}\n\n' * 9
    upstream.plays([send(CHUNKED), chunk(sound), send(LAST_CHUNK)])
    spoken = await client.audio.speech.create(model="speaker", input="Hi", voice="alloy")
    assert spoken.content == sound


async def test_sound_comes_as_it_is_made(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """The first bytes are at the caller before the upstream has sent the last."""
    heard = asyncio.Event()
    upstream.plays(
        [send(CHUNKED), chunk(SOUND[:100]), pause(heard), chunk(SOUND[100:200]), send(LAST_CHUNK)]
    )
    async with client.audio.speech.with_streaming_response.create(
        model="speaker", input="Hi", voice="alloy"
    ) as answered:
        pieces = answered.iter_bytes()
        first = await anext(pieces)
        assert first == SOUND[:100]
        heard.set()
        assert first + b"".join([piece async for piece in pieces]) == SOUND[:200]


CUT = {
    "chunks": [send(CHUNKED), chunk(SOUND[:1_000]), close()],
    "length": [send(LENGTH + SOUND[:1_000]), reset()],
}


@pytest.mark.parametrize("script", CUT.values(), ids=CUT)
async def test_sound_that_is_cut_is_an_error(
    upstream: ScriptedUpstream, fresh_endpoints: Gateway, script: Script
) -> None:
    """An upstream that dies half-way is an exception at the caller, and counts in full."""
    upstream.plays(script)
    left = await left_nanousd(fresh_endpoints)
    async with async_client(fresh_endpoints) as client:
        with pytest.raises(openai.APIError):
            await client.audio.speech.create(model="speaker", input="Hi", voice="alloy")
    assert len(upstream.requests) == 1
    await left_becomes(fresh_endpoints, left - SPEECH_NANOUSD)


async def test_refusal_is_no_sound(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """What the upstream says of a wrong voice is BadRequestError, not a file with words in it."""
    upstream.plays([send(error(400, None, "There is no such voice."))])
    with pytest.raises(openai.BadRequestError, match="no such voice"):
        await client.audio.speech.create(model="speaker", input="Hi", voice="none")
