"""``freeapi audit`` finds nothing in the gateway as it is, and every kind of leak in a leaky one.

All of it is real: the command, the traced process, the recorder. The leaky gateway
(``leaky.py``) is the real one with a profiler that tells.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from freeapi.commands.audit import Inconclusive, audit, run
from freeapi.commands.subject import CannotStart
from tests.configs import KEY, read

LEAKY = Path(__file__).with_name("leaky.py")
ENVIRONMENT = {"OPENAI_API_KEYS": KEY}
#: Small in every way in which one can be and still be audited.
FILE = """
[[upstream]]
name = "first"
base_url = "https://first.invalid/api/v1"
keys_env = "FIRST_KEYS"
daily_usd = 0.5

[[upstream]]
name = "second"
base_url = "https://second.invalid/v1"
keys_env = "SECOND_KEYS"
priority = 2
free = true

[[model]]
name = "small"
upstream_model = "large"
rpm = 600
input_usd_per_mtok = 0.000000001
output_usd_per_mtok = 0.6
upstreams = ["first"]

[[model]]
name = "*"
upstreams = ["second"]

[policy]
unknown_fields = "refuse"
"""


def start(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command, as an operator runs it."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "freeapi", "audit", *arguments],
        cwd=home,
        env={**kept, "HOME": str(home), **settings},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_the_gateway_as_it_is_leaks_nothing(tmp_path: Path) -> None:
    """Every channel is tried, nothing is found, no real key is used, and the exit code is 0."""
    done = start(tmp_path, "--json", OPENAI_API_KEYS=KEY)
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    assert [check for check in report["checks"] if not check["ok"]] == []
    assert (done.returncode, report["ok"]) == (0, True)
    assert len(report["checks"]) > 60
    assert report["looked_in"]["requests that the upstream got"] > 25
    assert report["looked_in"]["bytes of stdout and stderr"] > 1_000
    assert "data/ledger.db" in report["files"]
    assert len(report["connections"]) == 1
    assert KEY not in done.stdout
    # Neither it nor the gateway left anything in the operator's directories.
    assert list(tmp_path.iterdir()) == []


def test_each_kind_of_leak_is_found_in_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    """A deleted file, a log line, a packet, a header, a program, an open memory: all are seen."""
    leaks = ["file", "stderr", "network", "upstream", "program", "neighbours"]
    command = [sys.executable, str(LEAKY), *leaks]
    assert run(read(ENVIRONMENT), ENVIRONMENT, as_json=False, command=command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("NOT PRIVATE: ")
    found = {line[2:40].strip(): line.partition("FOUND: ")[2] for line in lines if line[0:1] == "✗"}
    assert "leak.tmp (base64)" in found.pop("prompt")
    assert found.pop("user agent") == "stdout or stderr"
    assert found.pop("connections") == "127.0.0.1:9"
    assert found.pop("cookie") == "what the upstream got of 'a chat'"
    assert found.pop("other programs").endswith("true")
    assert "allowed" in found.pop("other processes reading its memory")
    # What else was in the file, and no more.
    assert found
    assert all("leak.tmp" in places for places in found.values())


def test_the_operators_own_configuration_is_audited(tmp_path: Path) -> None:
    """Upstreams, models, tokens, proxies and policy of a file are in force, with nothing found."""
    (tmp_path / "freeapi.toml").write_text(FILE)
    (tmp_path / "tokens").write_text("the-only-token")
    done = start(
        tmp_path,
        FREEAPI_ACCESS_TOKENS_FILE="tokens",
        FREEAPI_PROXY_HOPS="2",
        FREEAPI_DATA_DIR="data",
        FIRST_KEYS=KEY,
        SECOND_KEYS=KEY,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # Under "*" the upstream gets the name that the caller asked for.
    (row,) = [line for line in done.stdout.splitlines() if "✓ model's name" in line]
    assert "the upstream" in row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["freeapi.toml", "tokens"]


def test_limits_that_stop_the_audit_are_no_pass() -> None:
    """If the texts can't get to where they might leak, nothing is claimed."""
    settings = {**ENVIRONMENT, "FREEAPI_DAILY_USD": "0.000001"}
    with pytest.raises(Inconclusive, match=r"'a chat' didn't reach the upstream .*429"):
        audit(read(settings), settings)


def test_a_gateway_that_dies_is_no_pass() -> None:
    """If it goes away in between, nothing is claimed, and it isn't called a leak."""
    command = [sys.executable, str(LEAKY), "death"]
    with pytest.raises(Inconclusive, match="stopped answering"):
        audit(read(ENVIRONMENT), ENVIRONMENT, command)


def test_a_gateway_that_does_not_start_is_no_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """If it can't be started, the exit code is 2 and its own words say why."""
    command = [sys.executable, "-c", "print('no such luck')"]
    with pytest.raises(CannotStart, match="no such luck"):
        audit(read(ENVIRONMENT), ENVIRONMENT, command)
    assert run(read(ENVIRONMENT), ENVIRONMENT, as_json=True, command=command) == 2
    assert "could not tell: no such luck" in capsys.readouterr().err
