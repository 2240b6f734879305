"""Server-sent events, looked at while they pass; and errors within answers, in our own words.

``EventStream`` never rebuilds an event: what goes in comes out, byte for byte and in the same
call, but for five things. An event that isn't complete yet is kept until its blank line is there,
so that nothing broken is left behind if the upstream dies. The one extra event that we asked the
upstream for (``stream_options.include_usage``) is held back from a caller who didn't ask. An
event that reports an error is replaced by one in our wording, as the upstream's may name its
organisation. In one that reports a failed response (``response.failed``) only the error is. And the
counts of cached tokens are hidden (``usage.hide_cache_counts``).

Pure: bytes in, bytes out. However the bytes are cut, the result is the same.

Source: WHATWG HTML, section 9.2.6 "Interpreting an event stream"; OpenAI API reference,
"Streaming" of each endpoint.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from freeapi.errors import FreeApiError, UpstreamFailed
from freeapi.http.answers import Usage, decode_error, decode_event, decode_whole
from freeapi.http.usage import (
    USAGE_END_BYTES,
    CacheCountHider,
    both_sides,
    find_usage,
    hide_cache_counts,
    hide_from,
    look_at_keys,
    response_usage_at_end,
    usage_at_end,
    usage_in,
    usage_of,
)

#: An incomplete event longer than this is passed on as it comes: only images are, and the responses
#: that quote a prompt of this size.
EVENT_BYTES_MAX: Final = 1_048_576
#: So near its beginning an overlong event says what it is: OpenAI's do in their first field.
_TYPE_BYTES: Final = 256

#: Either key, with a value other than null; or with the end of a ``data:`` line before the value;
#: or the same word as a value, as in ``"type":"error"``.
_NOTABLE = re.compile(rb'"(?:usage|error)"(?:\s*:\s*[^\sn]|[ \t]*[\r\n]|\s*[,}])')
#: The last is a blank line whose ``\n`` is still to come (see _BLANK_LINES).
_EVENT_END = re.compile(rb"\r\n\r\n|\n\r\n|\r\n\n|\n\n|\r\r|\n\r")
#: No JSON has a line end where this wants it, whatever a model was made to say.
_DONE = re.compile(rb"data: ?\[DONE\][\r\n]+\Z")
#: Ends of a blank line. A ``\r\n`` may be cut in two: a stray ``\n`` between events means nothing.
_BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r", b"\n\r")
_LONGEST_BLANK_LINE: Final = 3
#: The last events of the streams that have no ``[DONE]``.
_LAST_TYPES = (
    b"response.completed",
    b"response.incomplete",
    b"response.failed",
    b"image_generation.completed",
    b"speech.audio.done",
    b"transcript.text.done",
)
_ERROR_TYPES = (b"error", b"response.failed")
_TYPE = re.compile(rb'"type"\s*+:\s*+"([\w.]++)"')
_ERROR_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


#: What msgspec raises at: no JSON, a key or code that is no UTF-8, brackets without end.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ERROR_KEY: Final = b'"error"'
_USAGE_KEY: Final = b'"usage"'
#: Behind the first in nearly all events of an upstream that was asked for the usage.
_IS_NULL: Final = b":null"
_CR: Final = 13
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def error_event(error: FreeApiError) -> bytes:
    """The event at which both OpenAI SDKs raise APIError."""
    return b"data: %b\n\n" % error.body()


def in_our_words(answer: bytes) -> bytes:
    """A JSON object whose ``error`` says no word of the upstream's but the code.

    Where that is null the same bytes come back; else the rest is encoded anew, which leaves one of
    keys that are repeated. What is no JSON object comes back too. O(bytes).
    """
    if _ERROR_KEY not in answer:
        return answer
    try:
        fields = _decode_fields(answer)
    except UnicodeDecodeError:  # a key; it can't be encoded anew
        return UpstreamFailed().body()
    except (msgspec.DecodeError, RecursionError):
        return answer
    error = fields.get("error")
    if error is None or bytes(error) == b"null":
        return answer
    fields["error"] = _our_error(error)
    return msgspec.json.encode(fields)


def read_answer(answer: bytes) -> tuple[Usage | None, bytes]:
    """A whole JSON answer: its usage, and what of it the caller may see. O(bytes)."""
    keys = look_at_keys(answer)
    if not keys.has_error:
        return find_usage(answer), hide_from(answer, keys.count_at)
    try:
        whole = decode_whole(answer)
    except _UNREADABLE:
        pass
    else:
        if whole.error is None:
            usage = None if whole.usage is None else both_sides(whole.usage)
            return usage, hide_from(answer, keys.count_at)
    return find_usage(answer), hide_cache_counts(in_our_words(answer))


def _our_error(theirs: msgspec.Raw) -> msgspec.Raw:
    """Our error object with their code, which both SDKs want in a failed response."""
    try:
        code = decode_error(theirs).code
    except _UNREADABLE:
        code = ""
    ours = UpstreamFailed()
    known = code if _ERROR_CODE.fullmatch(code) else "server_error"
    error = {"message": ours.message, "type": ours.type, "param": None, "code": known}
    return msgspec.Raw(msgspec.json.encode(error))


class EventStream:
    """One stream on its way. O(bytes); most reads cost two searches for a literal."""

    __slots__ = (
        "_held",
        "_held_bytes",
        "_hides_usage",
        "_last",
        "_long",
        "_tail",
        "usage",
    )

    def __init__(self, *, hides_usage: bool) -> None:
        """``hides_usage``: the caller didn't ask for the usage event, we did."""
        self._hides_usage = hides_usage
        self._held: list[bytes] = []
        self._held_bytes = 0
        #: The end of the incomplete event, in which a blank line may have begun.
        self._tail = b""
        self._last = b""
        self._long: _LongEvent | None = None
        self.usage: Usage | None = None

    @property
    def is_done(self) -> bool:
        """Whether the last event has passed, after which a cut takes nothing from the caller."""
        if self._long is not None:
            return False
        if _DONE.search(self._last[-32:]) is not None:
            return True
        return _type(_last_event(self._last)) in _LAST_TYPES

    def feed(self, data: bytes) -> bytes:
        """Take what was read; returns what may go to the caller now, perhaps nothing."""
        if not self._tail and data.endswith(b"\n\n"):
            whole = data
        else:
            whole = self._up_to_blank_line(data)
            if not whole:
                return self._overlong()
            if self._long is not None:
                return self._after(self._long, whole)
        self._last = whole
        if (_may_tell(whole, _USAGE_KEY) or _may_tell(whole, _ERROR_KEY)) and _NOTABLE.search(
            whole
        ):
            return self._edited(whole)
        return whole

    def rest(self) -> bytes:
        """The incomplete event at a proper end of the stream: treated as if it were whole."""
        held = b"".join(self._held)
        self._held.clear()
        if self._long is not None:
            return self._end(self._long, held)
        return self._judged(held) if _NOTABLE.search(held) else held

    def _up_to_blank_line(self, data: bytes) -> bytes:
        """All complete events, the incomplete one being kept."""
        probe = self._tail + data
        found = [(probe.rfind(blank), len(blank)) for blank in _BLANK_LINES]
        end = max((at + length for at, length in found if at >= 0), default=0) - len(self._tail)
        if end <= 0:
            self._held.append(data)
            self._held_bytes += len(data)
            self._tail = probe[1 - _LONGEST_BLANK_LINE :]
            return b""
        self._held.append(data[:end])
        whole = b"".join(self._held)
        rest = data[end:]
        self._held = [rest] if rest else []
        self._held_bytes = len(rest)
        self._tail = rest[1 - _LONGEST_BLANK_LINE :]
        return whole

    def _overlong(self) -> bytes:
        if self._held_bytes <= EVENT_BYTES_MAX:
            return b""
        held = b"".join(self._held)
        self._held, self._held_bytes = [], 0
        if self._long is None:
            self._long = _LongEvent(held)
        return self._long.feed(held)

    def _after(self, long: _LongEvent, whole: bytes) -> bytes:
        """The end of the long event, and the complete events behind it."""
        end = long.end_in(whole)
        passed = self._end(long, whole[:end])
        self._last = whole[end:] or b"data: %b\n\n" % long.abridged
        return passed + self._edited(whole[end:])

    def _end(self, long: _LongEvent, rest: bytes) -> bytes:
        self._long = None
        passed = long.feed(rest) + long.rest()
        self.usage = long.usage or self.usage
        return passed

    def _edited(self, whole: bytes) -> bytes:
        """Find the records in complete events, and leave out what the caller is not to get."""
        kept = [
            self._judged(event) if _NOTABLE.search(event) else event for event in _events(whole)
        ]
        return b"".join(kept)

    def _judged(self, event: bytes) -> bytes:
        data = _data(event)
        try:
            seen = decode_event(data)
        except _UNREADABLE:
            return _without_cache_counts(event)
        kind = bytes(seen.type).strip(b'"')
        if bytes(seen.error) != b"null" or kind == b"error":
            return error_event(UpstreamFailed())
        usage = usage_of(seen.usage)
        if usage is not None:
            self.usage = usage
            if self._hides_usage and _is_empty_list(seen.choices):
                return b""
        return _without_cache_counts(self._of_response(event, kind, bytes(seen.response)))

    def _of_response(self, event: bytes, kind: bytes, response: bytes) -> bytes:
        """The event with any error of its response in our words. A response's last has its bill."""
        if kind in _LAST_TYPES:
            self.usage = usage_in(response) or self.usage
        told = in_our_words(response)
        if told is response:
            return event
        try:
            return _with_response(event, told)
        except UnicodeDecodeError:  # a key; it can't be encoded anew
            return error_event(UpstreamFailed())


class _LongEvent:
    """An event that is too long to be kept: passed on as it comes, but for one about an error.

    Its first and last bytes tell what it is and what it cost. O(bytes).
    """

    __slots__ = ("_hider", "_is_replaced", "_tail", "_type")

    def __init__(self, beginning: bytes) -> None:
        found = _TYPE.search(beginning, 0, _TYPE_BYTES)
        self._type = b"" if found is None else found[1]
        self._hider = CacheCountHider()
        self._tail = b""
        self._is_replaced = False

    @property
    def abridged(self) -> bytes:
        """An event of the same type, without its content."""
        return b'{"type":"%b"}' % self._type

    @property
    def usage(self) -> Usage | None:
        """What it says at the end of a stream, where its last bytes do."""
        if self._type not in _LAST_TYPES:
            return None
        return usage_at_end(self._tail) or response_usage_at_end(self._tail)

    def feed(self, data: bytes) -> bytes:
        """Take a piece; returns what may go to the caller now."""
        self._tail = (self._tail + data)[-USAGE_END_BYTES:]
        if self._type not in _ERROR_TYPES:
            return self._hider.feed(data)
        if self._is_replaced:
            return b""
        self._is_replaced = True
        return error_event(UpstreamFailed())

    def rest(self) -> bytes:
        """What was held back, at its end."""
        return self._hider.rest()

    def end_in(self, data: bytes) -> int:
        """Where in the next bytes the blank line ends that ends it, which may have begun before."""
        before = self._tail[1 - _LONGEST_BLANK_LINE :]
        found = _EVENT_END.search(before + data)
        assert found is not None, "there is a blank line"
        return found.end() - len(before)


def _may_tell(whole: bytes, key: bytes) -> bool:
    """Whether the key is there with something else than null; False is certain.

    By ``split``, since ``find`` takes twice as many instructions (for reading its arguments) and
    ``in`` four times (for trying a number first), and _NOTABLE alone three times. O(bytes).
    """
    parts = whole.split(key)
    return any(not parts[number].startswith(_IS_NULL) for number in range(1, len(parts)))


def _events(whole: bytes) -> list[bytes]:
    """Complete events, each with its blank line; behind them what has none, if there is any."""
    if _CR not in whole:  # as nearly always: a quarter of what the expression takes
        events = [event + b"\n\n" for event in whole.split(b"\n\n")]
        rest = events.pop()[:-2]
    else:
        events = []
        start = 0
        for boundary in _EVENT_END.finditer(whole):
            events.append(whole[start : boundary.end()])
            start = boundary.end()
        rest = whole[start:]
    return [*events, rest] if rest else events


def _last_event(whole: bytes) -> bytes:
    """The data of the last of complete events."""
    ends = [found.end() for found in _EVENT_END.finditer(whole)]
    return _data(whole[ends[-2] :] if len(ends) > 1 else whole)


def _type(data: bytes) -> bytes:
    """What an event's data says it is; nothing where it doesn't."""
    try:
        return bytes(decode_event(data).type).strip(b'"')
    except _UNREADABLE:
        return b""


def _is_empty_list(value: msgspec.Raw) -> bool:
    return b"".join(bytes(value).split()) == b"[]"


def _with_response(event: bytes, response: bytes) -> bytes:
    """The event with another response in its data, which takes the place of its first line."""
    fields = _decode_fields(_data(event))
    fields["response"] = msgspec.Raw(response)
    lines = event.splitlines(keepends=True)
    data = next(number for number, line in enumerate(lines) if line.startswith(b"data:"))
    end = lines[data][len(lines[data].rstrip(b"\r\n")) :]
    others = [line for line in lines[data + 1 :] if not line.startswith(b"data:")]
    return b"".join((*lines[:data], b"data: ", msgspec.json.encode(fields), end, *others))


def _without_cache_counts(event: bytes) -> bytes:
    """The event with its counts hidden, also where it cuts the JSON into several lines."""
    hidden = hide_cache_counts(event)
    data = _data(hidden)
    if b"\n" not in data:
        return hidden
    parts = iter(hide_cache_counts(data).split(b"\n"))
    return b"".join(
        b"data:" + next(parts) + line[len(line.rstrip(b"\r\n")) :]
        if line.startswith(b"data:")
        else line
        for line in hidden.splitlines(keepends=True)
    )


def _data(event: bytes) -> bytes:
    """The event's data, its lines joined."""
    return b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
