"""The worker's end of the line to its supervisor.

``Post`` hears what the supervisor says (stop, reload, what was leased) and reports once a second,
and when the supervisor asks.
A worker without its supervisor drains and ends; one that drains already ends at once, as after a
second Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final

import msgspec

from freeapi.config import Config
from freeapi.workers.bank import LinkLeases
from freeapi.workers.link import LeaseAnswer, LineCut, Link, Orders, Ready, Reload, Report, Tell

#: The operator's page asks as often.
REPORT_S: Final = 1.0


class BorrowedModel:
    """The embedded model, which is the supervisor's child."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        #: The supervisor sees to that.
        self.is_ready = True


class Borrowed:
    """As ``embedded.Embedded``, for a model that others start and stop."""

    def __init__(self, socket_path: str | None) -> None:
        self.socket_path = socket_path

    async def wanted(self, config: Config) -> BorrowedModel | None:
        """The model, if this configuration uses it."""
        if not config.wants_local or self.socket_path is None:
            return None
        return BorrowedModel(self.socket_path)

    def dismiss(self, after_s: float) -> None:
        """It isn't ours to end."""

    async def close(self) -> None:
        """As ``dismiss``."""


class Post:
    """One worker's line. ``open`` it in the event loop; ``close`` it last."""

    def __init__(self, end: socket.socket, orders: Orders) -> None:
        self._end = end
        self.orders = orders
        self.embedded = Borrowed(orders.local_socket)
        #: None: leases are the shared store's.
        self.leases: LinkLeases | None = None
        self._link: Link | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: None: callers aren't accepted yet.
        self._report: Callable[[], Report] | None = None

    async def open(self, stop: asyncio.Event, asked: asyncio.Event) -> None:
        """Begin to hear. ``stop`` and ``asked`` (to reload) are set when it is time."""
        loop = asyncio.get_running_loop()
        self._link = await Link.over(self._end)
        if self.orders.has_bank:
            self.leases = LinkLeases(self._link)
        self._hearing = loop.create_task(self._hear(self._link, stop, asked), name="link")

    def begin(self, host: str, port: int, report: Callable[[], Report]) -> None:
        """Callers are accepted: say so, and report from now on."""
        assert self._link is not None, "open it first"
        self._link.say(Ready(host, port))
        self._report = report
        self._keep_reporting(self._link, report)

    def close(self) -> None:
        """Say and hear no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._hearing is not None:
            self._hearing.cancel()
        if self._link is not None:
            self._link.close()

    def _keep_reporting(self, link: Link, report: Callable[[], Report]) -> None:
        loop = asyncio.get_running_loop()
        link.say(report())
        self._timer = loop.call_later(REPORT_S, self._keep_reporting, link, report)

    async def _hear(self, link: Link, stop: asyncio.Event, asked: asyncio.Event) -> None:
        try:
            while True:
                message = await link.hear()
                if isinstance(message, LeaseAnswer) and self.leases is not None:
                    self.leases.answered(message)
                elif isinstance(message, Reload):
                    self.embedded.socket_path = message.local_socket
                    asked.set()
                elif isinstance(message, Tell) and self._report is not None:
                    link.say(msgspec.structs.replace(self._report(), number=message.number))
        except LineCut:
            if stop.is_set():
                os._exit(1)
            if self.leases is not None:
                self.leases.cut()
            stop.set()
