"""However the bytes of a stream are cut, what goes out and what is learnt is the same."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from freeapi.errors import UpstreamFailed
from freeapi.http.sse import EventStream, Usage, error_event
from tests.answers import DONE, delta, event, usage_event

CANARY = "org-canary"
QUOTED = st.sampled_from(['"usage":{', "[DONE]", '\\"error\\":{', "\n\n"])
TEXTS = st.one_of(st.text(max_size=12), QUOTED)
USAGE = usage_event(3, 4)
ERROR = event({"error": {"message": CANARY}})
HARMLESS = st.one_of(
    TEXTS.map(delta),
    st.sampled_from([b": ping\n\n", b"event: x\nid: 1\ndata: {}\n\n", DONE, b"\n", b"event: y\n"]),
)
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


@given(
    st.data(), with_ends(st.one_of(TEXTS.map(delta), st.just(DONE), st.just(USAGE), st.just(ERROR)))
)
@settings(max_examples=100, deadline=None)
def test_any_cut_gives_the_same_events(data: st.DataObject, events: list[bytes]) -> None:
    """Only the usage event is left out and only errors are replaced, wherever the cuts are."""
    out, usage = passed(cut(data, b"".join(events)), hides_usage=True)
    assert CANARY.encode() not in out
    expected = []
    for one in events:
        [text] = datas(one)
        if text == datas(ERROR)[0]:
            expected += datas(error_event(UpstreamFailed()))
        elif text != datas(USAGE)[0]:
            expected.append(text)
    assert datas(out) == expected
    assert (usage is not None) == any(datas(one) == datas(USAGE) for one in events)
