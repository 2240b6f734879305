"""One instance that serves every endpoint, and an upstream that answers each of them.

What this is not: a check of anything. ``answer_any`` gives a good answer to whatever is asked,
streamed where a stream is wanted, as OpenAI's API reference has it; a test may send another one.

Plan: a configuration with one model for each kind of work, so that a wrong model can be asked for;
two that transcribe, so that a form must say which, and one that translates, so that it needn't.
All of them have prices, and the instance a cap that no test comes near.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freeapi.policy.models import PATHS, Endpoint
from tests import answers
from tests.answers import DONE, answer
from tests.gateway import POOL_KEY, Gateway
from tests.money import cap
from tests.scripted_upstream import Request, Script, send, stream

#: The configured model of each endpoint; ``up-`` before it is what the upstream calls it.
MODEL_OF: dict[Endpoint, str] = {
    "chat": "talker",
    "completions": "talker",
    "embeddings": "embedder",
    "moderations": "judge",
    "responses": "talker",
    "images": "painter",
    "speech": "speaker",
    "transcriptions": "listener",
    "translations": "listener",
}
CEILING_TOKENS = 100
IMAGE_TOKENS = 1_000
#: The most that one piece may cost, in nano-dollars.
IMAGE_NANOUSD, SPEECH_NANOUSD, FILE_NANOUSD = 50_000_000, 20_000_000, 10_000_000
#: Nano-dollars a token, in and out.
IN_NANOUSD, OUT_NANOUSD = 1_000, 2_000
CONFIG = f"""
[policy]
n_max = 2

[[model]]
name = "talker"
upstream_model = "up-talker"
endpoints = ["chat", "completions", "responses"]
max_output_tokens = {CEILING_TOKENS}
image_tokens_max = {IMAGE_TOKENS}
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0

[[model]]
name = "embedder"
upstream_model = "up-embedder"
endpoints = ["embeddings"]
input_usd_per_mtok = 1.0

[[model]]
name = "judge"
upstream_model = "up-judge"
endpoints = ["moderations"]
input_usd_per_mtok = 0

[[model]]
name = "painter"
upstream_model = "up-painter"
endpoints = ["images"]
unit_usd = 0.05

[[model]]
name = "speaker"
upstream_model = "up-speaker"
endpoints = ["speech"]
unit_usd = 0.02

[[model]]
name = "listener"
upstream_model = "up-listener"
endpoints = ["transcriptions", "translations"]
unit_usd = 0.01

[[model]]
name = "scribe"
upstream_model = "up-scribe"
endpoints = ["transcriptions"]
unit_usd = 0.01
"""
#: Limits that are there, and that no test reaches; and more money than all tests spend.
SETTINGS = {
    **cap(10**15),
    "FREEAPI_CALLER_RPM": "60000",
    "FREEAPI_CALLER_TPM": "1000000000",
}
SOUND = bytes(range(256)) * 40


def sound_answer(sound: bytes = SOUND) -> bytes:
    """A whole answer of speech."""
    length = ("content-length", str(len(sound)))
    return answers.head(200, ("content-type", "audio/mpeg"), length) + sound


def text_answer(text: str, kind: str = "text/plain; charset=utf-8") -> bytes:
    """A transcription that isn't JSON."""
    length = ("content-length", str(len(text.encode())))
    return answers.head(200, ("content-type", kind), length) + text.encode()


WHOLE: dict[Endpoint, bytes] = {
    "chat": answer(200, answers.chat_json("Hi")),
    "completions": answer(200, answers.completion_json("Hi")),
    "embeddings": answer(200, answers.embeddings_json([[0.25, -0.5]])),
    "moderations": answer(200, answers.moderation_json()),
    "responses": answer(200, answers.response_json("Hi")),
    "images": answer(200, answers.images_json()),
    "speech": sound_answer(),
    "transcriptions": answer(200, answers.transcription_json("Hi")),
    "translations": answer(200, answers.transcription_json("Hi")),
}


def response_events(text: str = "Hi", **more: Any) -> list[bytes]:
    """All events of a response of one message, as OpenAI's helpers want them."""
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant"}
    created, going_on, *pieces, last = answers.response_stream(text, **more)
    return [
        created,
        going_on,
        answers.response_event(
            "response.output_item.added",
            output_index=0,
            item={**message, "status": "in_progress", "content": []},
        ),
        answers.response_event("response.content_part.added", **place, part=empty),
        *pieces,
        answers.response_event("response.output_text.done", **place, text=text, logprobs=[]),
        answers.response_event("response.content_part.done", **place, part={**empty, "text": text}),
        answers.response_event(
            "response.output_item.done",
            output_index=0,
            item={**message, "status": "completed", "content": [{**empty, "text": text}]},
        ),
        last,
    ]


def completion_event(text: str) -> bytes:
    """One piece of a streamed completion."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
    kind = {"id": "cmpl-1", "object": "text_completion", "created": 1700000000, "model": "m"}
    return answers.event({**kind, "choices": [choice], "usage": None})


def chat_event(**choice: Any) -> bytes:
    """One event of a streamed chat."""
    kind = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return answers.event({**kind, "choices": [{"index": 0, "finish_reason": None, **choice}]})


def chat_events(first: str, second: str) -> list[bytes]:
    """A chat in two pieces, with its end, as OpenAI's helpers want it."""
    return [
        chat_event(delta={"role": "assistant", "content": first}),
        chat_event(delta={"content": second}),
        chat_event(delta={}, finish_reason="stop"),
        answers.usage_event(),
        DONE,
    ]


def _completion_usage() -> bytes:
    kind = {"id": "cmpl-1", "object": "text_completion", "created": 1700000000, "model": "m"}
    return answers.event({**kind, "choices": [], "usage": answers.usage(5, 7)})


STREAMS: dict[Endpoint, list[bytes]] = {
    "chat": chat_events("H", "i"),
    "completions": [completion_event("H"), completion_event("i"), _completion_usage(), DONE],
    "responses": response_events(),
    "images": answers.image_stream(),
    "speech": answers.speech_stream(),
    "transcriptions": answers.transcription_stream("Hi"),
}
ENDPOINT_AT: dict[str, Endpoint] = {f"/v1{path}": endpoint for endpoint, path in PATHS.items()}


def answer_any(request: Request) -> Script:
    """A good answer to any request."""
    endpoint = ENDPOINT_AT[request.target]
    if wants_stream(request):
        return stream(*STREAMS[endpoint])
    return [send(WHOLE[endpoint])]


def wants_stream(request: Request) -> bool:
    """Whether the body asks for events."""
    if (request.header("content-type") or "").startswith("multipart/"):
        return ("stream", "true") in form_of(request).fields
    body = request.json()
    return body.get("stream") is True or body.get("stream_format") == "sse"


@dataclass(frozen=True)
class SeenForm:
    """A form as the upstream got it."""

    fields: list[tuple[str, str]]
    file_name: str
    file_type: str
    file: bytes


def form_of(request: Request) -> SeenForm:
    """Take a form of the gateway's apart; it has exactly one file."""
    boundary = b"\r\n--" + (request.header("content-type") or "").partition("boundary=")[2].encode()
    first, *parts, end = (b"\r\n" + request.body).split(boundary)
    assert (first, end.strip()) == (b"", b"--")
    fields: list[tuple[str, str]] = []
    files: list[tuple[str, str, bytes]] = []
    for part in parts:
        head, _, value = part.partition(b"\r\n\r\n")
        lines = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n"))
        lines = {name.lower(): text for name, text in lines.items()}
        words = lines["content-disposition"].split("; ")
        names = dict(word.split("=", 1) for word in words[1:])
        if "filename" in names:
            assert names["name"] == '"file"'
            files.append((names["filename"].strip('"'), lines["content-type"], value))
        else:
            fields.append((names["name"].strip('"'), value.decode()))
    ((file_name, file_type, file),) = files
    return SeenForm(fields, file_name, file_type, file)


def start_all(home: Path, port: int, **settings: str) -> Gateway:
    """A gateway with every endpoint, in front of the upstream at this port."""
    upstream = {"OPENAI_API_KEYS": POOL_KEY, "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"}
    return Gateway(home, {**upstream, **SETTINGS, **settings}, CONFIG)
