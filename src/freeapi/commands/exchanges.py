"""The requests that the audit makes: into every kind of answer and of trouble.

An ``Exchange`` is one caller's request, the upstream's reply to it, and how far it goes. ``plan``
lists them all, with canaries from ``channels`` in each.

What this is not: tests of what is answered (``tests/promises`` are). Here it only counts that the
request went where it should, or else the audit would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from freeapi.commands.channels import ANSWER, BOTH, NOWHERE, Channels
from freeapi.commands.recorder import Reply

#: ``breaks off``: closes when it has sent what there is; ``gives up``: when the upstream has it;
#: ``leaves``: when it has read something of the answer.
Caller = Literal["stays", "breaks off", "gives up", "leaves"]


class Exchange(msgspec.Struct, frozen=True):
    """One request, with ``data`` ready to be sent."""

    name: str
    data: bytes
    reply: Reply
    caller: Caller
    #: Whether the upstream is to get it; None: that depends on the configuration.
    is_forwarded: bool | None


#: Makes the request's bytes and the upstream's reply.
_Make = Callable[[Channels], tuple[bytes, Reply]]


def plan(channels: Channels) -> list[Exchange]:
    """All exchanges, in an order in which no failure stands in the way of the next exchange."""
    exchanges: list[Exchange] = []
    for name, make, caller, is_forwarded in _PLAN:
        channels.exchange = name
        data, reply = make(channels)
        exchanges.append(Exchange(name, data, reply, caller, is_forwarded))
    channels.exchange = None
    return exchanges


def _good(channels: Channels) -> tuple[bytes, Reply]:
    return channels.chat(), Reply((channels.completion(),))


def _dry_run(channels: Channels) -> tuple[bytes, Reply]:
    """Shows the caller what would be sent, but for the key."""
    request, reply = _good(channels)
    return request.replace(b"\r\n", b"\r\nx-freeapi-dry-run: 1\r\n", 1), reply


def _streamed(channels: Channels) -> tuple[bytes, Reply]:
    pieces = (*channels.stream(3), *channels.stream_end())
    return channels.chat(stream=True), Reply(pieces)


def _slow(channels: Channels) -> tuple[bytes, Reply]:
    pieces = (*channels.stream(3), *channels.stream_end())
    return channels.chat(stream=True), Reply(pieces, pause_s=0.05)


def _aborted(channels: Channels) -> tuple[bytes, Reply]:
    return channels.chat(stream=True), Reply(tuple(channels.stream(2)), then="hang")


def _crashed(channels: Channels) -> tuple[bytes, Reply]:
    return channels.chat(stream=True), Reply(tuple(channels.stream(2)), then="reset")


def _cut_event(channels: Channels) -> tuple[bytes, Reply]:
    head, event = channels.stream(1)
    return channels.chat(stream=True), Reply((head, event[: len(event) // 2]), then="close")


def _dead(channels: Channels) -> tuple[bytes, Reply]:
    return channels.chat(), Reply((), then="reset")


def _silent(channels: Channels) -> tuple[bytes, Reply]:
    return channels.chat(), Reply((), then="hang")


def _garbage(channels: Channels) -> tuple[bytes, Reply]:
    text = channels.new("the upstream's broken answer", NOWHERE)
    return channels.chat(), Reply((f"{text} is no HTTP\r\n\r\n".encode(),), then="close")


def _redirect(channels: Channels) -> tuple[bytes, Reply]:
    head = channels.head(307, "text/plain", "content-length: 0")
    return channels.chat(), Reply((head,), then="close")


def _refused(status: int, code: str | None) -> _Make:
    return lambda channels: (channels.chat(), Reply((channels.error(status, code),)))


def _unknown_fields(channels: Channels) -> tuple[bytes, Reply]:
    fields = {channels.new("unknown field's name", ANSWER): channels.new("unknown field", NOWHERE)}
    return channels.chat(**fields), Reply((channels.completion(),))


def _unknown_model(channels: Channels) -> tuple[bytes, Reply]:
    allowed = BOTH if channels.any_model else ANSWER
    model = channels.new("model's name", allowed)
    return channels.chat(model=model), Reply((channels.completion(),))


def _unreadable(channels: Channels) -> tuple[bytes, Reply]:
    text = channels.new("text in broken JSON", NOWHERE)
    body = f'{{"model": "{channels.model}", "messages": [{{"content": "{text}"'.encode()
    return channels.request("POST", "/v1/chat/completions", body, "application/json"), Reply(())


def _wrong_type(channels: Channels) -> tuple[bytes, Reply]:
    kind = f"text/{channels.new('content type', NOWHERE)}"
    body = channels.new("text that isn't JSON", NOWHERE).encode()
    return channels.request("POST", "/v1/chat/completions", body, kind), Reply(())


def _upload(target: str) -> _Make:
    def make(channels: Channels) -> tuple[bytes, Reply]:
        boundary, name, file, text = (
            channels.new(f"upload's {part}", NOWHERE)
            for part in ("boundary", "field name", "file name", "content")
        )
        body = (
            f"--{boundary}\r\n"
            f'content-disposition: form-data; name="{name}"; filename="{file}.mp3"\r\n\r\n'
            f"{text}\r\n--{boundary}--\r\n"
        ).encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return channels.request("POST", target, body, kind), Reply(())

    return make


def _get(target: str, channel: str) -> _Make:
    return lambda channels: (
        channels.request("GET", target.format(channels.new(channel, ANSWER))),
        Reply(()),
    )


def _method(channels: Channels) -> tuple[bytes, Reply]:
    method = channels.new("method", ANSWER).upper()
    return channels.request(method, "/v1/models"), Reply(())


def _preflight(channels: Channels) -> tuple[bytes, Reply]:
    return channels.request("OPTIONS", "/v1/chat/completions"), Reply(())


def _ambiguous(channels: Channels) -> tuple[bytes, Reply]:
    request = channels.request("GET", "/v1/models")
    return request.replace(b"\r\nhost:", b"\r\nhost: two.invalid\r\nhost:", 1), Reply(())


def _half(channels: Channels) -> tuple[bytes, Reply]:
    request = channels.chat()
    return request[: len(request) - 10], Reply(())


#: Name, maker, what the caller does, whether the upstream gets it. After each one that counts
#: against a key or an upstream comes a good one, as in life; refused keys are used up.
_PLAN: Final[tuple[tuple[str, _Make, Caller, bool | None], ...]] = (
    ("a chat", _good, "stays", True),
    ("a dry run", _dry_run, "stays", False),
    ("a streamed chat", _streamed, "stays", True),
    ("a slow stream", _slow, "stays", True),
    ("unknown fields", _unknown_fields, "stays", None),
    ("an unknown model", _unknown_model, "stays", None),
    ("broken JSON", _unreadable, "stays", False),
    ("a wrong content type", _wrong_type, "stays", False),
    ("an upload of a file", _upload("/v1/files"), "stays", False),
    ("an upload of speech", _upload("/v1/audio/transcriptions"), "stays", False),
    ("an unknown path", _get("/v1/{}", "path"), "stays", False),
    ("an unknown model's entry", _get("/v1/models/{}", "path"), "stays", False),
    ("an unknown method", _method, "stays", False),
    ("a preflight", _preflight, "stays", False),
    ("an ambiguous request", _ambiguous, "stays", False),
    ("a caller that breaks off", _half, "breaks off", False),
    ("a caller that leaves mid-stream", _aborted, "leaves", True),
    ("a caller that doesn't wait", _silent, "gives up", True),
    ("a mistake that the upstream found", _refused(400, "invalid_value"), "stays", True),
    ("a crash mid-stream", _crashed, "stays", True),
    ("a chat after that", _good, "stays", True),
    ("a crash within an event", _cut_event, "stays", True),
    ("a chat after this", _good, "stays", True),
    ("a crash before the answer", _dead, "stays", True),
    ("one more chat", _good, "stays", True),
    ("a broken answer", _garbage, "stays", True),
    ("another chat", _good, "stays", True),
    ("a redirect", _redirect, "stays", True),
    ("an upstream that says nothing", _silent, "stays", True),
    ("a chat when it speaks again", _good, "stays", True),
    ("an upstream that fails", _refused(500, None), "stays", True),
    ("a chat after the failure", _good, "stays", True),
    ("an upstream at its limit", _refused(429, "rate_limit_exceeded"), "stays", True),
    ("an upstream without credit", _refused(429, "insufficient_quota"), "stays", True),
    ("a refused key", _refused(401, "invalid_api_key"), "stays", True),
    ("a last chat", _good, "stays", True),
)
