"""The shapes that an upstream's JSON is read by."""

from __future__ import annotations

import msgspec
import pytest

from freeapi.http.answers import (
    TOKENS_MAX,
    decode_answer,
    decode_counts,
    decode_error,
    decode_event,
    decode_response,
)


@pytest.mark.parametrize("tokens", [-1, TOKENS_MAX + 1, 1.5, '"3"'])
def test_impossible_counts_are_none(tokens: object) -> None:
    """A count that no model can have makes its object unreadable."""
    with pytest.raises(msgspec.ValidationError):
        decode_counts(b'{"prompt_tokens":%b}' % str(tokens).encode())


def test_what_is_not_known_is_passed_over() -> None:
    """Fields of no interest, at any depth, don't make an answer unreadable."""
    answer = decode_answer(b'{"id":"x","usage":{"prompt_tokens":3,"details":{"a":[1]}}}')
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert decode_response(b'{"type":"t","response":{"id":"r"}}').response.usage is None


def test_event_keeps_its_parts_as_they_came() -> None:
    """An event's parts are its own bytes, ``null`` where there are none."""
    event = decode_event(b'{"type":"error","error":{ "code":"slow_down" }}')
    assert bytes(event.error) == b'{ "code":"slow_down" }'
    assert bytes(event.usage) == b"null"
    assert decode_error(event.error).code == "slow_down"
