"""The embedded model's comings and goings: started where a configuration wants it, ended after.

What this is not: the model itself, its process and its restarts are ``freeapi.local``'s.

Invariants: a model ends only when no request can be on its way to it any more, or at ``close``;
after that no child process is left.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from freeapi.config import Config
from freeapi.journal import Journal
from freeapi.local import LocalModel


class Model(Protocol):
    """A running one, as far as requests go."""

    @property
    def socket_path(self) -> str:
        """Where it listens."""

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""


class Models(Protocol):
    """Who has it: this process, or its supervisor."""

    async def wanted(self, config: Config) -> Model | None:
        """A running one, where the configuration wants it. Raises LocalModelError."""

    def dismiss(self, after_s: float) -> None:
        """No request will need it that isn't over after so long."""

    async def close(self) -> None:
        """End all."""


class Embedded:
    """The embedded model while it is wanted; one that isn't any more ends after its requests."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._model: LocalModel | None = None
        self._leaving: dict[asyncio.Task[None], LocalModel] = {}

    async def wanted(self, config: Config) -> LocalModel | None:
        """A running one, where the configuration wants it. Raises LocalModelError."""
        if config.wants_local and self._model is None:
            self._model = await LocalModel.start(self._journal)
        return self._model if config.wants_local else None

    def dismiss(self, after_s: float) -> None:
        """No request will need it that isn't over after so long."""
        if self._model is not None:
            ending = asyncio.get_running_loop().create_task(_end(self._model, after_s))
            self._leaving[ending] = self._model
            ending.add_done_callback(self._leaving.pop)
            self._model = None

    async def close(self) -> None:
        """End all."""
        models = [*self._leaving.values()] + ([self._model] if self._model is not None else [])
        for ending in self._leaving:
            ending.cancel()
        for model in models:
            await model.stop()


async def _end(model: LocalModel, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await model.stop()
