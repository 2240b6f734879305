"""Chat completions: which messages, tools and options may be sent, and the ceiling put on them.

The plan: after the ceiling and the stream, the messages, each an object of raw fields and, where
its content is a list, its parts the same; then, for the few requests that have more than the common
fields, what costs, stores or answers in sound.

What this is not: no check of roles, of tool calls or of what a message says.

Invariants:
- The output ceiling is always in the body, in the one field that the model's upstream obeys.
- A plain message (known fields, text for content) fares the same by the short way and the long one.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
from msgspec import Raw

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.draft import (
    ITEMS_MAX,
    NULL,
    OBJECTS,
    OBJECTS_OR_NULL,
    STRINGS_OR_NULL,
    TOKENS_PER_MESSAGE,
    TOKENS_PER_TOOL,
    Draft,
    Prepared,
    ask_usage,
    check_text,
    check_tool_count,
    check_tools,
    decode,
    drop_dear_tier,
    lowered,
    take_choices,
    take_count,
)
from freeapi.policy.fields import Fields, apply, kept
from freeapi.policy.messages import PlainMessage, decode_messages
from freeapi.policy.parts import CHAT_PARTS, check_content
from freeapi.policy.tables import CHAT_FIELDS, MESSAGE_FIELDS, TOOL_FIELDS

#: Of what supports the buffer protocol; a third of what a memoryview takes.
_first_byte: Final = struct.Struct("c").unpack_from
_QUOTE: Final = (b'"',)
_NOT_STORED: Final = (Raw(b"false"), NULL)
_MESSAGE_KEPT: Final = kept(MESSAGE_FIELDS)
assert frozenset(PlainMessage.__struct_fields__) <= _MESSAGE_KEPT, "a plain message is checked"
_KEPT: Final = kept(CHAT_FIELDS)
#: With these fields alone, a request is done after the checks that every request needs.
_COMMON: Final = _KEPT - {
    "n",
    "tools",
    "functions",
    "store",
    "service_tier",
    "modalities",
}


def prepare(draft: Draft) -> Prepared:
    """The body of ``POST /v1/chat/completions`` as it may be sent."""
    ceiling = _put_ceiling(draft)
    stream, hides_usage = ask_usage(draft)
    extra_tokens = TOKENS_PER_MESSAGE * _check_messages(draft)
    choices = 1
    if not _COMMON.issuperset(draft.fields):
        choices = take_choices(draft)
        extra_tokens += TOKENS_PER_TOOL * _check_tools(draft)
        _check_extras(draft)
        if not _KEPT.issuperset(draft.fields):
            apply(CHAT_FIELDS, draft.fields, draft.changes, "")
    return draft.finish(stream, hides_usage, choices * ceiling, extra_tokens)


def _put_ceiling(draft: Draft) -> int:
    """Put the smallest of what was asked for and what the model allows in its one field."""
    fields, model = draft.fields, draft.model
    newer = take_count(fields, "max_completion_tokens")
    older = take_count(fields, "max_tokens")
    if newer is not None and older is not None:
        if older < newer:
            draft.changes.note("max_completion_tokens=dropped")
            newer = None
        else:
            draft.changes.note("max_tokens=dropped")
    name, asked = ("max_tokens", older) if newer is None else ("max_completion_tokens", newer)
    ceiling = model.max_output_tokens if asked is None else lowered(draft, name, asked)
    fields[model.output_field] = ceiling
    return ceiling


def _check_messages(draft: Draft) -> int:
    """How many messages there are; about 0.5 µs each, 1 µs and its parts' where one is a list."""
    given = draft.fields.get("messages", NULL)
    plain = _plain_messages(given)
    if plain is not None:
        draft.fields["messages"] = plain
        return len(plain)
    messages: list[Fields] = decode(OBJECTS, given, "messages", "a list of messages (objects)")
    if not 1 <= len(messages) <= ITEMS_MAX:
        raise InvalidValue(param="messages", problem=f"there must be 1 to {ITEMS_MAX} of them")
    for index, message in enumerate(messages):
        _check_message(draft, message, f"messages[{index}]")
    draft.fields["messages"] = messages
    return len(messages)


def _plain_messages(given: Raw) -> list[PlainMessage] | None:
    """The messages if all of them are plain text, as most are: a third of what else it takes."""
    try:
        messages = decode_messages(given)
    except msgspec.DecodeError:
        return None
    if not 1 <= len(messages) <= ITEMS_MAX:
        return None
    for message in messages:
        # The first byte tells what a JSON value is: here a string, or null.
        if _first_byte(message.role) != _QUOTE:
            return None
        content = message.content
        if _first_byte(content) != _QUOTE and content != NULL:
            return None
    return messages


def _check_message(draft: Draft, message: Fields, path: str) -> None:
    if not _MESSAGE_KEPT.issuperset(message):
        apply(MESSAGE_FIELDS, message, draft.changes, f"{path}.")
    check_text(message, "role", f"{path}.")
    check_content(draft, message, "content", path, CHAT_PARTS)


def _check_tools(draft: Draft) -> int:
    """How many tools there are, legacy functions included."""
    count = check_tools(draft, "tools", TOOL_FIELDS)
    if "functions" not in draft.fields:
        return count
    given = draft.fields.pop("functions")
    functions: list[Fields] | None = decode(
        OBJECTS_OR_NULL, given, "functions", "a list of objects"
    )
    if functions is None:
        return count
    check_tool_count(count + len(functions), "functions")
    draft.fields["functions"] = functions
    return count + len(functions)


def _check_extras(draft: Draft) -> None:
    """Fields whose value decides: what would be stored, cost more, or answer in sound."""
    fields = draft.fields
    if fields.get("store", NULL) not in _NOT_STORED:
        fields["store"] = False
        draft.changes.note("store=false")
    drop_dear_tier(draft)
    if "modalities" in fields:
        _check_modalities(fields["modalities"])


def _check_modalities(given: Raw) -> None:
    modalities = decode(STRINGS_OR_NULL, given, "modalities", "a list of strings")
    if modalities not in (None, ["text"]):
        raise UnsupportedParameter(param="modalities", problem="the only one here is 'text'")
