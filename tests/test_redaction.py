"""No key, token or password is ever shown: not by a secret, a problem or the configuration."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from freeapi.config import ConfigError
from freeapi.policy.models import BUILTIN
from freeapi.settings import ENVIRONMENT, MODEL, POLICY, TIMEOUTS, UPSTREAM
from freeapi.showing import redacted, render
from freeapi.spelling import Kind, Secret
from tests.configs import KEY, OTHER_KEY, problems, read


def test_a_secret_shows_at_most_its_tail() -> None:
    """Four characters of a long secret, none of a short one, however it is printed."""
    for shown in (repr(Secret(KEY)), str(Secret(KEY)), f"{Secret(KEY)}", f"{[Secret(KEY)]}"):
        assert shown.strip("[]") == "…WXYZ"
    assert str(Secret("elevenchars")) == "…"
    assert Secret(KEY).reveal() == KEY
    assert Secret(KEY) == Secret(KEY) != Secret(OTHER_KEY)
    assert len({Secret(KEY), Secret(KEY)}) == 1
    assert Secret(KEY) != KEY


@pytest.mark.parametrize("copier", [pickle.dumps, copy.deepcopy])
def test_a_secret_isnt_serialised(copier: Any) -> None:
    """Pickling or copying a secret fails: it stays where it was put."""
    with pytest.raises(TypeError):
        copier(Secret(KEY))


SECRETIVE = {
    "OPENAI_API_KEYS": f"{KEY} short",
    "FREEAPI_STATE": "rediss://user:canary-password@state:6379/0",
    "FREEAPI_ACCESS_TOKENS_FILE": "/tokens",
}


def test_the_effective_configuration_is_shown_without_secrets() -> None:
    """freeapi config's dict and text name every setting and its source, and no secret."""
    config = read(
        SECRETIVE,
        "[policy]\nn_max = 2",
        dotenv={"PORT": "81"},
        read_file=lambda _: "canary-token",
    )
    assert config.state is not None
    assert config.state.url.reveal() == SECRETIVE["FREEAPI_STATE"]
    shown = redacted(config)
    for text in (json.dumps(shown), render(config), repr(config), str(config)):
        assert "canary" not in text
        assert "short" not in text
    settings = shown["environment"]
    assert list(settings) == [row.name for row in ENVIRONMENT]
    assert settings["OPENAI_API_KEYS"] == {"value": "…WXYZ, …", "source": "environment"}
    assert settings["FREEAPI_STATE"] == {"value": "rediss://…", "source": "environment"}
    assert settings["PORT"] == {"value": "81", "source": ".env"}
    assert settings["HOST"] == {"value": "127.0.0.1", "source": "default"}
    assert settings["FREEAPI_DATA_DIR"] == {"value": None, "source": "default"}
    assert shown["policy"]["n_max"] == {"value": "2", "source": "freeapi.toml"}
    assert shown["upstream"][0]["keys"] == ["…WXYZ", "…"]
    assert len(shown["model"]) == len(BUILTIN)
    text = render(config)
    assert all(row.name in text for row in (*ENVIRONMENT, *POLICY, *TIMEOUTS))
    assert "not set  (default)" in text


def test_warnings_are_shown() -> None:
    """The text and the dict end with what to think about."""
    config = read({"OPENAI_API_KEYS": KEY, "OPENAI_BASE_URL": "http://gpu.lan/v1"})
    assert render(config).splitlines()[-1] == f"warning: {config.warnings[0]}"
    assert redacted(config)["warnings"] == list(config.warnings)


@pytest.mark.parametrize("row", ENVIRONMENT, ids=lambda row: row.name)
def test_a_key_in_the_wrong_variable_isnt_shown(row: Any) -> None:
    """Whichever variable a key is pasted into: neither problems nor the output show it."""
    try:
        config = read({row.name: f"{KEY}\n"})
    except ConfigError as error:
        shown = str(error)
    else:
        shown = render(config) + json.dumps(redacted(config))
    assert len(shown) > 50
    assert "canary" not in shown


@pytest.mark.parametrize(
    "line",
    [f"k = {KEY}", KEY, f"k = '{KEY}", f"k = {{{KEY}}}", f"k = '{KEY}' '{KEY}'", f"[{KEY} ="],
)
def test_a_file_that_isnt_toml_isnt_quoted(line: str) -> None:
    """The message about bad TOML has a place in the file, and none of its text."""
    (problem,) = problems({}, f"[[upstream]]\n{line}\n")
    assert "(at " in problem
    assert "canary" not in problem


def test_a_path_that_only_resembles_a_key_is_shown() -> None:
    """``/mnt/disk-1`` has "sk-" in it, and is a path."""
    config = read({"FREEAPI_DATA_DIR": "/mnt/disk-1"})
    assert redacted(config)["environment"]["FREEAPI_DATA_DIR"]["value"] == "/mnt/disk-1"


def test_kinds_say_what_they_take() -> None:
    """No kind leaves an operator without words."""
    kinds: list[Kind] = [row.kind for row in (*ENVIRONMENT, *UPSTREAM, *MODEL, *POLICY, *TIMEOUTS)]
    assert all(len(kind.allowed) > 5 for kind in kinds)
