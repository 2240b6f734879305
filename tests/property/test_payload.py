"""Whatever a caller sends: what leaves is a request that was checked, or a documented error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from freeapi.errors import (
    ClientError,
    InvalidJson,
    InvalidValue,
    ModelNotFound,
    UnsupportedParameter,
)
from freeapi.policy.fields import Rule, kept
from freeapi.policy.models import Model, ModelTable
from freeapi.policy.payload import Prepared, Rules, prepare
from freeapi.policy.tables import (
    CHAT_FIELDS,
    MESSAGE_FIELDS,
    PART_FIELDS,
    STREAM_OPTION_FIELDS,
    TOOL_FIELDS,
)
from tests.fuzz import fuzz_payload

CEILING = 100
TABLE = ModelTable(
    [
        Model("a", "upstream-a", 1, 1, CEILING, "max_completion_tokens"),
        Model("upstream-a", "upstream-a", 1, 1, CEILING, "max_completion_tokens"),
        Model("b", "b", 1, 1, CEILING, "max_tokens"),
        Model("embedder", "e", 1, 1, CEILING, "max_tokens", endpoints=("embeddings",)),
    ],
    created=0,
)
DOCUMENTED = (InvalidJson, InvalidValue, UnsupportedParameter, ModelNotFound)
PASSED = {name for name, rule in CHAT_FIELDS.items() if rule.action == "pass"}

#: JSON that means something else where it doesn't belong, or is spelt in an unusual way.
VALUES = (
    "null",
    "false",
    "-0.0",
    "1e3",
    "18446744073709551616",
    '"\\u00e9\\/"',
    "[ 1 , [ ] ]",
    '{"a" : "b", "a" : "c"}',
)
ODD_NAMES = ("Model", "Content", "Type", "audio", "x", "é", "\\u0074ype", "\\u0063ontent")

# Time limits per example say nothing on a shared machine.
relaxed = settings(deadline=None, max_examples=60)


def objects(
    good: Mapping[str, Sequence[str]], names: Iterable[str], *end: str
) -> st.SearchStrategy[str]:
    """JSON objects whose names may be there twice.

    ``good`` has well-formed values by name; now and then there is an odd value for any of
    ``names``, or an odd name. ``end`` comes last, and so overrides what makes the object useless.
    """
    likely = [f'"{name}":{value}' for name, values in good.items() for value in values]
    odd = [f'"{name}":{value}' for name in (*names, *ODD_NAMES) for value in VALUES]
    pair = st.integers(0, 9).flatmap(lambda die: st.sampled_from(likely if die else odd))
    return st.lists(pair, max_size=4).map(lambda pairs: "{" + ",".join([*pairs, *end]) + "}")


def lists(items: st.SearchStrategy[str], min_size: int = 0) -> st.SearchStrategy[str]:
    return st.lists(items, min_size=min_size, max_size=3).map(lambda found: f"[{','.join(found)}]")


rules = st.builds(
    Rules, n_max=st.integers(1, 3), unknown_fields=st.sampled_from(["drop", "drop", "refuse"])
)
parts = objects(
    {"type": ['"text"', '"refusal"', '"image_url"'], "text": ['"hi"', '"你\\n"']},
    PART_FIELDS,
    '"type":"text"',
)
plain_messages = objects(
    {
        "role": ['"user"', "null"],
        "content": ['"hi"', '"é\\u00e9"', "null", "{}", '[{"type":"image_url"}]'],
        "name": ['"me"'],
        "tool_calls": ['[{"id" : 1}]'],
        "audio": ["null"],
    },
    MESSAGE_FIELDS,
    '"role":"user"',
    '"content":"hi"',
)
list_messages = lists(parts).map(lambda content: f'{{"role":"user","content":{content}}}')
tools = objects(
    {"type": ['"function"', '"web_search"'], "function": ['{"name" : "f"}']},
    TOOL_FIELDS,
    '"type":"function"',
)
stream_options = objects(
    {"include_usage": ["true", "false", "null"], "include_obfuscation": ["true", "false"]},
    STREAM_OPTION_FIELDS,
)
COUNTS = ("1", "7", "null", "1000000000000")
FIELDS = {
    "model": ['"a"', '"b"', '"embedder"'],
    "max_tokens": COUNTS,
    "max_completion_tokens": COUNTS,
    "n": ["1", "1", "2", "null"],
    "user": ['"me"'],
    "store": ["true", "false"],
    "service_tier": ['"flex"', '"priority"'],
    "functions": ['[{"name" : "f"}]', "null"],
    "temperature": ["0.70", "1"],
    "stop": VALUES,
    "response_format": VALUES,
}
requests = st.builds(
    lambda fields, model, given_tools, sent, stream: (
        f'{fields[:-1]}"model":"{model}","tools":{given_tools},"messages":{sent},{stream}}}'
    ),
    objects(FIELDS, CHAT_FIELDS, ""),
    st.sampled_from("ab"),
    st.just("null") | lists(tools),
    lists(plain_messages | list_messages, min_size=1),
    st.just('"stream":null,"stream_options":null')
    | stream_options.map(lambda options: f'"stream":true,"stream_options":{options}'),
)


def attempt(body: bytes, with_rules: Rules) -> Prepared | ClientError:
    """What comes of it; any exception but a documented one fails the test."""
    try:
        return prepare("chat", body, TABLE, with_rules)
    except DOCUMENTED as error:
        refused = error
    assert 400 <= refused.status < 500
    assert json.loads(refused.body())["error"]["message"] == refused.message
    return refused


class Pairs(list[tuple[str, Any]]):
    """A JSON object as a parser meets it; to be told from a JSON list."""


def unique(found: Pairs, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The object, of which each name was there once and is one that may pass."""
    names = [name for name, _ in found]
    assert len(set(names)) == len(names)
    assert set(names) <= kept(rules)
    return dict(found)


def prepared_or_skip(body: bytes, with_rules: Rules) -> Prepared:
    prepared = attempt(body, with_rules)
    assume(isinstance(prepared, Prepared))
    assert isinstance(prepared, Prepared)
    return prepared


@relaxed
@given(st.binary(max_size=60), rules)
def test_any_bytes_are_prepared_or_refused(body: bytes, with_rules: Rules) -> None:
    """No body whatever gets an undocumented error out of the check."""
    assert isinstance(attempt(body, with_rules), ClientError)


@relaxed
@given(requests, st.data(), rules)
def test_a_damaged_request_is_prepared_or_refused(
    request: str, data: st.DataObject, with_rules: Rules
) -> None:
    """Neither does a request that was cut, or had one of its bytes replaced."""
    body = bytearray(request.encode())
    at = data.draw(st.integers(0, len(body) - 1))
    assert isinstance(attempt(bytes(body[:at]), with_rules), ClientError)
    body[at] = data.draw(st.integers(0, 255))
    attempt(bytes(body), with_rules)


@relaxed
@given(requests, rules)
def test_what_is_sent_has_known_fields_once_each(request: str, with_rules: Rules) -> None:
    """At each checked level a parser of any kind sees each name once, and only known ones."""
    prepared = prepared_or_skip(request.encode(), with_rules)
    pairs = json.loads(prepared.body, object_pairs_hook=Pairs)
    body = unique(pairs, CHAT_FIELDS)
    for message in body["messages"]:
        content = unique(message, MESSAGE_FIELDS).get("content")
        for part in content if isinstance(content, list) else []:
            assert unique(part, PART_FIELDS)["type"] in {"text", "refusal"}
    for tool in body.get("tools", []):
        assert unique(tool, TOOL_FIELDS)["type"] in {"function", "custom"}
    unique(body.get("stream_options", Pairs()), STREAM_OPTION_FIELDS)


@relaxed
@given(requests, rules)
def test_the_numbers_are_those_of_what_is_sent(request: str, with_rules: Rules) -> None:
    """What is reserved later is what the upstream was told: ceiling, choices, messages, tools."""
    prepared = prepared_or_skip(request.encode(), with_rules)
    body = json.loads(prepared.body)
    assert {"max_tokens", "max_completion_tokens"} & body.keys() == {prepared.model.output_field}
    assert 1 <= body[prepared.model.output_field] <= CEILING
    assert body.get("n", 1) <= with_rules.n_max
    assert body.get("n", 1) * body[prepared.model.output_field] == prepared.output_tokens
    tool_count = len(body.get("tools", [])) + len(body.get("functions", []))
    extra_tokens = 16 * len(body["messages"]) + 64 * tool_count
    assert prepared.prompt_tokens_max == len(prepared.body) + extra_tokens
    assert body.get("stream", False) is prepared.stream
    assert body["model"] == prepared.model.upstream_model
    if prepared.stream:
        assert body["stream_options"]["include_usage"] is True


@relaxed
@given(requests, rules)
def test_preparing_twice_changes_nothing_more(request: str, with_rules: Rules) -> None:
    """What was prepared needs no adjustment any more."""
    first = prepared_or_skip(request.encode(), with_rules)
    second = prepare("chat", first.body, TABLE, with_rules)
    assert json.loads(second.body) == json.loads(first.body)
    assert second.adjusted == b""
    assert second.output_tokens == first.output_tokens
    assert not second.hides_usage


@relaxed
@given(requests, rules)
def test_fields_that_pass_mean_the_same_after_as_before(request: str, with_rules: Rules) -> None:
    """Two parsers read the same values before and after in the fields that aren't ours to judge."""
    prepared = prepared_or_skip(request.encode(), with_rules)
    for parse in (json.loads, msgspec.json.decode):
        before, after = parse(request), parse(prepared.body)
        assert {name: before[name] for name in PASSED & before.keys()} == {
            name: after[name] for name in PASSED & after.keys()
        }


plain_requests = st.builds(
    lambda first, messages, last: f'{{"model":"a",{first}"messages":{messages},{last[1:]}',
    st.sampled_from(["", '"messages":[],', '"messages":[{"role":"tool","content":"x"}],']),
    lists(plain_messages | list_messages, min_size=1),
    objects(
        {
            "model": ['"a"', '"b"', '"nobody"', '"\\u0061"'],
            "max_tokens": COUNTS,
            "max_completion_tokens": COUNTS,
            "stream": ["true", "false", "null"],
            "stream_options": ['{"include_usage":true}', '{"include_obfuscation":null}', "null"],
            "n": ["1", "null", "2"],
            "tools": ['[{"type":"function"}]', '[{"type":"web_search"}]', "[]", "null"],
            "temperature": ["0.70", "null"],
        },
        CHAT_FIELDS,
        '"top_p":1',
    ),
)


@settings(relaxed, max_examples=600)
@given(plain_requests, rules)
def test_the_shortcut_for_plain_requests_changes_no_outcome(
    request: str, with_rules: Rules
) -> None:
    """A request that is decoded in one scan fares as the long way would have it."""
    body = request.encode()
    fuzz_payload.check_shortcut(body, with_rules)


@relaxed
@given(requests, st.data(), rules)
def test_nor_does_it_for_any_other_request(
    request: str, data: st.DataObject, with_rules: Rules
) -> None:
    """The same for requests of all kinds, whole or with one byte replaced by another of ASCII."""
    body = bytearray(request.encode())
    fuzz_payload.check_shortcut(bytes(body), with_rules)
    ascii_at = [at for at, byte in enumerate(body) if byte < 128]
    body[data.draw(st.sampled_from(ascii_at))] = data.draw(st.integers(0, 127))
    fuzz_payload.check_shortcut(bytes(body), with_rules)


# --- All endpoints --------------------------------------------------------------------------------

#: Well-formed values by name, of all endpoints, so that each finds something of its own.
ANY_FIELDS = {
    "model": ['"a"', '"b"'],
    "input": [
        '"hi"',
        '["a","b"]',
        "[1,2]",
        '[{"role":"user","content":"hi"}]',
        '[{"role":"user","role":"user","content":[{"type":"input_text","text":"a"}]}]',
        '[{"type":"item_reference","id":"x"}]',
        '[{"type":"reasoning","encrypted_content":"x","encrypted_content":null}]',
        '[{"type":"text","text":"a"}]',
    ],
    "prompt": ['"hi"', '["a","b"]', "[[1],[2]]", "null"],
    "messages": ['[{"role":"user","content":"hi"}]'],
    "voice": ['"alloy"', '{"id":"x"}'],
    "store": ["true", "false", "null"],
    "background": ["true", "false", "null"],
    "previous_response_id": ['"x"', "null"],
    "tools": ['[{"type":"function","name":"f"}]', '[{"type":"web_search"}]', "null"],
    "tool_choice": ['"auto"', '{"type":"mcp"}', '{"type":"function","name":"f","x":1}'],
    "reasoning": ['{"effort":"low"}', '{"mode":"pro"}', '{"mode":"standard","mode":"pro"}'],
    "include": ['["reasoning.encrypted_content"]', '["file_search_call.results"]'],
    "max_output_tokens": COUNTS,
    "max_tokens": COUNTS,
    "best_of": ["1", "2", "null"],
    "n": ["1", "2", "null"],
    "stream": ["true", "false", "null"],
    "stream_format": ['"sse"', '"audio"'],
    "output_format": ['"png"', '"gif"'],
    "partial_images": ["0", "3", "4"],
    "user": ['"me"'],
}
needed = st.sampled_from(
    [
        ('"input":"hi"', '"voice":"alloy"'),
        ('"prompt":"hi"', '"messages":[{"role":"user","content":"hi"}]'),
        ('"input":[{"role":"user","content":"hi"}]',),
        (),
    ]
)
any_requests = needed.flatmap(lambda end: objects(ANY_FIELDS, ANY_FIELDS, '"model":"a"', *end))


@relaxed
@given(any_requests)
def test_whatever_is_sent_anywhere_was_checked(request: str) -> None:
    """No refused field, no second spelling, no lack of a ceiling survives, at any endpoint."""
    fuzz_payload.check(request.encode())
