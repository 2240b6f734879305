"""Chat completions: which messages, tools and options may be sent, and the ceiling put on them.

The plan: a plain request is decoded and checked in one scan (``messages``). All others, and all
errors, take the long way: after the ceiling and the stream, the messages, each an object of raw
fields and, where its content is a list, its parts the same; then what costs, stores or answers in
sound.

What this is not: no check of roles, of tool calls or of what a message says.

Invariants:
- The output ceiling is always in the body, in the one field that the model's upstream obeys.
- A plain request fares the same by the short way and the long one, and nobody has to be told a
  word about it.
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
    PlainRequest,
    PlainTool,
    StreamOptions,
    decode_plain,
    encode_plain,
)
from freeapi.policy.models import Model, ModelTable
from freeapi.policy.parts import CHAT_PARTS, QUOTE, check_content, first_byte
from freeapi.policy.tables import (
    CHAT_FIELDS,
    MESSAGE_FIELDS,
    STREAM_OPTION_FIELDS,
    TOOL_FIELDS,
)

#: How JSON values begin that a plain message has for content.
_TEXT_OR_NULL: Final = (QUOTE, (b"n",))
_NOT_STORED: Final = (Raw(b"false"), NULL)
_MESSAGE_KEPT: Final = kept(MESSAGE_FIELDS)
_KEPT: Final = kept(CHAT_FIELDS)
for _shape, _passing in (
    (PlainRequest, _KEPT),
    (PlainMessage, _MESSAGE_KEPT),
    (PlainTool, kept(TOOL_FIELDS)),
    (StreamOptions, kept(STREAM_OPTION_FIELDS)),
):
    assert _passing.issuperset(_shape.__struct_fields__), f"{_shape} has a field that can't pass"
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
        request = decode_plain(body)
    except msgspec.DecodeError:
        return None
    if not _is_plain(request):
        return None
    model = find_model("chat", request.model, table)
    request.model = model.upstream_model
    ceiling, adjusted = _put_plain_ceiling(request, model)
    stream, hides_usage = _ask_plain_usage(request)
    extra_tokens = TOKENS_PER_MESSAGE * len(request.messages)
    tools = request.tools
    if tools is not None:
        extra_tokens += TOKENS_PER_TOOL * len(tools)
    sent = encode_plain(request)
    size = len(sent)
    estimated, bound = size // BYTES_PER_TOKEN, size + extra_tokens
    return Prepared(
        "chat", sent, model, stream, hides_usage, estimated, ceiling, bound, 0, adjusted
    )


def _is_plain(request: PlainRequest) -> bool:
    """What is left to check: no parts in messages, no hosted tools, nothing that contradicts."""
    for message in request.messages:
        if first_byte(message.content) not in _TEXT_OR_NULL:
            return False
    tools = request.tools
    if tools is not None:
        for tool in tools:
            if tool.type not in OWN_TOOLS:
                return False
    if request.stream_options is not None and not request.stream:
        return False
    return request.max_tokens is None or request.max_completion_tokens is None


def _put_plain_ceiling(request: PlainRequest, model: Model) -> tuple[int, bytes]:
    """The ceiling, put in the model's one field, and what the caller is told about it."""
    name, asked = "max_tokens", request.max_tokens
    if asked is None:
        name, asked = "max_completion_tokens", request.max_completion_tokens
    ceiling, adjusted = model.max_output_tokens, b""
    if asked is not None:
        if asked > ceiling:
            adjusted = f"{name}={ceiling}".encode("ascii")
        else:
            ceiling = asked
        # One of the two is the field that is put below.
        request.max_tokens = request.max_completion_tokens = None
    if model.output_field == "max_tokens":
        request.max_tokens = ceiling
    else:
        request.max_completion_tokens = ceiling
    return ceiling, adjusted


def _ask_plain_usage(request: PlainRequest) -> tuple[bool, bool]:
    """Whether it streams, and whether the usage chunk is for us alone."""
    stream = request.stream
    if stream is None:
        return False, False
    if not stream:
        request.stream = None
        return False, False
    options = request.stream_options
    if options is None:
        request.stream_options = USAGE_ONLY
        return True, True
    if options.include_usage:
        return True, False
    options.include_usage = True
    return True, True


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
