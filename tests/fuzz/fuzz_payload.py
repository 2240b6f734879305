"""Fuzz the request policy: any body is prepared for the upstream, or refused by name.

Every body is given to every endpoint. What is sent is JSON by another parser's strict reading
(Python's own), with known fields only, each once, at every level that was checked; the numbers that
are reserved are those that it says; and preparing it again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import msgspec

from freeapi.errors import (
    ClientError,
    InvalidJson,
    InvalidValue,
    ModelNotFound,
    UnsupportedParameter,
)
from freeapi.policy import chat
from freeapi.policy.draft import open_draft
from freeapi.policy.fields import Rule, kept
from freeapi.policy.models import PATHS, Endpoint, Model, ModelTable
from freeapi.policy.payload import Prepared, Rules, prepare
from freeapi.policy.tables import (
    CALL_ITEM_FIELDS,
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    EMBEDDING_FIELDS,
    IMAGE_FIELDS,
    IMAGE_PART_FIELDS,
    MESSAGE_FIELDS,
    MESSAGE_ITEM_FIELDS,
    MODERATION_FIELDS,
    OUTPUT_ITEM_FIELDS,
    PART_FIELDS,
    REASONING_FIELDS,
    REASONING_ITEM_FIELDS,
    RESPONSE_FIELDS,
    RESPONSE_IMAGE_FIELDS,
    RESPONSE_PART_FIELDS,
    RESPONSE_STREAM_OPTION_FIELDS,
    RESPONSE_TOOL_FIELDS,
    SPEECH_FIELDS,
    STREAM_OPTION_FIELDS,
    TOOL_CHOICE_FIELDS,
    TOOL_FIELDS,
)
from tests.fuzz.driver import fuzz

CEILING = 100
_A = Model(
    "a", "up-a", None, None, CEILING, "max_completion_tokens", (), tuple(PATHS), image_tokens_max=9
)
TABLE = ModelTable(
    [
        _A,
        msgspec.structs.replace(_A, name="up-a"),
        Model("b", "b", None, None, CEILING, "max_tokens", endpoints=tuple(PATHS)),
    ],
    created=0,
)
TABLES: Mapping[Endpoint, Mapping[str, Rule]] = {
    "chat": CHAT_FIELDS,
    "completions": COMPLETION_FIELDS,
    "embeddings": EMBEDDING_FIELDS,
    "moderations": MODERATION_FIELDS,
    "responses": RESPONSE_FIELDS,
    "images": IMAGE_FIELDS,
    "speech": SPEECH_FIELDS,
}
PARTS: Mapping[str, Mapping[str, Rule]] = {
    "text": PART_FIELDS,
    "refusal": {**PART_FIELDS, **RESPONSE_PART_FIELDS},
    "image_url": IMAGE_PART_FIELDS,
    "input_text": RESPONSE_PART_FIELDS,
    "output_text": RESPONSE_PART_FIELDS,
    "input_image": RESPONSE_IMAGE_FIELDS,
}
ITEMS: Mapping[str | None, Mapping[str, Rule]] = {
    None: MESSAGE_ITEM_FIELDS,
    "message": MESSAGE_ITEM_FIELDS,
    "function_call": CALL_ITEM_FIELDS,
    "custom_tool_call": CALL_ITEM_FIELDS,
    "function_call_output": OUTPUT_ITEM_FIELDS,
    "custom_tool_call_output": OUTPUT_ITEM_FIELDS,
    "reasoning": REASONING_ITEM_FIELDS,
}
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
    b'{"model":"a","messages":[{"role":"user","content":[{"type":"image_url","image_url":'
    b'{"url":"x","url":"data:image/png;base64,AA==","detail":"low"}}]}]}',
    b'{"model":"b","prompt":["a","b"],"n":2,"best_of":2,"max_tokens":200,"echo":true,"stream":true}',
    b'{"model":"b","input":[[1,2],[3]],"dimensions":8,"voice":"alloy","stream_format":"sse"}',
    b'{"input":[{"type":"text","text":"a"},{"type":"image_url","image_url":'
    b'{"url":"data:image/gif;base64,AA=="}}]}',
    b'{"model":"a","store":true,"input":[{"role":"user","content":[{"type":"input_text","text":"a"},'
    b'{"type":"input_image","image_url":"data:image/webp;base64,AA=="}]},{"type":"function_call",'
    b'"call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c",'
    b'"output":"1"},{"type":"reasoning","summary":[],"encrypted_content":"x"}],"background":false,'
    b'"tools":[{"type":"function","name":"f"}],"tool_choice":{"type":"function","name":"f"},'
    b'"include":["reasoning.encrypted_content"],"reasoning":{"effort":"low"},"stream":true,'
    b'"stream_options":{"include_obfuscation":false},"max_output_tokens":7}',
    b'{"model":"a","input":"a","previous_response_id":"r","input":[{"type":"item_reference"}]}',
    b'{"model":"b","input":"hi","voice":"alloy","stream_format":"sse","instructions":"x"}',
    b'{"prompt":"a cat","n":2,"size":"auto","partial_images":3,"output_format":"png"}',
    b'{"model":"a","messages":[{"role":"user","content":"a","role":"tool"},{"role":"\\u0075","content":'
    b'[{"type":"refusal","refusal":"no","type":"text","text":[]}]}],"messages":[{"role":"user"}],"n":1,'
    b'"tools":[{"type":"custom","custom":{"name":"c"}}],"stream":true,"max_completion_tokens":200}',
    b"\xef\xbb\xbf{}",
    b"[" * 100,
)


class Pairs(list[tuple[str, Any]]):
    """A JSON object as a parser meets it; to be told from a JSON list."""


def _no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


def prepared(endpoint: Endpoint, body: bytes, rules: Rules) -> Prepared | None:
    """What is made of it; None: refused, in words that can be shown."""
    try:
        return prepare(endpoint, body, TABLE, rules)
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


def known_by_type(found: object, tables: Mapping[Any, Mapping[str, Rule]]) -> dict[str, Any]:
    """The same for an object whose type says what it may hold."""
    assert isinstance(found, Pairs)
    return known(found, tables[dict(found).get("type")])


def check_parts(content: object) -> int:
    """How many images are among the parts, all of which are in the request itself."""
    if type(content) is not list:
        return 0
    parts = [known_by_type(part, PARTS) for part in content]
    images = [part["image_url"] for part in parts if "image_url" in part]
    for image in images:
        url = image if isinstance(image, str) else dict(image)["url"]
        assert url.startswith("data:image/")
    return len(images)


def check_chat(body: dict[str, Any], sent: Prepared, rules: Rules) -> int:
    """Messages, tools and ceiling are those that were checked and counted."""
    images = 0
    for message in body["messages"]:
        images += check_parts(known(message, MESSAGE_FIELDS).get("content"))
    tools = body.get("tools", [])
    for tool in tools:
        assert known(tool, TOOL_FIELDS)["type"] in {"function", "custom"}
    known(body.get("stream_options", Pairs()), STREAM_OPTION_FIELDS)
    assert {"max_tokens", "max_completion_tokens"} & body.keys() == {sent.model.output_field}
    assert 1 <= body[sent.model.output_field] <= CEILING
    assert body.get("n", 1) <= rules.n_max
    assert body.get("n", 1) * body[sent.model.output_field] == sent.output_tokens
    assert body.get("store", False) in {False, None}
    if not images:
        extra = 16 * len(body["messages"]) + 64 * (len(tools) + len(body.get("functions", [])))
        assert sent.prompt_tokens_max == len(sent.body) + extra
    return images


def check_completions(body: dict[str, Any], sent: Prepared, rules: Rules) -> int:
    """Each candidate of each prompt is counted."""
    known(body.get("stream_options", Pairs()), STREAM_OPTION_FIELDS)
    prompt: Any = body.get("prompt")
    many = type(prompt) is list and type(prompt[0]) is not int
    candidates = max(body.get("n", 1), body.get("best_of", 1))
    assert candidates <= rules.n_max
    assert 1 <= body["max_tokens"] <= CEILING
    prompts = len(prompt) if many else 1
    assert prompts * candidates * body["max_tokens"] == sent.output_tokens
    return 0


def check_responses(body: dict[str, Any], sent: Prepared, _: Rules) -> int:
    """Nothing is stored, looked up or run, and the ceiling is there."""
    assert body["store"] is False
    assert 1 <= body["max_output_tokens"] == sent.output_tokens <= CEILING
    assert not {"previous_response_id", "conversation", "background", "prompt"} & body.keys()
    known(body.get("stream_options", Pairs()), RESPONSE_STREAM_OPTION_FIELDS)
    known(body.get("reasoning") or Pairs(), REASONING_FIELDS)
    for tool in body.get("tools", []):
        assert known(tool, RESPONSE_TOOL_FIELDS)["type"] in {"function", "custom"}
    choice = body.get("tool_choice")
    if type(choice) is Pairs:
        known(choice, TOOL_CHOICE_FIELDS)
    images = 0
    if not isinstance(body["input"], str):
        for found in body["input"]:
            item = known_by_type(found, ITEMS)
            images += check_parts(item.get("content")) + check_parts(item.get("output"))
            assert item.get("type") != "reasoning" or item["encrypted_content"]
    return images


def check_media(body: dict[str, Any], sent: Prepared, rules: Rules) -> int:
    """Each piece is counted."""
    assert sent.units == body.get("n", 1) <= rules.n_max
    return 0


def check_moderations(body: dict[str, Any], _: Prepared, __: Rules) -> int:
    """Texts, or parts as in chat."""
    found = body["input"]
    return check_parts(found) if type(found) is list and type(found[0]) is Pairs else 0


CHECKS: Mapping[Endpoint, Callable[[dict[str, Any], Prepared, Rules], int]] = {
    "chat": check_chat,
    "completions": check_completions,
    "moderations": check_moderations,
    "responses": check_responses,
    "images": check_media,
    "speech": check_media,
}


def check_sent(sent: Prepared, rules: Rules) -> None:
    """The body says what was decided, and nothing that wasn't looked at."""
    strict = json.loads(sent.body, object_pairs_hook=Pairs, parse_constant=_no_constant)
    body = known(strict, TABLES[sent.endpoint])
    assert body["model"] == sent.model.upstream_model
    if sent.endpoint != "speech":
        assert body.get("stream", False) is sent.stream
    images = CHECKS[sent.endpoint](body, sent, rules) if sent.endpoint in CHECKS else 0
    assert sent.prompt_tokens_max >= images * sent.model.image_tokens_max
    assert images or sent.prompt_tokens_max >= len(sent.body)
    assert not images or sent.model.image_tokens_max


def check(data: bytes) -> None:
    """The body is refused, or what is sent instead is sound and stays as it is."""
    for endpoint in TABLES:
        for rules in RULES:
            if endpoint == "chat" and is_utf8(data):
                check_shortcut(data, rules)
            sent = prepared(endpoint, data, rules)
            if sent is not None:
                check_sent(sent, rules)
                check_again(sent, rules)


def is_utf8(data: bytes) -> bool:
    """Other bodies get to neither way."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def told(prepared_so: Callable[[], Prepared]) -> list[object]:
    """All that the rest of the gateway, the upstream or the caller is told of a request."""
    try:
        sent = prepared_so()
    except (InvalidJson, InvalidValue, UnsupportedParameter, ModelNotFound) as error:
        return [type(error), error.message]
    except RecursionError:  # which ``prepare`` words
        return [InvalidJson, InvalidJson(problem="it is nested too deeply").message]
    facts = {name: getattr(sent, name) for name in Prepared.__slots__ if name != "body"}
    return [json.loads(sent.body), len(sent.body), facts]


def check_shortcut(body: bytes, rules: Rules) -> None:
    """A chat request fares the same whether or not it is looked at as a plain one first."""
    assert told(lambda: prepare("chat", body, TABLE, rules)) == told(
        lambda: chat.prepare(open_draft("chat", body, TABLE, rules))
    )


def check_again(sent: Prepared, rules: Rules) -> None:
    """What was prepared needs no adjustment any more."""
    again = prepared(sent.endpoint, sent.body, rules)
    assert again is not None, "what was accepted is refused"
    assert json.loads(again.body) == json.loads(sent.body)
    assert again.adjusted == b""


if __name__ == "__main__":
    fuzz("payload", check, SEEDS)
