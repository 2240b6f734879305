"""The audited configuration is the operator's, less its keys, addresses and files."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from freeapi.commands.rehearsal import KEYS_PER_UPSTREAM, Rehearsal, prepare
from freeapi.config import Config, load
from tests.configs import KEY, OTHER_KEY, read

FILE = """
[[upstream]]
name = "paid"
base_url = "https://paid.invalid/deep/v1"
keys_env = "PAID_KEYS"
daily_usd = 0.123456789
share = 3

[[upstream]]
name = "spare"
base_url = "http://spare.invalid/v1"
priority = 2
free = true

[[model]]
name = "small"
rpm = 7
max_output_tokens = 99
endpoints = ["chat"]
input_usd_per_mtok = 12.5
output_usd_per_mtok = 0.000000001

[[model]]
name = "busy"
upstream_model = "large"
upstreams = ["spare"]
output_field = "max_completion_tokens"

[[model]]
name = "*"
upstream_model = "*"
upstreams = ["spare"]

[policy]
n_max = 3
unknown_fields = "refuse"

[timeouts]
idle_s = 4.5
"""
SETTINGS = {"PAID_KEYS": KEY, "FREEAPI_CALLER_RPM": "9", "FREEAPI_DAILY_USD": "2.5"}


def rehearse(home: Path, config: Config, settings: dict[str, str]) -> tuple[Rehearsal, Config]:
    """What the audit prepares, and how the gateway will read it."""
    words = (f"word{number}" for number in itertools.count())
    rehearsal = prepare(config, settings, home, upstream_port=1234, admin_port=9, words=words)
    text = Path(rehearsal.environ["FREEAPI_CONFIG"]).read_text()
    return rehearsal, load(
        rehearsal.environ, text, read_file=lambda path: Path(path).read_text(encoding="utf-8")
    )


def test_models_limits_and_policy_stay(tmp_path: Path) -> None:
    """What decides about a request is the same as in real life, to the last nano-dollar."""
    real = read(SETTINGS, FILE)
    rehearsal, rehearsed = rehearse(tmp_path, real, SETTINGS)
    assert rehearsed.models == real.models
    assert rehearsed.policy == real.policy
    assert (rehearsed.caller_rpm, rehearsed.caller_tpm) == (9, real.caller_tpm)
    assert rehearsed.daily_nanousd == real.daily_nanousd == 2_500_000_000
    assert rehearsed.timeouts.idle_s == 4.5
    (paid, spare), (was_paid, was_spare) = rehearsed.upstreams, real.upstreams
    assert (paid.name, paid.share, paid.free) == (was_paid.name, was_paid.share, was_paid.free)
    assert paid.daily_nanousd == was_paid.daily_nanousd == 123_456_789
    assert (spare.name, spare.priority, spare.free) == ("spare", 2, was_spare.free)
    # The one that allows the most, and isn't any.
    assert rehearsal.model == "busy"


def test_addresses_keys_and_files_are_the_audits(tmp_path: Path) -> None:
    """No real address, key or directory is left in it."""
    environment = {
        **SETTINGS,
        "OPENAI_API_KEYS": OTHER_KEY,
        "FREEAPI_DATA_DIR": "/precious",
        "FREEAPI_ADMIN_ADDR": "0.0.0.0:9464",
        "FREEAPI_STATE": "valkey://user:canary-password@state:6379/0",
        "HOST": "0.0.0.0",
    }
    rehearsal, rehearsed = rehearse(tmp_path, read(environment, FILE), environment)
    assert [one.base_url for one in rehearsed.upstreams] == [
        "http://127.0.0.1:1234/deep/v1",
        "http://127.0.0.1:1234/v1",
    ]
    assert len(rehearsal.keys) == 2 * KEYS_PER_UPSTREAM
    given = [key.reveal() for one in rehearsed.upstreams for key in one.keys]
    assert given == list(rehearsal.keys)
    everything = str(rehearsal.environ) + (tmp_path / "freeapi.toml").read_text()
    for real in (KEY, OTHER_KEY, "canary-password", "/precious", "0.0.0.0", ".invalid"):
        assert real not in everything
    assert rehearsed.host == "127.0.0.1"
    assert rehearsed.data_dir == str(tmp_path / "data")
    assert rehearsed.state is None
    assert any("valkey://…" in note for note in rehearsal.notes)


def test_tokens_are_made_up_where_tokens_are_asked_for(tmp_path: Path) -> None:
    """An instance for token holders is audited as one, with tokens of the audit's own."""
    settings = {**SETTINGS, "FREEAPI_ACCESS_TOKENS_FILE": "/tokens"}
    real = read(settings, FILE, read_file=lambda _: "real-token")
    rehearsal, rehearsed = rehearse(tmp_path, real, settings)
    assert rehearsed.access_tokens is not None
    assert rehearsed.access_tokens.reveal().split() == list(rehearsal.tokens)
    assert "real-token" not in rehearsal.tokens
    assert rehearse(tmp_path, read(SETTINGS, FILE), SETTINGS)[0].tokens == []


def test_the_embedded_model_is_replaced_and_the_report_says_so(tmp_path: Path) -> None:
    """Without keys, or as a stand-in, the model isn't started: a note tells."""
    rehearsal, rehearsed = rehearse(tmp_path, read({}), {})
    assert not rehearsed.local
    assert rehearsed.models == read({}).models
    assert any("the recorder stood in for it" in note for note in rehearsal.notes)
    stands_in = read({"OPENAI_API_KEYS": KEY}, '[policy]\nwhen_exhausted = "local"')
    rehearsal, rehearsed = rehearse(tmp_path, stands_in, {})
    assert rehearsed.policy.when_exhausted == "refuse"
    assert any("wasn't started" in note for note in rehearsal.notes)


@pytest.mark.parametrize("settings", [{}, SETTINGS])
def test_the_log_is_at_its_loudest(tmp_path: Path, settings: dict[str, str]) -> None:
    """Whatever may be logged at any level is in what is searched."""
    _, rehearsed = rehearse(tmp_path, read(settings), settings)
    assert (rehearsed.log, rehearsed.request_log) == ("debug", True)
