"""A changed configuration, taken over while the gateway runs.

``Sources`` reads the files that make the configuration and knows whether they have changed since;
``Reloader`` reads them again when they have, or when it is asked to (SIGHUP), and hands the result
on. What can't be used is refused with all its problems, and the old configuration stays.

What this is not: it doesn't know what a new configuration means for the parts (``gateway``).

Plan: once a second all files are looked at; a change counts when they are the same at two looks,
so that a file that is being written is left alone, and one that never rests isn't read at all. Why
not inotify: mounted secrets (Kubernetes, Cloud Run) change by a symbolic link that is swapped two
folders above, and network and overlay file systems may report nothing; a look is one ``stat`` for
each file.

Invariants: files are looked at and read in a thread, since a network mount may hang; what was read
is never older than what it is compared with.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from freeapi.config import Config, ConfigError
from freeapi.journal import Journal
from freeapi.local import LocalModelError
from freeapi.state.ledger import LedgerError

POLL_S: Final = 1.0
#: What is opened or bound at the start, by the field of ``Config``.
_FIXED: Final = {
    "host": "HOST",
    "port": "PORT",
    "state": "FREEAPI_STATE",
    "data_dir": "FREEAPI_DATA_DIR",
    "admin": "FREEAPI_ADMIN_ADDR",
}


class _Stamp(NamedTuple):
    """What differs between two versions of a file, wherever its name leads to."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    #: Of its permissions, too: a file that couldn't be read may be readable by now.
    changed_ns: int


class Sources:
    """The files that a configuration was read from."""

    def __init__(self) -> None:
        self._seen: dict[str, _Stamp | None] = {}

    def forget(self) -> None:
        """Begin to read a configuration anew."""
        self._seen = {}

    def read(self, path: str) -> str:
        """The text of a file, which is watched from now on, be it there or not.

        Raises OSError or UnicodeDecodeError.
        """
        self._seen[path] = _stamp(path)  # before it is read: a later change is seen as one
        return Path(path).read_text(encoding="utf-8")

    def read_bytes(self, path: str) -> bytes:
        """The same of a file that isn't text. Raises OSError."""
        self._seen[path] = _stamp(path)
        return Path(path).read_bytes()

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the files that were read, or asked for."""
        return tuple(self._seen)

    def look(self) -> tuple[object, ...] | None:
        """How the files are now, to be compared with a later look; None: as when they were read."""
        now = {path: _stamp(path) for path in self._seen}
        return None if now == self._seen else tuple(now.items())


def _stamp(path: str) -> _Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return _Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Reloader:
    """Watches the sources of a running gateway's configuration."""

    def __init__(
        self,
        sources: Sources,
        read: Callable[[], Config],
        apply: Callable[[Config], Awaitable[None]],
        journal: Journal,
        asked: asyncio.Event,
        *,
        told: Callable[[bool], None] = lambda is_ok: None,
        poll_s: float = POLL_S,
    ) -> None:
        """``read`` makes a configuration of the sources, or raises ConfigError.

        ``apply`` takes it over whole, or raises LocalModelError or LedgerError and changes nothing.
        ``asked``, when it is set, means to reload at once, whether anything has changed or not.
        ``told`` hears of each reload whether it was taken over.
        """
        self._sources = sources
        self._read = read
        self._apply = apply
        self._told = told
        self._journal = journal
        self._poll_s = poll_s
        self._asked = asked

    async def run(self) -> None:
        """Reload when asked to and after changes, until cancelled."""
        change = None
        while True:
            is_asked = await self._pause()
            try:
                latest = await asyncio.to_thread(self._sources.look)
                if is_asked or (latest is not None and latest == change):
                    latest = None
                    await self._reload()
                change = latest
            except Exception as error:  # the boundary of a background task: it must go on watching
                self._journal.crash("reload", error)

    async def _pause(self) -> bool:
        """Wait for the next look; whether a reload is asked for."""
        try:
            async with asyncio.timeout(self._poll_s):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _reload(self) -> None:
        start_s = time.monotonic()
        try:
            config = await asyncio.to_thread(self._read)
            await self._apply(config)
        except (ConfigError, LocalModelError, LedgerError) as error:
            problems = len(error.problems) if isinstance(error, ConfigError) else 1
            await _say(f"freeapi goes on with its old configuration. {error}\n")
            self._journal.event("reload_refused", problems=problems)
            self._told(False)
            return
        self._told(True)
        await _say("".join(f"warning: {warning}\n" for warning in config.warnings))
        self._journal.event(
            "reloaded",
            upstreams=len(config.upstreams),
            models=len(config.models),
            duration_ms=round((time.monotonic() - start_s) * 1_000),
        )


def unchangeable(old: Config, new: Config) -> tuple[Config, list[str]]:
    """The new configuration as far as a running gateway can have it, and what it can't change."""
    fixed = {field: getattr(old, field) for field in _FIXED}
    names = [_FIXED[field] for field, value in fixed.items() if getattr(new, field) != value]
    return msgspec.structs.replace(new, **fixed), names


async def _say(text: str) -> None:
    """For the operator, as at the start: on stderr, whole. It may be a pipe that nobody empties."""
    if text:
        await asyncio.to_thread(_write, text)


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
