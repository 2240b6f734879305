"""What an upstream sends, as bytes: whole answers, heads, server-sent events, chunks.

The forms are those of OpenAI's API reference. It is not a server (``scripted_upstream`` is) and
nothing here is checked: a test may send less, more, or in another order.

Invariant: each head carries the headers by which OpenAI would give away its account, so that any
test may look for them on the caller's side.
"""

from __future__ import annotations

import json
from typing import Any

#: What OpenAI's answers carry and ours must not: account, cookies, the shared pool's state.
LEAKY_HEADERS: tuple[tuple[str, str], ...] = (
    ("openai-organization", "canary-organization"),
    ("openai-project", "canary-project"),
    ("openai-processing-ms", "canary-77"),
    ("openai-version", "canary-2020"),
    ("x-request-id", "canary-request"),
    ("x-ratelimit-remaining-requests", "canary-9999"),
    ("x-ratelimit-limit-tokens", "canary-8888"),
    ("x-openai-proxy-wasm", "canary-wasm"),
    ("set-cookie", "__cf_bm=canary-cookie; path=/"),
    ("cf-ray", "canary-ray"),
    ("alt-svc", 'h3=":443"; ma=canary-1'),
    ("server", "canary-cloudflare"),
)


def head(status: int, *headers: tuple[str, str]) -> bytes:
    """The head of an answer, with all that OpenAI would leak."""
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{k}: {v}" for k, v in (*headers, *LEAKY_HEADERS))]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def answer(status: int, body: bytes, *headers: tuple[str, str]) -> bytes:
    """A whole JSON answer with its length."""
    length = ("content-length", str(len(body)))
    return head(status, ("content-type", "application/json"), length, *headers) + body


def chat_json(text: str, prompt_tokens: int = 5, completion_tokens: int = 7) -> bytes:
    """The body of a non-streaming chat completion."""
    message = {"role": "assistant", "content": text, "refusal": None}
    completion = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage(prompt_tokens, completion_tokens),
    }
    return json.dumps(completion, ensure_ascii=False).encode()


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's usage object."""
    total = prompt_tokens + completion_tokens
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {**counts, "total_tokens": total}


def error(status: int, code: str | None, message: str, *headers: tuple[str, str]) -> bytes:
    """An error answer in OpenAI's shape."""
    fields = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return answer(status, json.dumps({"error": fields}).encode(), *headers)


def event(data: object) -> bytes:
    """One server-sent event."""
    return (
        b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    )


def delta(text: str) -> bytes:
    """The event of one streamed piece of text."""
    return _chunk_event([{"index": 0, "delta": {"content": text}, "finish_reason": None}], None)


def usage_event(prompt_tokens: int = 5, completion_tokens: int = 7) -> bytes:
    """The extra event that ``include_usage`` brings: no choices, the usage."""
    return _chunk_event([], usage(prompt_tokens, completion_tokens))


def _chunk_event(choices: list[Any], usage_: dict[str, int] | None) -> bytes:
    kind = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000}
    return event({**kind, "model": "gpt-4o-mini-2024-07-18", "choices": choices, "usage": usage_})


#: Ends a stream of OpenAI's.
DONE = b"data: [DONE]\n\n"
STREAM_HEAD = head(
    200, ("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked")
)
LAST_CHUNK = b"0\r\n\r\n"


def chunked(data: bytes) -> bytes:
    """One chunk of HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)
