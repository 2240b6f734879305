"""The Responses API without state: what passes, and that nothing is kept, looked up or run."""

from __future__ import annotations

from typing import Any

import pytest

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.draft import ITEMS_MAX
from freeapi.policy.tables import RESPONSE_FIELDS
from tests.bodies import CANARY, prepare_fields, refusal, sent

TEXT = {"type": "input_text", "text": "hi"}
USER = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "1"}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
ITEMS: list[dict[str, Any]] = [
    USER,
    {"type": "message", "role": "user", "content": [TEXT], "status": "completed"},
    {
        "type": "message",
        "role": "assistant",
        "id": "msg_1",
        "phase": "final_answer",
        "content": [
            {"type": "output_text", "text": "yes", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "no"},
        ],
    },
    CALL,
    OUTPUT,
    {**OUTPUT, "output": [TEXT]},
    {"type": "custom_tool_call", "call_id": "c", "name": "t", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "c", "output": "y"},
    REASONING,
]


def unsupported(**fields: Any) -> str | None:
    """The field over which such a request is refused."""
    return refusal(UnsupportedParameter, "responses", **fields).param


def invalid(**fields: Any) -> str | None:
    return refusal(InvalidValue, "responses", **fields).param


@pytest.mark.parametrize("item", ITEMS)
def test_items_that_say_all_themselves_pass(item: dict[str, Any]) -> None:
    """Messages, calls, their outputs and encrypted reasoning are sent as they came."""
    prepared = prepare_fields("responses", input=[item])
    assert sent(prepared)["input"] == [item]
    assert prepared.adjusted == b""


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "msg_1"},
        {"type": "web_search_call", "id": "ws_1"},
        {"type": "image_generation_call", "id": "ig_1"},
        {"type": "additional_tools", "role": "developer", "tools": []},
        {"type": "compaction_trigger"},
        {"type": "Message", **USER},
        {**REASONING, "encrypted_content": None},
        {**REASONING, "encrypted_content": ""},
        {"type": "reasoning", "id": "rs_1", "summary": []},
    ],
)
def test_items_that_refer_to_state_or_hosted_tools_are_refused(item: dict[str, Any]) -> None:
    """The error points at the item's type."""
    assert unsupported(input=[USER, item]) == "input[1].type"


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"id": "msg_1"}, "input[0].role"),
        ({"role": "assistant", "id": "msg_1"}, "input[0].content"),
        ({"role": "user", "content": 1}, "input[0].content"),
        ({"type": "function_call_output", "call_id": "c"}, "input[0].output"),
        ({**REASONING, "encrypted_content": 1}, "input[0].encrypted_content"),
    ],
)
def test_an_item_has_to_be_whole(item: dict[str, Any], param: str) -> None:
    """What has an id and nothing in it would be looked up."""
    assert invalid(input=[item]) == param


@pytest.mark.parametrize("kind", ["input_file", "input_audio", "text", "image_url", None])
def test_other_parts_are_refused(kind: str | None) -> None:
    """In messages and in the outputs of tools alike."""
    part = {"type": kind, "file_id": "file-1"}
    assert unsupported(input=[{"role": "user", "content": [part]}]) == "input[0].content[0].type"
    assert unsupported(input=[{**OUTPUT, "output": [part]}]) == "input[0].output[0].type"


@pytest.mark.parametrize("given", [..., None, [], {}, 1, ["hi"]])
def test_input_is_a_text_or_a_list_of_items(given: object) -> None:
    """Missing, empty or of another kind is refused."""
    assert invalid(input=given) == "input"


def test_the_number_of_items_is_bounded() -> None:
    """As many as the bound pass and are counted, one more doesn't."""
    prepared = prepare_fields("responses", input=[USER] * ITEMS_MAX)
    assert prepared.prompt_tokens_max == len(prepared.body) + 16 * (1 + ITEMS_MAX)
    assert invalid(input=[USER] * (ITEMS_MAX + 1)) == "input"


def test_packed_reasoning_counts_as_long_as_it_can_be() -> None:
    """Its bytes may be fewer than its tokens, of which the ceiling here was the most."""
    without, with_one = (
        prepare_fields("responses", input=items) for items in ([USER], [USER, REASONING])
    )
    extra = [p.prompt_tokens_max - len(p.body) for p in (without, with_one)]
    assert extra[1] - extra[0] == 16 + 100


def test_unknown_fields_of_items_are_dropped() -> None:
    """A parser with laxer names finds nothing that wasn't looked at."""
    prepared = prepare_fields("responses", input=[{**USER, "Content": CANARY}])
    assert sent(prepared)["input"] == [USER]
    assert prepared.adjusted == b"+1"


# --- The rest of the request ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store", "adjusted"), [(..., b""), (None, b""), (False, b""), (True, b"store=false")]
)
def test_nothing_is_stored(store: object, adjusted: bytes) -> None:
    """``store`` is false whatever was asked, for OpenAI's default is true; who asked is told."""
    prepared = prepare_fields("responses", store=store)
    assert sent(prepared)["store"] is False
    assert prepared.adjusted == adjusted


@pytest.mark.parametrize(
    ("asked", "ceiling", "adjusted"),
    [(..., 100, b""), (None, 100, b""), (7, 7, b""), (101, 100, b"max_output_tokens=100")],
)
def test_there_is_always_a_ceiling(asked: object, ceiling: int, adjusted: bytes) -> None:
    """What was asked for, at most the model's."""
    prepared = prepare_fields("responses", max_output_tokens=asked)
    assert sent(prepared)["max_output_tokens"] == prepared.output_tokens == ceiling
    assert prepared.adjusted == adjusted


@pytest.mark.parametrize(
    "name", [name for name, rule in RESPONSE_FIELDS.items() if rule.action == "refuse"]
)
def test_what_holds_state_or_costs_apart_is_refused(name: str) -> None:
    """Whatever is in it; a null is no field."""
    assert unsupported(**{name: {"id": CANARY}}) == name
    assert name not in sent(prepare_fields("responses", **{name: None}))


def test_nothing_goes_on_in_the_background() -> None:
    """True is refused, false is no field."""
    assert unsupported(background=True) == "background"
    assert "background" not in sent(prepare_fields("responses", background=False))
    assert invalid(background="yes") == "background"


def test_only_what_is_in_the_answer_can_be_included() -> None:
    """Encrypted reasoning and log probabilities pass, results of hosted tools don't."""
    good = ["reasoning.encrypted_content", "message.output_text.logprobs"]
    assert sent(prepare_fields("responses", include=good))["include"] == good
    assert unsupported(include=[good[0], "file_search_call.results"]) == "include"
    assert invalid(include="x") == "include"


def test_reasoning_is_of_the_standard_mode() -> None:
    """Effort and summary pass, other modes cost more than their ceiling says."""
    good = {"effort": "low", "summary": "auto", "mode": "standard"}
    assert sent(prepare_fields("responses", reasoning=good))["reasoning"] == good
    assert unsupported(reasoning={"mode": "pro"}) == "reasoning.mode"
    assert sent(prepare_fields("responses", reasoning=None))["reasoning"] is None
    assert invalid(reasoning="low") == "reasoning"


def test_instructions_are_text() -> None:
    """A list of items there would go unchecked."""
    assert sent(prepare_fields("responses", instructions="be kind"))["instructions"] == "be kind"
    assert invalid(instructions=[{"role": "user", "content": "hi"}]) == "instructions"


def test_stream_options_pass() -> None:
    """Obfuscation is the caller's choice; usage comes without asking, and isn't hidden."""
    options = {"include_obfuscation": False}
    prepared = prepare_fields("responses", stream=True, stream_options=options)
    assert sent(prepared)["stream_options"] == options
    assert (prepared.stream, prepared.hides_usage) == (True, False)


@pytest.mark.parametrize(
    "choice",
    [
        None,
        "auto",
        {"type": "function", "name": "f"},
        {"type": "custom", "name": "t"},
        {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}],
        },
    ],
)
def test_own_tools_can_be_chosen(choice: object) -> None:
    """By a word, by name, or from a list."""
    assert sent(prepare_fields("responses", tool_choice=choice))["tool_choice"] == choice


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "web_search_preview"}, "tool_choice.type"),
        ({"type": "mcp", "server_label": "x"}, "tool_choice.type"),
        ({}, "tool_choice.type"),
        ({"type": "allowed_tools", "tools": [{"type": "mcp"}]}, "tool_choice.tools[0].type"),
    ],
)
def test_hosted_tools_cannot_be_chosen(choice: object, param: str) -> None:
    """Not even where none is offered."""
    assert unsupported(tool_choice=choice) == param


def test_a_choice_is_of_a_known_kind_and_bounded() -> None:
    """A number is no choice, nor are countless tools."""
    assert invalid(tool_choice=1) == "tool_choice"
    tools = [{"type": "function", "name": "f"}] * 129
    choice = {"type": "allowed_tools", "mode": "auto", "tools": tools}
    assert invalid(tool_choice=choice) == "tool_choice.tools"


@pytest.mark.parametrize("name", ["allowed_callers", "defer_loading"])
def test_own_tools_are_not_called_by_hosted_ones(name: str) -> None:
    """What lets a hosted program or search have a tool is refused."""
    tool = {"type": "function", "name": "f", "parameters": {}, "strict": True}
    assert sent(prepare_fields("responses", tools=[tool]))["tools"] == [tool]
    assert unsupported(tools=[{**tool, name: ["programmatic"]}]) == f"tools[0].{name}"


def test_dear_service_tiers_are_dropped() -> None:
    """As in chat."""
    prepared = prepare_fields("responses", service_tier="priority")
    assert "service_tier" not in sent(prepared)
    assert prepared.adjusted == b"service_tier=dropped"
