"""Usage objects: what is read of them wherever they stand, and what of them is hidden."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from freeapi.http.answers import Usage
from freeapi.http.usage import (
    USAGE_BYTES_MAX,
    CacheCountHider,
    UsageEnds,
    find_usage,
    hide_cache_counts,
)
from tests.answers import (
    DETAILED,
    chat_json,
    completion_json,
    embeddings_json,
    images_json,
    moderation_json,
    response_json,
    spent,
    transcription_json,
)


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
    ],
)
def test_no_usage_of_a_body(body: bytes) -> None:
    """None where there is none, where it is only quoted, where it is broken."""
    assert find_usage(body) is None


#: Longer than what is parsed before its ends are looked at, or kept of it while it passes.
LONG = "a" * 100_000


def passed(body: bytes, piece_bytes: int = 30_000) -> Usage | None:
    """What is found of a body that passes in pieces."""
    ends = UsageEnds()
    for start in range(0, len(body), piece_bytes):
        ends.feed(body[start : start + piece_bytes])
    return ends.usage()


@pytest.mark.parametrize("text", ["", LONG])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("make", [chat_json, completion_json, images_json, response_json])
def test_usage_of_each_endpoint(
    make: Callable[[str], bytes], indent: int | None, text: str
) -> None:
    """Tokens are prompt and completion, or input and output; fields may come after them."""
    body = json.dumps(json.loads(make(text)), indent=indent).encode()
    assert find_usage(body) == Usage(5, 7)
    assert passed(body) == passed(body, 999) == Usage(5, 7)


@pytest.mark.parametrize("dimensions", [2, 10_000])
def test_embeddings_have_no_output(dimensions: int) -> None:
    """They bill what they were given, and say so by a total; chat without its output is open."""
    body = embeddings_json([[0.25] * dimensions], 9)
    assert find_usage(body) == passed(body) == Usage(9, 0)
    assert find_usage(body.replace(b'"total_tokens": 9', b'"total_tokens": 10')) is None


def test_transcription_may_be_billed_by_its_duration() -> None:
    """Tokens count; seconds are no tokens, nor is a moderation's silence."""
    assert find_usage(transcription_json("hello")) == Usage(5, 7)
    assert find_usage(transcription_json("hello", type="duration", seconds=9.5)) is None
    assert find_usage(moderation_json()) is None


@pytest.mark.parametrize("piece_bytes", [1, 100, 4_095, 4_096, 4_097, 200_000])
def test_usage_before_a_long_image_is_found(piece_bytes: int) -> None:
    """Wherever the fields stand around the megabytes of base64, and however those are cut."""
    body = json.dumps({"created": 1, "usage": spent(5, 7), "data": [{"b64_json": LONG}]}).encode()
    assert find_usage(body) == Usage(5, 7)
    assert passed(body, piece_bytes) == Usage(5, 7)


def test_usage_in_the_middle_is_found_in_what_is_at_hand() -> None:
    """A body that is there whole is read whole, if neither end has it."""
    body = json.dumps({"a": LONG, "usage": spent(5, 7), "b": LONG}).encode()
    assert find_usage(body) == Usage(5, 7)
    assert passed(body) is None


CHEAP = {"usage": {"prompt_tokens": 0, "completion_tokens": 0, **spent(0, 0)}}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"parameters": CHEAP}], "usage": None},
        {"usage": None, "tools": [{"parameters": CHEAP}]},
        {"metadata": CHEAP},
        {"output": [CHEAP]},
        {"text": json.dumps(CHEAP)},
        {'"usage': CHEAP["usage"]},
        {"tool_usage": CHEAP["usage"], "svg_usage": CHEAP["usage"]},
    ],
)
@pytest.mark.parametrize("fill", ["", LONG])
def test_callers_cannot_set_their_own_bill(fields: dict[str, Any], fill: str) -> None:
    """What an answer quotes of its caller, deeper or in text, is no usage, from either end."""
    for body in ({**fields, "z": fill}, {"a": fill, **fields}):
        data = json.dumps(body).encode()
        assert find_usage(data) is None
        assert passed(data) is None


def test_real_usage_counts_beside_a_quoted_one() -> None:
    """The upstream's own is found before or behind one that a caller made it quote."""
    tools = [{"parameters": CHEAP}]
    for fill in ("", LONG):
        for body in (
            {"a": fill, "usage": spent(5, 7), "tools": tools},
            {"a": fill, "tools": tools, "usage": spent(5, 7)},
            {"tools": tools, "usage": spent(5, 7), "a": fill},
        ):
            data = json.dumps(body).encode()
            assert find_usage(data) == passed(data) == Usage(5, 7)


def test_nesting_without_end_is_no_usage() -> None:
    """What would exhaust a parser's stack is told apart from an answer."""
    assert find_usage(b'{"a":' + b"[" * 10_000) is None


@pytest.mark.parametrize("indent", [None, 2])
def test_cache_count_is_0_in_as_many_bytes(indent: int | None) -> None:
    """Of a JSON answer only the digits of the count change, and what is paid for stays known."""
    body = json.dumps({"choices": [], "usage": DETAILED, "id": "x"}, indent=indent).encode()
    hidden = hide_cache_counts(body)
    assert hidden == body.replace(b"1920", b"0   ")
    assert json.loads(hidden)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert find_usage(hidden) == find_usage(body) == Usage(2006, 300)


def test_counts_of_a_response_are_hidden() -> None:
    """What was cached, and what was written to the cache, which is the rest of the prompt."""
    details = {
        "cached_tokens": 1920,
        "cache_write_tokens": 86,
        "cache_write_tokens_details": {"ttl_12h_tokens": 1, "ttl_30m_tokens": 85},
    }
    body = response_json("x", usage={**spent(2006, 7), "input_tokens_details": details})
    hidden = json.loads(hide_cache_counts(body))
    assert hidden["usage"]["input_tokens_details"] == {
        "cached_tokens": 0,
        "cache_write_tokens": 0,
        "cache_write_tokens_details": {"ttl_12h_tokens": 0, "ttl_30m_tokens": 0},
    }
    assert hidden["usage"]["input_tokens"] == 2006
    only = b'{"usage":{"cache_write_tokens_details":{"ttl_30m_tokens":85}}}'
    assert hide_cache_counts(only) == only.replace(b"85", b"0 ")


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


@pytest.mark.parametrize(
    "filler", [b"x" * 40_000, b"{" * 300 + b"x" * 40_000, b'\\"usage\\":{' * 4_000]
)
@pytest.mark.parametrize(
    "between", [b":", b" : ", b":" + b" " * 100, b":\r\n\t"], ids=["none", "some", "much", "lines"]
)
def test_counts_in_long_answers_are_hidden(filler: bytes, between: bytes) -> None:
    """However long the answer, whatever stands before the object: no count is passed over."""
    usage = b'"usage"%b{"prompt_tokens_details":{"cached_tokens":%b}}'
    answer = b'{"text":"%b",%b,"text":"%b"}'
    seen = answer % (filler, usage % (between, b"1920"), filler)
    assert hide_cache_counts(seen) == answer % (filler, usage % (between, b"0   "), filler)
    nothing = answer % (filler, usage % (between, b"0"), filler)
    assert hide_cache_counts(nothing) is nothing
