"""Server-sent events, and usage objects, looked at while they pass.

``EventStream`` never rebuilds an event: what goes in comes out, byte for byte and in the same
call, but for four things. An event that isn't complete yet is kept until its blank line is there,
so that nothing broken is left behind if the upstream dies. The one extra event that we asked the
upstream for (``stream_options.include_usage``) is held back from a caller who didn't ask. An
event that reports an error is replaced by one in our wording, as the upstream's may name its
organisation. And the counts of cached tokens are hidden (``hide_cache_counts``, which bodies that
are no streams need as well: ``CacheCountHider`` does it for those that pass in pieces).

Pure: bytes in, bytes out. However the bytes are cut, the result is the same.

Source: WHATWG HTML, section 9.2.6 "Interpreting an event stream"; OpenAI API reference,
"Streaming".
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from freeapi.errors import FreeApiError, UpstreamFailed

#: An incomplete event longer than this is passed on as it comes: no event of the API is near it.
EVENT_BYTES_MAX = 1_048_576
#: A usage object is a few hundred bytes; so far from the end of a body it is looked for.
USAGE_TAIL_BYTES = 4_096
#: Shorter bodies are parsed whole to find it.
_PARSED_BYTES_MAX = 16_384
#: Of a longer one only the beginning is edited: this bounds what is held back and looked at twice.
USAGE_BYTES_MAX = 4_096

#: What braces and strings allow of JSON between two braces. Possessive: never looked at twice.
_FLAT = rb'[^{}"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^{}"]*+)*+'
_FLAT_OBJECT = rb"\{%b\}" % _FLAT
_OBJECT_OF_OBJECTS = rb"\{%b(?:%b%b)*+\}" % (_FLAT, _FLAT_OBJECT, _FLAT)
#: Three levels: OpenAI's has two.
_USAGE = re.compile(
    rb'"usage"\s*+:\s*+(\{%b(?:%b%b)*+\})' % (_FLAT, _OBJECT_OF_OBJECTS, _FLAT), re.DOTALL
)
_USAGE_KEY = b'"usage"'
#: The key, and what makes its value an object, as far as the bytes go. After a backslash, the quote
#: is one within another key.
_USAGE_START = re.compile(rb'(?<!\\)"usage"\s*+(?::\s*+(?:\{|\Z)|\Z)')
#: The key's beginning, where the bytes end within it, or what makes its first quote another one.
_USAGE_KEY_CUT = re.compile(rb'(?:\\|\\?"(?:u(?:s(?:a(?:ge?)?)?)?)?)\Z')
#: Whatever a vendor calls it: ``cached_tokens`` (OpenAI), ``prompt_cache_hit_tokens`` and its
#: ``miss`` (DeepSeek), ``cache_read_input_tokens`` (Anthropic), ``cached_content_token_count``
#: (Gemini).
_CACHE_COUNT = re.compile(rb'(cache\w*"\s*+:\s*+)(-?\d[\d.eE+-]*+)(?=[\s,}])')
_CACHE_COUNT_ABOVE_0 = re.compile(rb'cache\w*"\s*+:\s*+(?!0[\s,}])[-\d]')
#: Either key, with a value other than null; or with the end of a ``data:`` line before the value.
_NOTABLE = re.compile(rb'"(?:usage|error)"(?:\s*:\s*[^\sn]|[ \t]*[\r\n])')
#: The last is a blank line whose ``\n`` is still to come (see _BLANK_LINES).
_EVENT_END = re.compile(rb"\r\n\r\n|\n\r\n|\r\n\n|\n\n|\r\r|\n\r")
#: No JSON has a line end where this wants it, whatever a model was made to say.
_DONE = re.compile(rb"data: ?\[DONE\][\r\n]+\Z")
#: Ends of a blank line. A ``\r\n`` may be cut in two: a stray ``\n`` between events means nothing.
_BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r", b"\n\r")
_LONGEST_BLANK_LINE = 3


#: No model takes or gives a thousandth of it: more, or less than none, is a mistake, and no usage.
TOKENS_MAX = 1_000_000_000
Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class Usage(msgspec.Struct, frozen=True):
    """What the upstream says it will bill."""

    prompt_tokens: Tokens
    completion_tokens: Tokens


class _Record(msgspec.Struct):
    """The fields of an event that matter here."""

    usage: Usage | None = None
    choices: list[msgspec.Raw] | None = None


class _ErrorRecord(msgspec.Struct):
    """The same, for an event that may be an error and then have any other fields."""

    error: msgspec.Raw = msgspec.Raw(b"null")


class _Answer(msgspec.Struct):
    """A whole answer that isn't a stream."""

    usage: Usage | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_usage = msgspec.json.Decoder(Usage).decode
_decode_record = msgspec.json.Decoder(_Record).decode
_decode_error = msgspec.json.Decoder(_ErrorRecord).decode


def find_usage(body: bytes) -> Usage | None:
    """The last usage object near the end of a JSON body, or None. O(1) in the body's length.

    In JSON a quote inside a string is escaped, so what a caller made the model say can't pass for
    the key ``"usage"``.
    """
    if len(body) <= _PARSED_BYTES_MAX:  # less than half of what the pattern costs
        try:
            usage = _decode_answer(body).usage
        except msgspec.DecodeError:
            usage = None
        if usage is not None:
            return usage
    first = max(0, len(body) - USAGE_TAIL_BYTES)
    at = body.rfind(_USAGE_KEY, first)
    while at >= 0:
        found = _USAGE.match(body, at)
        if found is not None and body[at - 1 : at] != b"\\":
            try:
                return _decode_usage(found[1])
            except msgspec.DecodeError:
                pass
        at = body.rfind(_USAGE_KEY, first, at)
    return None


def hide_cache_counts(data: bytes) -> bytes:
    """The same bytes, as many of them, with 0 for each count of cached tokens in a usage object.

    On an account that strangers share, such a count tells whether somebody else has lately sent the
    same beginning of a prompt. It is 0 padded with spaces, which JSON allows after a number. An
    object counts as usage under that key at any depth, and never within a string: there a quote is
    escaped. O(bytes): where one isn't 0, 13 µs for a short answer, 3 ms for 1 MiB.

    >>> hide_cache_counts(b'{"usage":{"prompt_tokens_details":{"cached_tokens":1024}}}')
    b'{"usage":{"prompt_tokens_details":{"cached_tokens":0   }}}'
    """
    if _CACHE_COUNT_ABOVE_0.search(data) is None:
        return data
    hider = CacheCountHider()
    return hider.feed(data) + hider.rest()


class CacheCountHider:
    """``hide_cache_counts`` for bytes that pass in pieces; holds back USAGE_BYTES_MAX at most."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        #: Where a usage object may have begun that isn't complete.
        self.held = b""

    def feed(self, data: bytes) -> bytes:
        """Take what was read; returns what may go to the caller now, perhaps nothing."""
        if self.held:
            data = self.held + data
        pieces: list[bytes] = []
        done = 0
        while (start := data.find(_USAGE_KEY, done)) >= 0:
            end = _usage_end(data, start)
            if end is None:
                break
            pieces += data[done:start], _CACHE_COUNT.sub(_as_zero, data[start:end])
            done = end
        else:
            cut = _USAGE_KEY_CUT.search(data, max(done, len(data) - len(_USAGE_KEY)))
            start = len(data) if cut is None else cut.start()
        self.held = data[start:]
        if not done:  # nothing was changed, nor is there anything to copy in most reads
            return data[:start]
        return b"".join((*pieces, data[done:start]))

    def rest(self) -> bytes:
        """What was held back, at the end of all bytes: an object without an end counts as one."""
        held, self.held = self.held, b""
        return _CACHE_COUNT.sub(_as_zero, held)


def _usage_end(data: bytes, start: int) -> int | None:
    """Where what begins with the key at ``start`` ends; None if that takes more bytes to tell."""
    if _USAGE_START.match(data, start) is None:
        return start + len(_USAGE_KEY)
    limit = start + USAGE_BYTES_MAX
    found = _USAGE.match(data, start, limit)
    if found is not None:
        return found.end()
    return None if len(data) < limit else limit


def _as_zero(count: re.Match[bytes]) -> bytes:
    return count[1] + b"0".ljust(len(count[2]))


def error_event(error: FreeApiError) -> bytes:
    """The event at which both OpenAI SDKs raise APIError."""
    return b"data: %b\n\n" % error.body()


class EventStream:
    """One stream on its way. O(bytes); most reads cost two searches for a literal."""

    __slots__ = ("_held", "_held_bytes", "_hides_usage", "_last", "_tail", "usage")

    def __init__(self, *, hides_usage: bool) -> None:
        """``hides_usage``: the caller didn't ask for the usage event, we did."""
        self._hides_usage = hides_usage
        self._held: list[bytes] = []
        self._held_bytes = 0
        #: The end of the incomplete event, in which a blank line may have begun.
        self._tail = b""
        self._last = b""
        self.usage: Usage | None = None

    @property
    def is_done(self) -> bool:
        """Whether ``[DONE]`` has passed, after which a cut takes nothing from the caller."""
        return _DONE.search(self._last[-32:]) is not None

    def feed(self, data: bytes) -> bytes:
        """Take what was read; returns what may go to the caller now, perhaps nothing."""
        if not self._tail and data.endswith(b"\n\n"):
            whole = data
        else:
            whole = self._up_to_blank_line(data)
            if not whole:
                return self._overlong()
        self._last = whole
        if (b'"usage"' in whole or b'"error"' in whole) and _NOTABLE.search(whole):
            return self._edited(whole)
        return whole

    def rest(self) -> bytes:
        """The incomplete event at a proper end of the stream: treated as if it were whole."""
        held = b"".join(self._held)
        self._held.clear()
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
        hider = CacheCountHider()
        passed = hider.feed(b"".join(self._held))
        self._held = [hider.held] if hider.held else []
        self._held_bytes = len(hider.held)
        return passed

    def _edited(self, whole: bytes) -> bytes:
        """Find the records in complete events, and leave out what the caller is not to get."""
        kept = []
        start = 0
        for boundary in _EVENT_END.finditer(whole):
            event = whole[start : boundary.end()]
            start = boundary.end()
            kept.append(self._judged(event) if _NOTABLE.search(event) else event)
        kept.append(whole[start:])
        return b"".join(kept)

    def _judged(self, event: bytes) -> bytes:
        data = _data(event)
        try:
            if bytes(_decode_error(data).error) != b"null":
                return error_event(UpstreamFailed())
            record = _decode_record(data)
        except msgspec.DecodeError:
            return _without_cache_counts(event)
        if record.usage is not None:
            self.usage = record.usage
            if self._hides_usage and record.choices == []:
                return b""
        return _without_cache_counts(event)


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
