"""The calls of OpenAI's SDK, endpoint by endpoint: every parameter, and what becomes of it.

``PASSED`` are values that have to reach the upstream as they are, ``SENT`` what stands there in
place of some of them, ``DROPPED`` what doesn't leave, ``REFUSED`` what is a 400 that names it.
Together they hold every parameter that the SDK has, which ``test_sdk_endpoints`` makes sure of.

What this is not: the tables of ``freeapi.policy`` imported; it is written from the SDK's side.
"""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Callable
from typing import Any

from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAI

from freeapi.policy.models import Endpoint
from tests.endpoints import CEILING_TOKENS, MODEL_OF
from tests.gateway import Gateway

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9Q"
    "DwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
MP3 = ("canary-holiday.mp3", b"ID3 not much of a sound", "audio/mpeg")

#: Enough to be answered, without the model.
NEEDED: dict[Endpoint, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Hi 你好 🦙"}]},
    "completions": {"prompt": "Once"},
    "embeddings": {"input": "text"},
    "moderations": {"input": "text"},
    "responses": {"input": "Hi"},
    "images": {"prompt": "a cat"},
    "speech": {"input": "Hi", "voice": "alloy"},
    "transcriptions": {"file": MP3},
    "translations": {"file": MP3},
}
PASSED: dict[Endpoint, dict[str, Any]] = {
    "chat": {
        "messages": [
            {"role": "system", "content": "Be short.", "name": "setter"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": "{}"},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        "frequency_penalty": 0.5,
        "function_call": "auto",
        "functions": [FUNCTION],
        "logit_bias": {"50256": -100},
        "logprobs": True,
        "max_tokens": 50,
        "modalities": ["text"],
        "n": 2,
        "parallel_tool_calls": False,
        "presence_penalty": 0.25,
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
        "seed": 7,
        "service_tier": "flex",
        "stop": ["end"],
        "store": False,
        "temperature": 0.5,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "tools": [{"type": "function", "function": FUNCTION}],
        "top_logprobs": 2,
        "top_p": 0.9,
        "verbosity": "low",
    },
    "completions": {
        "prompt": ["Once", "Twice"],
        "best_of": 2,
        "echo": True,
        "frequency_penalty": 0.5,
        "logit_bias": {"50256": -100},
        "logprobs": 2,
        "max_tokens": 50,
        "n": 2,
        "presence_penalty": 0.25,
        "seed": 7,
        "stop": "end",
        "suffix": "...",
        "temperature": 0.5,
        "top_p": 0.9,
    },
    "embeddings": {"input": ["one", "two"], "dimensions": 2, "encoding_format": "float"},
    "moderations": {
        "input": [
            {"type": "text", "text": "rude?"},
        ]
    },
    "responses": {
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Hi"},
                    {"type": "input_image", "image_url": PIXEL, "detail": "low"},
                ],
            },
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ],
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "instructions": "Be short.",
        "max_output_tokens": 50,
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "service_tier": "default",
        "store": False,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tool_choice": {"type": "function", "name": "weather"},
        "tools": [{"type": "function", **FUNCTION, "strict": True}],
        "top_logprobs": 2,
        "top_p": 0.9,
        "truncation": "auto",
    },
    "images": {
        "prompt": "a cat",
        "background": "opaque",
        "complexity": "low",
        "moderation": "low",
        "n": 2,
        "output_compression": 80,
        "output_format": "webp",
        "partial_images": 2,
        "quality": "low",
        "response_format": "b64_json",
        "size": "1024x1024",
        "style": "vivid",
    },
    "speech": {
        "input": "Hi 你好",
        "voice": "alloy",
        "instructions": "Whisper.",
        "response_format": "wav",
        "speed": 1.5,
        "stream_format": "audio",
    },
    "transcriptions": {
        "file": MP3,
        "chunking_strategy": {"type": "server_vad", "threshold": 0.5},
        "include": ["logprobs"],
        "keywords": ["freeapi", "proxy"],
        "language": "en",
        "languages": ["en", "zh"],
        "prompt": "A holiday. 你好",
        "response_format": "json",
        "temperature": 0.5,
        "timestamp_granularities": ["word", "segment"],
    },
    "translations": {
        "file": MP3,
        "prompt": "A holiday.",
        "response_format": "json",
        "temperature": 0.5,
    },
}
#: These have tests of their own, with streams.
STREAMED = {"stream", "stream_options"}
#: Of two ceilings the smaller counts, and goes in the field that the upstream obeys.
SENT: dict[Endpoint, tuple[dict[str, Any], dict[str, Any], str]] = {
    "chat": (
        {"max_completion_tokens": 40},
        {"max_tokens": 40},
        "max_tokens=dropped",
    ),
    "completions": (
        {"max_tokens": 5_000},
        {"max_tokens": CEILING_TOKENS},
        f"max_tokens={CEILING_TOKENS}",
    ),
    "responses": (
        {"max_output_tokens": 5_000, "store": True},
        {"max_output_tokens": CEILING_TOKENS, "store": False},
        f"max_output_tokens={CEILING_TOKENS}, store=false",
    ),
}
_WHO = {"user": "canary-user", "safety_identifier": "canary-safety"}
_CACHE = {
    "prompt_cache_key": "canary-cache",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
}
DROPPED: dict[Endpoint, dict[str, Any]] = {
    "chat": {**_WHO, "metadata": {"canary": "canary"}, **_CACHE, "service_tier": "priority"},
    "completions": {"user": "canary-user"},
    "embeddings": {"user": "canary-user"},
    "responses": {**_WHO, "metadata": {"canary": "canary"}, **_CACHE, "service_tier": "auto"},
    "images": _WHO,
}
REFUSED: dict[Endpoint, dict[str, Any]] = {
    "chat": {
        "audio": {"voice": "alloy", "format": "mp3"},
        "moderation": {"model": "omni-moderation-latest"},
        "prediction": {"type": "content", "content": "Hi"},
        "web_search_options": {},
        "modalities": ["text", "audio"],
        "n": 3,
        "tools": [{"type": "web_search"}],
    },
    "completions": {"n": 3, "best_of": 20},
    "moderations": {"input": [{"type": "image_url", "image_url": {"url": PIXEL}}]},
    "responses": {
        "access_programs": ["x"],
        "background": True,
        "background_options": {},
        "context_management": [{"type": "compaction"}],
        "conversation": "conv_1",
        "image": {},
        "moderation": {},
        "previous_response_id": "resp_1",
        "prompt": {"id": "pmpt_1"},
        "include": ["file_search_call.results"],
        "tools": [{"type": "web_search"}],
        "tool_choice": {"type": "file_search"},
        "reasoning": {"mode": "pro"},
        "input": [{"type": "item_reference", "id": "msg_1"}],
    },
    "images": {
        "frame_count": 4,
        "frame_duration_ms": 100,
        "svg": {},
        "output_format": "gif",
        "n": 3,
        "partial_images": 9,
    },
    "speech": {
        "input": "long " * 1_000,
        "voice": {"id": "voice_1"},
        "stream_format": "smoke",
    },
    "transcriptions": {
        "known_speaker_names": ["canary"],
        "known_speaker_references": ["data:audio/wav;base64,AAAA"],
        "file": ("notes.txt", b"text", "text/plain"),
    },
    "translations": {"file": ("notes.txt", b"text", "text/plain")},
}
#: What every call of the SDK has, and is about the call itself.
_OF_THE_CALL = {"extra_headers", "extra_query", "extra_body", "timeout"}


def async_client(gateway: Gateway) -> AsyncOpenAI:
    """The SDK as a caller sets it up, but with its retries off so that tests see each failure.

    No certificates: reading those of the system takes longer than most of these tests.
    """
    return AsyncOpenAI(
        base_url=gateway.base_url,
        api_key="any",
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
    )


def calls(client: AsyncOpenAI | OpenAI) -> dict[Endpoint, Callable[..., Any]]:
    """The SDK's method of each endpoint."""
    return {
        "chat": client.chat.completions.create,
        "completions": client.completions.create,
        "embeddings": client.embeddings.create,
        "moderations": client.moderations.create,
        "responses": client.responses.create,
        "images": client.images.generate,
        "speech": client.audio.speech.create,
        "transcriptions": client.audio.transcriptions.create,
        "translations": client.audio.translations.create,
    }


def parameters(call: Callable[..., Any]) -> set[str]:
    """What may be written in that call."""
    return set(inspect.signature(call).parameters) - _OF_THE_CALL


def good(endpoint: Endpoint) -> dict[str, Any]:
    """The arguments of a short good call."""
    return {"model": MODEL_OF[endpoint], **NEEDED[endpoint]}
