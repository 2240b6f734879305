"""Completions: how many texts are made, and how long each may be."""

from __future__ import annotations

import pytest

from freeapi.errors import InvalidValue
from freeapi.policy.draft import ITEMS_MAX
from tests.bodies import prepare_fields, refusal, sent


@pytest.mark.parametrize(
    ("asked", "ceiling", "adjusted"),
    [(..., 16, b""), (None, 16, b""), (50, 50, b""), (101, 100, b"max_tokens=100")],
)
def test_there_is_always_a_ceiling(asked: object, ceiling: int, adjusted: bytes) -> None:
    """OpenAI's default of 16 where nothing was asked for, at most the model's."""
    prepared = prepare_fields("completions", max_tokens=asked)
    assert sent(prepared)["max_tokens"] == prepared.output_tokens == ceiling
    assert prepared.adjusted == adjusted


def test_the_default_is_under_the_models_ceiling_too() -> None:
    """A ceiling below the default counts, without a word."""
    prepared = prepare_fields("completions", model="local", max_tokens=300)
    assert prepared.output_tokens == 256
    assert "max_completion_tokens" not in sent(prepared)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        (..., 1),
        (None, 1),
        ("a", 1),
        ("", 1),
        (["a", "b"], 2),
        ([1, 2, 3], 1),
        ([[1, 2], [3], []], 3),
        (["a"] * ITEMS_MAX, ITEMS_MAX),
    ],
)
def test_each_candidate_of_each_prompt_is_reserved(prompt: object, prompts: int) -> None:
    """The larger of ``n`` and ``best_of`` are made for each prompt."""
    prepared = prepare_fields("completions", prompt=prompt, n=2, best_of=3, max_tokens=10)
    assert prepared.output_tokens == prompts * 3 * 10
    assert sent(prepared).get("prompt") == (None if prompt is ... else prompt)


@pytest.mark.parametrize(
    "prompt", [[], {}, 1, [None], ["a", 1], [1, "a"], [[["a"]]], [1.5], ["a"] * (ITEMS_MAX + 1)]
)
def test_other_prompts_are_refused(prompt: object) -> None:
    """Mixed kinds, nothing at all, or too many."""
    assert refusal(InvalidValue, "completions", prompt=prompt).param == "prompt"


@pytest.mark.parametrize("name", ["n", "best_of"])
def test_candidates_are_bounded_by_the_operator(name: str) -> None:
    """``n_max`` holds for what is made, not only for what is shown."""
    assert sent(prepare_fields("completions", **{name: 4}))[name] == 4
    assert "at most 4" in refusal(InvalidValue, "completions", **{name: 5}).message


def test_a_stream_asks_for_usage() -> None:
    """As in chat, the usage chunk is asked for, and held back from who didn't."""
    prepared = prepare_fields("completions", stream=True)
    assert sent(prepared)["stream_options"] == {"include_usage": True}
    assert prepared.hides_usage
    options = {"include_usage": True}
    assert not prepare_fields("completions", stream=True, stream_options=options).hides_usage
