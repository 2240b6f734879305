"""Which messages need no second look, and that they come out as they went in."""

from __future__ import annotations

import msgspec
import pytest

from freeapi.policy.messages import decode_messages


@pytest.mark.parametrize(
    "message",
    [
        b'{"role":"user","content":"h\\u0069"}',
        b'{"role":"assistant","content":null,"tool_calls":[{ "id":"x" }]}',
        b'{"role":"assistant"}',
        b'{"role":"tool","content":"","name":"n","tool_call_id":"x"}',
    ],
)
def test_known_fields_keep_their_bytes(message: bytes) -> None:
    """Encoded, a message of known fields is the same, and no field is added."""
    assert msgspec.json.encode(decode_messages(b"[%b]" % message)) == b"[%b]" % message


def test_a_repeated_field_leaves_one() -> None:
    """Of a field that is there twice the last is left."""
    twice = decode_messages(b'[{"role":"user","content":"a","content":"b"}]')
    assert msgspec.json.encode(twice) == b'[{"role":"user","content":"b"}]'


@pytest.mark.parametrize(
    "message",
    [
        b'{"role":"user","content":"hi","surprise":1}',
        b'{"role":"assistant","audio":{"id":"x"}}',
        b'{"content":"hi"}',
        b'"hi"',
    ],
)
def test_anything_else_needs_a_second_look(message: bytes) -> None:
    """Unknown fields, sound, or no role: not plain."""
    with pytest.raises(msgspec.ValidationError):
        decode_messages(b"[%b]" % message)
