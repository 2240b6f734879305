"""The admin port of many workers: what each has said of itself, and the pages over all of it.

A worker reports once a second. That is enough for people; programs expect that what was answered is
counted, so for those pages every worker is asked first.

What this is not: it adds no metrics up (``measures.merge``), and starts nobody (``supervisor``).
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import Process
from collections.abc import Sequence
from typing import Final

import msgspec

from freeapi.http.reply import Reply
from freeapi.http.wire import Request
from freeapi.pages.admin import AdminPages
from freeapi.workers.link import Link, Ready, Report, Tell

#: For workers to say what they have counted; one that is busy is shown as of its last second.
REPORTS_MAX_S: Final = 0.5
#: What is read by programs, which expect what was answered to be counted.
_EXACT: Final = frozenset([b"/metrics", b"/keys"])


class Worker:
    """One worker, over all its lives."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.link: Link | None = None
        self.report = Report(b"", [])
        #: It has said something new.
        self.news = asyncio.Event()
        self.ready: asyncio.Future[Ready] | None = None
        #: Ends when all that this life has said is heard.
        self.listening: asyncio.Task[None] | None = None

    def heard(self, report: Report) -> None:
        """It has said this; the latest number that was asked for stays."""
        number = max(report.number, self.report.number)
        self.report = msgspec.structs.replace(report, number=number)
        self.news.set()

    def silent(self) -> None:
        """This life is over."""
        self.report = Report(b"", [])
        self.news.set()

    async def tell(self, number: int) -> None:
        """Have it report, and wait for that, if it has begun to."""
        if self.link is None or not self.report.metrics:
            return
        self.link.say(Tell(number))
        while self.report.metrics and self.report.number < number:
            self.news.clear()
            await self.news.wait()


class Desk:
    """The application of the admin port."""

    def __init__(self, pages: AdminPages, workers: Sequence[Worker]) -> None:
        """``workers`` may come later."""
        self._pages = pages
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._asked = 0
        self._answering: set[asyncio.Task[None]] = set()

    def __call__(self, request: Request, reply: Reply) -> None:
        """Answer, at once or when all workers have reported."""
        if request.path not in _EXACT:
            self._pages(request, reply)
            return
        task = self._loop.create_task(self._answer_exactly(request, reply), name="desk")
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        reply.on_gone = task.cancel

    async def _answer_exactly(self, request: Request, reply: Reply) -> None:
        self._asked += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPORTS_MAX_S):
                await asyncio.gather(*(one.tell(self._asked) for one in self._workers))
        self._pages(request, reply)


def joined(reports: list[list[dict[str, str | int]]]) -> list[dict[str, str | int]]:
    """Keys by their place in the configuration; a worker that reloads right now may differ."""
    joined: list[dict[str, str | int]] = []
    for keys in reports:
        for index, key in enumerate(keys):
            if index == len(joined):
                joined.append(dict(key))
                continue
            one = joined[index]
            for name in ("in_flight", "requests", "failures"):
                one[name] = int(one[name]) + int(key[name])
            if one["state"] == "ok":
                one["state"] = key["state"]
    return joined
