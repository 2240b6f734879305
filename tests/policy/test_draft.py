"""The checks that endpoints share: the model, counts, streams, tools, and what a request counts."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from freeapi.errors import InvalidValue, ModelNotFound, UnsupportedParameter
from freeapi.policy.draft import TOOLS_MAX
from freeapi.policy.models import Endpoint, ModelTable
from freeapi.policy.payload import prepare
from tests.bodies import DROP, GOOD, TABLE, prepare_fields, refusal, sent


def test_of_a_repeated_field_only_the_last_is_sent() -> None:
    """No second spelling of a field is left for another parser to find, escaped ones included."""
    text = '"model":"gpt-9","\\u006dodel":"local","stop":"a","stop":"b","n":9,"n":1}'
    start = '{"messages":[{"role":"user","content":"hi"}],'
    prepared = prepare("chat", (start + text).encode(), TABLE, DROP)
    pairs = json.loads(prepared.body, object_pairs_hook=list)
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names)
    assert sent(prepared) == {
        "model": "local",
        "messages": [{"role": "user", "content": "hi"}],
        "stop": "b",
        "n": 1,
        "max_tokens": 256,
    }


def test_bytes_below_the_checked_levels_are_not_touched() -> None:
    """Numbers, escapes, white space and repeated names in a value stay as they were written."""
    value = '{"type":"json_schema", "x":1.50e+2,"x":[1 ,2],"é":"\\u00e9\\/"}'
    body = f'{{"model":"local","response_format":{value},"messages":[{{"role":"user"}}]}}'
    assert value.encode() in prepare("chat", body.encode(), TABLE, DROP).body


@pytest.mark.parametrize("endpoint", GOOD)
@pytest.mark.parametrize("name", ["", 3, ["local"], {}])
def test_a_model_must_be_a_name(endpoint: Endpoint, name: object) -> None:
    """Empty or not a string: the error points at ``model``."""
    assert refusal(InvalidValue, endpoint, model=name).param == "model"


@pytest.mark.parametrize("endpoint", sorted(GOOD.keys() - {"moderations", "images"}))
@pytest.mark.parametrize("name", [..., None])
def test_a_model_must_be_named(endpoint: Endpoint, name: object) -> None:
    """Where OpenAI has no default, neither is there one here."""
    assert refusal(InvalidValue, endpoint, model=name).param == "model"


@pytest.mark.parametrize("endpoint", ["moderations", "images"])
@pytest.mark.parametrize("name", [..., None])
def test_the_first_listed_model_is_the_default(endpoint: Endpoint, name: object) -> None:
    """Where OpenAI has a default, it is the first that the operator lists for the endpoint."""
    assert prepare_fields(endpoint, model=name).model.name == "all"


def test_without_a_listed_model_there_is_no_default() -> None:
    """``*`` stands for no model in particular."""
    row = msgspec.structs.replace(TABLE.get("all"), name="*")
    with pytest.raises(InvalidValue):
        prepare("images", b'{"prompt":"a cat"}', ModelTable([row], created=0), DROP)


@pytest.mark.parametrize("endpoint", GOOD)
def test_an_unlisted_model_is_not_found(endpoint: Endpoint) -> None:
    """A model that isn't on the list doesn't exist here."""
    assert refusal(ModelNotFound, endpoint, model="gpt-9").status == 404


@pytest.mark.parametrize(
    ("endpoint", "model", "words"),
    [
        ("chat", "embedder", "not served for chat completions"),
        ("embeddings", "local", "not served for embeddings"),
        ("images", "local", "not served for the generation of images"),
    ],
)
def test_a_model_for_something_else_is_refused(endpoint: Endpoint, model: str, words: str) -> None:
    """The error says for what the model isn't served."""
    assert words in refusal(InvalidValue, endpoint, model=model).message


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        ("completions", "n"),
        ("completions", "best_of"),
        ("completions", "max_tokens"),
        ("responses", "max_output_tokens"),
        ("images", "n"),
    ],
)
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "5", [5]])
def test_a_count_must_be_a_whole_number_above_zero(
    endpoint: Endpoint, name: str, value: object
) -> None:
    """Nothing but a positive whole number is taken for a count."""
    assert refusal(InvalidValue, endpoint, **{name: value}).param == name


@pytest.mark.parametrize("endpoint", ["completions", "responses", "images"])
def test_a_stream_is_asked_for_by_true(endpoint: Endpoint) -> None:
    """False and null are left out, anything else is refused."""
    assert sent(prepare_fields(endpoint, stream=True))["stream"] is True
    assert prepare_fields(endpoint, stream=True).stream
    for value in (False, None):
        prepared = prepare_fields(endpoint, stream=value)
        assert (prepared.stream, "stream" in sent(prepared)) == (False, False)
    assert refusal(InvalidValue, endpoint, stream=1).param == "stream"


@pytest.mark.parametrize("endpoint", ["completions", "responses"])
def test_stream_options_are_for_streams(endpoint: Endpoint) -> None:
    """As at OpenAI, stream options without a stream are an error; null ones are none."""
    assert "stream_options" not in sent(prepare_fields(endpoint, stream_options=None))
    assert refusal(InvalidValue, endpoint, stream_options={}).param == "stream_options"


TOOL: dict[Endpoint, dict[str, Any]] = {
    "chat": {"type": "function", "function": {"name": "f"}},
    "responses": {"type": "function", "name": "f"},
}


@pytest.mark.parametrize("endpoint", TOOL)
def test_tools_are_the_callers_own_and_bounded(endpoint: Endpoint) -> None:
    """Each own tool counts 64 tokens, hosted ones and too many are refused."""
    few, many = (prepare_fields(endpoint, tools=[TOOL[endpoint]] * n) for n in (1, TOOLS_MAX))
    extra = [p.prompt_tokens_max - len(p.body) for p in (few, many)]
    assert extra[1] - extra[0] == 64 * (TOOLS_MAX - 1)
    refusal(InvalidValue, endpoint, tools=[TOOL[endpoint]] * (TOOLS_MAX + 1))
    hosted = [{"type": "web_search"}]
    assert refusal(UnsupportedParameter, endpoint, tools=hosted).param == "tools[0].type"
    assert "tools" not in sent(prepare_fields(endpoint, tools=None))
