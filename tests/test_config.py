"""Keys, upstreams and models: how the environment and the file are joined, and every refusal."""

from __future__ import annotations

from typing import Any

import pytest

from freeapi.config import ConfigError, Upstream
from freeapi.policy.models import BUILTIN
from freeapi.spelling import Secret
from tests.configs import KEY, OTHER_KEY, problems, read, read_none


def reveal(upstream: Upstream) -> list[str]:
    """The keys' texts."""
    return [key.reveal() for key in upstream.keys]


def test_the_first_of_the_three_key_variables_counts() -> None:
    """OPENAI_API_KEYS, then OPENAI_API_KEY, then the file; the others are warned about."""
    files = {"/keys": f"# the lab's\n{KEY}\n  # a guest's\n{OTHER_KEY}\n"}
    environ = {"OPENAI_API_KEYS_FILE": "/keys"}
    config = read(environ, read_file=files.__getitem__)
    assert reveal(config.upstreams[0]) == [KEY, OTHER_KEY]
    assert config.warnings == ()
    environ["OPENAI_API_KEY"] = "sk-one"
    config = read(environ)
    assert reveal(config.upstreams[0]) == ["sk-one"]
    assert config.warnings == ("OPENAI_API_KEYS_FILE isn't used, since OPENAI_API_KEY is set",)
    environ["OPENAI_API_KEYS"] = "sk-two"
    config = read(environ)
    assert reveal(config.upstreams[0]) == ["sk-two"]
    assert len(config.warnings) == 2


def undecodable(path: str) -> str:
    """A file that isn't text."""
    return b"\xff".decode()


@pytest.mark.parametrize(
    ("read_file", "why"),
    [(read_none, "No such file"), (undecodable, "not UTF-8"), (lambda _: "# none", "no key in it")],
)
@pytest.mark.parametrize(
    ("environ", "toml", "place"),
    [
        ({"OPENAI_API_KEYS_FILE": KEY}, None, "OPENAI_API_KEYS_FILE"),
        (
            {},
            f"[[upstream]]\nname = 'a'\nkeys_file = '{KEY}'",
            "freeapi.toml: [[upstream]] 1 'a': keys_file",
        ),
    ],
)
def test_a_file_of_keys_that_gives_none_is_a_problem(
    environ: dict[str, str], toml: str | None, place: str, read_file: Any, why: str
) -> None:
    """It says why, and doesn't repeat the path, which may be a key in the wrong variable."""
    (problem,) = problems(environ, toml, read_file=read_file)
    assert problem.startswith(f"{place}: ")
    assert why in problem
    assert "canary" not in problem


def test_access_tokens_are_read_whole_and_hidden() -> None:
    """The file's text is kept; one that can't be read, or holds no token, is a problem."""
    environ = {"FREEAPI_ACCESS_TOKENS_FILE": "/tokens"}
    text = f"{KEY} alice\n"
    config = read(environ, read_file={"/tokens": text}.__getitem__)
    assert config.access_tokens == Secret(text)
    assert "canary" not in repr(config)
    (problem,) = problems(environ)
    assert problem.startswith("FREEAPI_ACCESS_TOKENS_FILE: ")
    with pytest.raises(ConfigError, match="no token"):
        read(environ, read_file=lambda _: "")
    with pytest.raises(ConfigError, match="line 1: rpm must be"):
        read(environ, read_file=lambda _: f"{KEY} rpm=none")


@pytest.mark.parametrize(
    ("text", "parts", "shown"),
    [
        (
            "https://api.openai.com/v1",
            ("https", "api.openai.com", 443, "/v1"),
            "https://api.openai.com/v1",
        ),
        ("HTTP://LocalHost:8081/", ("http", "localhost", 8081, ""), "http://localhost:8081"),
        ("http://[::1]:80/a/b//", ("http", "::1", 80, "/a/b"), "http://[::1]/a/b"),
        ("https://x_y:8443", ("https", "x_y", 8443, ""), "https://x_y:8443"),
        ("https://h/p%20q@~", ("https", "h", 443, "/p%20q@~"), "https://h/p%20q@~"),
    ],
)
def test_a_base_url_is_taken_apart(text: str, parts: tuple[Any, ...], shown: str) -> None:
    """Scheme and host in lower case, the port or its default, the path without a last slash."""
    (upstream,) = read({"OPENAI_API_KEYS": KEY, "OPENAI_BASE_URL": text}).upstreams
    assert (upstream.scheme, upstream.host, upstream.port, upstream.base_path) == parts
    assert upstream.base_url == shown
    assert upstream.name == "openai"
    assert not upstream.free


@pytest.mark.parametrize(
    ("url", "openai", "loopback"),
    [
        ("https://api.openai.com/v1", True, False),
        ("https://eu.api.openai.com/v1", True, False),
        ("https://notapi.openai.com/v1", False, False),
        ("https://api.openai.com.example/v1", False, False),
        ("http://127.0.0.53/", False, True),
        ("http://127.0.0.1.example/", False, False),
        ("http://[::1]:1/", False, True),
        ("http://localhost/", False, True),
    ],
)
def test_an_upstream_knows_whose_it_is(url: str, openai: bool, loopback: bool) -> None:
    """OpenAI's own hosts and this machine's are told from those that only look like them."""
    (upstream,) = read({"OPENAI_API_KEYS": KEY, "OPENAI_BASE_URL": url}).upstreams
    assert (upstream.is_openai, upstream.is_loopback) == (openai, loopback)


def test_a_server_without_keys_is_an_upstream_that_costs_nothing() -> None:
    """OPENAI_BASE_URL alone is enough, except at OpenAI's, where the embedded model answers."""
    (upstream,) = read({"OPENAI_BASE_URL": "http://localhost:11434/v1"}).upstreams
    assert upstream.keys == ()
    assert upstream.free
    assert read({"OPENAI_BASE_URL": "https://api.openai.com/v1"}).local


def test_unencrypted_keys_are_warned_about() -> None:
    """Plain http with keys is fine on this machine, and a warning elsewhere."""
    environ = {"OPENAI_API_KEYS": KEY, "OPENAI_BASE_URL": "http://gpu.lan:8000/v1"}
    (warning,) = read(environ).warnings
    assert "http://gpu.lan:8000/v1 unencrypted" in warning
    assert read({**environ, "OPENAI_BASE_URL": "http://127.0.0.1/v1"}).warnings == ()
    assert read({"OPENAI_BASE_URL": "http://gpu.lan:8000/v1"}).warnings == ()


TWO_UPSTREAMS = """
[[upstream]]
name = "lab"
keys_env = "LAB_KEYS"
daily_usd = 3.0
priority = 2

[[upstream]]
name = "gpu"
base_url = "http://gpu.lan/v1"
share = 3
free = true
"""


def test_the_files_upstreams_are_read() -> None:
    """Each [[upstream]] has its keys, cap, priority and share; OPENAI_API_KEYS isn't mixed in."""
    environ = {"LAB_KEYS": KEY, "OPENAI_API_KEYS": OTHER_KEY, "OPENAI_BASE_URL": "http://x/"}
    config = read(environ, TWO_UPSTREAMS)
    assert config.upstreams == (
        Upstream(
            "lab", "https", "api.openai.com", 443, "/v1", (Secret(KEY),), 3_000_000_000, priority=2
        ),
        Upstream("gpu", "http", "gpu.lan", 80, "/v1", share=3, free=True),
    )
    assert [warning.split()[0] for warning in config.warnings] == [
        "OPENAI_API_KEYS",
        "OPENAI_BASE_URL",
    ]


def test_an_upstream_may_refer_to_the_pool_or_to_any_variable() -> None:
    """keys_env = OPENAI_API_KEYS is the pool under all its names; a FREEAPI_ name is fine, too."""
    toml = "[[upstream]]\nname = 'a'\nkeys_env = '{}'"
    config = read({"OPENAI_API_KEY": KEY}, toml.format("OPENAI_API_KEYS"))
    assert reveal(config.upstreams[0]) == [KEY]
    assert config.warnings == ()
    config = read({"FREEAPI_LAB_KEYS": KEY}, toml.format("FREEAPI_LAB_KEYS"))
    assert reveal(config.upstreams[0]) == [KEY]


@pytest.mark.parametrize(
    ("toml", "place", "words"),
    [
        ("[[upstream]]\nbase_url='http://h'", "1 '': name", "required"),
        ("[[upstream]]\nname='a b'\nbase_url='http://h'", "1 'a b': name", "1 to 32 letters"),
        ("[[upstream]]\nname='a'", "1 'a'", "no keys"),
        ("[[upstream]]\nname='a'\nbase_url='nowhere'", "1 'a': base_url", "http://"),
        ("[[upstream]]\nname='a'\nkeys_env='NONE'", "1 'a': keys_env", "NONE, which isn't set"),
        (
            "[[upstream]]\nname='a'\nkeys_env='OPENAI_API_KEYS'",
            "1 'a': keys_env",
            "OPENAI_API_KEYS, which isn't set",
        ),
        (f"[[upstream]]\nname='a'\nkeys_env='{KEY}'", "1 'a': keys_env", "not shown"),
        ("[[upstream]]\nname='a'\nkeys_env='gsk_canary'", "1 'a': keys_env", "not shown"),
        ("[[upstream]]\nname='a'\nkeys_env='A'\nkeys_file='b'", "1 'a'", "one of the two"),
        ("[[upstream]]\nname='a'\nkeys=['sk-canary']", "1 'a': keys", "did you mean keys_env?"),
        (
            "[[upstream]]\nname='a'\nbase_url='http://h'\nshare=0",
            "1 'a': share",
            "from 1 to 1000",
        ),
        (
            "[[upstream]]\nname='a'\nbase_url='http://h'\nfree='sometimes'",
            "1 'a': free",
            "true or false",
        ),
        (
            "[[upstream]]\nname='a'\nbase_url='http://h'\ndaily_usd=true",
            "1 'a': daily_usd",
            "dollars",
        ),
        (
            "[[upstream]]\nname='a'\nbase_url='http://h'\n" * 2,
            "2 'a': name",
            "a name that no other one has",
        ),
    ],
)
def test_a_wrong_upstream_is_a_problem(toml: str, place: str, words: str) -> None:
    """Each mistake in an [[upstream]] is one problem (two where the name is all), at its place."""
    found = problems({}, toml)
    assert any(
        problem.startswith(f"freeapi.toml: [[upstream]] {place}: ") and words in problem
        for problem in found
    )
    assert len(found) <= (2 if "keys=" in toml else 1)
    assert not any("canary" in problem for problem in found)


def test_a_wrong_key_of_an_upstream_is_a_problem_of_its_variable() -> None:
    """The variable that keys_env names is the place to mend."""
    (problem,) = problems({"LAB_KEYS": f"'{KEY}'"}, TWO_UPSTREAMS)
    assert problem.startswith("LAB_KEYS: ")
    assert "canary" not in problem


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
    ("line", "key", "words"),
    [
        ("upstreams = ['nobody']", "upstreams", "found 'nobody'; allowed: some of openai"),
        ("upstreams = []", "upstreams", "a list of names"),
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
