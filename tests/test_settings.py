"""The environment's variables: what each spelling means, what is refused, and in which words."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from freeapi.config import config_path
from freeapi.settings import ENVIRONMENT, MODEL, POLICY, TIMEOUTS, UPSTREAM
from freeapi.spelling import KEYS, Address, Secret, Unfit
from tests.configs import KEY, OTHER_KEY, problems, read


def test_nothing_set_gives_the_embedded_model_and_the_documented_defaults() -> None:
    """An empty environment is complete: DESIGN section 2's defaults, and no upstream."""
    config = read()
    assert config.local
    assert config.upstreams == ()
    assert (config.host, config.port, config.state) == ("127.0.0.1", 8080, None)
    assert (config.daily_nanousd, config.monthly_nanousd) == (5_000_000_000, None)
    assert config.caller_daily_nanousd == 250_000_000
    assert (config.caller_rpm, config.caller_tpm, config.caller_rpd) == (20, 40_000, 1_000)
    assert (config.caller_concurrency, config.max_output_tokens) == (8, 1_024)
    assert (config.max_body_bytes, config.max_upload_bytes) == (1_048_576, 26_214_400)
    assert (config.max_connections, config.max_connections_per_address) == (None, 256)
    assert (config.queue_s, config.drain_s, config.proxy_hops) == (10.0, 25.0, 0)
    assert config.admin == Address("127.0.0.1", 9464)
    assert (config.log, config.request_log) == ("info", False)
    assert (config.data_dir, config.access_tokens, config.warnings) == (None, None, ())
    assert config.policy.n_max == 1
    assert (config.policy.when_exhausted, config.policy.unknown_fields) == ("refuse", "drop")
    timeouts = config.timeouts
    assert (timeouts.connect_s, timeouts.first_byte_s) == (5, 120)
    assert (timeouts.idle_s, timeouts.total_s) == (60, 600)


@pytest.mark.parametrize("rows", [ENVIRONMENT, UPSTREAM, MODEL, POLICY, TIMEOUTS])
def test_every_default_is_spelled_as_its_kind_takes_it(rows: tuple[Any, ...]) -> None:
    """Each row's default parses, and each name and field stands once in its table."""
    for row in rows:
        assert row.default is None or row.kind.parse(row.default) != ""
        assert row.meaning
    assert len({row.name for row in rows}) == len({row.field for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("HOST", "0.0.0.0", "host", "0.0.0.0"),
        ("HOST", "::", "host", "::"),
        ("HOST", "[::1]", "host", "::1"),
        ("HOST", "my-host_1.example", "host", "my-host_1.example"),
        ("PORT", "0", "port", 0),
        ("PORT", " 65535 ", "port", 65_535),
        ("FREEAPI_DAILY_USD", "off", "daily_nanousd", None),
        ("FREEAPI_DAILY_USD", "0", "daily_nanousd", 0),
        ("FREEAPI_DAILY_USD", "0.000000001", "daily_nanousd", 1),
        ("FREEAPI_DAILY_USD", "0.1", "daily_nanousd", 100_000_000),
        ("FREEAPI_MONTHLY_USD", "123456789.5", "monthly_nanousd", 123_456_789_500_000_000),
        ("FREEAPI_CALLER_DAILY_USD", "100%", "caller_daily_nanousd", 5_000_000_000),
        ("FREEAPI_CALLER_DAILY_USD", "0.05 %", "caller_daily_nanousd", 2_500_000),
        ("FREEAPI_CALLER_DAILY_USD", "0.25", "caller_daily_nanousd", 250_000_000),
        ("FREEAPI_CALLER_DAILY_USD", "OFF", "caller_daily_nanousd", None),
        ("FREEAPI_CALLER_RPM", "off", "caller_rpm", None),
        ("FREEAPI_CALLER_CONCURRENCY", "1", "caller_concurrency", 1),
        ("FREEAPI_MAX_CONNECTIONS", "10", "max_connections", 10),
        ("FREEAPI_QUEUE_S", "0", "queue_s", 0.0),
        ("FREEAPI_QUEUE_S", "2.5", "queue_s", 2.5),
        ("FREEAPI_ADMIN_ADDR", "off", "admin", None),
        ("FREEAPI_ADMIN_ADDR", "[::1]:0", "admin", Address("::1", 0)),
        ("FREEAPI_LOG", "WARNING", "log", "warning"),
        ("FREEAPI_REQUEST_LOG", "on", "request_log", True),
        ("FREEAPI_REQUEST_LOG", "false", "request_log", False),
        ("FREEAPI_DATA_DIR", "/var/lib/free api", "data_dir", "/var/lib/free api"),
        ("FREEAPI_DRAIN_S", "", "drain_s", 25.0),
        ("FREEAPI_DRAIN_S", "  ", "drain_s", 25.0),
    ],
)
def test_a_value_is_read(name: str, text: str, field: str, value: object) -> None:
    """Each spelling gives its value; an empty one counts as not set."""
    assert getattr(read({name: text}), field) == value


def test_a_share_of_no_cap_is_nothing() -> None:
    """FREEAPI_CALLER_DAILY_USD in percent is off where the daily cap is; dollars stay."""
    assert read({"FREEAPI_DAILY_USD": "off"}).caller_daily_nanousd is None
    dollars = {"FREEAPI_DAILY_USD": "off", "FREEAPI_CALLER_DAILY_USD": "1"}
    assert read(dollars).caller_daily_nanousd == 1_000_000_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HOST", "http://127.0.0.1"),
        ("HOST", "127.0.0.1:80"),
        ("HOST", "a b"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "0x50"),
        ("PORT", "٣"),
        ("FREEAPI_DAILY_USD", "$5"),
        ("FREEAPI_DAILY_USD", "-5"),
        ("FREEAPI_DAILY_USD", "5,00"),
        ("FREEAPI_DAILY_USD", "nan"),
        ("FREEAPI_DAILY_USD", "1e3"),
        ("FREEAPI_DAILY_USD", "0.0000000001"),
        ("FREEAPI_CALLER_DAILY_USD", "101%"),
        ("FREEAPI_CALLER_DAILY_USD", "%"),
        ("FREEAPI_CALLER_RPM", "0"),
        ("FREEAPI_CALLER_TPM", "1000000001"),
        ("FREEAPI_CALLER_RPD", "1e3"),
        ("FREEAPI_MAX_OUTPUT_TOKENS", "off"),
        ("FREEAPI_MAX_BODY_BYTES", "1023"),
        ("FREEAPI_QUEUE_S", "601"),
        ("FREEAPI_DRAIN_S", "forever"),
        ("FREEAPI_PROXY_HOPS", "17"),
        ("FREEAPI_ADMIN_ADDR", ":9464"),
        ("FREEAPI_ADMIN_ADDR", "127.0.0.1"),
        ("FREEAPI_ADMIN_ADDR", "127.0.0.1:65536"),
        ("FREEAPI_LOG", "trace"),
        ("FREEAPI_REQUEST_LOG", "yes"),
        ("FREEAPI_STATE", "postgres://h/"),
        ("FREEAPI_STATE", "valkey://"),
        ("FREEAPI_DATA_DIR", "a\0b"),
        ("OPENAI_BASE_URL", "ftp://host/v1"),
        ("OPENAI_BASE_URL", "https://"),
        ("OPENAI_BASE_URL", "https://host:0/v1"),
        ("OPENAI_BASE_URL", "https://host:65536/v1"),
        ("OPENAI_BASE_URL", "https://host/v1?key=1"),
        ("OPENAI_BASE_URL", "https://host/v1#top"),
        ("OPENAI_BASE_URL", "https://user:password@host/v1"),
        ("OPENAI_BASE_URL", "https://ho st/v1"),
        ("OPENAI_BASE_URL", "https://host/a\r\nb"),
        ("OPENAI_BASE_URL", "host/v1"),
    ],
)
def test_a_wrong_value_is_one_problem(name: str, text: str) -> None:
    """A wrong value is reported once, by its name, with what would do; its default stands in."""
    (problem,) = problems({name: text})
    allowed = next(row.kind.allowed for row in ENVIRONMENT if row.name == name)
    assert problem.startswith(f"{name}: found ")
    assert problem.endswith(f"; allowed: {allowed}")


def test_all_problems_come_at_once() -> None:
    """Problems of the environment, of .env, of the command line and of the file are one list."""
    found = problems(
        {"PORT": "x", "FREEAPI_LOG": "loud"},
        "[policy]\nn_max = 0\n",
        dotenv={"FREEAPI_QUEUE_S": "long"},
        flags={"HOST": "a b"},
    )
    assert [problem.partition(": found")[0] for problem in found] == [
        "HOST (command line)",
        "PORT",
        "FREEAPI_QUEUE_S (.env)",
        "FREEAPI_LOG",
        "freeapi.toml: [policy]: n_max",
    ]


def test_a_long_wrong_value_is_cut() -> None:
    """A value of any length makes a message of one line."""
    (problem,) = problems({"FREEAPI_LOG": "line\n" * 10_000})
    assert len(problem) < 200
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FREEAPI_QUEUE", "FREEAPI_QUEUE_S"),
        ("FREEAPI_DAILY_UDS", "FREEAPI_DAILY_USD"),
        ("FREEAPI_CALLER_RMP", "FREEAPI_CALLER_RPM"),
        ("FREEAPI_PORT", "PORT"),
        ("FREEAPI_API_KEYS_FILE", "OPENAI_API_KEYS_FILE"),
    ],
)
def test_a_misspelt_variable_is_a_problem(name: str, meant: str) -> None:
    """An unknown FREEAPI_ variable stops the start and names the one that was meant."""
    (problem,) = problems({name: "1"})
    assert problem.startswith(f"{name}: ")
    assert problem.endswith(f"did you mean {meant}?")
    assert problems(dotenv={name: "1"}) == [problem]


def test_a_variable_like_none_gets_the_list() -> None:
    """Where nothing is near, the problem lists what there is."""
    (problem,) = problems({"FREEAPI_XQZJ": "1"})
    assert all(row.name in problem for row in ENVIRONMENT)


def test_what_kubernetes_adds_is_no_problem() -> None:
    """Service links of services named freeapi or freeapi-admin, and empty variables, are left."""
    links = {
        "FREEAPI_SERVICE_HOST": "10.0.0.7",
        "FREEAPI_SERVICE_PORT": "80",
        "FREEAPI_SERVICE_PORT_HTTP": "80",
        "FREEAPI_PORT": "tcp://10.0.0.7:80",
        "FREEAPI_PORT_80_TCP": "tcp://10.0.0.7:80",
        "FREEAPI_PORT_80_TCP_ADDR": "10.0.0.7",
        "FREEAPI_ADMIN_SERVICE_HOST": "10.0.0.8",
        "FREEAPI_ADMIN_PORT": "tcp://10.0.0.8:9464",
        "FREEAPI_XQZJ": "",
        "PATH": "/bin",
    }
    assert read(links) == read()


def test_layers_win_in_order() -> None:
    """The command line beats the environment, which beats .env; an empty value gives way."""
    layers: dict[str, Any] = {"dotenv": {"PORT": "1", "HOST": "c", "FREEAPI_QUEUE_S": None}}
    assert read({}, **layers).port == 1
    assert read({"PORT": "2", "HOST": ""}, **layers).port == 2
    assert read({"PORT": "2", "HOST": ""}, **layers).host == "c"
    assert read({"PORT": "2"}, flags={"PORT": "3"}, **layers).port == 3


def test_the_files_path_is_found_before_loading() -> None:
    """FREEAPI_CONFIG is taken from the environment, then from .env, else there is none."""
    assert config_path({"FREEAPI_CONFIG": " a.toml "}, {"FREEAPI_CONFIG": "b.toml"}) == "a.toml"
    assert config_path({"FREEAPI_CONFIG": " "}, {"FREEAPI_CONFIG": "b.toml"}) == "b.toml"
    assert config_path({}, {"FREEAPI_CONFIG": None}) is None


# --- Keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [f"{KEY},{OTHER_KEY}", f"{KEY} {OTHER_KEY}", f",{KEY}\n\t, {OTHER_KEY} ,{KEY},"]
)
def test_keys_are_separated_and_distinct(text: str) -> None:
    """Commas and white space separate keys, and a repeated one counts once."""
    (upstream,) = read({"OPENAI_API_KEYS": text}).upstreams
    assert upstream.keys == (Secret(KEY), Secret(OTHER_KEY))


@pytest.mark.parametrize("bad", ['"', "'", "`", "é", "\x00", "\x7f", "\u200b", "“"])
def test_a_key_that_is_no_header_value_is_refused_unshown(bad: str) -> None:
    """A quote, control or non-ASCII character in a key is a problem that names only its place."""
    (problem,) = problems({"OPENAI_API_KEYS": f"{OTHER_KEY} {bad}{KEY}"})
    assert "key 2 of 2" in problem
    assert "canary" not in problem


@given(st.text())
def test_no_key_can_break_out_of_a_header(text: str) -> None:
    """Whatever is given as keys: each one accepted is visible ASCII without quotes."""
    try:
        keys: tuple[Secret, ...] = KEYS.parse(text)
    except Unfit:
        return
    assert keys
    assert all("!" <= char <= "~" and char not in "\"'`," for k in keys for char in k.reveal())


def test_only_separators_are_no_keys() -> None:
    """A variable without a key in it is a problem, not the embedded model by accident."""
    (problem,) = problems({"OPENAI_API_KEYS": " , ,"})
    assert "no key in it" in problem


# --- .env.example ---------------------------------------------------------------------------------


def test_env_example_has_every_variable_with_its_default() -> None:
    """Every variable stands in .env.example once, and all of it uncommented changes nothing."""
    text = (Path(__file__).parents[1] / ".env.example").read_text("utf-8")
    lines = [line.removeprefix("# ") for line in text.splitlines()]
    values = [line for line in lines if line.partition("=")[0].replace("_", "").isupper()]
    assert sorted(line.partition("=")[0] for line in values) == sorted(
        row.name for row in ENVIRONMENT
    )
    dotenv = dotenv_values(stream=StringIO("\n".join(values)), interpolate=False)
    defaults = {row.name: row.default or "" for row in ENVIRONMENT}
    assert dotenv == defaults
    assert dotenv_values(stream=StringIO(text), interpolate=False) == {}
