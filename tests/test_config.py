"""Models and the file as a whole: what follows from what, and every refusal."""

from __future__ import annotations

import pytest

from freeapi.policy.models import BUILTIN
from tests.configs import KEY, TWO_UPSTREAMS, problems, read

# --- Models ---------------------------------------------------------------------------------------


def test_without_a_file_the_built_in_table_is_served() -> None:
    """The built-in models come in order, with their limits and the ceiling of the environment."""
    models = read({"FREEAPI_MAX_OUTPUT_TOKENS": "77"}).models
    assert [(m.name, m.upstream_model, m.rpm, m.tpm) for m in models] == list(BUILTIN)
    assert {m.max_output_tokens for m in models} == {77}
    assert {m.output_field for m in models} == {"max_tokens"}
    assert {m.output_field for m in read({"OPENAI_API_KEYS": KEY}).models} == {
        "max_completion_tokens"
    }


MODELS = """
[[model]]
name = "all"
rpm = 10
tpm = "off"
max_output_tokens = 100000
input_usd_per_mtok = 0.15
output_usd_per_mtok = 1
unit_usd = 0.04

[[model]]
name = "at-openai"
upstream_model = "gpt-4o-mini"
max_output_tokens = 5
upstreams = ["lab"]
endpoints = ["embeddings", "chat"]
image_tokens_max = 1000

[[model]]
name = "*"
output_field = "max_completion_tokens"
upstreams = ["gpu"]
"""


def test_the_files_models_are_read() -> None:
    """Each [[model]] keeps its place; what it leaves open follows from its upstreams."""
    every, openai, star = read({"LAB_KEYS": KEY}, TWO_UPSTREAMS + MODELS).models
    assert (every.name, every.upstream_model, every.upstreams) == ("all", "all", ())
    assert (every.rpm, every.tpm, every.max_output_tokens) == (10, None, 1_024)
    assert every.endpoints == ("chat", "completions")
    assert every.input_nanousd_per_mtok == 150_000_000
    assert every.output_nanousd_per_mtok == 1_000_000_000
    assert every.unit_nanousd == 40_000_000
    assert every.output_field == "max_tokens"
    assert (openai.upstream_model, openai.max_output_tokens) == ("gpt-4o-mini", 5)
    assert (openai.upstreams, openai.endpoints) == (("lab",), ("embeddings", "chat"))
    assert (openai.output_field, openai.image_tokens_max) == ("max_completion_tokens", 1_000)
    assert openai.input_nanousd_per_mtok is None
    assert (star.name, star.upstream_model) == ("*", "*")
    assert star.output_field == "max_completion_tokens"


def test_models_may_name_the_upstream_that_a_key_would_make() -> None:
    """A file with upstreams = ["openai"] also works before there is a key."""
    toml = '[[model]]\nname = "m"\nupstreams = ["openai"]'
    assert read({}, toml).models[0].upstreams == ()
    assert read({"OPENAI_API_KEYS": KEY}, toml).models[0].upstreams == ("openai",)


@pytest.mark.parametrize(
    ("listed", "upstreams"),
    [
        ("['lab', 'local']", ("lab", "local")),
        ("['local', 'gpu', 'lab']", ("lab", "gpu", "local")),
        ("['local']", ("local",)),
    ],
)
def test_the_embedded_model_is_the_last_of_a_list(listed: str, upstreams: tuple[str]) -> None:
    """``local`` needs no [[upstream]], comes after all that do, and makes the model run."""
    toml = f"{TWO_UPSTREAMS}[[model]]\nname = 'm'\nupstreams = {listed}"
    config = read({"LAB_KEYS": KEY}, toml)
    assert config.models[0].upstreams == upstreams
    assert (config.local, config.wants_local) == (False, True)


def test_the_embedded_model_runs_only_where_it_is_wanted() -> None:
    """It is wanted as the only upstream, as the last of a model's, or when the money is gone."""
    assert read().wants_local
    assert not read({"OPENAI_API_KEYS": KEY}).wants_local
    exhausted = "[policy]\nwhen_exhausted = 'local'"
    assert read({"OPENAI_API_KEYS": KEY}, exhausted).wants_local
    before_the_key = "[[model]]\nname = 'm'\nupstreams = ['openai', 'local']"
    assert read({}, before_the_key).models[0].upstreams == ("local",)


def test_the_embedded_models_name_is_taken() -> None:
    """An [[upstream]] can't be called ``local``."""
    (problem,) = problems({}, "[[upstream]]\nname = 'local'\nbase_url = 'http://h'")
    assert problem.startswith("freeapi.toml: [[upstream]] 1 'local': name: found 'local'")


def test_without_an_upstream_what_nobody_answers_is_told() -> None:
    """Before there is a key, models of endpoints that the embedded model lacks are warned about."""
    toml = "[[model]]\nname = 'm'\nendpoints = ['chat', 'images', 'speech']"
    (warning,) = read({}, toml).warnings
    assert warning == "model m: without an upstream there is no answer to images, speech"
    assert read({"OPENAI_API_KEYS": KEY}, toml).warnings == ()


@pytest.mark.parametrize(
    ("line", "key", "words"),
    [
        ("upstreams = ['nobody']", "upstreams", "found 'nobody'; allowed: some of openai"),
        ("upstreams = []", "upstreams", "a list of names"),
        (
            "upstreams = ['local']\nendpoints = ['images', 'chat', 'moderations']",
            "upstreams",
            "'local' for images, moderations; allowed: it for chat, completions, embeddings",
        ),
        ("unit_usd = -1", "unit_usd", "dollars"),
        ("upstreams = 'openai'", "upstreams", "a list of names"),
        ("endpoints = ['chat', 'files']", "endpoints", "embeddings"),
        ("endpoints = [['chat']]", "endpoints", "embeddings"),
        ("rpm = 0", "rpm", "from 1 to 1000000000, or off"),
        ("rpm = true", "rpm", "from 1 to 1000000000, or off"),
        ("rpm = 1.0", "rpm", "from 1 to 1000000000, or off"),
        ("rpm = 1979-05-27", "rpm", "from 1 to 1000000000, or off"),
        ("max_output_tokens = -1", "max_output_tokens", "a whole number"),
        ("output_field = 'tokens'", "output_field", "max_tokens or max_completion_tokens"),
        ("upstream_model = 'a b'", "upstream_model", "visible ASCII"),
        ("input_usd_per_mtok = inf", "input_usd_per_mtok", "dollars"),
        ("input_usd_per_mtok = 1e-10", "input_usd_per_mtok", "dollars"),
        ("output_usd_per_mtok = -0.5", "output_usd_per_mtok", "dollars"),
        ("price = 1", "price", "one of endpoints, "),
        ("max_tokens = 1", "max_tokens", "did you mean max_output_tokens?"),
        ("max_ouput_tokens = 1", "max_ouput_tokens", "did you mean max_output_tokens?"),
    ],
)
def test_a_wrong_model_is_a_problem(line: str, key: str, words: str) -> None:
    """Each mistake in a [[model]] is one problem, with its number, its name and the key."""
    toml = f"[[model]]\nname = 'fine'\n[[model]]\nname = 'bad'\n{line}"
    (problem,) = problems({}, toml, toml_name="my.toml")
    assert problem.startswith(f"my.toml: [[model]] 2 'bad': {key}: ")
    assert words in problem


@pytest.mark.parametrize("name", ["''", "'a b'", '"\\u00e9"', "3", "'" + "x" * 129 + "'"])
def test_a_models_name_is_visible_ascii(name: str) -> None:
    """A name that could not stand in a log or an answer is refused."""
    (problem,) = problems({}, f"[[model]]\nname = {name}")
    assert "1 to 128 visible ASCII characters" in problem


def test_names_of_models_are_there_and_distinct() -> None:
    """A second model of one name, and one without a name, are problems."""
    again, missing = problems({}, "[[model]]\nname = 'm'\n[[model]]\nname = 'm'\n[[model]]\n")
    assert again.startswith("freeapi.toml: [[model]] 2 'm': name: found 'm' again")
    assert missing.startswith("freeapi.toml: [[model]] 3 '': name: found nothing")


def test_a_wrong_upstreams_name_isnt_reported_at_its_models_too() -> None:
    """One mistake is one problem: the model's list may be right."""
    toml = "[[upstream]]\nname='a b'\nbase_url='http://h'\n[[model]]\nname='m'\nupstreams=['ab']"
    assert len(problems({}, toml)) == 1


# --- The file as a whole --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "start"),
    [
        ("[policy", "freeapi.toml: found "),
        ("a = " + "[" * 100_000, "freeapi.toml: found "),
        ("[models]", "freeapi.toml: models: found a name that nothing here has"),
        ("policy = 1", "freeapi.toml: [policy]: found "),
        ("[model]\nname = 'm'", "freeapi.toml: [[model]]: found "),
        ("upstream = [1]", "freeapi.toml: [[upstream]]: found "),
        ("[policy]\nn_min = 1", "freeapi.toml: [policy]: n_min: found "),
        ("[policy]\nwhen_exhausted = ['local']", "freeapi.toml: [policy]: when_exhausted: "),
        ("[timeouts]\nidle_s = 0", "freeapi.toml: [timeouts]: idle_s: found '0'"),
        ("[timeouts]\nidle_s = nan", "freeapi.toml: [timeouts]: idle_s: found 'nan'"),
    ],
)
def test_a_wrong_file_is_a_problem(toml: str, start: str) -> None:
    """Bad TOML, unknown tables, tables of the wrong kind and wrong values are told apart."""
    (problem,) = problems({}, toml)
    assert problem.startswith(start)


def test_policy_and_timeouts_are_read() -> None:
    """[policy] and [timeouts] override their defaults, key by key."""
    config = read(
        {},
        "[policy]\nn_max = 4\nwhen_exhausted = 'local'\n[timeouts]\nconnect_s = 0.5\ntotal_s = 60",
    )
    assert config.policy.n_max == 4
    assert config.policy.when_exhausted == "local"
    assert (config.timeouts.connect_s, config.timeouts.total_s) == (0.5, 60.0)
    assert config.timeouts.idle_s == 60.0
