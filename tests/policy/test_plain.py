"""Embeddings and moderations: which inputs pass, and that no output is reserved."""

from __future__ import annotations

import pytest

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.draft import ITEMS_MAX
from freeapi.policy.models import Endpoint
from tests.bodies import prepare_fields, refusal, sent

both = pytest.mark.parametrize("endpoint", ["embeddings", "moderations"])


@both
@pytest.mark.parametrize("texts", ["a", ["a", "b"], ["a"] * ITEMS_MAX])
def test_texts_pass(endpoint: Endpoint, texts: object) -> None:
    """One or a list of them, sent as they came, and nothing reserved for an answer."""
    prepared = prepare_fields(endpoint, input=texts)
    assert sent(prepared)["input"] == texts
    assert (prepared.output_tokens, prepared.units, prepared.stream) == (0, 0, False)


@both
@pytest.mark.parametrize("given", [..., None, [], {}, 1, ["a", 1], [None], ["a"] * (ITEMS_MAX + 1)])
def test_other_inputs_are_refused(endpoint: Endpoint, given: object) -> None:
    """Missing, of mixed kinds, or too many."""
    assert refusal(InvalidValue, endpoint, input=given).param == "input"


@pytest.mark.parametrize("tokens", [[1, 2], [[1], [2, 3]], [7] * (ITEMS_MAX + 1)])
def test_tokens_are_embedded(tokens: object) -> None:
    """A list of tokens is one input, however long."""
    fields = {"input": tokens, "dimensions": 256, "encoding_format": "base64"}
    assert sent(prepare_fields("embeddings", **fields)).items() >= fields.items()


def test_too_many_lists_of_tokens_are_refused() -> None:
    """The bound is on inputs of either kind."""
    refusal(InvalidValue, "embeddings", input=[[1]] * (ITEMS_MAX + 1))


def test_parts_are_moderated() -> None:
    """Parts of text pass; others that aren't images are refused."""
    parts = [{"type": "text", "text": "a"}]
    assert sent(prepare_fields("moderations", input=parts))["input"] == parts
    audio = [*parts, {"type": "input_audio"}]
    error = refusal(UnsupportedParameter, "moderations", input=audio)
    assert error.param == "input[1].type"
