"""What holds for the bodies of all endpoints: JSON, known fields, nobody's name."""

from __future__ import annotations

import contextlib

import pytest

from freeapi.errors import InvalidJson, InvalidValue, UnsupportedParameter
from freeapi.policy.models import Endpoint
from freeapi.policy.payload import prepare
from tests.bodies import CANARY, DROP, GOOD, REFUSE, TABLE, prepare_fields, refusal, sent


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "it is empty"),
        (b"   ", "it is not valid JSON"),
        (b'{"model":', "it is not valid JSON"),
        (b'{"model":"a"} {}', "it is not valid JSON"),
        (b'{"model":NaN}', "it is not valid JSON"),
        (b'{"model":"\\ud800"}', "it is not valid JSON"),
        (b'\xef\xbb\xbf{"model":"a"}', "it starts with a byte order mark"),
        (b"\xff\xfe{\x00}\x00", "it is not UTF-8 at byte 0"),
        (b'{"model":"\xff"}', "it is not UTF-8 at byte 10"),
        (b'{"stop":"\xed\xa0\x80"}', "it is not UTF-8 at byte 9"),
        (b"[]", "it is not an object"),
        (b'"text"', "it is not an object"),
        (b"null", "it is not an object"),
        (b'{"stop":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "it is nested too deeply"),
    ],
)
def test_what_is_no_json_object_is_refused_in_fixed_words(body: bytes, problem: str) -> None:
    """Each way of not being a JSON object has its sentence, and none repeats the body."""
    with pytest.raises(InvalidJson) as caught:
        prepare("chat", body, TABLE, DROP)
    assert caught.value.message.endswith(f": {problem}.")


def test_at_any_depth_a_request_is_sent_or_refused() -> None:
    """Around the depth at which the parser gives up, no error but ours gets out."""
    for depth in range(700, 1_100):
        nest = "[" * depth + "]" * depth
        for content in (nest, f'[{{"type":"text","text":{nest}}}]'):
            with contextlib.suppress(InvalidJson, InvalidValue):
                text = f'{{"model":"local","messages":[{{"role":"user","content":{content}}}]}}'
                prepare("chat", text.encode(), TABLE, DROP)


@pytest.mark.parametrize("endpoint", GOOD)
def test_a_good_request_of_each_endpoint_is_sent_as_it_is(endpoint: Endpoint) -> None:
    """Only the model's name and what bounds the answer are put in; nothing is told."""
    prepared = prepare_fields(endpoint)
    body = sent(prepared)
    assert GOOD[endpoint].items() <= body.items()
    assert body.pop("model") == "small"
    added = {"max_completion_tokens", "max_tokens", "max_output_tokens", "store"}
    assert body.keys() - GOOD[endpoint].keys() <= added
    assert (prepared.endpoint, prepared.adjusted) == (endpoint, b"")
    assert prepared.prompt_tokens_max >= len(prepared.body)


@pytest.mark.parametrize("endpoint", GOOD)
def test_no_endpoint_sends_who_is_calling(endpoint: Endpoint) -> None:
    """What identifies the caller is dropped everywhere, and named."""
    prepared = prepare_fields(endpoint, user=CANARY, metadata={"a": CANARY})
    assert CANARY.encode() not in prepared.body
    assert prepared.adjusted == b"user=dropped, metadata=dropped"


@pytest.mark.parametrize("endpoint", GOOD)
def test_unknown_fields_go_or_are_refused_as_the_operator_says(endpoint: Endpoint) -> None:
    """Every endpoint has its table of fields, and what isn't in it doesn't leave."""
    prepared = prepare_fields(endpoint, odd=CANARY)
    assert (CANARY.encode() in prepared.body, prepared.adjusted) == (False, b"+1")
    assert refusal(UnsupportedParameter, endpoint, REFUSE, odd=CANARY).param == "odd"
