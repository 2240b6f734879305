"""``freeapi serve --workers N``: one process that serves nobody, and N that share one port.

The supervisor has what there must be once on a machine: the ledger (``bank``), the store of the
shared limits where no other is configured (``store``), the embedded model, the admin port, the look
at changed files. It starts the workers, replaces one that dies, passes on what it is told (stop,
reload), and adds up what they report.

What this is not: no request, key or caller is ever here. Workers listen by SO_REUSEPORT
(socket(7)), so the kernel spreads connections.

Invariants:
- Workers and children end with the supervisor, however it ends: their lines are cut, or the kernel
  tells them.
- A worker's counts outlive it; what it had leased stays spent.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

import uvloop

from freeapi import __version__
from freeapi.banner import banner
from freeapi.config import Config
from freeapi.embedded import Embedded
from freeapi.http.deadlines import Deadlines
from freeapi.http.server import Server
from freeapi.journal import Journal
from freeapi.live_line import LiveLine, Numbers
from freeapi.local import LocalModelError
from freeapi.local.child import end, next_pause_s
from freeapi.measures import DEFINITIONS, Families, merge, pack
from freeapi.metrics import Metrics
from freeapi.pages.admin import AdminPages, is_loopback
from freeapi.pages.course import Course, Pulse
from freeapi.pages.gauges import watch_process
from freeapi.pages.operator import OperatorPages
from freeapi.ports import CannotListen, listen_for_operator, server_limits
from freeapi.reload import Reloader, Sources, unchangeable
from freeapi.serve import signals
from freeapi.state.ledger import Ledger, LedgerError
from freeapi.state.valkey import StoreError
from freeapi.upstreams import caps
from freeapi.workers.bank import Bank
from freeapi.workers.desk import Desk, Worker, joined
from freeapi.workers.link import (
    LeaseAnswer,
    LeaseAsk,
    LineCut,
    Link,
    Orders,
    Ready,
    Reload,
    Report,
)
from freeapi.workers.store import EmbeddedStore

#: For a worker to be ready: it loads the code, connects, listens.
READY_MAX_S: Final = 30.0
#: Beyond FREEAPI_DRAIN_S, for a worker to give its leases back.
_SPARE_S: Final = 5.0


def supervise(
    config: Config,
    journal: Journal,
    sources: Sources,
    read: Callable[[], Config],
    flags: Mapping[str, str],
    count: int,
    line: LiveLine | None = None,
) -> int:
    """Serve with ``count`` workers until SIGTERM or SIGINT. Returns the exit code of ``serve.run``.

    ``flags`` are the command line's, for the workers; else as there.
    """
    try:
        return uvloop.run(_supervise(config, journal, sources, read, flags, count, line))
    except (LocalModelError, LedgerError, StoreError, CannotListen, WorkerFailed) as error:
        print(f"freeapi can't start: {error}", file=sys.stderr)
        return 1


async def _supervise(
    config: Config,
    journal: Journal,
    sources: Sources,
    read: Callable[[], Config],
    flags: Mapping[str, str],
    count: int,
    line: LiveLine | None,
) -> int:
    loop = asyncio.get_running_loop()
    stop, asked = signals()
    loop.set_exception_handler(
        lambda loop, context: journal.crash("loop", context.get("exception"))
    )
    journal.event("start", version=__version__, pid=os.getpid(), local=config.local)
    supervisor = Supervisor(config, journal, flags)
    try:
        host, port = await supervisor.start(count)
        print(banner(config, host, port), flush=True)
        told = supervisor.count_reload
        reloader = Reloader(sources, read, supervisor.reload, journal, asked, told=told)
        watching = [loop.create_task(reloader.run(), name="reload")]
        if line is not None:
            watching.append(loop.create_task(line.show(lambda: Numbers.of(supervisor.counted()))))
        await stop.wait()
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
    finally:
        await supervisor.stop()
    journal.event("stop", dropped=journal.dropped)
    return 0


class WorkerFailed(Exception):
    """A worker died at the first start, having said why."""


class Supervisor:
    """All workers, and what there is once for all of them."""

    def __init__(self, config: Config, journal: Journal, flags: Mapping[str, str]) -> None:
        self._flags = flags
        self._config = config
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._embedded = Embedded(journal)
        self._store: EmbeddedStore | None = None
        self._bank: Bank | None = None
        self._local_socket: str | None = None
        self._port: socket.socket | None = None
        self._workers: list[Worker] = []
        self._keepers: list[asyncio.Task[None]] = []
        #: What workers counted that are no more.
        self._retired = b""
        #: What is the supervisor's own: reloads, its process.
        self._metrics = Metrics(())
        watch_process(self._metrics)
        self._deadlines = Deadlines(self._loop, 1.0)
        self._course = Course(self.counted)
        self._pulse = Pulse(self._loop, time.time, self._course.take)
        pages = AdminPages(
            self,
            (),
            self._loop.time,
            local_only=config.admin is not None and is_loopback(config.admin.host),
            operator=OperatorPages(self.counted, self._course, time.time),
        )
        desk = Desk(pages, self._workers)
        self._admin = Server(desk, server_limits(config), self._deadlines)

    async def start(self, count: int) -> tuple[str, int]:
        """Start everything; returns the public address once all workers are ready.

        Raises LocalModelError, LedgerError, StoreError, CannotListen, WorkerFailed.
        """
        config = self._config
        self._port = _reserve(config.host, config.port)
        model = await self._embedded.wanted(config)
        self._local_socket = None if model is None else model.socket_path
        if config.state is None:
            self._store = await EmbeddedStore.start(self._journal)
            await self._open_bank(config)
        await listen_for_operator(self._admin, config, self._journal)
        self._workers += [Worker(number) for number in range(count)]
        ready = await asyncio.gather(*(self._start_worker(one) for one in self._workers))
        self._keepers = [
            self._loop.create_task(self._keep(one), name=f"worker-{one.number}")
            for one in self._workers
        ]
        return ready[0].host, ready[0].port

    async def reload(self, config: Config) -> None:
        """Have all workers read their configuration anew; this one has been found good.

        Raises LocalModelError or LedgerError; then all is as before.
        """
        config, fixed = unchangeable(self._config, config)
        model = await self._embedded.wanted(config)
        if self._store is not None:
            await self._open_bank(config)
        for name in fixed:
            self._journal.event("restart_needed", setting=name)
        self._local_socket = None if model is None else model.socket_path
        if model is None:
            self._embedded.dismiss(self._config.timeouts.total_s)
        self._config = config
        self._journal.set_level(config.log)
        for worker in self._workers:
            if worker.link is not None:
                worker.link.say(Reload(self._local_socket))

    async def stop(self) -> None:
        """Let all workers drain, then end what they used."""
        self._journal.event("drain", limit_s=self._config.drain_s)
        for keeper in self._keepers:
            keeper.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        running = [one.process for one in self._workers if one.process is not None]
        limit_s = self._config.drain_s + _SPARE_S
        await asyncio.gather(*(end(process, limit_s) for process in running))
        await self._admin.drain(0)
        self._pulse.close()
        self._deadlines.close()
        if self._bank is not None:
            await self._bank.close()
        if self._store is not None:
            await self._store.stop()
        await self._embedded.close()
        if self._port is not None:
            self._port.close()

    def describe(self, now_s: float, models: Collection[str]) -> list[dict[str, str | int]]:
        """All workers' keys, as ``KeyPool.describe``: their counts added, the worst state shown."""
        return joined([one.report.keys for one in self._workers if one.report.keys])

    # --- Workers ---

    async def _start_worker(self, worker: Worker) -> Ready:
        """Start its next life; returns when it accepts callers. Raises WorkerFailed."""
        ours, theirs = socket.socketpair()
        try:
            worker.process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "freeapi", "serve"),
                *("--worker", str(theirs.fileno())),
                stdin=DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C at the terminal is for the supervisor
            )
        finally:
            theirs.close()
        worker.link = link = await Link.over(ours)
        ready: asyncio.Future[Ready] = self._loop.create_future()
        worker.ready = ready
        worker.listening = self._loop.create_task(self._listen(worker, link), name="link")
        link.say(self._orders())
        exiting = self._loop.create_task(process.wait())
        await asyncio.wait(
            (ready, exiting), timeout=READY_MAX_S, return_when=asyncio.FIRST_COMPLETED
        )
        if ready.done():
            self._journal.event("worker_ready", worker=worker.number, pid=process.pid)
            return await ready
        await end(process, 0.0)
        raise WorkerFailed("a worker ended before it was ready; what it says above tells why")

    def _orders(self) -> Orders:
        assert self._port is not None, "it is reserved before workers start"
        flags = {
            **self._flags,
            "HOST": self._config.host,
            "PORT": str(self._port.getsockname()[1]),
            "FREEAPI_ADMIN_ADDR": "off",
        }
        if self._store is not None:
            flags["FREEAPI_STATE"] = self._store.url
        return Orders(flags, self._local_socket, has_bank=self._store is not None)

    async def _listen(self, worker: Worker, link: Link) -> None:
        """Hear one life of a worker to its end."""
        try:
            while True:
                message = await link.hear()
                if isinstance(message, Report):
                    worker.heard(message)
                elif isinstance(message, LeaseAsk):
                    leased = None
                    if self._bank is not None:
                        leased = await self._bank.lease(worker.number, message.orders)
                    link.say(LeaseAnswer(message.number, leased))
                elif isinstance(message, Ready) and worker.ready is not None:
                    worker.ready.set_result(message)
        except LineCut:
            link.close()

    async def _keep(self, worker: Worker) -> None:
        """Replace it whenever it is gone, until cancelled."""
        pause_s = 0.0
        while worker.process is not None:
            since_s = self._loop.time()
            status = await worker.process.wait()
            assert worker.listening is not None, "it has been started"
            await worker.listening  # what it said last, before what it had is counted as spent
            self._retire(worker)
            pause_s = next_pause_s(pause_s, self._loop.time() - since_s)
            self._journal.event("worker_exit", worker=worker.number, status=status, wait_s=pause_s)
            await asyncio.sleep(pause_s)
            try:
                await self._start_worker(worker)
            except WorkerFailed:
                continue

    def _retire(self, worker: Worker) -> None:
        """Keep what it has counted, and what it had leased as spent."""
        if worker.report.metrics:
            both = merge([one for one in (self._retired, worker.report.metrics) if one])
            self._retired = pack(
                {name: of for name, of in both.items() if DEFINITIONS[name].kind != "gauge"}
            )
        worker.silent()
        if self._bank is not None:
            self._bank.forget(worker.number)

    def counted(self) -> Families:
        """All workers' metrics, and what those counted that are no more."""
        latest = [self._retired, *(one.report.metrics for one in self._workers)]
        return merge([self._metrics.snapshot(), *(one for one in latest if one)])

    def count_reload(self, is_ok: bool) -> None:
        """For the metrics: one was taken over by all, or refused."""
        self._metrics.reloaded(is_ok=is_ok)

    async def _open_bank(self, config: Config) -> None:
        """Open the ledger if there is money to count and it isn't open. Raises LedgerError."""
        if self._bank is not None or caps(config) is None:
            return
        assert config.data_dir is not None, "the edge resolves it"
        ledger = await asyncio.to_thread(Ledger, Path(config.data_dir))
        self._bank = Bank(
            ledger, time.time, lambda label: self._journal.event("ledger", label=label)
        )


def _reserve(host: str, port: int) -> socket.socket:
    """Have the port, without listening: the workers do. Raises CannotListen.

    First without SO_REUSEPORT, which would share another instance's port, and its callers.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            address = probe.getsockname()
        reserved = socket.socket(family, kind, protocol)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    except OSError as error:
        raise CannotListen(
            f"can't listen on {host} port {port} (HOST and PORT): {error}"
        ) from error
    return reserved
