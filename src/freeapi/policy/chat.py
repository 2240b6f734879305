"""Chat completions: which messages, tools and options may be sent, and the ceiling put on them.

The plan: a plain request is decoded and checked in one scan (``messages``). All others, and all
errors, take the long way: after the ceiling and the stream, the messages, each an object of raw
fields and, where its content is a list, its parts the same; then what costs, stores or answers in
sound.

What this is not: no check of roles, of tool calls or of what a message says.

Invariants:
- The output ceiling is always in the body, in the one field that the model's upstream obeys.
- A plain request fares the same by the short way and the long one: what is sent means the same, and
  the same is reserved and told.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.draft import (
    BYTES_PER_TOKEN,
    ITEMS_MAX,
    NULL,
    OBJECTS,
    OBJECTS_OR_NULL,
    OWN_TOOLS,
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
    find_model,
    lowered,
    take_choices,
    take_count,
)
from freeapi.policy.fields import Fields, apply, has_only, kept
from freeapi.policy.messages import (
    USAGE_ONLY,
    PlainMessage,
    PlainParts,
    PlainRequest,
    PlainTool,
)
from freeapi.policy.models import Model, ModelTable
from freeapi.policy.parts import CHAT_PARTS, QUOTE, check_content, first_byte
from freeapi.policy.tables import (
    CHAT_FIELDS,
    MESSAGE_FIELDS,
    TOOL_FIELDS,
)

_decode_plain: Final = msgspec.json.Decoder(PlainRequest).decode
_decode_parts: Final = msgspec.json.Decoder(PlainParts).decode
_encode: Final = msgspec.json.Encoder().encode
#: As in ``parts``; compiled, what a module has itself is found without a look-up.
_first_byte: Final = first_byte
#: How ``null`` begins.
_N: Final = 0x6E
#: Kinds of parts that are no more than their text.
_TEXT_TYPES: Final = (Raw(b'"text"'), Raw(b'"refusal"'))
_NOT_STORED: Final = (Raw(b"false"), NULL)
_MESSAGE_KEPT: Final = kept(MESSAGE_FIELDS)
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

# --- The short way --------------------------------------------------------------------------------


def prepare_plain(body: bytes, table: ModelTable) -> Prepared | None:
    """A plain request as it may be sent. None: it isn't plain, and has to go the long way.

    Raises ModelNotFound, and InvalidValue if the model is for other endpoints.
    """
    try:
        request = _decode_plain(body)
    except msgspec.DecodeError:
        return None
    # Each attribute is read once: in an object of msgspec's that takes as long as a small function.
    messages, tools, stream = request.messages, request.tools, request.stream
    older, newer = request.max_tokens, request.max_completion_tokens
    if not _are_texts(messages) or (tools is not None and not _are_own(tools)):
        return None
    if older is not None and newer is not None:
        return None
    if not stream and request.stream_options is not None:
        return None
    model = find_model("chat", request.model, table)
    request.model = model.upstream_model
    ceiling, adjusted = _put_plain_ceiling(request, model, older, newer)
    hides_usage = False
    if stream:
        hides_usage = _ask_plain_usage(request)
    elif stream is not None:
        request.stream = None
    sent = _encode(request)
    size = len(sent)
    extra_tokens = TOKENS_PER_MESSAGE * len(messages)
    if tools is not None:
        extra_tokens += TOKENS_PER_TOOL * len(tools)
    return Prepared(
        "chat",
        sent,
        model,
        stream is True,
        hides_usage,
        size // BYTES_PER_TOKEN,
        ceiling,
        size + extra_tokens,
        0,
        adjusted,
    )


def _are_texts(messages: list[PlainMessage]) -> bool:
    """Whether all of them have for content a string, nothing, or parts of text, now decoded."""
    for message in messages:
        content = message.content
        first: int = _first_byte(content)[0]
        if first in (QUOTE, _N):
            continue
        try:
            parts = _decode_parts(content)
        except msgspec.DecodeError:
            return False
        if not all(part.type in _TEXT_TYPES for part in parts):
            return False
        message.content = parts  # type: ignore[assignment] # from here on it is only encoded
    return True


def _are_own(tools: list[PlainTool]) -> bool:
    """Whether they are tools that the caller runs."""
    return all(tool.type in OWN_TOOLS for tool in tools)


def _put_plain_ceiling(
    request: PlainRequest, model: Model, older: int | None, newer: int | None
) -> tuple[int, bytes]:
    """The ceiling, put in the model's one field, and what the caller is told about it.

    At most one was asked for, by the field's older name or its newer one.
    """
    ceiling: int = model.max_output_tokens
    adjusted = b""
    asked = newer if older is None else older
    if asked is not None:
        if asked > ceiling:
            name = "max_tokens" if newer is None else "max_completion_tokens"
            adjusted = f"{name}={ceiling}".encode("ascii")
        else:
            ceiling = asked
        # One of the two is put back below.
        request.max_tokens = request.max_completion_tokens = None
    if model.output_field == "max_tokens":
        request.max_tokens = ceiling
    else:
        request.max_completion_tokens = ceiling
    return ceiling, adjusted


def _ask_plain_usage(request: PlainRequest) -> bool:
    """Whether the usage chunk is for us alone."""
    options = request.stream_options
    if options is None:
        request.stream_options = USAGE_ONLY
        return True
    if options.include_usage:
        return False
    options.include_usage = True
    return True


# --- The long way ---------------------------------------------------------------------------------


def prepare(draft: Draft) -> Prepared:
    """The body of ``POST /v1/chat/completions`` as it may be sent."""
    ceiling = _put_ceiling(draft)
    stream, hides_usage = ask_usage(draft)
    extra_tokens = TOKENS_PER_MESSAGE * _check_messages(draft)
    choices = 1
    if not has_only(draft.fields, _COMMON):
        choices = take_choices(draft)
        extra_tokens += TOKENS_PER_TOOL * _check_tools(draft)
        _check_extras(draft)
        if not has_only(draft.fields, _KEPT):
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
    """How many messages there are; about 1 µs each, and its parts'."""
    given = draft.fields.get("messages", NULL)
    messages: list[Fields] = decode(OBJECTS, given, "messages", "a list of messages (objects)")
    if not 1 <= len(messages) <= ITEMS_MAX:
        raise InvalidValue(param="messages", problem=f"there must be 1 to {ITEMS_MAX} of them")
    for index, message in enumerate(messages):
        _check_message(draft, message, f"messages[{index}]")
    draft.fields["messages"] = messages
    return len(messages)


def _check_message(draft: Draft, message: Fields, path: str) -> None:
    if not has_only(message, _MESSAGE_KEPT):
        apply(MESSAGE_FIELDS, message, draft.changes, f"{path}.")
    message["role"] = check_text(message, "role", f"{path}.")
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
