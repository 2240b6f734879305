"""What ``freeapi doctor`` says of the machine: the ledger's folder, ports, files, swap, state."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from freeapi.commands.checks_machine import (
    check_data_dir,
    check_descriptors,
    check_model,
    check_ports,
    check_swap,
    file_system,
)
from freeapi.commands.checks_state import check_state
from freeapi.commands.diagnosis import Finding
from freeapi.config import Config
from freeapi.spelling import Secret, StateUrl
from freeapi.state.ledger import Ledger
from tests.configs import KEY, read
from tests.valkey_server import serving

IN_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing is written there


def capped(folder: Path, **more: str) -> Config:
    """A configuration whose spending is written down in this folder."""
    return read({"OPENAI_API_KEYS": KEY, "FREEAPI_DATA_DIR": str(folder), **more})


def ledger_of(folder: Path, *, is_running: bool = False) -> Finding:
    """What is said first about the ledger there."""
    return next(iter(check_data_dir(capped(folder), is_running=is_running)))


def test_folder_that_can_be_written_is_ok_and_left_as_it_was(tmp_path: Path) -> None:
    """The doctor tries to write, and makes neither the folder nor a ledger."""
    assert ledger_of(tmp_path / "new" / "data").level == "ok"
    assert list(tmp_path.iterdir()) == []


def test_folder_that_can_not_be_written_is_a_problem(tmp_path: Path) -> None:
    """A folder that can't be made is told with the setting that chooses another one."""
    (tmp_path / "file").touch()
    finding = ledger_of(tmp_path / "file" / "data")
    assert (finding.level, "FREEAPI_DATA_DIR" in finding.remedy) == ("problem", True)


def test_damaged_ledger_is_a_problem(tmp_path: Path) -> None:
    """A ledger that can't be read is told as the start would tell it."""
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 100)
    finding = ledger_of(tmp_path)
    assert (finding.level, "is damaged" in finding.text) == ("problem", True)


def test_ledger_in_use_is_fine_beside_a_running_gateway(tmp_path: Path) -> None:
    """The one who has it is named; without a gateway on the port, it is in the way of a start."""
    ledger = Ledger(tmp_path)
    try:
        running, stray = (ledger_of(tmp_path, is_running=one) for one in (True, False))
    finally:
        ledger.close()
    assert (running.level, stray.level) == ("ok", "warning")
    assert f"process {os.getpid()}" in running.text
    assert f"end process {os.getpid()}" in stray.remedy
    assert ledger_of(tmp_path).level == "ok"


def test_without_caps_or_with_a_shared_store_no_folder_is_needed(tmp_path: Path) -> None:
    """Nothing is said about a ledger that nobody would write."""
    for more in ({"FREEAPI_DAILY_USD": "off"}, {"FREEAPI_STATE": "valkey://127.0.0.1:1"}):
        config = capped(tmp_path / "none", FREEAPI_CALLER_DAILY_USD="off", **more)
        assert list(check_data_dir(config, is_running=False)) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/freeapi", "nfs4"),
        ("/data/local/x", "ext4"),
        ("/database", "overlay"),
        ("/run/user", "tmpfs"),
    ],
)
def test_file_system_is_that_of_the_innermost_mount(path: str, kind: str) -> None:
    """The longest mount point on the way counts, by whole names."""
    mounts = "\n".join(
        f"{number} 1 0:1 / {point} rw,relatime shared:1 - {kind} source rw"
        for number, (point, kind) in enumerate(
            [("/", "overlay"), ("/data", "nfs4"), ("/data/local", "ext4"), ("/run", "tmpfs")]
        )
    )
    assert file_system(mounts, path) == kind


@pytest.mark.skipif(not IN_MEMORY.is_dir(), reason="no file system in memory here")
def test_ledger_in_memory_is_a_warning() -> None:
    """Caps that a restart forgets are no caps."""
    findings = list(check_data_dir(capped(IN_MEMORY / "freeapi-none"), is_running=False))
    assert [one.level for one in findings] == ["ok", "warning"]
    assert "tmpfs" in findings[1].text


# --- Ports ----------------------------------------------------------------------------------------


async def test_free_port_is_ok() -> None:
    """A port that can be had is ok, and free again."""
    for _ in range(2):
        ports = await check_ports(read({"PORT": "0", "FREEAPI_ADMIN_ADDR": "off"}))
        assert [one.level for one in ports.findings] == ["ok"]
        assert not ports.is_running


async def test_port_of_another_program_is_a_problem() -> None:
    """A port that somebody else has is told, with the setting that chooses another one."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        ports = await check_ports(read({"PORT": port, "FREEAPI_ADMIN_ADDR": "off"}))
    (finding,) = ports.findings
    assert finding.level == "problem"
    assert "address already in use" in finding.text
    assert "HOST and PORT" in finding.remedy
    assert not ports.is_running


async def test_address_of_another_machine_is_a_problem() -> None:
    """Only an address of this machine can be listened on."""
    settings = {"HOST": "192.0.2.1", "PORT": "8080", "FREEAPI_ADMIN_ADDR": "off"}
    (finding,) = (await check_ports(read(settings))).findings
    assert (finding.level, "0.0.0.0" in finding.remedy) == ("problem", True)


async def test_admin_port_that_is_taken_is_worse_if_it_was_chosen() -> None:
    """A chosen one stops the start; the default one is gone without."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        chosen = f"127.0.0.1:{busy.getsockname()[1]}"
        ports = await check_ports(read({"PORT": "0", "FREEAPI_ADMIN_ADDR": chosen}))
    assert [one.level for one in ports.findings] == ["ok", "problem"]


# --- The rest -------------------------------------------------------------------------------------


def test_too_few_descriptors_are_a_warning() -> None:
    """Two files for each caller, or for each of FREEAPI_MAX_CONNECTIONS, have to be allowed."""
    assert list(check_descriptors(read(), 1_048_576)) == []
    (finding,) = check_descriptors(read(), 1_024)
    assert "512 callers" in finding.text
    (finding,) = check_descriptors(read({"FREEAPI_MAX_CONNECTIONS": "600000"}), 1_048_576)
    assert "FREEAPI_MAX_CONNECTIONS" in finding.text


def test_swap_on_a_disk_is_a_warning() -> None:
    """Memory that is swapped to a disk may be read there; compressed memory is none."""
    header = "Filename\t\tType\t\tSize\tUsed\tPriority\n"
    assert list(check_swap("")) == list(check_swap(header)) == []
    assert list(check_swap(f"{header}/dev/zram0 partition 4096 0 100\n")) == []
    (finding,) = check_swap(f"{header}/dev/zram0 partition 4096 0 100\n/swapfile file 1 0 -2\n")
    assert "/swapfile" in finding.text


async def test_embedded_model_is_looked_at_where_it_is_wanted() -> None:
    """Without keys its runtime is loaded and its weights are found; with keys nobody looks."""
    assert (await check_model(read()))[0].level == "ok"
    assert await check_model(read({"OPENAI_API_KEYS": KEY})) == []


# --- The shared state -----------------------------------------------------------------------------


async def test_good_store_is_ok() -> None:
    """A Valkey that keeps what it is told is ok, with its round trip."""
    with serving() as server:
        found = await check_state(StateUrl("unix", Secret(server.url)), is_capped=True)
    assert [one.level for one in found] == ["ok"]
    assert "ms" in found[0].text


async def test_store_that_forgets_money_is_a_problem() -> None:
    """Without an append-only file the caps would begin anew: said with the setting to change."""
    with serving("--appendonly", "no") as server:
        found = await check_state(StateUrl("unix", Secret(server.url)), is_capped=True)
        uncapped = await check_state(StateUrl("unix", Secret(server.url)), is_capped=False)
    assert [one.level for one in found] == ["ok", "problem"]
    assert "appendonly" in found[1].text
    assert found[1].remedy == "Set appendonly to yes"
    assert [one.level for one in uncapped] == ["ok"]


async def test_store_that_is_down_is_a_problem() -> None:
    """A store that nobody reaches is told without the URL, which may hold a password."""
    with serving() as server:
        url = server.url
    (finding,) = await check_state(StateUrl("unix", Secret(url)), is_capped=True)
    assert finding.level == "problem"
    assert url not in finding.text + finding.remedy


async def test_store_that_hangs_is_a_problem_in_time() -> None:
    """A store that takes the connection and says nothing is given up."""
    with serving() as server:
        server.pause()
        (finding,) = await check_state(StateUrl("unix", Secret(server.url)), is_capped=True)
        server.resume()
    assert finding.level == "problem"
