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
from collections.abc import Callable, Sequence

import uvloop

from freeapi import __version__
from freeapi.banner import banner
from freeapi.config import Config, Upstream
from freeapi.dispatch import Account, Dispatcher
from freeapi.gate import Gate
from freeapi.http.deadlines import Deadlines
from freeapi.http.pool import Origin, Timeouts, UpstreamPool
from freeapi.http.server import Server, ServerLimits
from freeapi.journal import Journal
from freeapi.local import LocalModel, LocalModelError
from freeapi.pages.admin import AdminPages, is_loopback
from freeapi.policy.callers import parse_tokens
from freeapi.policy.keys import KeyPool, UpstreamKeys
from freeapi.policy.models import ModelTable
from freeapi.policy.payload import Rules
from freeapi.proxy import Proxy
from freeapi.routes import COMMON_HEADERS, Routes
from freeapi.scheduler import Scheduler

#: The embedded model among the upstreams' names.
LOCAL = "local"
#: Left for upstream connections, the model, files: a caller's request takes two descriptors.
_DESCRIPTORS_SPARE = 64
ADMIN_SETTING = "FREEAPI_ADMIN_ADDR"
_CHAT_PATH = "/chat/completions"


class CannotListen(Exception):
    """An address to listen on can't be had; the text says which and why."""


def run(config: Config, journal: Journal) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 after a drain, 1 if it can't start.

    Prints the banner on stdout, and why it can't start on stderr.
    """
    try:
        return uvloop.run(_serve(config, journal))
    except (LocalModelError, CannotListen) as error:
        # Both happen before the first caller, so the words are about this machine only.
        print(f"freeapi can't start: {error}", file=sys.stderr)
        return 1


async def _serve(config: Config, journal: Journal) -> int:
    start_s = time.monotonic()
    stop = _stop_signal()
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: journal.crash("loop", context.get("exception"))
    )
    journal.event("start", version=__version__, pid=os.getpid(), local=config.local)
    local = await LocalModel.start(journal) if config.local else None
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
        self._pools = _pools(config, local, self._deadlines)
        keys = KeyPool(_upstream_keys(config), random.SystemRandom().random)
        models = ModelTable(config.models, created=int(time.time()))
        gate = _gate(config, journal, now)
        proxy = Proxy(
            gate=gate,
            scheduler=Scheduler(gate, keys, config.queue_s),
            models=models,
            rules=Rules(n_max=config.policy.n_max, unknown_fields=config.policy.unknown_fields),
            dispatcher=Dispatcher(keys, _accounts(config, self._pools), now, journal),
            total_s=config.timeouts.total_s,
            journal=journal,
            request_log=config.request_log,
        )
        routes = Routes(proxy.chat, models, lambda: local is None or local.is_ready, journal)
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
        for pool in self._pools.values():
            pool.close()
        self._deadlines.close()


async def _listen(server: Server, host: str, port: int, setting: str) -> tuple[str, int]:
    try:
        return (await server.listen(host, port))[0]
    except OSError as error:
        raise CannotListen(f"can't listen on {host} port {port} ({setting}): {error}") from error


def _server_limits(config: Config) -> ServerLimits:
    return ServerLimits(
        body_bytes_max=config.max_body_bytes,
        connections_max=config.max_connections or _connections_max(),
        connections_per_address_max=(
            None if config.proxy_hops else config.max_connections_per_address
        ),
    )


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


# --- Upstreams ------------------------------------------------------------------------------------


def _pools(
    config: Config, local: LocalModel | None, deadlines: Deadlines
) -> dict[str, UpstreamPool]:
    timeouts = Timeouts(
        connect_s=config.timeouts.connect_s,
        first_byte_s=config.timeouts.first_byte_s,
        idle_s=config.timeouts.idle_s,
    )
    if local is not None:
        origin = Origin(host="localhost", port=0, socket_path=local.socket_path)
        return {LOCAL: UpstreamPool(origin, timeouts, deadlines)}
    return {
        upstream.name: UpstreamPool(_origin(upstream), timeouts, deadlines)
        for upstream in config.upstreams
    }


def _origin(upstream: Upstream) -> Origin:
    return Origin(host=upstream.host, port=upstream.port, tls=upstream.scheme == "https")


def _upstream_keys(config: Config) -> Sequence[UpstreamKeys]:
    if config.local:
        return [UpstreamKeys(LOCAL, ())]
    return [
        UpstreamKeys(
            upstream.name,
            tuple(key.tail for key in upstream.keys),
            priority=upstream.priority,
            share=upstream.share,
        )
        for upstream in config.upstreams
    ]


def _accounts(config: Config, pools: dict[str, UpstreamPool]) -> dict[str, list[Account]]:
    if config.local:
        return {LOCAL: [Account(pools[LOCAL], _head("localhost", "/v1", None))]}
    return {
        upstream.name: [
            Account(
                pools[upstream.name],
                _head(upstream.authority, upstream.base_path, key.reveal() if key else None),
            )
            for key in upstream.keys or (None,)
        ]
        for upstream in config.upstreams
    }


def _head(authority: str, base_path: str, key: str | None) -> bytes:
    """All of a request's head that doesn't change: nothing in it is the caller's."""
    authorization = "" if key is None else f"authorization: Bearer {key}\r\n"
    return (
        f"POST {base_path}{_CHAT_PATH} HTTP/1.1\r\n"
        f"host: {authority}\r\n"
        f"{authorization}"
        f"user-agent: chatgpt-freeapi/{__version__}\r\n"
        "accept-encoding: identity\r\n"
        "content-type: application/json\r\n"
    ).encode()


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
    """What was built at start lives as long as the process: the collector need not look at it."""
    gc.collect()
    gc.freeze()
