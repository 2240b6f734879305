"""The command line: what each command prints, and the exit codes that scripts rely on.

What ``serve`` says when it runs, and when its port is taken, is in ``promises/test_start``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from freeapi import __version__
from freeapi.cli import main

KEY = "sk-canary-0123456789-WXYZ"


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No file and no setting but those of the test."""
    for name in os.environ:
        if name.startswith(("FREEAPI_", "OPENAI_")) or name in ("HOST", "PORT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FREEAPI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """``version`` prints the name and the version, whatever the configuration is worth."""
    Path("freeapi.toml").write_text("not [ TOML")
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"freeapi {__version__}\n"


def test_exit_codes_reach_the_shell() -> None:
    """``python -m freeapi`` prints what ``main`` prints and ends with its code."""
    for arguments, code, printed in ((["version"], 0, f"freeapi {__version__}\n"), (["x"], 2, "")):
        done = subprocess.run(
            [sys.executable, "-m", "freeapi", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, printed)


def test_config_shows_everything_but_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``config`` prints each effective value with its source, and of a key four characters."""
    monkeypatch.setenv("OPENAI_API_KEYS", KEY)
    monkeypatch.setenv("FREEAPI_CALLER_RPM", "7")
    Path(".env").write_text("FREEAPI_CALLER_RPM=8\nFREEAPI_CALLER_RPD=9\n")
    Path("freeapi.toml").write_text('[[model]]\nname = "gpt-4o-mini"\n')
    assert main(["config"]) == 0
    shown = capsys.readouterr().out
    values = {words[0]: words[1] for line in shown.splitlines() if len(words := line.split()) > 1}
    assert values["FREEAPI_CALLER_RPM"] == "7"
    assert values["FREEAPI_CALLER_RPD"] == "9"
    assert values["FREEAPI_CALLER_TPM"] == "40000"
    assert "gpt-4o-mini" in values
    assert "WXYZ" in shown
    assert "canary" not in shown
    assert "0123456789" not in shown


def test_config_shows_the_way_to_each_upstream(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header, version and proxy are shown; of the proxy's password only that there is one."""
    monkeypatch.setenv("OPENAI_API_KEYS", KEY)
    monkeypatch.setenv("LAB_PROXY", "lab:canary-password")
    Path("freeapi.toml").write_text(
        '[[upstream]]\nname = "azure"\nbase_url = "https://x.openai.azure.com/openai/v1"\n'
        'keys_env = "OPENAI_API_KEYS"\nauth = "api-key"\napi_version = "2024-10-21"\n'
        'proxy = "http://proxy.lan:3128"\nproxy_auth_env = "LAB_PROXY"\n'
        '[[model]]\nname = "gpt-4o-mini"\nupstreams = ["azure", "local"]\n'
        "input_usd_per_mtok = 0.15\noutput_usd_per_mtok = 0.6\n"
    )
    assert main(["config"]) == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.split()[:1] == ["azure"])
    for pair in ("auth=api-key", "api_version=2024-10-21", "proxy=proxy.lan:3128", "proxy_auth=…"):
        assert f" {pair}" in line
    assert line.endswith("proxy_auth=…")
    assert "upstreams=azure+local" in shown
    assert "canary" not in shown
    assert "word" not in line


def test_user_without_a_home_needs_a_folder_only_for_money(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's user may have no home: fine where nothing is written, else told what to set."""
    monkeypatch.delenv("FREEAPI_DATA_DIR")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # whom no machine knows
    assert main(["config"]) == 0
    monkeypatch.setenv("OPENAI_API_KEYS", KEY)
    assert main(["config"]) == 2
    assert "FREEAPI_DATA_DIR" in capsys.readouterr().err


def test_file_may_be_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    """``--config`` names the file; one that isn't there is a problem, not a default."""
    Path("other.toml").write_text("[timeouts]\nidle_s = 7\n")
    assert main(["config", "--config", "other.toml"]) == 0
    assert "7" in next(x for x in capsys.readouterr().out.splitlines() if "idle_s" in x)
    assert main(["config", "--config", "missing.toml"]) == 2
    assert "missing.toml" in capsys.readouterr().err


def test_file_that_is_no_text_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    """A file that isn't UTF-8 is told like any other problem."""
    Path("freeapi.toml").write_bytes(b"\xff\xfe\x00")
    assert main(["config"]) == 2
    assert "freeapi.toml" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["config", "serve"])
def test_wrong_configuration_is_told_all_at_once(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every problem of environment, ``.env``, file and flags is on stderr, and the code is 2."""
    monkeypatch.setenv("FREEAPI_CALLER_RPM", "many")
    monkeypatch.setenv("OPENAI_API_KEYS", f'{KEY}"')
    Path(".env").write_text("FREEAPI_QUEUE_S=soon\n")
    Path("freeapi.toml").write_text("[policy]\nn_max = 0\n")
    flags = ["--port", "eighty"] if command == "serve" else []
    assert main([command, *flags]) == 2
    printed = capsys.readouterr()
    for name in ("FREEAPI_CALLER_RPM", "FREEAPI_QUEUE_S", "n_max", "OPENAI_API_KEYS"):
        assert name in printed.err
    assert ("PORT" in printed.err) == bool(flags)
    assert "canary" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["serve", "--prot", "1"], ["version", "x"]])
def test_wrong_arguments_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No command, an unknown one or an unknown option is code 2 with the usage on stderr."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: freeapi" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "two", "2.5", "513"])
def test_wrong_number_of_workers_is_told(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what was found and what is allowed, as for any other setting."""
    with pytest.raises(SystemExit) as ended:
        main(["serve", f"--workers={count}"])
    assert ended.value.code == 2
    expected = f"argument --workers: found '{count}'; allowed: a whole number from 1 to 512"
    assert expected in capsys.readouterr().err
