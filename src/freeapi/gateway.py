"""The running gateway: every object built by hand, then served until told to stop.

This is the one place that knows how the parts are put together. Starting comes in the order of what
may fail: the embedded model first, the public port last, so that a port that answers has everything
behind it. Stopping is the reverse: no new callers, open answers finish (at most
``FREEAPI_DRAIN_S``), then the connections to upstreams close.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from freeapi import __version__
from freeapi.banner import banner
from freeapi.config import Config
from freeapi.dispatch import Dispatcher
from freeapi.gate import Gate
from freeapi.http.deadlines import Deadlines
from freeapi.http.server import Server, ServerLimits
from freeapi.journal import Journal
from freeapi.local import LocalModel, LocalModelError
from freeapi.pages.admin import AdminPages, is_loopback
from freeapi.pages.status import StatusPage
from freeapi.policy.callers import parse_tokens
from freeapi.policy.keys import KeyPool
from freeapi.policy.models import ModelTable
from freeapi.policy.payload import Rules
from freeapi.proxy import Proxy
from freeapi.routes import COMMON_HEADERS, Routes
from freeapi.scheduler import Scheduler
from freeapi.state.ledger import Ledger, LedgerError, Purse
from freeapi.upstreams import build, caps, routed

#: Left for upstream connections, the model, files: a caller's request takes two descriptors.
_DESCRIPTORS_SPARE = 64
#: Young objects between two looks of the cycle collector; at 1 KB each, 20 MB at most.
_OBJECTS_PER_COLLECTION = 20_000
ADMIN_SETTING = "FREEAPI_ADMIN_ADDR"


class CannotListen(Exception):
    """An address to listen on can't be had; the text says which and why."""


def run(config: Config, journal: Journal) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 after a drain, 1 if it can't start.

    Prints the banner on stdout, and why it can't start on stderr.
    """
    try:
        return uvloop.run(_serve(config, journal))
    except (LocalModelError, LedgerError, CannotListen) as error:
        # They happen before the first caller, so the words are about this machine only.
        print(f"freeapi can't start: {error}", file=sys.stderr)
        return 1


async def _serve(config: Config, journal: Journal) -> int:
    start_s = time.monotonic()
    stop = _stop_signal()
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: journal.crash("loop", context.get("exception"))
    )
    journal.event("start", version=__version__, pid=os.getpid(), local=config.local)
    wants_local = config.local or config.policy.when_exhausted == "local"
    local = await LocalModel.start(journal) if wants_local else None
    try:
        gateway = Gateway(config, journal, local)
        host, port = await gateway.listen()
        _keep_from_collector()
        print(banner(config, host, port), flush=True)
        ready_ms = round((time.monotonic() - start_s) * 1_000)
        journal.event("ready", host=host, port=port, duration_ms=ready_ms)
        await stop.wait()
        journal.event("drain", limit_s=config.drain_s)
        await gateway.drain()
    finally:
        if local is not None:
            await local.stop()
    journal.event("stop", dropped=journal.dropped)
    return 0


class Gateway:
    """The parts of one process and how they are joined."""

    def __init__(self, config: Config, journal: Journal, local: LocalModel | None) -> None:
        self._config = config
        self._journal = journal
        now = asyncio.get_running_loop().time
        self._deadlines = Deadlines(asyncio.get_running_loop(), _shortest_s(config))
        socket_path = local.socket_path if local is not None else None
        self._upstreams = build(config, socket_path, self._deadlines)
        self._purse = _purse(config, journal)
        keys = KeyPool(self._upstreams.keys, random.SystemRandom().random)
        models = ModelTable(routed(config), created=int(time.time()))
        gate = _gate(config, journal, now)
        scheduler = Scheduler(gate, keys, config.queue_s)
        dispatcher = Dispatcher(
            keys,
            self._upstreams,
            self._purse,
            has_stand_in=config.policy.when_exhausted == "local",
            now=now,
            journal=journal,
        )
        proxy = Proxy(
            gate=gate,
            scheduler=scheduler,
            models=models,
            rules=Rules(n_max=config.policy.n_max, unknown_fields=config.policy.unknown_fields),
            dispatcher=dispatcher,
            total_s=config.timeouts.total_s,
            journal=journal,
            request_log=config.request_log,
        )

        def is_ready() -> bool:
            return local is None or not config.local or local.is_ready

        status = StatusPage(
            is_ready, lambda: scheduler.waiting, None if self._purse is None else self._purse.status
        )
        routes = Routes(proxy.chat, models, is_ready, status.body, gate.headers_for, journal)
        limits = _server_limits(config)
        self._public = Server(routes, limits, self._deadlines, headers=COMMON_HEADERS)
        pages = AdminPages(
            keys,
            {model.upstream_model for model in config.models},
            now,
            local_only=config.admin is not None and is_loopback(config.admin.host),
        )
        self._admin = Server(pages, limits, self._deadlines)

    async def listen(self) -> tuple[str, int]:
        """Accept callers; returns the public address. Raises CannotListen."""
        config = self._config
        if config.admin is not None:
            try:
                await _listen(self._admin, config.admin.host, config.admin.port, ADMIN_SETTING)
            except CannotListen:
                # Nobody asked for the default one: a second gateway on a machine goes without.
                if config.is_set(ADMIN_SETTING):
                    raise
                self._journal.event("admin_off", port=config.admin.port)
        return await _listen(self._public, config.host, config.port, "HOST and PORT")

    async def drain(self) -> None:
        """No new callers; open answers finish within the limit; then all connections close."""
        await self._public.drain(self._config.drain_s)
        await self._admin.drain(0)
        for pool in self._upstreams.pools.values():
            pool.close()
        self._deadlines.close()
        if self._purse is not None:
            await self._purse.close()


async def _listen(server: Server, host: str, port: int, setting: str) -> tuple[str, int]:
    try:
        return (await server.listen(host, port))[0]
    except OSError as error:
        raise CannotListen(f"can't listen on {host} port {port} ({setting}): {error}") from error


def _server_limits(config: Config) -> ServerLimits:
    room = _connections_max()  # in any case: it raises the limit that a configured cap needs too
    return ServerLimits(
        body_bytes_max=config.max_body_bytes,
        connections_max=config.max_connections or room,
        connections_per_address_max=(
            None if config.proxy_hops else config.max_connections_per_address
        ),
    )


def _purse(config: Config, journal: Journal) -> Purse | None:
    """Where money is kept, if any is spent within caps. Raises LedgerError."""
    limits = caps(config)
    if limits is None:
        return None
    assert config.data_dir is not None, "the edge resolves it"
    ledger = Ledger(Path(config.data_dir))
    return Purse(limits, ledger, time.time, lambda label: journal.event("ledger", label=label))


def _gate(config: Config, journal: Journal, now: Callable[[], float]) -> Gate:
    limits = config.caller_limits
    tokens = None
    if config.access_tokens is not None:
        tokens = parse_tokens(config.access_tokens.reveal(), limits, secrets.token_bytes(32))
    return Gate(
        limits=limits,
        tokens=tokens,
        proxy_hops=config.proxy_hops,
        models=config.models,
        now=now,
        journal=journal,
    )


# --- The process ----------------------------------------------------------------------------------


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop_or_die(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_or_die, number)
    return stop


def _connections_max() -> int:
    """As many callers as the open-files limit has room for, with an upstream connection each.

    The soft limit is raised to the hard one first, as nginx's worker_rlimit_nofile would.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 1_048_576 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(16, (limit - _DESCRIPTORS_SPARE) // 2)


def _shortest_s(config: Config) -> float:
    timeouts = config.timeouts
    return min(timeouts.first_byte_s, timeouts.idle_s, timeouts.total_s)


def _keep_from_collector() -> None:
    """What was built at start lives as long as the process: the collector need not look at it.

    Of what requests leave behind nearly nothing is a cycle, so that looking for cycles after every
    700 objects, the default, is some 3 % of all instructions (perf) for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION, 20, 20)
