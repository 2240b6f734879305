"""Usage objects in JSON: what an upstream says it will bill, and what it must not tell.

``usage_of`` reads one, in the spelling of any endpoint. ``find_usage`` finds it in a whole answer,
``UsageEnds`` in one that passes in pieces, whose middle nobody keeps. ``hide_cache_counts`` hides
what others' prompts had to do with it, ``CacheCountHider`` does so for bytes that pass in pieces.
``look_at_keys`` tells at little cost of most answers that there is nothing to hide.

An answer may quote what its caller has sent (the schemas of tools, for one), so only a ``usage`` at
the top of the answer counts: otherwise callers could set their own bill. What is left of a body on
one side of the object tells its depth: it is JSON only if the object stood at the top.

Pure: bytes in, bytes or numbers out.

Source: OpenAI API reference, the usage objects of each endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from freeapi.http.answers import (
    Counts,
    Usage,
    decode_answer,
    decode_counts,
    decode_response,
)

#: A usage object is a few hundred bytes, and so are the fields around it: so far from either end of
#: a body it is looked for.
USAGE_END_BYTES: Final = 4_096
#: Shorter bodies are parsed or searched whole to find it.
PARSED_BYTES_MAX: Final = 16_384
#: Of a longer object only the beginning is edited: this bounds what is held back and looked at
#: twice.
USAGE_BYTES_MAX: Final = 4_096

#: What braces and strings allow of JSON between two braces. Possessive: never looked at twice.
_FLAT = rb'[^{}"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^{}"]*+)*+'
_FLAT_OBJECT = rb"\{%b\}" % _FLAT
_OBJECT_OF_OBJECTS = rb"\{%b(?:%b%b)*+\}" % (_FLAT, _FLAT_OBJECT, _FLAT)
#: Three levels, as many as OpenAI's have.
_USAGE = re.compile(
    rb'"usage"\s*+:\s*+(\{%b(?:%b%b)*+\})' % (_FLAT, _OBJECT_OF_OBJECTS, _FLAT), re.DOTALL
)
_USAGE_KEY: Final = b'"usage"'
_ERROR_KEY: Final = b'"error"'
_QUOTE: Final = 34
#: The last character of those that may be white space.
_SPACE: Final = 32
#: So far from a colon its key and its value are looked for.
_SPACE_MAX: Final = 64
#: With more colons than one in so many bytes, parsing it all is quicker.
_BYTES_PER_COLON: Final = 512
#: The key, and what makes its value an object, as far as the bytes go. After a backslash, the quote
#: is one within another key.
_USAGE_START = re.compile(rb'(?<!\\)"usage"\s*+(?::\s*+(?:\{|\Z)|\Z)')
#: The key's beginning, where the bytes end within it, or what makes its first quote another one.
_USAGE_KEY_CUT = re.compile(rb'(?:\\|\\?"(?:u(?:s(?:a(?:ge?)?)?)?)?)\Z')
#: Whatever a vendor calls it: ``cached_tokens`` (OpenAI), ``prompt_cache_hit_tokens`` and its
#: ``miss`` (DeepSeek), ``cache_read_input_tokens`` (Anthropic), ``cached_content_token_count``
#: (Gemini). What was written to the cache is the other half of the same secret; OpenAI's
#: ``cache_write_tokens_details`` counts it by ``ttl_12h_tokens`` and its like.
#: Names have 29 characters at most; without a bound, "cachecachecache..." would take the square.
_CACHE_COUNT = re.compile(rb'((?:cache|"ttl_)\w{0,64}"\s*+:\s*+)(-?\d[\d.eE+-]*+)(?=[\s,}])')
_CACHE: Final = b"cache"
_IS_0_THEN: Final = b'd_tokens": 0,'
_IS_0_AT_END: Final = b'd_tokens": 0}'
_COUNT_ABOVE_0 = re.compile(rb'\w{0,64}"\s*+:\s*+(?!0[\s,}])[-\d{]')
_CACHE_COUNT_ABOVE_0 = re.compile(_CACHE + _COUNT_ABOVE_0.pattern)


def usage_of(value: msgspec.Raw) -> Usage | None:
    """What a usage object says; None if it is none, is broken, or leaves one side open.

    >>> usage_of(msgspec.Raw(b'{"prompt_tokens":3,"total_tokens":3}'))
    Usage(prompt_tokens=3, completion_tokens=0)
    """
    try:
        return both_sides(decode_counts(value))
    except (msgspec.DecodeError, RecursionError):
        return None


def usage_in(answer: bytes) -> Usage | None:
    """The usage at the top of a JSON object, or None. O(bytes)."""
    try:
        counts = decode_answer(answer).usage
    except (msgspec.DecodeError, RecursionError):
        return None
    return None if counts is None else both_sides(counts)


def both_sides(counts: Counts) -> Usage | None:
    """The usage that these counts are, if both of its sides are known."""
    taken, given = counts.prompt_tokens, counts.completion_tokens
    if taken is None:
        taken, given = counts.input_tokens, counts.output_tokens
    elif given is None and counts.total_tokens == taken:
        given = 0  # embeddings
    if taken is None or given is None:
        return None
    return Usage(taken, given)


def find_usage(body: bytes) -> Usage | None:
    """The usage of a whole JSON answer, or None. O(1) where it is near an end, else O(bytes)."""
    usage = usage_at_end(body[-USAGE_END_BYTES:])
    if usage is None and len(body) > PARSED_BYTES_MAX:
        usage = _usage_at_start(body[:USAGE_END_BYTES])
    return usage_in(body) if usage is None else usage


def usage_at_end(tail: bytes) -> Usage | None:
    """The usage of a JSON object of which these are the last bytes, if it is among them.

    O(bytes); at worst, with the key again and again, O(bytes) for each.
    """
    return _usage_behind(b"{", tail, usage_in)


def response_usage_at_end(tail: bytes) -> Usage | None:
    """The same for an event about a response, which has the usage."""
    return _usage_behind(b'{"response":{', tail, _usage_of_event)


def _usage_behind(
    before: bytes, tail: bytes, read: Callable[[bytes], Usage | None]
) -> Usage | None:
    """The last usage that, with ``before`` in place of what is missing, stands where it should."""
    at = tail.rfind(_USAGE_KEY)
    while at >= 0:
        # In JSON a quote inside a string is escaped, so text can't pass for the key.
        if tail[at - 1 : at] != b"\\":
            usage = read(before + tail[at:])
            if usage is not None:
                return usage
        at = tail.rfind(_USAGE_KEY, 0, at)
    return None


def _usage_of_event(data: bytes) -> Usage | None:
    try:
        counts = decode_response(data).response.usage
    except (msgspec.DecodeError, RecursionError):
        return None
    return None if counts is None else both_sides(counts)


def _usage_at_start(head: bytes) -> Usage | None:
    """The same for its first bytes."""
    for found in _USAGE.finditer(head):
        usage = usage_in(head[: found.end()] + b"}")
        if usage is not None:
            return usage
    return None


class UsageEnds:
    """``find_usage`` for a JSON answer that passes in pieces: keeps its two ends. O(bytes)."""

    __slots__ = ("_head", "_tail")

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Look at what was read."""
        if len(self._head) < USAGE_END_BYTES:
            self._head += data[: USAGE_END_BYTES - len(self._head)]
        self._tail = (self._tail + data[-USAGE_END_BYTES:])[-USAGE_END_BYTES:]

    def usage(self) -> Usage | None:
        """The usage, when all has been seen."""
        return usage_at_end(self._tail) or _usage_at_start(self._head)


class Keys:
    """What the keys of a JSON text told, at any depth. What isn't told isn't there."""

    __slots__ = ("count_at", "has_error")

    def __init__(self, has_error: bool, count_at: int) -> None:
        #: There may be an ``error`` that isn't null.
        self.has_error = has_error
        #: Before it is no count of cached tokens above 0 in a usage object; -1: nor anywhere else.
        self.count_at = count_at


def look_at_keys(data: bytes) -> Keys:
    """Whether there may be an error or a count of cached tokens; "no" is certain. O(bytes).

    In a long text each colon is looked at, as there is one behind each key: no key is passed over,
    and a quoted one isn't taken for a key, since it has a backslash before its last quote. From
    colon to colon goes C's memchr, twenty times as fast as a parser; prose has few, base64 none.
    Where many would make that slow, or white space is too wide, there may be an error.
    """
    if len(data) <= PARSED_BYTES_MAX:
        return Keys(True, _first_count(data))
    has_error = False
    count_at = -1
    at = data.find(b":")
    for _ in range(len(data) // _BYTES_PER_COLON):
        if at < 0:
            return Keys(has_error, count_at)
        last = data[at - 1]
        if last == _QUOTE or last <= _SPACE:
            before = data[max(0, at - _SPACE_MAX) : at].rstrip()
            if before.endswith(_USAGE_KEY):
                if count_at < 0 and _CACHE_COUNT_ABOVE_0.search(data, at, at + USAGE_BYTES_MAX):
                    count_at = max(0, at - _SPACE_MAX)
            elif before.endswith(_ERROR_KEY):
                value = data[at + 1 : at + _SPACE_MAX].lstrip()
                has_error = has_error or not value.startswith(b"null")
            elif len(before) < len(_USAGE_KEY) and at > _SPACE_MAX:
                break
        at = data.find(b":", at + 1)
    return Keys(True, _first_count(data))


def _first_count(data: bytes) -> int:
    """``Keys.count_at`` by looking for the words. O(bytes)."""
    if len(data) <= PARSED_BYTES_MAX:
        parts = data.split(_CACHE)  # half of what ``find`` and ``search`` take
        for number in range(1, len(parts)):
            part = parts[number]
            # As OpenAI writes it: the expression takes fifteen times as long.
            if part.startswith(_IS_0_THEN) or part.startswith(_IS_0_AT_END):
                continue
            if _COUNT_ABOVE_0.match(part) is not None:
                return 0  # if it is in no usage object, the closer look leaves it as it is
        return -1
    at = data.find(_USAGE_KEY)
    while at >= 0 and _CACHE_COUNT_ABOVE_0.search(data, at, at + USAGE_BYTES_MAX) is None:
        at = data.find(_USAGE_KEY, at + 1)
    return at


def hide_cache_counts(data: bytes) -> bytes:
    """The same bytes, as many of them, with 0 for each count of cached tokens in a usage object.

    On an account that strangers share, such a count tells whether somebody else has lately sent the
    same beginning of a prompt. It is 0 padded with spaces, which JSON allows after a number. An
    object counts as usage under that key at any depth, and never within a string: there a quote is
    escaped. O(bytes): where one isn't 0, 13 µs for a short answer, 3 ms for 1 MiB.

    >>> hide_cache_counts(b'{"usage":{"prompt_tokens_details":{"cached_tokens":1024}}}')
    b'{"usage":{"prompt_tokens_details":{"cached_tokens":0   }}}'
    """
    return hide_from(data, look_at_keys(data).count_at)


def hide_from(data: bytes, count_at: int) -> bytes:
    """The same, knowing ``Keys.count_at``."""
    if count_at < 0:
        return data
    hider = CacheCountHider()
    return data[:count_at] + hider.feed(data[count_at:]) + hider.rest()


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
