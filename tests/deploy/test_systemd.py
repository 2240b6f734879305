"""The systemd unit: systemd itself takes it, and what it takes away isn't missed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.fronts import replaced, tool
from tests.deploy.manifests import DEPLOY, setting_problems
from tests.gateway import Gateway
from tests.raw_client import ask, chat

UNIT = DEPLOY / "systemd" / "freeapi.service"
TEXT = UNIT.read_text()
#: Forbids this process and those that it becomes to make memory executable, as the unit's
#: MemoryDenyWriteExecute does. Source: prctl(2), PR_SET_MDWE (65), PR_MDWE_REFUSE_EXEC_GAIN (1).
DENY = (
    "import ctypes, os, sys; libc = ctypes.CDLL(None);"
    " sys.exit('no') if libc.prctl(65, 1, 0, 0, 0) else"
)
SERVE = f"{DENY} os.execv(sys.executable, [sys.executable, '-m', 'freeapi', 'serve'])"
#: Makes a page of memory executable that was writable.
TRY = f"{DENY} sys.exit(libc.mprotect(libc.valloc(4096), 4096, 5))"


def values(name: str) -> list[str]:
    """What the unit says under a name, in order."""
    return [line.partition("=")[2] for line in TEXT.splitlines() if line.startswith(name + "=")]


def verify(text: str, folder: Path) -> str:
    """What systemd says of a unit whose program is there; "" for a good one."""
    program = str(Path(sys.executable).with_name("freeapi"))
    unit = folder / "freeapi.service"
    unit.write_text(replaced(text, ("/opt/freeapi/bin/freeapi", program)))
    command = [tool("systemd-analyze", "systemd"), "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Systemd knows each directive and value of it, and says so where it doesn't."""
    assert verify(TEXT, tmp_path) == ""
    slip = replaced(TEXT, ("ProtectHome=yes", "ProtectHome=perhaps"))
    assert "protect home" in verify(slip, tmp_path)


def test_settings_are_ours() -> None:
    """Each variable is a setting of ours, and the stop waits for longer than the drain."""
    given = dict(value.split("=", 1) for value in values("Environment"))
    filled = {name: value.replace("%d", "$").replace("%S", "$") for name, value in given.items()}
    assert setting_problems(filled) == []
    (stop_s,) = values("TimeoutStopSec")
    assert float(stop_s) > 25  # FREEAPI_DRAIN_S, which the unit leaves as it is


def test_keys_come_as_a_credential() -> None:
    """No key is in the unit: they come by a credential, and the user exists for this only."""
    (credential,) = values("LoadCredential")
    name = credential.partition(":")[0]
    assert f"OPENAI_API_KEYS_FILE=%d/{name}" in values("Environment")
    assert values("DynamicUser") == ["yes"]
    assert "sk-" not in TEXT


async def test_embedded_model_needs_no_executable_memory(tmp_path: Path) -> None:
    """It starts and answers where no memory can be made executable."""
    attempt = [sys.executable, "-c", TRY]
    done = await asyncio.to_thread(subprocess.run, attempt, capture_output=True, check=False)
    if done.stderr == b"no\n":
        pytest.skip("this kernel is older than 6.3 and can't forbid it without systemd")
    assert done.returncode != 0  # so it is forbidden
    assert values("MemoryDenyWriteExecute") == ["yes"]
    gateway = Gateway(tmp_path, {}, python=("-c", SERVE))
    assert (await ask(gateway.port, chat("Hi", max_tokens=4))).status == 200
    gateway.stop()
