"""Long JSON answers: looking at their keys only finds what a parser finds."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

from freeapi.http.answers import Usage
from freeapi.http.sse import read_answer
from freeapi.http.usage import PARSED_BYTES_MAX, look_at_keys
from tests.answers import spent

#: What an upstream might say of itself, which no caller may read.
CANARY = "org-canary"
FAILURE = {"message": CANARY, "code": "server_error"}
PROSE = "some words that say nothing in particular, " * 800
#: Text with more colons than are looked at one by one, and what looks like keys.
CODE = 'if x: "usage": {"cached_tokens": 5}, "error": "no" ' * 800
BASE64 = "A" * 40_000
FILLERS: tuple[object, ...] = (PROSE, CODE, BASE64, [[0.25, -1.5]] * 3_000, [{"a": {}}] * 3_000)


def written(fields: dict[str, Any], spacing: str) -> bytes:
    """As an upstream may write it."""
    if spacing == "lines":
        return json.dumps(fields, indent=2).encode()
    text = json.dumps(fields, separators=(",", ":"))
    for key in ("error", "usage"):
        text = text.replace(f'"{key}":', f'"{key}"{spacing}:{spacing}')
    return text.encode()


def around(filler: object, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields behind something long, before it, and between two such."""
    return [
        {"a": filler, **fields},
        {**fields, "z": filler},
        {"a": filler, **fields, "z": filler},
    ]


@pytest.mark.parametrize("spacing", ["", " ", "lines", "\r\n\t", " " * 62, " " * 70, " " * 500])
@pytest.mark.parametrize(
    "error", [FAILURE, CANARY, [CANARY], {}, [], "", 0, 1, True, False, {"a": {"b": [CANARY]}}]
)
def test_error_at_the_top_is_replaced(error: object, spacing: str) -> None:
    """Whatever it is and wherever it stands: the caller reads ours, and not a word of theirs."""
    for filler in FILLERS:
        for fields in around(filler, {"usage": spent(5, 7), "error": error, "b": 1}):
            answer = written(fields, spacing)
            assert len(answer) > PARSED_BYTES_MAX
            usage, seen = read_answer(answer)
            ours = json.loads(seen)
            assert usage == Usage(5, 7)
            assert CANARY.encode() not in seen
            assert ours.pop("error")["type"] == "server_error"
            assert ours == {name: value for name, value in fields.items() if name != "error"}


@pytest.mark.parametrize("spacing", ["", " ", "lines", " " * 70])
@pytest.mark.parametrize(
    "fields",
    [
        {"error": None},
        {"b": {"error": FAILURE}},
        {"b": [{"error": "no", "c": 1}]},
        {"text": json.dumps({"error": FAILURE, "usage": spent(1, 1)})},
        {"text": '"error":"no"', 'my "error': 1, "error2": 2, "an error": 3},
        {"text": "error\\"},
        {"text": '\\"error": {'},
        {'"usage': {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0}},
        {"b": {"usage": {**spent(1, 1), "cached_tokens": 0}}, "c": [{"usage": None}]},
    ],
)
def test_other_errors_are_part_of_the_answer(fields: dict[str, Any], spacing: str) -> None:
    """null, deeper, in text, in another name: the answer passes as it is, its own usage counted."""
    for filler, fields_there in product(FILLERS, ({**fields, "usage": spent(5, 7)}, fields)):
        for each in around(filler, fields_there):
            answer = written(each, spacing)
            expected = Usage(5, 7) if "usage" in each else None
            assert read_answer(answer) == (expected, answer)


def test_last_of_repeated_keys_counts() -> None:
    """As for a parser: an error behind one that is null is one, and never passes."""
    for first, last in (("null", f'"{CANARY}"'), ("null", f'{{"a":"{CANARY}"}}')):
        answer = f'{{"error":{first},"a":"{PROSE}","error":{last}}}'.encode()
        assert CANARY.encode() not in read_answer(answer)[1]


@pytest.mark.parametrize("spacing", ["", " ", "lines", " " * 70])
@pytest.mark.parametrize(
    "count", ["cached_tokens", "prompt_cache_hit_tokens", "cache_write_tokens"]
)
def test_counts_are_hidden_wherever_they_stand(count: str, spacing: str) -> None:
    """At any depth, in each of several usage objects; as many bytes, and the usage is known."""
    usage = {**spent(5, 7), "details": {count: 1920}}
    for filler in FILLERS:
        for fields in around(filler, {"b": [{"usage": usage}], "usage": usage, "c": usage}):
            answer = written(fields, spacing)
            known, seen = read_answer(answer)
            told = json.loads(seen)
            assert known == Usage(5, 7)
            assert len(seen) == len(answer)
            assert told["usage"]["details"] == told["b"][0]["usage"]["details"] == {count: 0}
            assert told["c"] == usage


@pytest.mark.parametrize(
    "answer",
    [
        f'{{"a":"{PROSE}","error":"{CANARY}'.encode(),
        f'[{{"a":"{PROSE}"}},{{"error":"no"}}]'.encode(),
        f': "error": no JSON {PROSE}'.encode(),
        f'{{"a":"{PROSE}","error"'.encode(),
        f'{{"a":"{PROSE}","error":'.encode(),
        b" " * 20_000,
        b":" * 20_000,
        b'"error":' * 4_000,
        b"\xff" * 20_000,
    ],
)
def test_what_is_no_json_object_passes_as_it_is(answer: bytes) -> None:
    """Broken, or of another kind: nobody can tell an error of it, nor a usage."""
    assert read_answer(answer) == (None, answer)


@pytest.mark.parametrize("distance", range(50, 80))
def test_key_at_any_distance_from_its_colon_is_seen(distance: int) -> None:
    """Also where it is cut by how far is looked."""
    space = " " * distance
    for key, value in (("error", '"no"'), ("error", "{}"), ("usage", '{"cached_tokens":1}')):
        keys = look_at_keys(f'{{"a":"{PROSE}","{key}"{space}:{space}{value}}}'.encode())
        assert (keys.has_error, keys.count_at >= 0)[key == "usage"]


def test_prose_and_base64_need_no_parser() -> None:
    """What nearly all long answers are is known without: neither an error nor a count."""
    for filler in (PROSE, BASE64):
        usage = {**spent(5, 7), "prompt_tokens_details": {"cached_tokens": 0}}
        answer = json.dumps({"error": None, "a": filler, "usage": usage}).encode()
        keys = look_at_keys(answer)
        assert (keys.has_error, keys.count_at) == (False, -1)
        assert read_answer(answer)[1] is answer
