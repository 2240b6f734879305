"""What is asked and answered in the measurements: bodies of fixed sizes, in OpenAI's shape.

An exchange is what one load sends again and again, and what must come back each time. Nothing here
knows who relays it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

MODEL = "gpt-3.5-turbo"
PATH = "/v1/chat/completions"
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer sk-free-api"}
#: In each answer of the upstream's, and in no answer of anybody else's.
MARK = "mark-of-the-upstream"
#: Where the upstream says how many bytes of the request it got.
RECEIVED = "RECEIVED"
KIB = 1024


class Exchange(NamedTuple):
    """A request's body, its answer's, and what it is called in a table."""

    name: str
    request: bytes
    answer: bytes

    @property
    def moved_bytes(self) -> int:
        """Both bodies."""
        return len(self.request) + len(self.answer)


def request(size: int, *, stream: bool = False, words: str = "") -> bytes:
    """A chat request of ``size`` bytes, which begins its prompt with ``words``."""

    def made(text: str) -> bytes:
        messages = [
            {"role": "system", "content": "You answer in one short sentence."},
            {"role": "user", "content": text},
        ]
        streamed = {"stream": True} if stream else {}
        return json.dumps(
            {"model": MODEL, "messages": messages, "temperature": 0.7, **streamed}
        ).encode()

    return made(_prose(words, size - len(made(""))))


def answer(size: int, fingerprint: str = "fp_1") -> bytes:
    """A chat completion of ``size`` bytes with all fields of OpenAI's."""

    def made(text: str) -> bytes:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        usage = {
            "prompt_tokens": 60,
            "completion_tokens": 40,
            "total_tokens": 100,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }
        completion = {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1700000000,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [choice],
            "usage": usage,
            "service_tier": "default",
            "system_fingerprint": fingerprint,
        }
        return json.dumps(completion).encode()

    return made(_prose(MARK, size - len(made(""))))


def _prose(begin: str, size: int) -> str:
    """Words of this length in all, none of which JSON, nginx or Lua would read as anything else."""
    words = f"{begin} " if begin else ""
    return (words + "some words of a prompt that say nothing in particular " * (size // 50))[:size]


PLAIN = Exchange("300 B asked, 700 B answered", request(300), answer(700))
#: Long answers, then long prompts, whose upstream says how much of them it got.
LONG = (
    Exchange("answers of 16 KB", request(300), answer(16 * KIB)),
    Exchange("answers of 256 KB", request(300), answer(256 * KIB)),
    Exchange("prompts of 16 KB", request(16 * KIB), answer(700, RECEIVED)),
    Exchange("prompts of 256 KB", request(256 * KIB), answer(700, RECEIVED)),
)


def event(text: str) -> bytes:
    """The event of one streamed piece of text, as OpenAI sends it."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return _event([choice])


def _event(choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> bytes:
    chunk = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
        "system_fingerprint": "fp_1",
        "choices": choices,
        "usage": usage,
    }
    return b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":")).encode()


#: The end of each stream: why it ended; what it used, if the caller asked for it; that it ended.
STOP = _event([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}])
USAGE = _event([], {"prompt_tokens": 60, "completion_tokens": 40, "total_tokens": 100})
DONE = b"data: [DONE]\n\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
#: Ends a body in chunked coding.
LAST_CHUNK = b"0\r\n\r\n"


def chunked(data: bytes) -> bytes:
    """One chunk of HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes) -> bytes:
    """The answer with this JSON body, its head too, as an upstream sends it."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def post(body: bytes, headers: Mapping[str, str] = HEADERS) -> bytes:
    """The request with this body, as a caller sends it."""
    lines = [f"POST {PATH} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {text}" for name, text in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
