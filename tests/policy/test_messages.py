"""Which requests and messages need no second look, and that they come out as they went in."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from freeapi.policy.draft import ITEMS_MAX, TOOLS_MAX
from freeapi.policy.fields import Rule, kept
from freeapi.policy.messages import (
    PlainMessage,
    PlainPart,
    PlainParts,
    PlainRequest,
    PlainTool,
    StreamOptions,
)
from freeapi.policy.parts import PARTS_MAX
from freeapi.policy.tables import (
    CHAT_FIELDS,
    MESSAGE_FIELDS,
    PART_FIELDS,
    STREAM_OPTION_FIELDS,
    TOOL_FIELDS,
)


def decode_messages(body: bytes) -> list[PlainMessage]:
    return msgspec.json.decode(body, type=list[PlainMessage])


def request(fields: bytes, messages: bytes = b'[{"role":"user","content":"hi"}]') -> bytes:
    return b'{"model":"a","messages":%b%b}' % (messages, fields and b"," + fields)


@pytest.mark.parametrize(
    ("shape", "rules"),
    [
        (PlainRequest, CHAT_FIELDS),
        (PlainMessage, MESSAGE_FIELDS),
        (PlainPart, PART_FIELDS),
        (PlainTool, TOOL_FIELDS),
        (StreamOptions, STREAM_OPTION_FIELDS),
    ],
)
def test_no_shape_has_a_field_that_may_not_pass(
    shape: type[msgspec.Struct], rules: Mapping[str, Rule]
) -> None:
    """What the tables drop or refuse is no field of a shape, so it goes the long way."""
    assert kept(rules).issuperset(shape.__struct_fields__)
    assert shape.__struct_config__.forbid_unknown_fields


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
        b'{"role":null,"content":"hi"}',
        b'"hi"',
    ],
)
def test_anything_else_needs_a_second_look(message: bytes) -> None:
    """Unknown fields, sound, or no role: not plain."""
    with pytest.raises(msgspec.ValidationError):
        decode_messages(b"[%b]" % message)


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b'"temperature":0.70,"stop":[ "x" ],"seed":null',
        b'"stream":true,"stream_options":{"include_usage":false,"include_obfuscation":null}',
        b'"n":1,"tools":[{"type":"function","function":{ "name":"f" }}],"tool_choice":"auto"',
        b'"max_tokens":7,"max_completion_tokens":18446744073709551615',
    ],
)
def test_a_plain_request_keeps_its_bytes(fields: bytes) -> None:
    """Values that pass, null included, aren't read, and no field is added."""
    plain = msgspec.json.decode(request(fields), type=PlainRequest)
    assert sorted(msgspec.json.encode(plain)) == sorted(request(fields))


def test_where_a_value_is_read_a_null_is_no_field() -> None:
    """Nulls that upstreams needn't know of are left out."""
    fields = b'"max_tokens":null,"stream":null,"stream_options":null,"n":null,"tools":null'
    plain = msgspec.json.decode(request(fields), type=PlainRequest)
    assert msgspec.json.encode(plain) == request(b"")


@pytest.mark.parametrize(
    "fields",
    [
        b'"user":"me"',
        b'"Model":"b"',
        b'"store":false',
        b'"n":2',
        b'"n":true',
        b'"n":1.0',
        b'"max_tokens":0',
        b'"max_tokens":1e3',
        b'"max_tokens":"5"',
        b'"max_tokens":true',
        b'"stream":1',
        b'"stream_options":{"odd":1}',
        b'"model":null',
        b'"messages":null',
        b'"messages":[]',
        b'"messages":[],"messages":[{"role":"user"}]',
        b'"messages":[%b]' % b",".join([b'{"role":"user"}'] * (ITEMS_MAX + 1)),
        b'"tools":[%b]' % b",".join([b'{"type":"function"}'] * (TOOLS_MAX + 1)),
        b'"tools":[{"type":"function","x":1}]',
        b'"tools":[{"function":{}}]',
    ],
)
def test_no_other_request_is_plain(fields: bytes) -> None:
    """Fields or values that a caller may have to be told about go the long way."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(request(fields), type=PlainRequest)


@pytest.mark.parametrize(
    "parts",
    [
        b'[{"type":"text","text":"hi","x":1}]',
        b'[{"text":"hi"}]',
        b"5",
        b'["hi"]',
        b'[{"type":"image_url","image_url":{}}]',
        b"[%b]" % b",".join([b'{"type":"text"}'] * (PARTS_MAX + 1)),
    ],
)
def test_other_parts_are_not_plain(parts: bytes) -> None:
    """As with messages: unknown fields, images, or too many."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(parts, type=PlainParts)
