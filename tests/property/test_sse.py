"""However the bytes of a stream are cut, what goes out and what is learnt is the same."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from freeapi.errors import UpstreamFailed
from freeapi.http.answers import Usage
from freeapi.http.sse import EventStream, error_event
from freeapi.http.usage import CacheCountHider, hide_cache_counts
from tests.answers import DONE, delta, event, response_event, text_delta, usage_event

CANARY = "org-canary"
QUOTED = st.sampled_from(['"usage":{', "[DONE]", '\\"error\\":{', "\n\n"])
TEXTS = st.one_of(st.text(max_size=12), QUOTED)
USAGE = usage_event(3, 4)
ERROR = event({"error": {"message": CANARY}})
OTHER_ERROR = response_event("error", code="x", message=CANARY)
HARMLESS = st.one_of(
    TEXTS.map(delta),
    TEXTS.map(text_delta),
    st.sampled_from([b": ping\n\n", b"event: x\nid: 1\ndata: {}\n\n", DONE, b"\n", b"event: y\n"]),
)
ERRORS = st.sampled_from([ERROR, OTHER_ERROR])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def with_ends(draw: st.DrawFn, events: st.SearchStrategy[bytes]) -> list[bytes]:
    """Events, each with line ends of one kind."""
    return [draw(events).replace(b"\n", draw(ENDS)) for _ in range(draw(st.integers(0, 6)))]


def cut(source: st.DataObject, data: bytes) -> list[bytes]:
    """The same bytes in pieces."""
    if not data:
        return []
    cuts = sorted(source.draw(st.sets(st.integers(1, len(data)), max_size=8)))
    bounds = [0, *cuts, len(data)]
    return [data[a:b] for a, b in pairwise(bounds) if a < b]


def passed(pieces: list[bytes], *, hides_usage: bool) -> tuple[bytes, Usage | None]:
    """What comes out, and the usage found."""
    events = EventStream(hides_usage=hides_usage)
    out = b"".join(events.feed(piece) for piece in pieces)
    return out + events.rest(), events.usage


def datas(stream: bytes) -> list[bytes]:
    """Each event's data, as the standard reads it."""
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
    found = [[line for line in event.split(b"\n") if line.startswith(b"data:")] for event in lines]
    return [b"\n".join(event) for event in found if event]


@given(st.data(), with_ends(st.one_of(HARMLESS, st.just(USAGE))))
@settings(max_examples=100, deadline=None)
def test_nothing_is_changed_for_who_asked_for_usage(
    data: st.DataObject, events: list[bytes]
) -> None:
    """Without an error, what goes in comes out, byte for byte, and the usage is seen."""
    whole = b"".join(events)
    out, usage = passed(cut(data, whole), hides_usage=False)
    assert out == whole
    has_usage = any(b'"usage":{' in event for event in datas(whole))
    assert usage == (Usage(prompt_tokens=3, completion_tokens=4) if has_usage else None)


@given(st.data(), with_ends(st.one_of(TEXTS.map(delta), st.just(DONE), st.just(USAGE), ERRORS)))
@settings(max_examples=100, deadline=None)
def test_any_cut_gives_the_same_events(data: st.DataObject, events: list[bytes]) -> None:
    """Only the usage event is left out and only errors are replaced, wherever the cuts are."""
    out, usage = passed(cut(data, b"".join(events)), hides_usage=True)
    assert CANARY.encode() not in out
    expected = []
    for one in events:
        [text] = datas(one)
        if text in (*datas(ERROR), *datas(OTHER_ERROR)):
            expected += datas(error_event(UpstreamFailed()))
        elif text != datas(USAGE)[0]:
            expected.append(text)
    assert datas(out) == expected
    assert (usage is not None) == any(datas(one) == datas(USAGE) for one in events)


#: Keys of which some mean a usage object or a count, and texts that would if they weren't texts.
KEYS = st.sampled_from(["usage", "cached_tokens", "cache_read_input_tokens", "a", 'x"usage'])
LEAVES = st.one_of(
    st.integers(-99, 10**6),
    st.none(),
    st.sampled_from(['"usage":{"cached_tokens":7}', "{", "}", "\\", '"', "usage", "ä"]),
)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def without_counts(value: Any, *, in_usage: bool = False) -> Any:
    """The same document as a slow and simple reader would hide its counts."""
    if isinstance(value, list):
        return [without_counts(one, in_usage=in_usage) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: 0
        if in_usage and "cache" in key and isinstance(one, int)
        else without_counts(one, in_usage=in_usage or (key == "usage" and isinstance(one, dict)))
        for key, one in value.items()
    }


@given(st.data(), DOCUMENTS, st.sampled_from([None, 1]))
@settings(max_examples=100, deadline=None)
def test_counts_are_hidden_in_usage_alone(
    data: st.DataObject, document: Any, indent: int | None
) -> None:
    """In any JSON and by any cut: as many bytes, the counts 0, and all else what it was."""
    body = json.dumps(document, indent=indent).encode()
    hidden = hide_cache_counts(body)
    assert len(hidden) == len(body)
    assert json.loads(hidden) == without_counts(document)
    hider = CacheCountHider()
    assert b"".join(map(hider.feed, cut(data, body))) + hider.rest() == hidden


@given(
    st.data(),
    st.lists(
        st.sampled_from(
            [
                b'"usage"',
                b":",
                b"{",
                b"}",
                b'"',
                b"\\",
                b" 7",
                b",",
                b'"cached_tokens":',
                b"a" * 2_000,
            ]
        ),
        max_size=12,
    ),
)
@settings(max_examples=100, deadline=None)
def test_what_is_no_json_is_hidden_the_same_by_any_cut(
    data: st.DataObject, pieces: list[bytes]
) -> None:
    """Nonsense keeps its length and nothing but digits of counts changes, wherever it is cut."""
    body = b"".join(pieces)
    hidden = hide_cache_counts(body)
    assert len(hidden) == len(body)
    assert hidden.replace(b" 0", b" 7") == body
    hider = CacheCountHider()
    assert b"".join(map(hider.feed, cut(data, body))) + hider.rest() == hidden
