"""What a request may contain: the caller's JSON checked, adjusted, and written anew.

The plan: split the object into raw fields (no value is parsed that needn't be), check those that
cost money, hold state or say who the caller is, and encode the result. The same is done one level
down for messages, tools and ``stream_options``, and for the parts of a message's content.
``fields`` says which names may be there at all; this module looks at values.

What this is not: no check of what the upstream checks itself (the range of ``temperature``, the
text of a message), and no counting of tokens or money: later decisions use the numbers it returns.

Invariants:
- What was checked is what is sent: the body is always re-encoded, so of a repeated field only the
  last is left, whichever one another parser would have taken.
- Below the levels named above, the caller's bytes are passed on as they are.
- The output ceiling is always in the body, in the one field that the model's upstream obeys.
- Errors repeat names of fields at most, never a value, and never an exception's text.
"""

from __future__ import annotations

from typing import Final, Literal, TypeVar

import msgspec
from msgspec import Raw

from freeapi.errors import InvalidJson, InvalidValue, UnsupportedParameter
from freeapi.policy.fields import (
    CHAT_FIELDS,
    MESSAGE_FIELDS,
    PART_FIELDS,
    STREAM_OPTION_FIELDS,
    TOOL_FIELDS,
    Changes,
    Fields,
    apply,
    kept,
)
from freeapi.policy.models import Model, ModelTable

#: Messages in a request. OpenAI publishes no limit; each costs the event loop about 1 µs.
MESSAGES_MAX: Final = 2_048
#: Parts of one message's content, for the same reason.
PARTS_MAX: Final = 2_048
#: Tools and legacy functions in a request. Source: OpenAI API reference, ``tools``.
TOOLS_MAX: Final = 128


class Rules(msgspec.Struct, frozen=True):
    """The operator's ``[policy]`` as far as it concerns what a request contains."""

    n_max: int
    unknown_fields: Literal["drop", "refuse"]


class Prepared(msgspec.Struct, frozen=True):
    """A request that may be sent, and what the decisions after this one need to know of it."""

    body: bytes
    model: Model
    stream: bool
    #: We asked for the usage chunk and the caller didn't: it has to be held back.
    hides_usage: bool
    choices: int
    #: Per choice, as sent.
    output_tokens_max: int
    message_count: int
    #: Legacy functions included.
    tool_count: int
    #: Value of ``x-freeapi-adjusted``; empty: send no such header.
    adjusted: bytes


class _PlainMessage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message that needs no second look: known fields, text for content, no audio."""

    role: str
    content: str | None = None
    name: Raw | None = None
    refusal: Raw | None = None
    tool_calls: Raw | None = None
    tool_call_id: Raw | None = None
    function_call: Raw | None = None
    reasoning_content: Raw | None = None


_T = TypeVar("_T")

# Decoders hold no state, so one of each serves all requests. Where null is allowed it means the
# same as no field.
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_OBJECTS: Final = msgspec.json.Decoder(list[dict[str, Raw]])
_PLAIN_MESSAGES: Final = msgspec.json.Decoder(list[_PlainMessage])
_STRING: Final = msgspec.json.Decoder(str)
_CONTENT: Final[msgspec.json.Decoder[str | list[dict[str, Raw]] | None]] = msgspec.json.Decoder(
    str | list[dict[str, Raw]] | None
)
_FLAG: Final[msgspec.json.Decoder[bool | None]] = msgspec.json.Decoder(bool | None)
_INTEGER: Final[msgspec.json.Decoder[int | None]] = msgspec.json.Decoder(int | None)
_OBJECT_OR_NULL: Final[msgspec.json.Decoder[dict[str, Raw] | None]] = msgspec.json.Decoder(
    dict[str, Raw] | None
)
_OBJECTS_OR_NULL: Final[msgspec.json.Decoder[list[dict[str, Raw]] | None]] = msgspec.json.Decoder(
    list[dict[str, Raw]] | None
)
_STRINGS_OR_NULL: Final[msgspec.json.Decoder[list[str] | None]] = msgspec.json.Decoder(
    list[str] | None
)
_ENCODER: Final = msgspec.json.Encoder()

# Words are compared as bytes. JSON has longer spellings of strings (\u0074ext), which no client
# writes for these; they count as another word, which is the safe side.
_NULL: Final = Raw(b"null")
_TEXT_PARTS: Final = (Raw(b'"text"'), Raw(b'"refusal"'))
_OWN_TOOLS: Final = (Raw(b'"function"'), Raw(b'"custom"'))
#: Tiers at or below the standard price. Not "auto": that is whatever the account is set to.
_CHEAP_TIERS: Final = (Raw(b'"default"'), Raw(b'"flex"'), _NULL)
_NOT_STORED: Final = (Raw(b"false"), _NULL)
_USAGE_ONLY: Final = Raw(b'{"include_usage":true}')

_MESSAGE_KEPT: Final = kept(MESSAGE_FIELDS)
_PART_KEPT: Final = kept(PART_FIELDS)
assert frozenset(_PlainMessage.__struct_fields__) <= _MESSAGE_KEPT, "a plain message is checked"
#: With these fields alone, a request is done after the checks that every request needs.
_COMMON: Final = kept(CHAT_FIELDS) - {
    "n",
    "tools",
    "functions",
    "store",
    "service_tier",
    "modalities",
}


def prepare_chat(body: bytes, table: ModelTable, rules: Rules) -> Prepared:
    """The body of ``POST /v1/chat/completions`` as it may be sent.

    Raises InvalidJson, InvalidValue, UnsupportedParameter, ModelNotFound: nothing was taken yet.
    O(bytes): about 6 µs for a short chat, of which msgspec takes 3.5.
    """
    try:
        return _prepare_chat(body, table, rules)
    except RecursionError:
        # msgspec's way to say so; how deep is too deep depends on the interpreter.
        raise InvalidJson(problem="it is nested too deeply") from None


def _prepare_chat(body: bytes, table: ModelTable, rules: Rules) -> Prepared:
    fields = _split(body)
    changes = Changes(rules.unknown_fields == "refuse")
    model = _check_model(fields, table)
    output_tokens_max = _put_ceiling(fields, model, changes)
    stream, hides_usage = _check_stream(fields, changes)
    message_count = _check_messages(fields, changes)
    choices, tool_count = 1, 0
    if not fields.keys() <= _COMMON:
        choices = _check_choices(fields, rules.n_max)
        tool_count = _check_tools(fields, changes)
        _check_extras(fields, changes)
        apply(CHAT_FIELDS, fields, changes, "")
    return Prepared(
        body=_ENCODER.encode(fields),
        model=model,
        stream=stream,
        hides_usage=hides_usage,
        choices=choices,
        output_tokens_max=output_tokens_max,
        message_count=message_count,
        tool_count=tool_count,
        adjusted=changes.header(),
    )


def _split(body: bytes) -> Fields:
    """The top level's raw fields. Raises InvalidJson."""
    try:
        # msgspec doesn't look at the UTF-8 of what it leaves raw, and upstreams differ there.
        if not body.isascii():
            body.decode("utf-8")
        return _OBJECT.decode(body)
    except UnicodeDecodeError as error:
        raise InvalidJson(problem=f"it is not UTF-8 at byte {error.start}") from None
    except msgspec.ValidationError:
        raise InvalidJson(problem="it is not an object") from None
    except msgspec.DecodeError:
        raise InvalidJson(problem=_why_not_json(body)) from None


def _why_not_json(body: bytes) -> str:
    if not body:
        return "it is empty"
    if body.startswith(b"\xef\xbb\xbf"):
        return "it starts with a byte order mark"
    return "it is not valid JSON"


def _decode(decoder: msgspec.json.Decoder[_T], value: Raw, param: str, wanted: str) -> _T:
    """Raises InvalidValue, without msgspec's wording."""
    try:
        return decoder.decode(value)
    except msgspec.DecodeError:
        raise InvalidValue(param=param, problem=f"it must be {wanted}") from None


def _take_count(fields: Fields, name: str) -> int | None:
    """Take the field out; its value if it has one. Raises InvalidValue unless it is at least 1."""
    if name not in fields:
        return None
    number = _decode(_INTEGER, fields.pop(name), name, "a whole number")
    if number is not None and number < 1:
        raise InvalidValue(param=name, problem="it must be at least 1")
    return number


# --- What every request needs ---------------------------------------------------------------------


def _check_model(fields: Fields, table: ModelTable) -> Model:
    """The model asked for, put under its upstream's name. Raises ModelNotFound."""
    name = _decode(_STRING, fields.get("model", _NULL), "model", "the name of a model")
    if not name:
        raise InvalidValue(param="model", problem="it must be the name of a model")
    model = table.get(name)
    if "chat" not in model.endpoints:
        raise InvalidValue(param="model", problem="this model is not served for chat completions")
    fields["model"] = model.upstream_model
    return model


def _put_ceiling(fields: Fields, model: Model, changes: Changes) -> int:
    """Put the smallest of what was asked for and what the model allows in its one field."""
    newer = _take_count(fields, "max_completion_tokens")
    older = _take_count(fields, "max_tokens")
    if newer is not None and older is not None:
        if older < newer:
            changes.note("max_completion_tokens=dropped")
            newer = None
        else:
            changes.note("max_tokens=dropped")
    name, asked = ("max_tokens", older) if newer is None else ("max_completion_tokens", newer)
    ceiling = model.max_output_tokens
    if asked is not None and asked <= ceiling:
        ceiling = asked
    elif asked is not None:
        changes.note(f"{name}={ceiling}")
    fields[model.output_field] = ceiling
    return ceiling


def _check_stream(fields: Fields, changes: Changes) -> tuple[bool, bool]:
    """Whether it streams, and whether the usage chunk is for us alone."""
    stream = bool(_decode(_FLAG, fields.pop("stream", _NULL), "stream", "true or false"))
    given = fields.pop("stream_options", _NULL)
    options: Fields | None = _decode(_OBJECT_OR_NULL, given, "stream_options", "an object")
    if not stream:
        if options is not None:
            problem = "it is only allowed when 'stream' is true"
            raise InvalidValue(param="stream_options", problem=problem)
        return False, False
    fields["stream"] = True
    if options is None:
        fields["stream_options"] = _USAGE_ONLY
        return True, True
    apply(STREAM_OPTION_FIELDS, options, changes, "stream_options.")
    wanted = options.get("include_usage", _NULL)
    shows = _decode(_FLAG, wanted, "stream_options.include_usage", "true or false")
    options["include_usage"] = True
    fields["stream_options"] = options
    return True, not shows


def _check_messages(fields: Fields, changes: Changes) -> int:
    """How many messages there are; about 0.5 µs each, 1 µs and its parts' where one is a list."""
    given = fields.get("messages", _NULL)
    messages: list[Fields] = _decode(_OBJECTS, given, "messages", "a list of messages (objects)")
    if not 1 <= len(messages) <= MESSAGES_MAX:
        raise InvalidValue(param="messages", problem=f"there must be 1 to {MESSAGES_MAX} of them")
    try:
        # One call tells that all of them are plain text, as most are: half the time of the loop.
        _PLAIN_MESSAGES.decode(given)
    except msgspec.ValidationError:
        for index, message in enumerate(messages):
            _check_message(message, f"messages[{index}]", changes)
    fields["messages"] = messages
    return len(messages)


def _check_message(message: Fields, path: str, changes: Changes) -> None:
    if not message.keys() <= _MESSAGE_KEPT:
        apply(MESSAGE_FIELDS, message, changes, f"{path}.")
    _decode(_STRING, message.get("role", _NULL), f"{path}.role", "a string")
    given = message.get("content", _NULL)
    content = _decode(_CONTENT, given, f"{path}.content", "a string or a list of parts (objects)")
    if isinstance(content, list):
        _check_parts(content, f"{path}.content", changes)
        message["content"] = content


def _check_parts(parts: list[Fields], path: str, changes: Changes) -> None:
    if len(parts) > PARTS_MAX:
        raise InvalidValue(param=path, problem=f"there can be at most {PARTS_MAX} parts")
    for index, part in enumerate(parts):
        if not part.keys() <= _PART_KEPT:
            apply(PART_FIELDS, part, changes, f"{path}[{index}].")
        if part.get("type") not in _TEXT_PARTS:
            raise UnsupportedParameter(
                param=f"{path}[{index}].type",
                problem="parts are of type 'text' or 'refusal', since the cost of images, audio "
                "and files does not follow from their size",
            )


# --- What few requests need -----------------------------------------------------------------------


def _check_choices(fields: Fields, n_max: int) -> int:
    choices = _take_count(fields, "n")
    if choices is None:
        return 1
    if choices > n_max:
        raise InvalidValue(param="n", problem=f"this instance allows at most {n_max}")
    fields["n"] = choices
    return choices


def _check_tools(fields: Fields, changes: Changes) -> int:
    """How many tools there are, legacy functions included."""
    count = 0
    for name in ("tools", "functions"):
        given = fields.pop(name, _NULL)
        tools: list[Fields] | None = _decode(_OBJECTS_OR_NULL, given, name, "a list of objects")
        if tools is None:
            continue
        count += len(tools)
        if count > TOOLS_MAX:
            raise InvalidValue(param=name, problem=f"there can be at most {TOOLS_MAX} of them")
        if name == "tools":
            for index, tool in enumerate(tools):
                _check_tool(tool, f"tools[{index}].", changes)
        fields[name] = tools
    return count


def _check_tool(tool: Fields, path: str, changes: Changes) -> None:
    apply(TOOL_FIELDS, tool, changes, path)
    if tool.get("type") not in _OWN_TOOLS:
        raise UnsupportedParameter(
            param=f"{path}type",
            problem="tools are of type 'function' or 'custom', since others are billed outside of "
            "tokens",
        )


def _check_extras(fields: Fields, changes: Changes) -> None:
    """Fields whose value decides: what would be stored, cost more, or answer in sound."""
    if fields.get("store", _NULL) not in _NOT_STORED:
        fields["store"] = False
        changes.note("store=false")
    if fields.get("service_tier", _NULL) not in _CHEAP_TIERS:
        del fields["service_tier"]
        changes.note("service_tier=dropped")
    given = fields.get("modalities", _NULL)
    modalities = _decode(_STRINGS_OR_NULL, given, "modalities", "a list of strings")
    if modalities not in (None, ["text"]):
        raise UnsupportedParameter(param="modalities", problem="the only one here is 'text'")
