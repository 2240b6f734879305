"""Fuzz the request policy: any body is prepared for the upstream, or refused by name.

What is sent is JSON by another parser's strict reading (Python's own), with known fields only, each
once, at every level that was checked; the numbers that are reserved are those that it says; and
preparing it again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from freeapi.errors import (
    ClientError,
    InvalidJson,
    InvalidValue,
    ModelNotFound,
    UnsupportedParameter,
)
from freeapi.policy.fields import (
    CHAT_FIELDS,
    MESSAGE_FIELDS,
    PART_FIELDS,
    STREAM_OPTION_FIELDS,
    TOOL_FIELDS,
    Rule,
    kept,
)
from freeapi.policy.models import Model, ModelTable
from freeapi.policy.payload import Prepared, Rules, prepare_chat
from tests.fuzz.driver import fuzz

CEILING = 100
TABLE = ModelTable(
    [
        Model("a", "upstream-a", None, None, CEILING, "max_completion_tokens"),
        Model("upstream-a", "upstream-a", None, None, CEILING, "max_completion_tokens"),
        Model("b", "b", None, None, CEILING, "max_tokens"),
    ],
    created=0,
)
RULES = (Rules(n_max=2, unknown_fields="drop"), Rules(n_max=1, unknown_fields="refuse"))

SEEDS = (
    b'{"model":"a","messages":[{"role":"user","content":"hi"}]}',
    b'{"model":"b","messages":[{"role":"user","content":[{"type":"text","text":"\xe4\xbd\xa0\\n"}]}],'
    b'"stream":true,"stream_options":{"include_usage":false},"max_tokens":7,"temperature":0.5}',
    b'{"model":"a","messages":[{"role":"user","content":"hi","content":[{"type":"image_url"}]}]}',
    b'{"model":"a","n":2,"tools":[{"type":"function","function":{"name":"f"}}],"store":true,'
    b'"user":"u","messages":[{"role":"tool","tool_call_id":"1","content":null}],"x":[1e9,"\\u00e9"]}',
    b'{"model":"a","max_tokens":9,"max_completion_tokens":5,"service_tier":"priority","model":"b",'
    b'"modalities":["text"],"messages":[{"role":"user","content":"","name":"n","audio":null}]}',
    b'{"model":"a","messages":[],"functions":[{"name":"f"}],"logit_bias":{"1":-100},"stop":["a"]}',
    b'{"model":"a","messages":[{"role":"user","content":[{"type":"text","type":"file"}]}]}',
    b"\xef\xbb\xbf{}",
    b"[" * 100,
)


class Pairs(list[tuple[str, Any]]):
    """A JSON object as a parser meets it; to be told from a JSON list."""


def _no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


def prepared(body: bytes, rules: Rules) -> Prepared | None:
    """What is made of it; None: refused, in words that can be shown."""
    try:
        return prepare_chat(body, TABLE, rules)
    except (InvalidJson, InvalidValue, UnsupportedParameter, ModelNotFound) as error:
        refused: ClientError = error
    assert refused.status in {400, 404}
    assert json.loads(refused.body())["error"]["message"] == refused.message
    return None


def known(found: object, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The object, of which each name is there once and may pass."""
    assert isinstance(found, Pairs)
    names = [name for name, _ in found]
    assert len(set(names)) == len(names), "a field is there twice"
    assert set(names) <= kept(rules), "an unknown field"
    return dict(found)


def check_sent(sent: Prepared, rules: Rules) -> None:
    """The body says what was decided, and nothing that wasn't looked at."""
    strict = json.loads(sent.body, object_pairs_hook=Pairs, parse_constant=_no_constant)
    body = known(strict, CHAT_FIELDS)
    for message in body["messages"]:
        content = known(message, MESSAGE_FIELDS).get("content")
        if type(content) is list:
            for part in content:
                assert known(part, PART_FIELDS)["type"] in {"text", "refusal"}
    for tool in body.get("tools", []):
        assert known(tool, TOOL_FIELDS)["type"] in {"function", "custom"}
    known(body.get("stream_options", Pairs()), STREAM_OPTION_FIELDS)
    assert {"max_tokens", "max_completion_tokens"} & body.keys() == {sent.model.output_field}
    assert 1 <= body[sent.model.output_field] == sent.output_tokens_max <= CEILING
    assert body.get("n", 1) == sent.choices <= rules.n_max
    assert len(body["messages"]) == sent.message_count
    assert len(body.get("tools", [])) + len(body.get("functions", [])) == sent.tool_count
    assert body.get("stream", False) is sent.stream
    assert body["model"] == sent.model.upstream_model
    assert body.get("store", False) in {False, None}


def check(data: bytes) -> None:
    """The body is refused, or what is sent instead is sound and stays as it is."""
    for rules in RULES:
        sent = prepared(data, rules)
        if sent is not None:
            check_sent(sent, rules)
            again = prepared(sent.body, rules)
            assert again is not None, "what was accepted is refused"
            assert json.loads(again.body) == json.loads(sent.body)
            assert again.adjusted == b""


if __name__ == "__main__":
    fuzz("payload", check, SEEDS)
