"""The allow-list: what a name means, what is refused, and the two answers of ``/v1/models``."""

from __future__ import annotations

import json

import msgspec
import pytest

from freeapi.errors import ModelNotFound
from freeapi.policy.models import BUILTIN, NAME_LENGTH_MAX, Model, ModelTable, is_model_name


def model(name: str, upstream_model: str | None = None) -> Model:
    return Model(name, upstream_model or name, 60, 1_000, 256, "max_completion_tokens")


def table(*models: Model) -> ModelTable:
    return ModelTable(models, created=1_700_000_000)


def test_a_listed_model_is_found_under_its_own_name() -> None:
    """A name on the list gives its row, and no other."""
    first, second = model("a", "upstream-a"), model("b")
    assert table(first, second).get("a") is first
    assert table(first, second).get("b") is second


@pytest.mark.parametrize("name", ["c", "", "A", "a ", "*", "upstream-a"])
def test_what_is_not_listed_is_not_found(name: str) -> None:
    """Only the exact names of the list exist; an upstream's name for a model isn't one of them."""
    with pytest.raises(ModelNotFound):
        table(model("a", "upstream-a")).get(name)


def test_the_refusal_names_the_model_and_the_parameter() -> None:
    """The error says which model, so that a misspelling is seen, and points at ``model``."""
    with pytest.raises(ModelNotFound) as caught:
        table(model("a")).get("gpt-9")
    assert "`gpt-9`" in caught.value.message
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", ["x" * 129, "gpt 4", "gpt\n4", "模型", "a\x7f", "a\x00"])
def test_a_name_that_cannot_be_a_models_is_not_repeated(name: str) -> None:
    """What isn't 1 to 128 visible ASCII characters isn't echoed, nor passed on under ``*``."""
    for tried in (table(model("a")), table(model("*"))):
        with pytest.raises(ModelNotFound) as caught:
            tried.get(name)
        assert name not in caught.value.message
        assert "not a model name" in caught.value.message


def test_any_model_goes_upstream_under_the_name_asked_for() -> None:
    """``*`` gives a row of the wildcard's limits under the caller's name, up to its longest."""
    for name in ("some-model", "x" * NAME_LENGTH_MAX, "ft:gpt-4o-mini:org::abc123"):
        found = table(model("*")).get(name)
        assert found == msgspec.structs.replace(model("*"), name=name, upstream_model=name)


def test_any_model_may_map_to_one_upstream_model() -> None:
    """``*`` with an upstream model of its own sends that one, whatever was asked for."""
    found = table(model("*", "small")).get("some-model")
    assert (found.name, found.upstream_model) == ("some-model", "small")


def test_a_listed_name_wins_over_any_model() -> None:
    """A row of its own is used even where ``*`` would allow the name."""
    own = model("a", "upstream-a")
    assert table(model("*"), own).get("a") is own


def test_the_star_itself_is_no_model() -> None:
    """``*`` can't be asked for, and isn't listed."""
    with pytest.raises(ModelNotFound):
        table(model("*")).get("*")
    assert json.loads(table(model("*")).listing) == {"object": "list", "data": []}


def test_the_listing_keeps_the_order_of_the_list() -> None:
    """``GET /v1/models`` has OpenAI's shape, our order, and doesn't claim to be OpenAI's."""
    listing = json.loads(table(model("z"), model("*"), model("a", "other")).listing)
    assert listing["object"] == "list"
    assert [entry["id"] for entry in listing["data"]] == ["z", "a"]
    for entry in listing["data"]:
        assert entry.keys() == {"id", "object", "created", "owned_by"}
        assert (entry["object"], entry["created"]) == ("model", 1_700_000_000)
        assert entry["owned_by"] == "freeapi"


def test_an_entry_is_the_one_in_the_listing() -> None:
    """``GET /v1/models/{id}`` answers what the listing says of that model."""
    listed = table(model("z"), model("a"))
    assert json.loads(listed.entry("a")) == json.loads(listed.listing)["data"][1]


def test_an_entry_under_any_model_is_made_when_asked_for() -> None:
    """``*`` answers for every name that could be a model's, and only for those."""
    assert json.loads(table(model("*")).entry('say"so"'))["id"] == 'say"so"'
    with pytest.raises(ModelNotFound):
        table(model("*")).entry("no such\nmodel")


def test_an_entry_of_no_model_is_refused() -> None:
    """``GET /v1/models/{id}`` of an unknown model is ``model_not_found``."""
    with pytest.raises(ModelNotFound):
        table(model("a")).entry("b")


def test_only_the_operators_own_names_are_listed() -> None:
    """A name that a caller made up under ``*`` isn't listed, and so never reaches a log."""
    both = table(model("*"), model("a"))
    assert both.is_listed("a")
    assert not both.is_listed("made-up")
    assert not both.is_listed("*")


def test_serving_tells_which_models_an_endpoint_has() -> None:
    """All rows that list it, in order, the wildcard too; none where it is off."""
    first, second, any_model = (
        msgspec.structs.replace(model(name), endpoints=("embeddings",)) for name in ("z", "a", "*")
    )
    both = table(first, model("chatter"), second, any_model)
    assert both.serving("embeddings") == (first, second, any_model)
    assert both.serving("chat") == (both.get("chatter"),)
    assert both.serving("images") == ()


def test_two_rows_of_one_name_are_our_own_mistake() -> None:
    """The table refuses what ``config`` should have reported."""
    with pytest.raises(AssertionError):
        table(model("a"), model("a"))


def test_the_builtin_table_starts_with_the_promised_models_and_limits() -> None:
    """The five models of DESIGN section 3 come first, with its figures."""
    assert [(row.name, row.rpm, row.tpm) for row in BUILTIN[:5]] == [
        ("gpt-3.5-turbo", 3_500, 90_000),
        ("gpt-3.5-turbo-0301", 3_500, 90_000),
        ("gpt-3.5-turbo-0613", 3_500, 90_000),
        ("gpt-3.5-turbo-16k", 3_500, 180_000),
        ("gpt-3.5-turbo-16k-0613", 3_500, 180_000),
    ]


def test_the_builtin_table_never_sends_a_retired_name() -> None:
    """Each upstream model is one that the table offers under its own name too."""
    names = [row.name for row in BUILTIN]
    assert len(set(names)) == len(names)
    assert all(is_model_name(name) for name in names)
    for row in BUILTIN:
        assert row.upstream_model in names
        assert not row.upstream_model.startswith("gpt-3.5")
