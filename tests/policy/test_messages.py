"""Which messages need no second look."""

from __future__ import annotations

import msgspec
import pytest

from freeapi.policy.messages import decode_plain_messages


@pytest.mark.parametrize(
    "message",
    [
        b'{"role":"user","content":"hi"}',
        b'{"role":"assistant","content":null,"tool_calls":[{"id":"x"}]}',
        b'{"role":"tool","tool_call_id":"x","content":"","name":"n"}',
    ],
)
def test_known_fields_and_text_are_plain(message: bytes) -> None:
    """Text, or nothing, for content, and fields that may pass as they are."""
    assert len(decode_plain_messages(b"[%b]" % message)) == 1


@pytest.mark.parametrize(
    "message",
    [
        b'{"role":"user","content":[{"type":"text","text":"hi"}]}',
        b'{"role":"user","content":"hi","surprise":1}',
        b'{"role":"assistant","audio":{"id":"x"}}',
        b'{"content":"hi"}',
        b'{"role":5}',
        b'"hi"',
    ],
)
def test_anything_else_needs_a_second_look(message: bytes) -> None:
    """Parts, unknown fields, sound, or no role: not plain."""
    with pytest.raises(msgspec.ValidationError):
        decode_plain_messages(b"[%b]" % message)
