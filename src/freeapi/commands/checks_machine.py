"""What ``freeapi doctor`` says about this machine: the ledger's folder, ports, descriptors, memory.

Each check looks at one thing and returns findings. Texts of the system (``/proc``) are taken apart
by functions that get them as texts. What this is not: nothing is changed or left behind, but for a
file that is gone before it has a name.

Source: proc(5), proc_pid_mountinfo(5), flock(2).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import shutil
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from freeapi.commands.diagnosis import Finding, not_checked, ok, problem, warning
from freeapi.config import Config
from freeapi.hardening import HardeningRefused, harden
from freeapi.listening import listen_advice, listen_failure
from freeapi.local import LocalModelError
from freeapi.local.model import environment, find_model
from freeapi.policy.models import OWNED_BY
from freeapi.spelling import Address
from freeapi.state.ledger import LedgerError, read_grants
from freeapi.upstreams import caps

#: The ledger itself stays under 1 MB; a disk this full has other troubles coming.
FREE_BYTES_MIN: Final = 64 * 1024 * 1024
#: Two for each caller; fewer than 1,000 callers at a time is little for a public instance.
DESCRIPTORS_MIN: Final = 2_100
#: What the embedded model's process takes (ARCHITECTURE: 340 MB), and some room.
MODEL_BYTES: Final = 400 * 1024 * 1024
#: For loading the runtime from a cold disk.
IMPORT_MAX_S: Final = 20.0
#: Where what happened is told together with what to do.
_UNTIL_THEN: Final = "until then freeapi serve doesn't start"
#: For a gateway on this machine.
_ANSWER_MAX_S: Final = 2.0
#: Their locks and syncs aren't what SQLite needs. Source: SQLite, "How To Corrupt", section 2.1.
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "glusterfs", "lustre", "nfs", "nfs4", "smb3", "smbfs", "virtiofs"}
    | {f"fuse.{name}" for name in ("gcsfuse", "glusterfs", "rclone", "s3fs", "sshfs")}
)
_MEMORY_FILE_SYSTEMS: Final = frozenset({"tmpfs", "ramfs"})


def check_hardening() -> Finding:
    """Give up what ``serve`` gives up, in this process, which is about to hold keys as well."""
    try:
        harden()
    except HardeningRefused as error:
        return problem(
            "memory",
            f"the process can't protect its memory: {error}",
            "a sandbox around it (seccomp) forbids prctl: let it, or serve won't start",
        )
    return ok("memory", "no core dump, and no other process of this user can look into it")


# --- The folder of the ledger ---------------------------------------------------------------------


def check_data_dir(config: Config, *, is_running: bool) -> Iterator[Finding]:
    """Whether spending can be written down; ``is_running``: a gateway is on the port."""
    if caps(config) is None or config.state is not None:
        return
    assert config.data_dir is not None, "the edge resolves it"
    folder = Path(config.data_dir)
    try:
        read_grants(folder, 0.0)
    except LedgerError as error:
        yield problem("ledger", str(error), _UNTIL_THEN)
        return
    if (trouble := _cannot_write(folder)) is not None:
        yield trouble
        return
    yield _owner(folder, is_running=is_running)
    yield from _disk(folder)


def _cannot_write(folder: Path) -> Finding | None:
    """Try it, in the folder or, before there is one, where it would be made."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as trial:
            trial.write(b"freeapi doctor")
    except OSError as error:
        return problem(
            "ledger",
            f"can't write in {place}: {error.strerror}",
            f"let this user write there, or set FREEAPI_DATA_DIR to another folder than {folder}",
        )
    return None


def _owner(folder: Path, *, is_running: bool) -> Finding:
    owner = _locked_by(folder / "ledger.lock")
    if owner is None:
        return ok("ledger", f"{folder} can be read and written")
    if is_running:
        return ok("ledger", f"{folder} is in use by process {owner}, the running gateway")
    return warning(
        "ledger",
        f"{folder} is in use by process {owner}, but no gateway answers where this one would",
        f"end process {owner}, or give this gateway another FREEAPI_DATA_DIR (with its own caps): "
        "two can't share one ledger",
    )


def _locked_by(path: Path) -> str | None:
    """The process that holds the lock; None: nobody."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(lock, 20).decode("ascii", "replace") or "unknown"
    finally:
        os.close(lock)
    return None


def _disk(folder: Path) -> Iterator[Finding]:
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < FREE_BYTES_MIN:
        yield warning(
            "disk",
            f"{free_bytes // 1_048_576} MiB free at {place}",
            "make room: when it is full, nothing more can be spent",
        )
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:  # not Linux
        return
    kind = file_system(mounts, str(place.resolve()))
    if kind in _NETWORK_FILE_SYSTEMS:
        yield warning(
            "disk",
            f"{place} is on a network file system ({kind}), whose locks and syncs the ledger "
            "can't rely on",
            "set FREEAPI_DATA_DIR to a local disk, or share the state by FREEAPI_STATE=valkey://...",
        )
    elif kind in _MEMORY_FILE_SYSTEMS:
        yield warning(
            "disk",
            f"{place} is in memory ({kind}): after a restart of the machine or container the caps "
            "count from zero",
            "set FREEAPI_DATA_DIR to a disk or a volume, or keep the state in "
            "FREEAPI_STATE=valkey://...",
        )


def file_system(mounts: str, path: str) -> str:
    """The kind of file system of an absolute path, by the text of mountinfo; the last one wins."""
    best, kind = "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4]
        covers = path == point or path.startswith(point.rstrip("/") + "/")
        if covers and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


# --- Ports ----------------------------------------------------------------------------------------


class Ports(NamedTuple):
    """What trying the ports has shown."""

    findings: list[Finding]
    #: A gateway answers on the public one.
    is_running: bool


async def check_ports(config: Config) -> Ports:
    """Whether they are free, or a gateway has them already."""
    findings: list[Finding] = []
    is_running = False
    error = _try_port(config.host, config.port)
    if error is None:
        findings.append(ok("port", f"{_shown(config.host, config.port)} is free"))
    elif error.errno == errno.EADDRINUSE and await _is_ours(config.host, config.port):
        is_running = True
        findings.append(ok("port", f"a freeapi runs on {_shown(config.host, config.port)}"))
    else:
        text = listen_failure(config.host, config.port, error)
        findings.append(problem("port", text, listen_advice("HOST and PORT", error)))
    if config.admin is not None and not is_running:
        findings += _admin_port(config, config.admin)
    return Ports(findings, is_running)


def _admin_port(config: Config, admin: Address) -> Iterator[Finding]:
    error = _try_port(admin.host, admin.port)
    if error is None:
        return
    text = listen_failure(admin.host, admin.port, error)
    if config.is_set("FREEAPI_ADMIN_ADDR"):
        yield problem("admin", text, listen_advice("FREEAPI_ADMIN_ADDR", error))
    else:
        yield warning(
            "admin",
            f"{text}; this gateway will have no admin port",
            "set FREEAPI_ADMIN_ADDR to another port for metrics and the operator's page",
        )


def _try_port(host: str, port: int) -> OSError | None:
    """Listen as the gateway would, for a moment."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
                trial.listen(1)
    except OSError as error:
        return error
    return None


async def _is_ours(host: str, port: int) -> bool:
    """Whether what answers there lists its models as we do."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared
    try:
        async with asyncio.timeout(_ANSWER_MAX_S):
            reader, writer = await asyncio.open_connection(reachable, port)
            try:
                writer.write(
                    b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
                )
                return f'"owned_by":"{OWNED_BY}"'.encode() in await reader.read(65_536)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _shown(host: str, port: int) -> str:
    return f"any port of {host}" if port == 0 else str(Address(host, port))


# --- Descriptors, swap, the embedded model --------------------------------------------------------


def check_descriptors(config: Config, files_max: int) -> Iterator[Finding]:
    """Whether the open-files limit has room for the callers, two each."""
    wanted = DESCRIPTORS_MIN if config.max_connections is None else 2 * config.max_connections
    if files_max >= wanted:
        return
    setting = "" if config.max_connections is None else ", fewer than FREEAPI_MAX_CONNECTIONS"
    yield warning(
        "files",
        f"the open-files limit is {files_max:,}, for {files_max // 2:,} callers at a time{setting}",
        f"raise it to {wanted:,} or more (ulimit -n; LimitNOFILE in systemd; --ulimit nofile in "
        "Docker)",
    )


def open_files_max() -> int:
    """The limit up to which the gateway raises its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def check_swap(swaps: str) -> Iterator[Finding]:
    """``swaps`` is the text of /proc/swaps."""
    used = [line.split()[0] for line in swaps.splitlines()[1:] if line.strip()]
    on_disk = [name for name in used if not name.startswith("/dev/zram")]
    if on_disk:
        yield warning(
            "swap",
            f"memory may be written to {', '.join(on_disk)}, callers' texts and keys included",
            "encrypt it, turn it off (swapoff), or forbid it to the service (MemorySwapMax=0 in "
            "systemd); if it is encrypted, this is right",
        )


def read_swaps() -> str:
    """The text of /proc/swaps; empty where there is none."""
    try:
        return Path("/proc/swaps").read_text()
    except OSError:
        return ""


async def check_model(config: Config) -> list[Finding]:
    """Whether the embedded model can be started, where it is wanted."""
    if not config.wants_local:
        return []
    try:
        path = find_model()
    except LocalModelError as error:
        return [problem("local model", str(error), _UNTIL_THEN)]
    findings = [await _runtime(path)]
    free_bytes = _available_bytes()
    if free_bytes is not None and free_bytes < MODEL_BYTES:
        findings.append(
            warning(
                "local model",
                f"{free_bytes // 1_048_576} MiB of memory are available, and it takes 340",
                "end something, or set OPENAI_API_KEYS to do without it",
            )
        )
    return findings


async def _runtime(model_path: str) -> Finding:
    """Load its native code in a process of its own: on an old processor that dies."""
    advice = "make setup; if its processor is too old for it, set OPENAI_API_KEYS instead"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-c", "import xllamacpp"),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
        env=environment(),
    )
    try:
        async with asyncio.timeout(IMPORT_MAX_S):
            status = await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        return not_checked("local model", f"its runtime took over {IMPORT_MAX_S:g} s to load")
    if status != 0:
        return problem("local model", f"its runtime can't be loaded (status {status})", advice)
    megabytes = os.stat(model_path).st_size // 1_000_000
    return ok("local model", f"its runtime loads, and its {megabytes} MB of weights are there")


def _available_bytes() -> int | None:
    """None where the system doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
