"""What a chat request may contain, field by field: passed, adjusted, or refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from freeapi.errors import ClientError, InvalidValue
from freeapi.errors import UnsupportedParameter as Unsupported
from freeapi.policy.draft import ITEMS_MAX, TOOLS_MAX
from freeapi.policy.models import Model, ModelTable
from freeapi.policy.payload import Prepared, Rules
from freeapi.policy.payload import prepare as prepare_body
from freeapi.policy.tables import CHAT_FIELDS, MESSAGE_FIELDS
from tests import bodies
from tests.bodies import CANARY, DROP, PIXEL, REFUSE, TABLE, sent

HELLO = {"role": "user", "content": "你好?"}


def prepare(rules: Rules = DROP, /, **fields: Any) -> Prepared:
    """Prepare a good request with these fields added; ``...`` leaves one out."""
    request = {"model": "gpt-3.5-turbo", "messages": [HELLO], **fields}
    return bodies.prepare_fields("chat", rules, **request)


def prepare_text(text: str) -> Prepared:
    """Prepare a body written by hand: a good request's beginning, then ``text``."""
    start = '{"model":"gpt-3.5-turbo","messages":[{"role":"user","content":"hi"}]'
    return prepare_body("chat", (start + text).encode(), TABLE, DROP)


def refusal(error: type[ClientError], rules: Rules = DROP, /, **fields: Any) -> ClientError:
    request = {"model": "gpt-3.5-turbo", "messages": [HELLO], **fields}
    return bodies.refusal(error, "chat", rules, **request)


def extra_tokens(prepared: Prepared) -> int:
    """Tokens of the bound that no byte stands for."""
    return prepared.prompt_tokens_max - len(prepared.body)


# --- The whole ------------------------------------------------------------------------------------


def test_a_plain_request_changes_only_what_it_must() -> None:
    """The upstream's name and the ceiling are put in; nothing else, and no word about it."""
    prepared = prepare()
    assert sent(prepared) == {
        "model": "small",
        "messages": [HELLO],
        "max_completion_tokens": 1_024,
    }
    assert prepared.model is TABLE.get("gpt-3.5-turbo")
    assert (prepared.stream, prepared.hides_usage) == (False, False)
    assert prepared.output_tokens == 1_024
    assert prepared.prompt_tokens == len(prepared.body) // 4
    assert prepared.prompt_tokens_max == len(prepared.body) + 16
    assert (prepared.endpoint, prepared.units) == ("chat", 0)
    assert prepared.adjusted == b""


@pytest.mark.parametrize(
    "name", [name for name, rule in CHAT_FIELDS.items() if rule.action == "pass"]
)
def test_harmless_fields_pass_untouched(name: str) -> None:
    """Each documented field that neither costs nor identifies is sent as it came, null included."""
    for value in ({"some": ["value", 1.5, None]}, None, 0):
        prepared = prepare(**{name: value})
        assert sent(prepared)[name] == value
        assert prepared.adjusted == b""


@pytest.mark.parametrize(
    "name",
    [
        "user",
        "safety_identifier",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
    ],
)
def test_what_identifies_the_caller_is_dropped_and_named(name: str) -> None:
    """Nothing of these fields leaves, and the caller is told."""
    prepared = prepare(**{name: CANARY})
    assert CANARY.encode() not in prepared.body
    assert name not in sent(prepared)
    assert prepared.adjusted == f"{name}=dropped".encode()
    assert prepare(**{name: None}).adjusted == b""


@pytest.mark.parametrize(
    "name",
    [
        "web_search_options",
        "prediction",
        "audio",
        "moderation",
        "previous_response_id",
        "conversation",
        "background",
        "prompt",
    ],
)
def test_what_is_billed_elsewhere_or_holds_state_is_refused(name: str) -> None:
    """These fields are refused with a reason, whatever is in them; a null is no field."""
    values: tuple[object, ...] = ({}, CANARY, False)
    for value in values:
        error = refusal(Unsupported, **{name: value})
        assert error.param == name
        assert CANARY not in error.message
    assert name not in sent(prepare(**{name: None}))


def test_unknown_fields_are_dropped_and_only_counted() -> None:
    """A caller's own field names don't come back in a header."""
    prepared = prepare(**{CANARY: 1, "best_of": 3, "Model": "gpt-9", "user": "me"})
    assert sent(prepared) == sent(prepare())
    assert prepared.adjusted == b"user=dropped, +3"


def test_unknown_fields_are_refused_where_the_operator_says_so() -> None:
    """With ``unknown_fields = "refuse"`` the first unknown field ends the request."""
    assert refusal(Unsupported, REFUSE, best_of=3).param == "best_of"
    assert prepare(REFUSE, temperature=1, user="me").adjusted == b"user=dropped"


# --- Output ceiling -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "ceiling", "adjusted"),
    [
        ({"max_tokens": 10}, 10, b""),
        ({"max_completion_tokens": 10}, 10, b""),
        ({"max_tokens": 1_024}, 1_024, b""),
        ({"max_tokens": 1_025}, 1_024, b"max_tokens=1024"),
        ({"max_completion_tokens": 10**30}, 1_024, b"max_completion_tokens=1024"),
        ({"max_tokens": None, "max_completion_tokens": None}, 1_024, b""),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 7, b"max_completion_tokens=dropped"),
        ({"max_tokens": 9, "max_completion_tokens": 7}, 7, b"max_tokens=dropped"),
        ({"max_tokens": 7, "max_completion_tokens": 7}, 7, b"max_tokens=dropped"),
        ({"max_tokens": 7, "max_completion_tokens": None}, 7, b""),
        (
            {"max_tokens": 2_000, "max_completion_tokens": 3_000},
            1_024,
            b"max_completion_tokens=dropped, max_tokens=1024",
        ),
    ],
)
@pytest.mark.parametrize("field", ["max_completion_tokens", "max_tokens"])
def test_the_smallest_ceiling_counts_in_the_models_one_field(
    asked: dict[str, int | None], ceiling: int, adjusted: bytes, field: str
) -> None:
    """Whatever of the two fields was used, the upstream gets the one that it enforces."""
    row = Model("m", "m", None, None, 1_024, field)  # type: ignore[arg-type] # from parametrize
    body = json.dumps({"model": "m", "messages": [HELLO], **asked}).encode()
    prepared = prepare_body("chat", body, ModelTable([row], created=0), DROP)
    fields = sent(prepared)
    assert fields.keys() == {"model", "messages", field}
    assert fields[field] == prepared.output_tokens == ceiling
    assert prepared.adjusted == adjusted


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n"])
@pytest.mark.parametrize("value", [0, -1, True, False, 1.0, 1.5, "5", [5], {}])
def test_a_count_must_be_a_whole_number_above_zero(name: str, value: object) -> None:
    """Nothing but a positive whole number is taken for a count."""
    assert refusal(InvalidValue, **{name: value}).param == name


@pytest.mark.parametrize("digits", ["1e3", "-0", "1" + "0" * 5_000])
def test_a_number_in_an_odd_spelling_is_no_count(digits: str) -> None:
    """Exponents, minus zero and numbers of thousands of digits are refused, not converted."""
    with pytest.raises(InvalidValue):
        prepare_text(f',"max_tokens":{digits}}}')


def test_choices_are_bounded_by_the_operator() -> None:
    """``n`` up to the operator's maximum is sent and counted; more is refused."""
    prepared = prepare(n=4)
    assert sent(prepared)["n"] == 4
    assert prepared.output_tokens == 4 * 1_024
    assert "at most 4" in refusal(InvalidValue, n=5).message
    assert prepare(n=None).output_tokens == 1_024
    assert "n" not in sent(prepare(n=None))


# --- Streaming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [..., None, {}, {"include_usage": False}])
def test_a_stream_always_asks_for_usage(options: object) -> None:
    """Where the caller doesn't want the usage chunk, it is asked for and to be held back."""
    prepared = prepare(stream=True, stream_options=options)
    assert sent(prepared)["stream"] is True
    assert sent(prepared)["stream_options"] == {"include_usage": True}
    assert (prepared.stream, prepared.hides_usage) == (True, True)
    assert prepared.adjusted == b""


def test_a_caller_who_wants_usage_gets_it() -> None:
    """The usage chunk isn't held back from a caller who asked for it."""
    prepared = prepare(stream=True, stream_options={"include_usage": True})
    assert (prepared.stream, prepared.hides_usage) == (True, False)


def test_other_stream_options_are_kept() -> None:
    """``include_obfuscation`` is the caller's choice; unknown options are counted."""
    options = {"include_obfuscation": False, "include_usage": None, "odd": 1}
    prepared = prepare(stream=True, stream_options=options)
    assert sent(prepared)["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert (prepared.hides_usage, prepared.adjusted) == (True, b"+1")


@pytest.mark.parametrize("stream", [..., None, False])
def test_without_a_stream_there_are_no_stream_options(stream: object) -> None:
    """As at OpenAI, stream options without a stream are an error; null ones are none."""
    prepared = prepare(stream=stream, stream_options=None)
    assert sent(prepared) == sent(prepare())
    assert not prepared.stream
    assert "'stream' is true" in refusal(InvalidValue, stream=stream, stream_options={}).message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": 1}, "stream"),
        ({"stream": "true"}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
    ],
)
def test_streaming_fields_must_be_of_their_types(fields: dict[str, Any], param: str) -> None:
    """What isn't a boolean or an object where one belongs is refused."""
    assert refusal(InvalidValue, **fields).param == param


# --- Messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [..., None, [], "hi", {}, ["hi"], [[]], [None]])
def test_messages_must_be_a_list_of_objects(messages: object) -> None:
    """Missing, empty, or anything but a list of objects is refused."""
    assert refusal(InvalidValue, messages=messages).param == "messages"


def test_the_number_of_messages_is_bounded() -> None:
    """As many as the bound pass, one more doesn't."""
    assert extra_tokens(prepare(messages=[HELLO] * ITEMS_MAX)) == 16 * ITEMS_MAX
    assert refusal(InvalidValue, messages=[HELLO] * (ITEMS_MAX + 1)).param == "messages"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "hi"}, "messages[1].role"),
        ({"role": None, "content": "hi"}, "messages[1].role"),
        ({"role": 1, "content": "hi"}, "messages[1].role"),
        ({"role": "user", "content": 1}, "messages[1].content"),
        ({"role": "user", "content": {}}, "messages[1].content"),
        ({"role": "user", "content": ["hi"]}, "messages[1].content"),
    ],
)
def test_a_message_has_a_role_and_content_of_known_kind(message: object, param: str) -> None:
    """The error says which message, and what of it."""
    assert refusal(InvalidValue, messages=[HELLO, message]).param == param


@pytest.mark.parametrize(
    "name",
    [name for name, rule in MESSAGE_FIELDS.items() if rule.action == "pass"],
)
@pytest.mark.parametrize("content", ["hi", None, [{"type": "text", "text": "hi"}]])
def test_known_fields_of_a_message_pass_untouched(name: str, content: object) -> None:
    """Tool calls, names and the like are sent as they came."""
    message = {"role": "assistant", "content": content, name: [{"some": "value"}]}
    assert sent(prepare(messages=[message]))["messages"] == [message]


def test_unknown_fields_of_messages_and_parts_are_dropped() -> None:
    """A lax upstream that reads ``Content`` for ``content`` finds nothing unchecked."""
    hidden = [{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]
    part = {"type": "text", "text": "hi", "Type": "image_url"}
    prepared = prepare(messages=[{**HELLO, "Content": hidden}, {"role": "user", "content": [part]}])
    assert sent(prepared)["messages"] == [
        HELLO,
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    assert prepared.adjusted == b"+2"


def test_unknown_fields_of_messages_are_refused_where_the_operator_says_so() -> None:
    """The error has the path to the field."""
    assert refusal(Unsupported, REFUSE, messages=[{**HELLO, "x": 1}]).param == "messages[0].x"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image_url", "image_url": {"url": PIXEL}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "Text", "text": "hi"},
        {"type": None},
        {"text": "hi"},
    ],
)
def test_only_text_is_accepted_in_a_message(part: dict[str, Any]) -> None:
    """A part whose cost doesn't follow from its size is refused; the error says which."""
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}, part]}
    error = refusal(Unsupported, messages=[HELLO, message])
    assert error.param == "messages[1].content[1].type"
    assert "example" not in error.message


def test_text_and_refusal_parts_are_sent() -> None:
    """Parts of text keep their order; hints about the cache are taken out of them."""
    parts = [{"type": "text", "text": "hi"}, {"type": "refusal", "refusal": "no"}]
    hinted = [{**part, "prompt_cache_breakpoint": {"mode": "explicit"}} for part in parts]
    prepared = prepare(messages=[{"role": "assistant", "content": hinted}])
    assert sent(prepared)["messages"] == [{"role": "assistant", "content": parts}]
    assert prepared.adjusted == b"prompt_cache_breakpoint=dropped"


def test_a_repeated_content_or_type_cannot_hide_an_image() -> None:
    """What counts is the last, which is checked; the other ones aren't sent."""
    image = '[{"type":"image_url","image_url":{"url":"https://example.com/cat.png"}}]'
    message = f'{{"role":"user","content":{image},"content":"hi"}}'
    assert b"cat.png" not in prepare_text(f',"messages":[{message}]}}').body
    message = '{"role":"user","content":[{"type":"image_url","type":"text","text":"hi"}]}'
    assert b"image_url" not in prepare_text(f',"messages":[{message}]}}').body
    message = f'{{"role":"user","content":"hi","content":{image}}}'
    with pytest.raises(Unsupported):
        prepare_text(f',"messages":[{message}]}}')


def test_audio_of_an_earlier_answer_is_refused() -> None:
    """A message that refers to stored audio is refused; a null one is no reference."""
    message = {"role": "assistant", "audio": {"id": "audio-1"}}
    assert refusal(Unsupported, messages=[message]).param == "messages[0].audio"
    silent = {"role": "assistant", "content": "hi", "audio": None}
    assert sent(prepare(messages=[silent]))["messages"] == [{"role": "assistant", "content": "hi"}]


# --- Tools and the rest ---------------------------------------------------------------------------


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CUSTOM = {"type": "custom", "custom": {"name": "c"}}


def test_own_tools_pass_and_are_counted() -> None:
    """Functions, custom tools and legacy functions are sent as they are; each counts."""
    fields = {"tools": [FUNCTION, CUSTOM], "functions": [FUNCTION["function"]]}
    prepared = prepare(**fields)
    assert extra_tokens(prepared) == 16 + 3 * 64
    assert {name: sent(prepared)[name] for name in fields} == fields


def test_no_tools_is_no_field() -> None:
    """Null tools are left out; an empty list is the upstream's to judge."""
    assert sent(prepare(tools=None, functions=None)) == sent(prepare())
    assert sent(prepare(tools=[]))["tools"] == []


def test_hosted_tools_are_refused() -> None:
    """Tools that the upstream runs itself are billed outside of tokens."""
    for kind in ("web_search", "code_interpreter", None):
        error = refusal(Unsupported, tools=[FUNCTION, {"type": kind}])
        assert error.param == "tools[1].type"
    assert refusal(Unsupported, tools=[{"function": {}}]).param == "tools[0].type"


def test_unknown_fields_of_a_tool_are_dropped() -> None:
    """A tool carries its kind and its definition, nothing else."""
    prepared = prepare(tools=[{**FUNCTION, "Type": "web_search"}])
    assert sent(prepared)["tools"] == [FUNCTION]
    assert prepared.adjusted == b"+1"


def test_the_number_of_tools_is_bounded() -> None:
    """The bound is on tools and legacy functions together."""
    assert extra_tokens(prepare(tools=[FUNCTION] * TOOLS_MAX)) == 16 + 64 * TOOLS_MAX
    assert refusal(InvalidValue, tools=[FUNCTION] * (TOOLS_MAX + 1)).param == "tools"
    error = refusal(InvalidValue, tools=[FUNCTION] * TOOLS_MAX, functions=[{}])
    assert error.param == "functions"


@pytest.mark.parametrize("name", ["tools", "functions"])
@pytest.mark.parametrize("value", [{}, "f", ["f"], 1])
def test_tools_must_be_a_list_of_objects(name: str, value: object) -> None:
    """Anything else is refused."""
    assert refusal(InvalidValue, **{name: value}).param == name


@pytest.mark.parametrize("store", [True, 1, "yes"])
def test_nothing_is_stored(store: object) -> None:
    """Whatever asks for storage is turned into its opposite, and the caller is told."""
    prepared = prepare(store=store)
    assert sent(prepared)["store"] is False
    assert prepared.adjusted == b"store=false"


@pytest.mark.parametrize("store", [False, None])
def test_not_storing_is_nothing_to_tell(store: object) -> None:
    """A caller who doesn't want storage gets no word about it."""
    prepared = prepare(store=store)
    assert not sent(prepared)["store"]
    assert prepared.adjusted == b""


@pytest.mark.parametrize("tier", ["default", "flex"])
def test_cheap_service_tiers_pass(tier: str) -> None:
    """The standard tier and the cheaper one are the caller's choice."""
    prepared = prepare(service_tier=tier)
    assert sent(prepared)["service_tier"] == tier
    assert prepared.adjusted == b""


@pytest.mark.parametrize("tier", ["auto", "priority", "fast", "scale", "Default", 1])
def test_dear_service_tiers_are_dropped(tier: object) -> None:
    """Tiers that may cost more than the standard are dropped and named."""
    prepared = prepare(service_tier=tier)
    assert "service_tier" not in sent(prepared)
    assert prepared.adjusted == b"service_tier=dropped"


def test_answers_are_text_only() -> None:
    """``["text"]`` passes, other modalities are refused."""
    assert sent(prepare(modalities=["text"]))["modalities"] == ["text"]
    for modalities in (["text", "audio"], ["audio"], []):
        assert refusal(Unsupported, modalities=modalities).param == "modalities"
    assert refusal(InvalidValue, modalities="text").param == "modalities"


def test_adjustments_are_listed_with_the_values_sent() -> None:
    """The header's value is as DESIGN section 2 shows it."""
    prepared = prepare(max_tokens=4_000, user="me", odd=1)
    assert prepared.adjusted == b"max_tokens=1024, user=dropped, +1"
