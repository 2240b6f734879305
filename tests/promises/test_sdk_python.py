"""Promise: OpenAI's own SDK for Python works by changing the base URL, and nothing else.

Against the embedded model it has to work at all; against the scripted upstream it has to see each
kind of trouble as the exception that its documentation names.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.answers import STREAM_HEAD, delta, error
from tests.conftest import StartGateway
from tests.gateway import MODEL, Gateway
from tests.scripted_upstream import ScriptedUpstream, chunk, close, hang, happens, send

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "Say hello in five words. 你好 🦙"}
]


def async_client(gateway: Gateway) -> AsyncOpenAI:
    """The SDK as a caller sets it up, but with its retries off so that tests see each failure."""
    return AsyncOpenAI(base_url=gateway.base_url, api_key="sk-free-api", max_retries=0)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    """The asynchronous SDK in front of the scripted upstream."""
    async with async_client(gateway) as client:
        yield client


@pytest.fixture
async def fresh_client(fresh_gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    """The same in front of a gateway that may remember failures."""
    async with async_client(fresh_gateway) as client:
        yield client


@pytest.fixture
def embedded_client(embedded: Gateway) -> Iterator[OpenAI]:
    """The synchronous SDK in front of the embedded model."""
    with OpenAI(base_url=embedded.base_url, api_key="sk-free-api", max_retries=0) as client:
        yield client


def test_embedded_model_answers(embedded_client: OpenAI) -> None:
    """A completion of the real model has text, an end and its true usage."""
    completion = embedded_client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=24, temperature=0
    )
    choice = completion.choices[0]
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert completion.usage is not None
    assert 0 < completion.usage.completion_tokens <= 24
    assert completion.usage.prompt_tokens > 5


def test_embedded_model_streams_the_same_text(embedded_client: OpenAI) -> None:
    """At temperature 0 the streamed pieces are the plain answer's text, in more than one piece."""
    plain = embedded_client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=24, temperature=0
    )
    with embedded_client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=24, temperature=0, stream=True
    ) as stream:
        chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == plain.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 1
    assert all(chunk.usage is None for chunk in chunks)


def test_embedded_model_tells_usage_in_a_stream_if_asked(embedded_client: OpenAI) -> None:
    """``include_usage`` brings the one extra chunk at the end."""
    with embedded_client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *_, last = stream
    assert last.choices == []
    assert last.usage is not None
    assert 0 < last.usage.completion_tokens <= 8


async def test_embedded_model_answers_asynchronously(embedded: Gateway) -> None:
    """The asynchronous SDK works too, several requests at a time."""
    async with async_client(embedded) as client, asyncio.TaskGroup() as group:
        asked = [
            group.create_task(
                client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4)
            )
            for _ in range(4)
        ]
    assert all(task.result().choices[0].message.content for task in asked)


def test_embedded_model_answers_to_every_listed_name(embedded_client: OpenAI) -> None:
    """``models.list`` gives the table; the original five are in it, and each one can be asked."""
    names = [model.id for model in embedded_client.models.list()]
    assert names[:5] == [
        "gpt-3.5-turbo",
        "gpt-3.5-turbo-0301",
        "gpt-3.5-turbo-0613",
        "gpt-3.5-turbo-16k",
        "gpt-3.5-turbo-16k-0613",
    ]
    for name in names:
        assert embedded_client.models.retrieve(name).id == name
        completion = embedded_client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=1
        )
        assert completion.choices


def test_embedded_model_survives_who_leaves(embedded_client: OpenAI) -> None:
    """Time-outs and half-read streams don't keep the model busy for the next caller."""
    with embedded_client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True
    ) as stream:
        next(iter(stream))
    with pytest.raises(openai.APITimeoutError):
        embedded_client.with_options(timeout=0.05).chat.completions.create(
            model=MODEL, messages=HELLO
        )
    quick = embedded_client.with_options(timeout=10)
    assert quick.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2).choices


def test_raw_response_shows_our_headers(embedded_client: OpenAI) -> None:
    """``with_raw_response`` gives the request id that the operator can be told."""
    raw = embedded_client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=2
    )
    assert raw.headers["x-request-id"]
    assert raw.status_code == 200
    assert raw.parse().choices


def test_callers_mistakes_have_their_exceptions(embedded_client: OpenAI) -> None:
    """Wrong model, wrong value and wrong route are NotFoundError and BadRequestError."""
    create = embedded_client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as not_found:
        create(model="gpt-none", messages=HELLO)
    assert not_found.value.code == "model_not_found"
    assert not_found.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        create(model=MODEL, messages=[])
    assert (bad.value.code, bad.value.param) == ("invalid_value", "messages")
    with pytest.raises(openai.BadRequestError) as unsupported:
        create(model=MODEL, messages=HELLO, extra_body={"web_search_options": {}})
    assert unsupported.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError):
        embedded_client.files.list()


async def test_plain_and_streamed_text_is_the_upstreams(client: AsyncOpenAI) -> None:
    """Text with characters of every length comes through unchanged both ways."""
    text = str(HELLO[0]["content"]) if "content" in HELLO[0] else ""
    plain = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert plain.choices[0].message.content == text
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == text


async def test_upstreams_errors_have_their_exceptions(
    upstream: ScriptedUpstream, fresh_client: AsyncOpenAI
) -> None:
    """Each kind of trouble is the SDK's own class, in our words."""
    expected: dict[int, type[openai.APIStatusError]] = {
        400: openai.BadRequestError,
        404: openai.NotFoundError,
        422: openai.UnprocessableEntityError,
        500: openai.InternalServerError,
        429: openai.RateLimitError,
    }
    for status, exception in expected.items():
        upstream.plays([send(error(status, None, "sk-canary"))])
        with pytest.raises(exception) as raised:
            await fresh_client.chat.completions.create(model=MODEL, messages=HELLO)
        assert "canary" not in str(raised.value)


async def test_instances_bad_key_is_not_the_callers(
    upstream: ScriptedUpstream, fresh_client: AsyncOpenAI
) -> None:
    """An upstream's 401 isn't AuthenticationError: the caller's key was never looked at."""
    upstream.plays([send(error(401, "invalid_api_key", "sk-canary"))])
    with pytest.raises(openai.InternalServerError) as raised:
        await fresh_client.chat.completions.create(model=MODEL, messages=HELLO)
    assert "canary" not in str(raised.value)


async def test_stream_that_breaks_raises(
    upstream: ScriptedUpstream, fresh_client: AsyncOpenAI
) -> None:
    """A stream that dies isn't mistaken for a short answer: the SDK raises APIError."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("Hi")), close()])
    stream = await fresh_client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    pieces = aiter(stream)
    assert (await anext(pieces)).choices[0].delta.content == "Hi"
    with pytest.raises(openai.APIError):
        await anext(pieces)
    await stream.close()


async def test_time_out_raises_and_closes_the_upstream(
    upstream: ScriptedUpstream, client: AsyncOpenAI
) -> None:
    """The SDK's time-out is APITimeoutError, and the upstream isn't left working for nobody."""
    upstream.plays([hang()])
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.3).chat.completions.create(model=MODEL, messages=HELLO)
    await happens((await upstream.exchange()).gone)


async def test_closing_a_stream_half_way_closes_the_upstream(
    upstream: ScriptedUpstream, client: AsyncOpenAI
) -> None:
    """``stream.close()`` after one piece ends the upstream's connection."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("Hi")), hang()])
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    async for piece in stream:
        assert piece.choices[0].delta.content == "Hi"
        break
    assert not upstream.exchanges[0].gone.is_set()
    await stream.close()
    await happens(upstream.exchanges[0].gone)


async def test_sync_stream_closed_half_way_closes_the_upstream(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """The synchronous SDK's half-read stream is the same."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("Hi")), hang()])

    def read_one_piece() -> str | None:
        with (
            OpenAI(base_url=gateway.base_url, api_key="any") as client,
            client.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream,
        ):
            return next(iter(stream)).choices[0].delta.content

    assert await asyncio.to_thread(read_one_piece) == "Hi"
    await happens(upstream.exchanges[0].gone)


async def test_unreachable_upstream_is_an_internal_server_error(
    start_gateway: StartGateway,
) -> None:
    """Without an upstream the SDK sees a 5xx of ours, in a shape that it can read."""
    gateway = await start_gateway(OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    async with async_client(gateway) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert raised.value.code == "upstream_unavailable"


@pytest.mark.parametrize("suffix", ["/v1", "/v1/", ""])
async def test_base_url_may_be_set_both_ways(gateway: Gateway, suffix: str) -> None:
    """With or without ``/v1``, and with a slash at the end, the base URL works."""
    base_url = f"http://127.0.0.1:{gateway.port}{suffix}"
    async with AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices
