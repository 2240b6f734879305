"""Fuzz the reading of an upstream's body: ``EventStream`` and ``find_usage``.

Any bytes pass, and no exception ever does. However they are cut, the caller gets the same events
and the same usage is learnt; what holds neither usage nor error comes out byte for byte; and no
error in an upstream's own words does.
"""

from __future__ import annotations

import json

from freeapi.errors import UpstreamFailed
from freeapi.http.answers import Usage
from freeapi.http.sse import EventStream, error_event, in_our_words
from freeapi.http.usage import find_usage
from tests.fuzz.driver import cuts, fuzz

OURS = error_event(UpstreamFailed())

SEEDS = (
    b'data: {"choices":[{"delta":{"content":"\xe4\xbd\xa0"}}],"usage":null}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n',
    b'data: {"error":{"message":"org-x"}}\r\n\r\n: ping\r\n\r\nevent: x\rid: 1\rdata: {}\r\r',
    b'data: {"choices":[{"delta":{"content":"\\"usage\\":{"}}]}\n\n\r\n\ndata: a\ndata: b\n\r\n',
    b'data: {"usage":\ndata: {"prompt_tokens":1,"completion_tokens":2},"choices":[]}\n\n',
    b'{"id":"1","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,'
    b'"prompt_tokens_details":{"cached_tokens":1024}}}',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,'
    b'"prompt_tokens_details":{"cached_tokens":128,"audio_tokens":0}}}\n\ndata: [DONE]\n\n',
    b'event: error\ndata: {"type":"error","code":"x","message":"org-x","sequence_number":1}\n\n',
    b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"c",'
    b'"message":"org-x"},"usage":{"input_tokens":3,"output_tokens":4}}}\n\n',
)


def passed(pieces: list[bytes], *, hides_usage: bool) -> tuple[bytes, Usage | None]:
    """What comes out, and the usage found."""
    events = EventStream(hides_usage=hides_usage)
    out = b"".join([*(events.feed(piece) for piece in pieces), events.rest()])
    return out, events.usage


def datas(stream: bytes) -> list[list[bytes]]:
    """The data lines of each event, as the standard divides them."""
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
    events = [[line for line in one.split(b"\n") if line.startswith(b"data:")] for one in lines]
    return [event for event in events if event]


def is_foreign_error(lines: list[bytes]) -> bool:
    """Whether an SDK would raise at this event, with words that aren't ours."""
    [data, *more] = lines
    try:
        record = json.loads(data.removeprefix(b"data:"))
    except (ValueError, RecursionError):
        return False
    # A name spelt with escapes, or cut by a line end, is not looked for: no upstream writes it.
    plain = not more and b"\\u" not in data
    if not plain or not isinstance(record, dict):
        return False
    response = record.get("response")
    failure = response.get("error") if isinstance(response, dict) else None
    if failure is not None and failure.get("message") != UpstreamFailed().message:
        return True
    says_error = record.get("error") is not None or record.get("type") == "error"
    return says_error and lines not in datas(OURS)


def check(data: bytes) -> None:
    """The same comes out of any cut, nothing is lost, and no word of an upstream's error passes."""
    find_usage(data)
    in_our_words(data)
    for hides_usage in (False, True):
        out, usage = passed([data], hides_usage=hides_usage)
        assert not any(map(is_foreign_error, datas(out))), "an upstream's own error"
        is_plain = b"usage" not in data and b"error" not in data
        assert out == data or not is_plain, "bytes that mean nothing to us were changed"
        for pieces in cuts(data):
            other, other_usage = passed(pieces, hides_usage=hides_usage)
            assert (datas(other), other_usage) == (datas(out), usage), "the cut matters"
            assert other == data or not is_plain, "bytes were changed by a cut"


if __name__ == "__main__":
    fuzz("sse", check, SEEDS)
