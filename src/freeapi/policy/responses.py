"""The Responses API without its memory: the whole conversation comes with each request.

The plan: what would keep, look up or run something at the upstream is refused or switched off; the
rest is checked as in chat, one level down: the input is a list of items, each an object of raw
fields with a table by its type, and a message's content or a tool's output may be a list of parts.

What this is not: no check of roles, call ids or of what an item says.

Invariants:
- ``store`` is false and ``max_output_tokens`` is there, in every body that is sent.
- No item refers to anything but what is in it: no ids of items, files or responses are looked up,
  reasoning comes with its encrypted content.
- No tool but the caller's own, neither offered nor chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.draft import (
    FLAG_OR_NULL,
    ITEMS_MAX,
    NULL,
    OBJECT_OR_NULL,
    OBJECTS_OR_NULL,
    STRING_OR_NULL,
    STRINGS_OR_NULL,
    TOKENS_PER_MESSAGE,
    TOKENS_PER_TOOL,
    Draft,
    Prepared,
    check_text,
    check_tool_count,
    check_tools,
    decode,
    drop_dear_tier,
    put_ceiling,
    require_own_tool,
    take_stream,
    take_stream_options,
)
from freeapi.policy.fields import Fields, Rule, apply, kept
from freeapi.policy.parts import RESPONSE_PARTS, check_content
from freeapi.policy.tables import (
    CALL_ITEM_FIELDS,
    MESSAGE_ITEM_FIELDS,
    OUTPUT_ITEM_FIELDS,
    REASONING_FIELDS,
    REASONING_ITEM_FIELDS,
    RESPONSE_FIELDS,
    RESPONSE_STREAM_OPTION_FIELDS,
    RESPONSE_TOOL_FIELDS,
    TOOL_CHOICE_FIELDS,
)

_INPUT: Final[msgspec.json.Decoder[str | list[dict[str, Raw]]]] = msgspec.json.Decoder(
    str | list[dict[str, Raw]]
)
_CHOICE: Final[msgspec.json.Decoder[str | dict[str, Raw] | None]] = msgspec.json.Decoder(
    str | dict[str, Raw] | None
)
_STANDARD_MODES: Final = (Raw(b'"standard"'), NULL)
_ALLOWED_TOOLS: Final = Raw(b'"allowed_tools"')
_ITEM_REFERENCE: Final = b'"item_reference"'
#: What may be asked for besides the answer; the rest is about hosted tools and stored images.
_INCLUDABLE: Final = {"reasoning.encrypted_content", "message.output_text.logprobs"}
_STATELESS: Final = "this instance keeps no state between requests"


def prepare(draft: Draft) -> Prepared:
    """The body of ``POST /v1/responses`` as it may be sent."""
    apply(RESPONSE_FIELDS, draft.fields, draft.changes, "")
    ceiling = put_ceiling(draft, "max_output_tokens", draft.model.max_output_tokens)
    stream = take_stream(draft)
    options = take_stream_options(draft, stream, RESPONSE_STREAM_OPTION_FIELDS)
    if options is not None:
        draft.fields["stream_options"] = options
    _check_state(draft)
    drop_dear_tier(draft)
    _check_reasoning(draft)
    extra_tokens = _check_input(draft)
    extra_tokens += TOKENS_PER_TOOL * check_tools(draft, "tools", RESPONSE_TOOL_FIELDS)
    _check_tool_choice(draft)
    return draft.finish(stream, output_tokens=ceiling, extra_tokens=extra_tokens)


def _check_state(draft: Draft) -> None:
    """Nothing is kept, nothing goes on after the answer, nothing is shown of what was kept."""
    fields = draft.fields
    # Silent where nothing was asked: OpenAI would store by default.
    if decode(FLAG_OR_NULL, fields.get("store", NULL), "store", "true or false"):
        draft.changes.note("store=false")
    fields["store"] = False
    if decode(FLAG_OR_NULL, fields.pop("background", NULL), "background", "true or false"):
        raise UnsupportedParameter(param="background", problem=_STATELESS)
    given = fields.get("include", NULL)
    included = decode(STRINGS_OR_NULL, given, "include", "a list of strings")
    if not _INCLUDABLE.issuperset(included or ()):
        raise UnsupportedParameter(
            param="include",
            problem="only 'reasoning.encrypted_content' and 'message.output_text.logprobs' can be "
            "had here",
        )


def _check_reasoning(draft: Draft) -> None:
    given = draft.fields.get("reasoning", NULL)
    reasoning: Fields | None = decode(OBJECT_OR_NULL, given, "reasoning", "an object")
    if reasoning is None:
        return
    apply(REASONING_FIELDS, reasoning, draft.changes, "reasoning.")
    if reasoning.get("mode", NULL) not in _STANDARD_MODES:
        problem = "the only one here is 'standard', since others cost more than their ceiling says"
        raise UnsupportedParameter(param="reasoning.mode", problem=problem)
    draft.fields["reasoning"] = reasoning


# --- Input ----------------------------------------------------------------------------------------


def _check_input(draft: Draft) -> int:
    """The tokens that no byte stands for; about 1.5 µs an item, and its parts'."""
    fields = draft.fields
    # Text only: some take a list of items here, which would go unchecked.
    decode(STRING_OR_NULL, fields.get("instructions", NULL), "instructions", "a string")
    wanted = "a string or a list of items (objects)"
    items = decode(_INPUT, fields.get("input", NULL), "input", wanted)
    if isinstance(items, str):
        return 2 * TOKENS_PER_MESSAGE
    if not 1 <= len(items) <= ITEMS_MAX:
        raise InvalidValue(param="input", problem=f"there must be 1 to {ITEMS_MAX} items")
    extra_tokens = TOKENS_PER_MESSAGE * (1 + len(items))
    for index, item in enumerate(items):
        extra_tokens += _check_item(draft, item, f"input[{index}]")
    fields["input"] = items
    return extra_tokens


def _check_item(draft: Draft, item: Fields, path: str) -> int:
    """How many tokens may be hidden in it. An item without a type is a message."""
    word = bytes(item.get("type", NULL))
    kind = _ITEMS.get(word)
    if kind is None:
        problem = _STATELESS if word == _ITEM_REFERENCE else _OTHERS
        raise UnsupportedParameter(param=f"{path}.type", problem=problem)
    if not kind.kept.issuperset(item):
        apply(kind.table, item, draft.changes, f"{path}.")
    return kind.check(draft, item, path)


def _check_message(draft: Draft, item: Fields, path: str) -> int:
    # With an id and nothing in it, it would be a reference to a stored one.
    check_text(item, "role", f"{path}.")
    return _check_filled(draft, item, "content", path)


def _check_output(draft: Draft, item: Fields, path: str) -> int:
    return _check_filled(draft, item, "output", path)


def _check_filled(draft: Draft, item: Fields, name: str, path: str) -> int:
    if not check_content(draft, item, name, path, RESPONSE_PARTS):
        problem = "it must be a string or a list of parts (objects)"
        raise InvalidValue(param=f"{path}.{name}", problem=problem)
    return 0


def _check_call(draft: Draft, item: Fields, path: str) -> int:
    return 0


def _check_reasoning_item(draft: Draft, item: Fields, path: str) -> int:
    """Its text may have been packed, so its tokens are bounded by what can have been made here."""
    given = item.get("encrypted_content", NULL)
    if not decode(STRING_OR_NULL, given, f"{path}.encrypted_content", "a string"):
        raise UnsupportedParameter(
            param=f"{path}.type",
            problem="reasoning has to come with its 'encrypted_content' (ask for it by 'include'), "
            f"since {_STATELESS}",
        )
    return draft.model.max_output_tokens


class _Kind(NamedTuple):
    """What a type of item may hold; ``check`` looks at values and counts hidden tokens."""

    table: Mapping[str, Rule]
    kept: frozenset[str]
    check: Callable[[Draft, Fields, str], int]


_MESSAGE: Final = _Kind(MESSAGE_ITEM_FIELDS, kept(MESSAGE_ITEM_FIELDS), _check_message)
_CALL: Final = _Kind(CALL_ITEM_FIELDS, kept(CALL_ITEM_FIELDS), _check_call)
_OUTPUT: Final = _Kind(OUTPUT_ITEM_FIELDS, kept(OUTPUT_ITEM_FIELDS), _check_output)
_REASONING: Final = _Kind(REASONING_ITEM_FIELDS, kept(REASONING_ITEM_FIELDS), _check_reasoning_item)
#: Type as it is spelt in JSON to what holds for it.
_ITEMS: Final[Mapping[bytes, _Kind]] = {
    b"null": _MESSAGE,
    b'"message"': _MESSAGE,
    b'"function_call"': _CALL,
    b'"custom_tool_call"': _CALL,
    b'"function_call_output"': _OUTPUT,
    b'"custom_tool_call_output"': _OUTPUT,
    b'"reasoning"': _REASONING,
}
_OTHERS: Final = (
    "items are messages, calls of functions or custom tools, their outputs, or reasoning; others "
    "belong to tools that the upstream runs, which are billed outside of tokens"
)


# --- Choice of a tool -----------------------------------------------------------------------------


def _check_tool_choice(draft: Draft) -> None:
    """A word, one of the caller's own tools, or a list of them."""
    wanted = "a string or an object"
    given = draft.fields.get("tool_choice", NULL)
    choice: str | Fields | None = decode(_CHOICE, given, "tool_choice", wanted)
    if not isinstance(choice, dict):
        return
    apply(TOOL_CHOICE_FIELDS, choice, draft.changes, "tool_choice.")
    if choice.get("type") != _ALLOWED_TOOLS:
        require_own_tool(choice, "tool_choice.")
    _check_allowed_tools(choice)
    draft.fields["tool_choice"] = choice


def _check_allowed_tools(choice: Fields) -> None:
    param = "tool_choice.tools"
    given = choice.get("tools", NULL)
    tools: list[Fields] | None = decode(OBJECTS_OR_NULL, given, param, "a list of objects")
    if tools is None:
        return
    check_tool_count(len(tools), param)
    for index, tool in enumerate(tools):
        require_own_tool(tool, f"{param}[{index}].")
    choice["tools"] = tools
