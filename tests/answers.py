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


#: A usage object with as much detail as OpenAI's.
DETAILED = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 7},
    "completion_tokens_details": {"reasoning_tokens": 11, "note": '{ " '},
}


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


# --- the other endpoints --------------------------------------------------------------------------


def spent(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """The usage object of responses, images and audio."""
    total = input_tokens + output_tokens
    counts = {"input_tokens": input_tokens, "output_tokens": output_tokens, "total_tokens": total}
    return {**counts, "input_tokens_details": {"cached_tokens": 0}}


def completion_json(text: str, prompt_tokens: int = 5, completion_tokens: int = 7) -> bytes:
    """The body of a plain completion."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
    kind = {"id": "cmpl-1", "object": "text_completion", "created": 1700000000, "model": "m"}
    return _json({**kind, "choices": [choice], "usage": usage(prompt_tokens, completion_tokens)})


def embeddings_json(vectors: list[list[float]], prompt_tokens: int = 5) -> bytes:
    """The body of an embeddings answer."""
    rows = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    counts = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return _json({"object": "list", "data": rows, "model": "m", "usage": counts})


def moderation_json(*, flagged: bool = False) -> bytes:
    """The body of a moderation, which has no usage."""
    result = {
        "flagged": flagged,
        "categories": {"violence": flagged},
        "category_scores": {"violence": 0.01},
        "category_applied_input_types": {"violence": ["text"]},
    }
    return _json({"id": "modr-1", "model": "omni-moderation-latest", "results": [result]})


def response_object(text: str = "", status: str = "completed", **more: Any) -> dict[str, Any]:
    """A Response; ``more`` replaces fields."""
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": status}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1700000000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": "gpt-4o-mini-2024-07-18",
        "output": [{**message, "content": [content]}],
        "parallel_tool_calls": True,
        "store": False,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": spent(5, 7) if status == "completed" else None,
        "user": None,
        "metadata": {},
        **more,
    }


def response_json(text: str = "", **more: Any) -> bytes:
    """The body of a response."""
    return _json(response_object(text, **more))


def response_event(kind: str, **fields: Any) -> bytes:
    """One event of a stream that names its events."""
    return b"event: %b\n" % kind.encode() + event({"type": kind, "sequence_number": 1, **fields})


def text_delta(text: str) -> bytes:
    """The event of one piece of a response's text."""
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    return response_event("response.output_text.delta", **place, delta=text, logprobs=[])


def response_stream(text: str, last: str = "completed", **more: Any) -> list[bytes]:
    """The events of a response, ending with ``response.<last>``; ``more`` is for its Response."""
    started = response_object(status="in_progress", output=[])
    return [
        response_event("response.created", response=started),
        response_event("response.in_progress", response=started),
        text_delta(text),
        response_event(f"response.{last}", response=response_object(text, last, **more)),
    ]


def images_json(b64_json: str = "iVBORw0K", input_tokens: int = 5, output_tokens: int = 7) -> bytes:
    """The body of an images answer."""
    data = [{"b64_json": b64_json}]
    return _json({"created": 1700000000, "data": data, "usage": spent(input_tokens, output_tokens)})


def image_stream(b64_json: str = "iVBORw0K") -> list[bytes]:
    """A partial image and the whole one."""
    look = {"created_at": 1, "size": "1024x1024", "quality": "low", "background": "opaque"}
    image = {"b64_json": b64_json, **look, "output_format": "png"}
    return [
        response_event("image_generation.partial_image", **image, partial_image_index=0),
        response_event("image_generation.completed", **image, usage=spent(5, 7)),
    ]


def speech_stream(audio: str = "UklGRg==") -> list[bytes]:
    """Speech as events."""
    return [
        response_event("speech.audio.delta", audio=audio),
        response_event("speech.audio.done", usage=spent(5, 7)),
    ]


def transcription_json(text: str, **usage_: Any) -> bytes:
    """The body of a transcription, billed by tokens unless told otherwise."""
    return _json({"text": text, "usage": usage_ or {"type": "tokens", **spent(5, 7)}})


def transcription_stream(text: str) -> list[bytes]:
    """A transcription as events."""
    return [
        response_event("transcript.text.delta", delta=text),
        response_event("transcript.text.done", text=text, usage={"type": "tokens", **spent(5, 7)}),
    ]


def _json(answer_: object) -> bytes:
    return json.dumps(answer_, ensure_ascii=False).encode()
