"""Events on their way: what is passed, what is held back, what is replaced, what is learnt."""

from __future__ import annotations

import json

import pytest

from freeapi.errors import UpstreamCut, UpstreamFailed
from freeapi.http.answers import Usage
from freeapi.http.sse import EVENT_BYTES_MAX, EventStream, error_event, in_our_words
from freeapi.http.usage import USAGE_BYTES_MAX
from tests.answers import (
    DETAILED,
    DONE,
    delta,
    event,
    image_stream,
    response_event,
    response_json,
    response_object,
    response_stream,
    speech_stream,
    spent,
    text_delta,
    transcription_stream,
    usage_event,
)

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
        event({"choices": [{"finish_reason": "error"}], "type": "x"}),
        text_delta('"type":"error","usage":{"input_tokens":1,"output_tokens":2}'),
        response_event("response.created", response=response_object(status="in_progress")),
        event({"response": "error", "a": "error"}),
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
        response_event("error", code="server_error", message=CANARY, param=None),
        response_event("error", message=CANARY).replace(b'":"error"', b'" : "error" '),
        response_event("error", error={"type": "server_error", "message": CANARY}),
        event({"message": CANARY, "type": "error"}),
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


FAILURES = [
    {"code": "server_error", "message": CANARY},
    {"code": CANARY, "message": CANARY},
    {"message": CANARY, "param": CANARY, "type": CANARY},
    {"code": {"a": CANARY}},
    CANARY,
    [CANARY],
]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("error", FAILURES)
def test_failed_response_is_told_in_our_words(error: object, end: bytes) -> None:
    """The event stays what it is, with its name, its usage and the rest; only the error is ours."""
    *before, failed = response_stream("hi", "failed", error=error, usage=spent(3, 4))
    data = b"".join((*before, failed)).replace(b"\n", end[: len(end) // 2])
    for cut in range(len(data) - len(failed), len(data), 7):
        events = stream()
        passed = events.feed(data[:cut]) + events.feed(data[cut:]) + events.rest()
        assert CANARY.encode() not in passed
        name, line = passed.strip().split(end)[-1].splitlines()
        assert name == b"event: response.failed"
        response = json.loads(line.removeprefix(b"data: "))["response"]
        assert response["error"]["message"] == UpstreamFailed().message
        assert response["error"]["code"] == "server_error"
        assert response["output"][0]["content"][0]["text"] == "hi"
        assert events.usage == Usage(3, 4)
        assert events.is_done


def test_failure_cut_into_lines_is_one_line_afterwards() -> None:
    """JSON over several data lines loses its line ends, and nothing else of the event."""
    data = b'id: 1\ndata: {"response":\ndata: {"error":{"message":"%b"},"a":1}}\nretry: 2\n\n'
    passed = stream().feed(data % CANARY.encode())
    before, line, after = passed.rstrip().split(b"\n")
    assert (before, after) == (b"id: 1", b"retry: 2")
    assert json.loads(line.removeprefix(b"data: "))["response"]["error"]["code"] == "server_error"


def test_failure_that_cannot_be_encoded_again_is_an_error() -> None:
    """Where a key isn't UTF-8 the event can't keep its form, so ours takes its place."""
    data = b'data: {"\xff":1,"response":{"error":{"message":"%b"}}}\n\n' % CANARY.encode()
    assert stream().feed(data) == REPLACED
    assert in_our_words(b'{"\xff":1,"error":"%b"}' % CANARY.encode()) == UpstreamFailed().body()


@pytest.mark.parametrize("error", FAILURES)
def test_error_in_an_answer_is_told_in_our_words(error: object) -> None:
    """A 200 that reports a failure says the code, if it is one, and nothing else of the error."""
    told = json.loads(in_our_words(response_json("hi", status="failed", error=error)))
    assert CANARY not in json.dumps(told)
    assert told["error"]["message"] == UpstreamFailed().message
    assert told == response_object("hi", status="failed", error=told["error"])


def test_code_of_an_error_stays() -> None:
    """It says what callers can do something about: their prompt, their image."""
    assert b'"invalid_image"' in in_our_words(b'{"error":{"code":"invalid_image"}}')


@pytest.mark.parametrize(
    "answer", [b'{"error": null}', b'["error"]', b'"error', b'{"a":{"error":{"message":"m"}}}', b""]
)
def test_answer_without_an_error_is_the_same_object(answer: bytes) -> None:
    """Null, other shapes and errors of parts are left alone."""
    assert in_our_words(answer) is answer


#: The streams that have no ``[DONE]``.
WHOLE_STREAMS = {
    "response": response_stream("hi"),
    "incomplete": response_stream("hi", "incomplete", usage=spent(5, 7)),
    "image": image_stream(),
    "speech": speech_stream(),
    "transcription": transcription_stream("hello"),
}


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("name", WHOLE_STREAMS)
def test_stream_of_each_endpoint(name: str, end: bytes) -> None:
    """Every byte passes, the last event's usage is learnt, and ends the stream, by any cut."""
    parts = [part.replace(b"\n", end[: len(end) // 2]) for part in WHOLE_STREAMS[name]]
    data = b"".join(parts)
    for cut in (*range(1, len(data) - 9, 7), *range(len(data) - 9, len(data))):
        events = stream(hides_usage=True)
        passed = events.feed(data[:cut])
        was_done = events.is_done
        assert passed + events.feed(data[cut:]) + events.rest() == data
        assert was_done == (cut == len(data) or (cut == len(data) - 1 and end == b"\r\n\r\n"))
        assert events.usage == Usage(5, 7)
        assert events.is_done


def test_failed_response_without_usage_ends_its_stream() -> None:
    """A cut behind it takes nothing from the caller."""
    events = stream()
    events.feed(b"".join(response_stream("", "failed", error=FAILURES[0])))
    assert (events.is_done, events.usage) == (True, None)


def long_stream(kind: str, filler: str) -> tuple[list[bytes], bytes]:
    """Events of which the last is overlong by its filler, and what of it may pass."""
    if kind == "image":
        parts = image_stream(filler)[1:]
    elif kind == "response":
        parts = response_stream("hi", instructions=filler, usage=DETAILED_SPENT)[2:]
    else:
        parts = response_stream("hi", "failed", error=FAILURES[0], instructions=filler)[2:]
    return parts, b"".join((*parts[:-1], REPLACED if kind == "failed" else parts[-1]))


DETAILED_SPENT = {**spent(5, 7), "input_tokens_details": {"cached_tokens": 4}}


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("kind", ["image", "response", "failed"])
def test_overlong_last_event(kind: str, end: bytes) -> None:
    """Of an event that isn't kept, the end tells the usage, and a failure doesn't pass at all."""
    parts, shown = long_stream(kind, "a" * (EVENT_BYTES_MAX + 100_000))
    line = end[: len(end) // 2]
    *before, data = (part.replace(b"\n", line) for part in parts)
    for back in (2, 3, 4, 30, 150, 4_000):
        events = stream()
        first = b"".join(map(events.feed, (*before, data[:-back])))
        assert not events.is_done
        passed = first + events.feed(data[-back:] + delta("z"))
        expected = shown if kind == "failed" else shown.replace(b"\n", line)
        expected = expected.replace(b'"cached_tokens":4', b'"cached_tokens":0')
        assert passed.replace(b"\r", b"") == (expected + delta("z")).replace(b"\r", b"")
        assert events.usage == (None if kind == "failed" else Usage(5, 7))
        assert not events.is_done


@pytest.mark.parametrize("kind", ["image", "response", "failed"])
def test_stream_that_ends_with_an_overlong_event_is_done(kind: str) -> None:
    """Whole, it ends the stream; at a proper end without its blank line it counts too."""
    data = long_stream(kind, "a" * 2 * EVENT_BYTES_MAX)[0][-1]
    whole, cut = stream(), stream()
    for i in range(0, len(data), 500_000):
        whole.feed(data[i : i + 500_000])
        cut.feed(data[:-2][i : i + 500_000])
    assert whole.is_done
    assert not cut.is_done
    cut.rest()
    assert cut.usage == whole.usage == (None if kind == "failed" else Usage(5, 7))


def test_overlong_event_cannot_set_the_bill() -> None:
    """What an overlong event quotes of its caller is no usage, nor is one that isn't the last."""
    quoted = [{"parameters": {"usage": spent(0, 0), "z": "a"}}]
    long = "a" * (EVENT_BYTES_MAX + 10)
    for last, more in (("completed", {"usage": None}), ("created", {"usage": spent(0, 0)})):
        response = response_object(long, **more)
        response["tools"] = quoted
        data = response_event(f"response.{last}", response=response)
        for at in (-1, -300):
            events = stream()
            assert len(events.feed(data[:at]) + events.feed(data[at:])) == len(data)
            assert events.usage is None


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
        (text_delta('"type":"response.completed"'), False),
        (response_event("x", item={"type": "response.completed"}), False),
        (b"event: response.completed\n\n", False),
        (DONE + b": ping\n\n", False),
    ],
)
def test_done(data: bytes, is_done: bool) -> None:
    """Only the event itself ends a stream, in one read or many; text that names it doesn't."""
    events, slow = stream(), stream()
    events.feed(data)
    for i in range(len(data)):
        slow.feed(data[i : i + 1])
    assert (events.is_done, slow.is_done) == (is_done, is_done)


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
        assert at - USAGE_BYTES_MAX < len(first := events.feed(whole[:at])) <= at
        assert first + events.feed(whole[at:]) == whole.replace(b"1920", b"0   ")
