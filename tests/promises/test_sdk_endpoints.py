"""Promise: every endpoint takes what OpenAI's own SDK for Python can say, or says why it doesn't.

Each parameter of each call is tried: what is let through reaches the upstream as it was written,
what isn't is the SDK's typed error, with the parameter's name. Streams are in
``test_sdk_endpoints_streams``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from freeapi.policy.models import PATHS, Endpoint
from tests.endpoints import MODEL_OF, SOUND, form_of, text_answer
from tests.gateway import POOL_KEY, Gateway
from tests.scripted_upstream import ScriptedUpstream, send
from tests.sdk_calls import (
    DROPPED,
    MP3,
    PASSED,
    PIXEL,
    REFUSED,
    SENT,
    STREAMED,
    async_client,
    calls,
    good,
    parameters,
)

#: OpenAI calls translations deprecated, and the SDK says so at each call; callers have them still.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

ENDPOINTS: tuple[Endpoint, ...] = tuple(PATHS)
#: Of a model whose row in the file doesn't say.
DEFAULTS = ("chat", "completions")
FORMS = ("transcriptions", "translations")


@pytest.fixture
async def client(endpoints: Gateway) -> AsyncIterator[AsyncOpenAI]:
    """The asynchronous SDK in front of all endpoints."""
    async with async_client(endpoints) as client:
        yield client


def assert_answered(endpoint: Endpoint, result: Any) -> None:
    """The SDK found in the answer what the upstream had put there."""
    found: Callable[[Any], object] = {
        "chat": lambda one: (one.choices[0].message.content, one.usage.completion_tokens),
        "completions": lambda one: (one.choices[0].text, one.usage.completion_tokens),
        "embeddings": lambda one: one.data[0].embedding,
        "moderations": lambda one: one.results[0].category_scores.violence,
        "responses": lambda one: (one.output_text, one.usage.output_tokens),
        "images": lambda one: (one.data[0].b64_json, one.usage.output_tokens),
        "speech": lambda one: one.content,
        "transcriptions": lambda one: one.text,
        "translations": lambda one: one.text,
    }[endpoint]
    assert (
        found(result)
        == {
            "chat": ("Hi", 7),
            "completions": ("Hi", 7),
            "embeddings": [0.25, -0.5],
            "moderations": 0.01,
            "responses": ("Hi", 7),
            "images": ("iVBORw0K", 7),
            "speech": SOUND,
            "transcriptions": "Hi",
            "translations": "Hi",
        }[endpoint]
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_parameter_of_the_sdk_is_decided_upon(endpoint: Endpoint) -> None:
    """There is none that these tests don't try: a new release of the SDK may bring one."""
    known = {"model", *PASSED[endpoint], *DROPPED.get(endpoint, ()), *REFUSED.get(endpoint, ())}
    known |= STREAMED | set(SENT[endpoint][0] if endpoint in SENT else ())
    with OpenAI(api_key="any") as client:
        assert parameters(calls(client)[endpoint]) <= known


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one not in FORMS])
async def test_what_may_pass_is_sent_as_it_was_written(
    upstream: ScriptedUpstream, client: AsyncOpenAI, endpoint: Endpoint
) -> None:
    """With every parameter that is let through: path, key, model and body are what they should be.

    The answer is OpenAI's own object, with all that the upstream said.
    """
    asked = PASSED[endpoint]
    assert_answered(endpoint, await calls(client)[endpoint](model=MODEL_OF[endpoint], **asked))
    (seen,) = upstream.requests
    assert (seen.method, seen.target) == ("POST", f"/v1{PATHS[endpoint]}")
    assert seen.header("authorization") == f"Bearer {POOL_KEY}"
    assert seen.header("content-type") == "application/json"
    assert seen.json() == {"model": f"up-{MODEL_OF[endpoint]}", **asked}


@pytest.mark.parametrize("endpoint", FORMS)
async def test_fields_of_a_form_are_sent_as_they_were_written(
    upstream: ScriptedUpstream, client: AsyncOpenAI, endpoint: Endpoint
) -> None:
    """Every field and the file's bytes arrive; the file's name is only of its kind."""
    asked = PASSED[endpoint]
    assert_answered(endpoint, await calls(client)[endpoint](model=MODEL_OF[endpoint], **asked))
    (seen,) = upstream.requests
    assert (seen.method, seen.target) == ("POST", f"/v1{PATHS[endpoint]}")
    assert seen.header("authorization") == f"Bearer {POOL_KEY}"
    form = form_of(seen)
    assert (form.file_name, form.file_type, form.file) == ("audio.mp3", "audio/mpeg", MP3[1])
    wanted: list[tuple[str, str]] = [("model", "up-listener")]
    for name, value in asked.items():
        if isinstance(value, list):
            wanted += [(f"{name}[]", one) for one in value]
        elif isinstance(value, dict):
            wanted += [(f"{name}[{key}]", str(one)) for key, one in value.items()]
        elif name != "file":
            wanted.append((name, str(value)))
    assert form.fields[0] == ("model", "up-listener")
    assert sorted(form.fields) == sorted(wanted)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_synchronous_sdk_is_answered_too(endpoints: Gateway, endpoint: Endpoint) -> None:
    """A short call of the other SDK, with nothing but what has to be there."""

    def ask() -> Any:
        with OpenAI(base_url=endpoints.base_url, api_key="any", max_retries=0) as client:
            return calls(client)[endpoint](**good(endpoint))

    assert_answered(endpoint, await asyncio.to_thread(ask))


async def test_models_are_listed_and_found(client: AsyncOpenAI) -> None:
    """``models.list`` gives every configured model, whatever it is for, and ``retrieve`` each."""
    names = [model.id async for model in client.models.list()]
    assert set(names) == {*MODEL_OF.values(), "scribe"}
    assert [(await client.models.retrieve(name)).id for name in names] == names


@pytest.mark.parametrize("endpoint", SENT)
async def test_ceilings_are_put_on_what_is_asked_for(
    upstream: ScriptedUpstream, client: AsyncOpenAI, endpoint: Endpoint
) -> None:
    """More than the model gives is lowered in the field that the upstream obeys, and named."""
    asked, sent, adjusted = SENT[endpoint]
    named = await with_headers(client, endpoint)(
        model=MODEL_OF[endpoint], **{**PASSED[endpoint], **asked}
    )
    assert named.headers["x-freeapi-adjusted"] == adjusted
    body = upstream.requests[0].json()
    assert {name: body[name] for name in sent} == sent
    assert "max_completion_tokens" not in body


@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses"])
async def test_ceiling_is_there_without_being_asked_for(
    upstream: ScriptedUpstream, client: AsyncOpenAI, endpoint: Endpoint
) -> None:
    """No request for text leaves without a number of tokens at which the upstream has to stop."""
    await calls(client)[endpoint](**good(endpoint))
    name, ceiling = {
        "chat": ("max_tokens", 100),
        "completions": ("max_tokens", 16),
        "responses": ("max_output_tokens", 100),
    }[endpoint]
    assert upstream.requests[0].json()[name] == ceiling
    assert upstream.requests[0].json().get("store", False) is False
    assert endpoint != "responses" or "store" in upstream.requests[0].json()


@pytest.mark.parametrize("endpoint", DROPPED)
async def test_what_says_who_the_caller_is_does_not_leave(
    upstream: ScriptedUpstream, client: AsyncOpenAI, endpoint: Endpoint
) -> None:
    """Each of these is dropped and named; the rest of the request is answered."""
    dropped = DROPPED[endpoint]
    named = await with_headers(client, endpoint)(**good(endpoint), **dropped)
    told = named.headers["x-freeapi-adjusted"].split(", ")
    assert sorted(told) == sorted(f"{name}=dropped" for name in dropped)
    body = upstream.requests[0].json()
    assert not dropped.keys() & body.keys()
    assert b"canary" not in upstream.requests[0].body


@pytest.mark.parametrize("endpoint", REFUSED)
async def test_what_may_not_pass_is_a_typed_error(
    upstream: ScriptedUpstream, client: AsyncOpenAI, endpoint: Endpoint
) -> None:
    """It is BadRequestError with a code, the parameter's name, and why; nothing is sent."""
    for name, value in REFUSED[endpoint].items():
        with pytest.raises(openai.BadRequestError) as refused:
            await calls(client)[endpoint](**{**good(endpoint), name: value})
        error = refused.value
        assert error.code in ("unsupported_parameter", "invalid_value")
        assert error.param is not None
        assert error.param.split(".")[0].split("[")[0] == name
        assert f"'{error.param}'" in error.message
        assert "canary" not in error.message
    assert upstream.requests == []


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_model_of_another_endpoint_is_a_typed_error(
    upstream: ScriptedUpstream, client: AsyncOpenAI, endpoint: Endpoint
) -> None:
    """A model that exists but isn't for this is BadRequestError, one that doesn't NotFoundError."""
    other = "embedder" if endpoint != "embeddings" else "talker"
    with pytest.raises(openai.BadRequestError, match="this model is not served for") as refused:
        await calls(client)[endpoint](**{**good(endpoint), "model": other})
    assert (refused.value.param, refused.value.code) == ("model", "invalid_value")
    with pytest.raises(openai.NotFoundError) as unknown:
        await calls(client)[endpoint](**{**good(endpoint), "model": "canary-gpt"})
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    assert upstream.requests == []


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one not in DEFAULTS])
async def test_endpoint_without_a_model_is_off(
    upstream: ScriptedUpstream, gateway: Gateway, endpoint: Endpoint
) -> None:
    """Where the operator lists no model for it, it is NotFoundError that says where to look."""
    async with async_client(gateway) as client:
        with pytest.raises(openai.NotFoundError, match="GET /v1/models lists") as off:
            await calls(client)[endpoint](**good(endpoint))
    assert off.value.code == "not_found"
    assert upstream.requests == []


STATEFUL: dict[str, Callable[[AsyncOpenAI], Any]] = {
    "responses.retrieve": lambda client: client.responses.retrieve("resp_1"),
    "responses.delete": lambda client: client.responses.delete("resp_1"),
    "responses.cancel": lambda client: client.responses.cancel("resp_1"),
    "responses.input_items": lambda client: client.responses.input_items.list("resp_1"),
    "chat.completions.list": lambda client: client.chat.completions.list(),
    "chat.completions.retrieve": lambda client: client.chat.completions.retrieve("chatcmpl-1"),
    "files.create": lambda client: client.files.create(file=MP3, purpose="user_data"),
    "files.list": lambda client: client.files.list(),
    "batches.list": lambda client: client.batches.list(),
    "conversations.create": lambda client: client.conversations.create(),
    "vector_stores.list": lambda client: client.vector_stores.list(),
    "fine_tuning.jobs": lambda client: client.fine_tuning.jobs.list(),
    "uploads.create": lambda client: client.uploads.create(
        bytes=1, filename="a", mime_type="a/b", purpose="user_data"
    ),
    "containers.list": lambda client: client.containers.list(),
    "evals.list": lambda client: client.evals.list(),
    "skills.list": lambda client: client.skills.list(),
    "videos.list": lambda client: client.videos.list(),
    "beta.assistants.list": lambda client: client.beta.assistants.list(),
    "beta.threads.create": lambda client: client.beta.threads.create(),
    "realtime.client_secrets": lambda client: client.realtime.client_secrets.create(),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the SDK's, about some of these
async def test_what_keeps_state_is_not_there(
    upstream: ScriptedUpstream, client: AsyncOpenAI
) -> None:
    """It is NotFoundError that says why: others would see it."""
    for name, call in STATEFUL.items():
        with pytest.raises(openai.NotFoundError, match="keeps nothing between requests") as absent:
            await call(client)
        assert absent.value.code == "not_found", name
    assert upstream.requests == []


async def test_images_count_at_their_bound(upstream: ScriptedUpstream, client: AsyncOpenAI) -> None:
    """An image in the request is let through by its bytes, one behind a URL is refused."""
    content = [{"type": "image_url", "image_url": {"url": "https://images.invalid/canary.png"}}]
    messages: Any = [{"role": "user", "content": content}]
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="talker", messages=messages)
    assert refused.value.param == "messages[0].content[0].image_url.url"
    assert "data: URL" in refused.value.message
    assert "canary" not in refused.value.message
    content[0]["image_url"] = {"url": PIXEL}
    await client.chat.completions.create(model="talker", messages=messages)
    (seen,) = upstream.requests
    assert seen.json()["messages"] == messages


@pytest.mark.parametrize(
    ("response_format", "text"),
    [
        ("srt", "1\n00:00:00,000 --> 00:00:01,000\nHi\n"),
        ("vtt", "WEBVTT\n\nHi\n"),
        ("text", "Hi\n"),
    ],
)
@pytest.mark.parametrize("endpoint", FORMS)
async def test_transcriptions_that_are_text_come_as_text(
    upstream: ScriptedUpstream,
    client: AsyncOpenAI,
    endpoint: Endpoint,
    response_format: str,
    text: str,
) -> None:
    """Subtitles and plain text are the SDK's string, character for character."""
    upstream.plays([send(text_answer(text))])
    result = await calls(client)[endpoint](**good(endpoint), response_format=response_format)
    assert result == text
    (seen,) = upstream.requests
    assert ("response_format", response_format) in form_of(seen).fields
    assert seen.header("accept") == "*/*"


def with_headers(client: AsyncOpenAI, endpoint: Endpoint) -> Callable[..., Any]:
    """The same call, giving the answer's headers too."""
    known: dict[Endpoint, Callable[..., Any]] = {
        "chat": client.chat.completions.with_raw_response.create,
        "completions": client.completions.with_raw_response.create,
        "embeddings": client.embeddings.with_raw_response.create,
        "responses": client.responses.with_raw_response.create,
        "images": client.images.with_raw_response.generate,
    }
    return known[endpoint]
