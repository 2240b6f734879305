"""Events on their way: what is passed, what is held back, what is replaced, what is learnt."""

from __future__ import annotations

import json

import pytest

from freeapi.errors import UpstreamCut, UpstreamFailed
from freeapi.http.sse import (
    EVENT_BYTES_MAX,
    USAGE_BYTES_MAX,
    CacheCountHider,
    EventStream,
    Usage,
    error_event,
    find_usage,
    hide_cache_counts,
)
from tests.answers import DONE, chat_json, delta, event, usage_event

CANARY = "org-canary"
ERROR = event({"error": {"message": f"limit of {CANARY}", "code": "x"}})
REPLACED = error_event(UpstreamFailed())


def stream(*, hides_usage: bool = False) -> EventStream:
    """One that passes the usage event on, unless told otherwise."""
    return EventStream(hides_usage=hides_usage)


def test_whole_events_pass_at_once() -> None:
    """What ends with a blank line goes out as the same object, without a copy."""
    data = delta("a") + delta("b")
    assert stream().feed(data) is data


def test_incomplete_event_waits_for_its_end() -> None:
    """Nothing broken is passed on, and nothing is lost."""
    events = stream()
    assert events.feed(delta("a") + b"data: {") == delta("a")
    assert events.feed(b'"x"') == b""
    assert events.feed(b":1}\n") == b""
    assert events.feed(b"\ndata") == b'data: {"x":1}\n\n'
    assert events.rest() == b"data"
    assert events.rest() == b""


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n"])
@pytest.mark.parametrize("hides_usage", [True, False])
def test_usage_is_seen_and_held_back_when_asked(end: bytes, hides_usage: bool) -> None:
    """The extra event passes only to a caller who asked for it, wherever it is cut."""
    parts = [part.replace(b"\n\n", end) for part in (delta("a"), usage_event(3, 4), DONE)]
    data = b"".join(parts)
    expected = b"".join([parts[0], parts[2]]) if hides_usage else data
    for cut in range(len(data)):
        events = stream(hides_usage=hides_usage)
        passed = events.feed(data[:cut]) if cut else b""
        passed += events.feed(data[cut:]) + events.rest()
        assert events.usage == Usage(prompt_tokens=3, completion_tokens=4)
        assert passed.split() == expected.split()
        assert hides_usage or passed == data
        assert events.is_done


def test_usage_beside_choices_is_not_held_back() -> None:
    """An upstream that puts the usage into the last event with choices loses no choice."""
    last = event(
        {"choices": [{"delta": {}}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    )
    events = stream(hides_usage=True)
    assert events.feed(last) == last
    assert events.usage == Usage(prompt_tokens=1, completion_tokens=2)


@pytest.mark.parametrize(
    "data",
    [
        delta("plain"),
        delta('"usage": {"prompt_tokens": 1, "completion_tokens": 2}'),
        delta('{"error": {"message": "no"}}'),
        event({"error": None, "choices": [], "usage": None}),
        event({"choices": [{"error": {"message": "of one choice"}}]}),
        event({"usage": {"total_tokens": 3}}),
        b'data: {"usage": {"prompt_tokens": \n\n',
        b': "error": {"comment"}\n\n',
    ],
)
def test_what_only_looks_notable_passes(data: bytes) -> None:
    """Null, quoted text, nested keys, other shapes and comments are neither usage nor error."""
    events = stream(hides_usage=True)
    assert events.feed(data) == data
    assert events.usage is None


@pytest.mark.parametrize(
    "bad",
    [
        ERROR,
        ERROR.replace(b"\n\n", b"\r\n\r\n"),
        ERROR.replace(b":{", b" :\t{"),
        ERROR.replace(b"data: ", b"event: error\ndata:"),
        ERROR.replace(b'"error":', b'\ndata: "error":'),
        event({"error": CANARY}),
        event({"error": [CANARY]}),
        event({"error": True, "message": CANARY}),
        event({"error": {"message": CANARY}, "usage": {"total_tokens": 3}}),
        event({"error": {"message": CANARY}, "choices": {}}),
    ],
)
def test_error_is_replaced(bad: bytes) -> None:
    """The upstream's own words about an error never pass, in whatever shape; the rest does."""
    whole = delta("a") + bad + delta("b")
    for cut in range(len(whole)):
        events = stream()
        passed = (events.feed(whole[:cut]) if cut else b"") + events.feed(whole[cut:])
        assert CANARY.encode() not in passed
        assert passed.replace(b"\n", b"") == (delta("a") + REPLACED + delta("b")).replace(
            b"\n", b""
        )


def test_error_event_is_what_the_sdks_raise_at() -> None:
    """An object with ``error`` in the data."""
    data = error_event(UpstreamCut()).removeprefix(b"data: ").removesuffix(b"\n\n")
    assert json.loads(data)["error"]["code"] == "upstream_unavailable"


def test_event_of_100_kb_is_kept_whole() -> None:
    """However many reads it comes in, a large event passes when it is complete."""
    data = delta("ä" * 50_000)
    events = stream()
    pieces = [data[i : i + 16_384] for i in range(0, len(data), 16_384)]
    assert [events.feed(piece) for piece in pieces[:-1]] == [b""] * (len(pieces) - 1)
    assert events.feed(pieces[-1]) == data


def test_event_without_end_is_passed_on_in_the_end() -> None:
    """More than EVENT_BYTES_MAX is never held; what follows the long event is treated as ever."""
    events = stream(hides_usage=True)
    piece = b"a" * 65_536
    passed = [events.feed(piece) for _ in range(40)]
    held_bytes_max = 0
    for i in range(40):
        held_bytes_max = max(held_bytes_max, 65_536 * (i + 1) - sum(map(len, passed[: i + 1])))
    assert held_bytes_max <= EVENT_BYTES_MAX
    rest = events.feed(b"\n\n" + usage_event() + delta("b"))
    assert b"".join(passed) + rest == piece * 40 + b"\n\n" + delta("b")
    assert events.usage is not None


def test_unfinished_event_at_the_end_is_looked_at_too() -> None:
    """A stream may end without its last blank line: neither an error nor the usage gets by."""
    events = stream()
    assert events.feed(delta("a") + ERROR[:-1]) == delta("a")
    assert events.rest() == REPLACED
    events = stream(hides_usage=True)
    assert events.feed(usage_event(3, 4)[:-2]) == b""
    assert events.rest() == b""
    assert events.usage == Usage(prompt_tokens=3, completion_tokens=4)


@pytest.mark.parametrize(
    ("data", "is_done"),
    [
        (DONE, True),
        (b"data:[DONE]\n\n", True),
        (b"data: [DONE]\r\n\r\n", True),
        (b"data: [DONE]\r\r", True),
        (delta("a") + DONE, True),
        (DONE[:-1], False),
        (delta("a"), False),
        (b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}\n\n', False),
        (b'data: {"x":"data: [DONE]"}\n\n', False),
        (b"data: x[DONE]\n\n", False),
    ],
)
def test_done(data: bytes, is_done: bool) -> None:
    """Only the event itself ends a stream, in one read or many; text that names it doesn't."""
    events, slow = stream(), stream()
    events.feed(data)
    for i in range(len(data)):
        slow.feed(data[i : i + 1])
    assert (events.is_done, slow.is_done) == (is_done, is_done)


def test_usage_of_a_body() -> None:
    """The usage object of a JSON answer, pretty-printed or not, with its nested details."""
    assert find_usage(chat_json("hello", 3, 4)) == Usage(prompt_tokens=3, completion_tokens=4)
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "details": {"cached_tokens": 0}}
    pretty = json.dumps({"usage": usage, "system_fingerprint": "fp"}, indent=2).encode()
    assert find_usage(pretty) == Usage(prompt_tokens=1, completion_tokens=2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"usage": null}',
        b'{"usage": {}}',
        b'{"usage": {"prompt_tokens": "1", "completion_tokens": 2}}',
        b'{"usage": {"prompt_tokens": -1, "completion_tokens": 2}}',
        b'{"usage": {"prompt_tokens": 1, "completion_tokens": 1000000000000}}',
        json.dumps({"content": '"usage": {"prompt_tokens": 1, "completion_tokens": 2}'}).encode(),
        chat_json("")[:-20],
        chat_json("") + b" " * 20_000,
    ],
)
def test_no_usage_of_a_body(body: bytes) -> None:
    """None where there is none, where it is only quoted, where it is broken or too far away."""
    assert find_usage(body) is None


def test_last_usage_counts() -> None:
    """Of several objects the one nearest the end is the upstream's."""
    assert find_usage(chat_json("", 1, 2) + chat_json("", 3, 4)) == Usage(3, 4)


#: A usage object with as much detail as OpenAI's.
DETAILED = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 7},
    "completion_tokens_details": {"reasoning_tokens": 11, "note": '{ " '},
}


@pytest.mark.parametrize("indent", [None, 2])
def test_cache_count_is_0_in_as_many_bytes(indent: int | None) -> None:
    """Of a JSON answer only the digits of the count change, and what is paid for stays known."""
    body = json.dumps({"choices": [], "usage": DETAILED, "id": "x"}, indent=indent).encode()
    hidden = hide_cache_counts(body)
    assert hidden == body.replace(b"1920", b"0   ")
    assert json.loads(hidden)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert find_usage(hidden) == find_usage(body) == Usage(2006, 300)


@pytest.mark.parametrize(
    ("usage", "hidden"),
    [
        ('{"prompt_cache_hit_tokens":64,"b":64}', '{"prompt_cache_hit_tokens":0 ,"b":64}'),
        ('{"prompt_cache_miss_tokens" :\t640}', '{"prompt_cache_miss_tokens" :\t0  }'),
        ('{"cache_read_input_tokens": 5\n}', '{"cache_read_input_tokens": 0\n}'),
        ('{"cached_content_token_count":77 }', '{"cached_content_token_count":0  }'),
        ('{"cache_discount":-1.5e+3,"a":[1]}', '{"cache_discount":0      ,"a":[1]}'),
        ('{"a":{"b":{"cached_tokens":12}},"cached_tokens":9}', None),
        (r'{"a":{"}":"{\\\"","cached_tokens":12},"cached_tokens":9}', None),
        ('{"cached_tokens":null,"x":{"cached_tokens":"12"}}', "{}"),
    ],
)
def test_siblings_of_other_vendors_are_hidden(usage: str, hidden: str | None) -> None:
    """Whatever the count is called, however deep it is; null and text are no counts."""
    data = f'{{"x_vendor":{{"usage" : {usage}}},"cached_tokens":12}}'.encode()
    if hidden is None:
        hidden = usage.replace("12", "0 ").replace("9", "0")
    expected = data if hidden == "{}" else data.replace(usage.encode(), hidden.encode())
    assert hide_cache_counts(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b'{"cached_tokens":1920}',
        b'{"usage":null,"cached_tokens":1920}',
        b'{"usage":{"total_tokens":5},"cached_tokens":1920}',
        b'{"usage":["cached_tokens",1920],"a":{"cached_tokens":1920}}',
        json.dumps({"content": '"usage":{"cached_tokens":1920}'}).encode(),
        json.dumps({"usage": {"text": '"cached_tokens": 1920,'}}).encode(),
        b'["usage", {"cached_tokens":1920}]',
        b'{"my usage":{"cached_tokens":1920}}',
        b'{"my\\"usage":{"cached_tokens":1920}}',
        b"\xff\x00 usage no JSON at all",
        b"",
    ],
)
def test_outside_of_usage_nothing_is_touched(data: bytes) -> None:
    """The same words elsewhere, or in what a model was made to say, pass as they are."""
    assert hide_cache_counts(data) == data


def test_body_without_usage_isnt_copied() -> None:
    """What has nothing to hide is the same object."""
    body = chat_json("hello").replace(b'"usage"', b'"other"')
    assert hide_cache_counts(body) is body


def test_hiding_holds_back_a_few_bytes_at_most() -> None:
    """A key that goes nowhere, a long object, spaces without end: memory stays bounded."""
    for start in (b'"usage":{"a":"', b'"usage":{', b'"usage"', b'"usage" :', b"{"):
        hider = CacheCountHider()
        sent = b""
        for piece in (start, *[b" " * 1_000] * 40):
            sent += hider.feed(piece)
            assert len(hider.held) <= USAGE_BYTES_MAX
        assert sent + hider.rest() == start + b" " * 40_000


def test_beginning_of_an_endless_usage_object_is_hidden() -> None:
    """An object of more than USAGE_BYTES_MAX loses the counts in its beginning at least."""
    data = b'{"usage":{"cached_tokens":1920,"a":"%b"}}' % (b"a" * 2 * USAGE_BYTES_MAX)
    assert hide_cache_counts(data) == data.replace(b"1920", b"0   ")
    cut_number = b'{"usage":{"a":"%b","cached_tokens":1920}}'
    for filler_bytes in range(USAGE_BYTES_MAX - 50, USAGE_BYTES_MAX):
        hidden = hide_cache_counts(cut_number % (b"a" * filler_bytes))
        assert json.loads(hidden)["usage"]["cached_tokens"] in (0, 1920)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize(
    "data",
    [
        event({"choices": [], "usage": DETAILED}),
        event({"choices": [{"delta": {}}], "usage": DETAILED}),
        event({"type": "response.completed", "response": {"usage": DETAILED}}),
        event({"usage": {"prompt_tokens_details": {"cached_tokens": 1920}}}),
        event({"usage": DETAILED}).replace(b'"usage":', b'"usage"\ndata: :'),
        event({"usage": DETAILED}).replace(b'"usage":', b'"usage":\nid: 7\ndata:'),
        event({"usage": DETAILED}).replace(b'"cached_tokens":', b'\ndata:"cached_tokens":\ndata: '),
    ],
)
def test_cache_count_of_an_event_is_hidden(data: bytes, end: bytes) -> None:
    """In whatever event the usage comes, in one line or several, and wherever it is cut."""
    whole = (delta("1921") + data + DONE).replace(b"\n\n", end).replace(b"\n", end[: len(end) // 2])
    for cut in range(len(whole)):
        events = stream()
        passed = (events.feed(whole[:cut]) if cut else b"") + events.feed(whole[cut:])
        assert passed + events.rest() == whole.replace(b"1920", b"0   ")


def test_cache_count_of_an_overlong_event_is_hidden() -> None:
    """An event that is passed on in pieces has its usage in one of them, or across two."""
    usage = json.dumps({"b64_json": "", "usage": DETAILED}).encode()
    at = EVENT_BYTES_MAX + 1
    for shift in range(0, len(usage) + 20, 9):
        filler = b"a" * (EVENT_BYTES_MAX - shift)
        whole = b"data: " + usage.replace(b'""', b'"%b"' % filler, 1) + b"\n\n" + delta("b")
        events = stream()
        first = events.feed(whole[:at])
        assert at - USAGE_BYTES_MAX < len(first) <= at
        assert first + events.feed(whole[at:]) == whole.replace(b"1920", b"0   ")
