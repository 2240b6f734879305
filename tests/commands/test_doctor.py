"""``freeapi doctor`` as an operator runs it: what it prints, its exit codes, no secrets.

What each check says is in ``test_checks_*``.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.answers import answer, error
from tests.conftest import StartGateway
from tests.scripted_upstream import Request, Script, ScriptedUpstream, send

KEY = "sk-canary-0123456789-WXYZ"
MODELS = answer(200, b'{"data":[{"id":"gpt-4o-mini"}]}')
ONE_MODEL = '[[model]]\nname = "gpt-x"\nupstream_model = "gpt-4o-mini"\n'


class Said(NamedTuple):
    """What it printed, and its exit code."""

    code: int
    out: str
    err: str

    def findings(self, about: str) -> list[dict[str, str]]:
        """Of ``--json``: those about one thing."""
        diagnosis: dict[str, Any] = json.loads(self.out)
        return [one for one in diagnosis["findings"] if one["about"] == about]


async def doctor(
    home: Path, settings: Mapping[str, str], *arguments: str, config: str = ONE_MODEL
) -> Said:
    """Run it in ``home``, while the upstream of the test answers."""
    return await asyncio.to_thread(_run, home, settings, arguments, config)


def _run(home: Path, settings: Mapping[str, str], arguments: Sequence[str], config: str) -> Said:
    home.mkdir(exist_ok=True)
    (home / "freeapi.toml").write_text(config)
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "PORT": "0"}
    environ |= {"FREEAPI_DATA_DIR": str(home / "data"), "FREEAPI_ADMIN_ADDR": "off"}
    if "PYTHONPATH" in os.environ:  # where the package isn't installed
        environ["PYTHONPATH"] = os.environ["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "freeapi", "doctor", *arguments],
        cwd=home,
        env={**environ, **settings},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def behind(upstream: ScriptedUpstream, keys: str = KEY) -> dict[str, str]:
    """The environment of an instance in front of this upstream."""
    return {"OPENAI_API_KEYS": keys, "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream.port}/v1"}


async def test_healthy_instance_is_exit_code_0(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Without a problem it ends with 0, and each line says what is well; nothing is on stderr."""
    upstream.plays([send(MODELS)])
    price = "input_usd_per_mtok = 0.15\noutput_usd_per_mtok = 0.60\n"
    said = await doctor(tmp_path, behind(upstream), config=ONE_MODEL + price)
    assert (said.code, said.err) == (0, "")
    assert "✓ openai" in said.out
    assert "✗" not in said.out
    assert "no problems" in said.out.splitlines()[-1]
    assert not (tmp_path / "data").exists()


async def test_problem_is_exit_code_1_with_a_remedy(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """A key that is refused ends it with 1; below the problem stands what to do."""
    upstream.plays([send(error(401, "invalid_api_key", "canary-upstream"))])
    settings = behind(upstream) | {"FREEAPI_DAILY_USD": "off", "FREEAPI_CALLER_DAILY_USD": "off"}
    said = await doctor(tmp_path, settings)
    assert said.code == 1
    lines = said.out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("✗"))
    assert "key …WXYZ: is invalid" in lines[place]
    assert lines[place + 1].strip().startswith("-> replace it")


async def test_unusable_configuration_is_exit_code_2_with_all_problems(tmp_path: Path) -> None:
    """A configuration that doesn't load is told whole, for people and for machines."""
    wrong = {"PORT": "eighty", "FREEAPI_CALLER_RPM": "-1", "OPENAI_API_KEYS": f'{KEY}"'}
    said = await doctor(tmp_path, wrong, "--json")
    assert (said.code, said.err) == (2, "")
    told = " ".join(one["text"] for one in said.findings("config"))
    assert all(name in told for name in wrong)
    assert "canary" not in said.out


async def test_offline_asks_nobody(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """With --offline no connection is made, and what wasn't looked at isn't said to be ok."""
    state = {"FREEAPI_STATE": "valkey://127.0.0.1:1", "FREEAPI_DAILY_USD": "off"}
    more = state | {"FREEAPI_CALLER_DAILY_USD": "off"}
    said = await doctor(tmp_path, behind(upstream) | more, "--offline", "--json")
    assert said.code == 0
    assert upstream.connections == []
    assert said.findings("upstreams")[0]["level"] == "not checked"
    assert said.findings("state")[0]["level"] == "not checked"
    assert said.findings("openai") == []


async def test_running_gateway_is_recognised(
    upstream: ScriptedUpstream, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Beside the gateway that it is about, neither its port nor its ledger is in the way."""
    upstream.plays([send(MODELS)])
    price = "input_usd_per_mtok = 0.15\noutput_usd_per_mtok = 0.60\n"
    own = '[[model]]\nname = "own"\nupstream_model = "gpt-4o-mini"\n' + price
    gateway = await start_gateway(own, FREEAPI_DAILY_USD="5")
    settings = {"PORT": str(gateway.port), "FREEAPI_DATA_DIR": str(gateway.home)}
    said = await doctor(tmp_path / "x", behind(upstream) | settings, "--json", config=own)
    assert said.code == 0, said.out
    assert said.findings("port")[0]["text"] == f"a freeapi runs on 127.0.0.1:{gateway.port}"
    assert (
        f"process {gateway.process.pid}, the running gateway" in said.findings("ledger")[0]["text"]
    )


async def test_shared_state_that_is_down_is_a_problem(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """A store that nobody reaches is told, and its password isn't."""
    upstream.plays([send(MODELS)])
    settings = {"FREEAPI_STATE": "valkey://:canary-state@127.0.0.1:1", "FREEAPI_DAILY_USD": "off"}
    said = await doctor(tmp_path, behind(upstream) | settings, "--json")
    assert said.code == 1
    (finding,) = said.findings("state")
    assert (finding["level"], "FREEAPI_STATE" in finding["text"]) == ("problem", True)
    assert "canary" not in said.out + said.err


async def test_no_secret_is_printed(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Of good and bad keys, tokens and what upstreams say, four characters of a key come out."""

    def judge(request: Request) -> Script:
        is_good = str(request.header("authorization")).endswith("GOOD")
        return [send(MODELS if is_good else error(401, "canary-code", f"canary {request.headers}"))]

    upstream.script = judge
    (tmp_path / "tokens").write_text("canary-token-0123456789 name\n")
    (tmp_path / "keys").write_text("sk-canary-in-a-file-FILE\n")
    for name in ("tokens", "keys"):
        (tmp_path / name).chmod(0o644)
    toml = f"""
[[upstream]]
name = "one"
base_url = "http://127.0.0.1:{upstream.port}/v1"
keys_env = "ONE_KEYS"
free = true
[[upstream]]
name = "two"
base_url = "http://127.0.0.1:{upstream.port}/v1"
keys_file = "keys"
free = true
"""
    settings = {
        "ONE_KEYS": "sk-canary-0123456789-GOOD sk-canary-0123456789-EVIL",
        "FREEAPI_ACCESS_TOKENS_FILE": "tokens",
    }
    for arguments in ([], ["--json"]):
        said = await doctor(tmp_path, settings, *arguments, config=toml + ONE_MODEL)
        assert "canary" not in said.out + said.err
        assert "…EVIL" in said.out
        assert "…FILE" in said.out
        assert "chmod 600 keys" in said.out
        assert said.code == 1  # the only key of the second upstream is refused
