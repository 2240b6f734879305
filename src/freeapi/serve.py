"""``freeapi serve`` in one process, alone or as one of several workers: start, serve, drain.

Starting comes in the order of what may fail: the embedded model first, the public port last, so
that a port that answers has everything behind it. Stopping is the reverse: no new callers, open
answers finish (at most ``FREEAPI_DRAIN_S``), then the connections to upstreams close.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

import uvloop

from freeapi import __version__
from freeapi.banner import banner
from freeapi.config import Config
from freeapi.embedded import Embedded, Models
from freeapi.gateway import Gateway
from freeapi.journal import Journal
from freeapi.live_line import LiveLine, Numbers
from freeapi.local import LocalModelError
from freeapi.ports import CannotListen
from freeapi.reload import POLL_S, Reloader, Sources
from freeapi.shared import Shared
from freeapi.state.ledger import LedgerError
from freeapi.state.valkey import StoreError
from freeapi.upstreams import caps
from freeapi.workers.worker import Post

#: Young objects between two looks of the cycle collector; at 1 KB each, 20 MB at most.
_OBJECTS_PER_COLLECTION: Final = 20_000
#: Source: malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_FREED_BYTES_MAX: Final = 16_777_216
#: A worker is told by its supervisor when to reload.
NEVER_S: Final = 1e9


def run(
    config: Config,
    journal: Journal,
    sources: Sources,
    read: Callable[[], Config],
    *,
    line: LiveLine | None = None,
    post: Post | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 after a drain, 1 if it can't start.

    Prints the banner on stdout, and why it can't start on stderr. ``read`` makes a new
    configuration of the ``sources``, at SIGHUP or when one of them has changed. ``line``: where
    a terminal shows what happens. ``post``: a worker's, whose supervisor does all of these.
    """
    try:
        return uvloop.run(_serve(config, journal, sources, read, line, post))
    except (LocalModelError, LedgerError, StoreError, CannotListen) as error:
        # They happen before the first caller, so the words are about this machine only.
        print(f"freeapi can't start: {error}", file=sys.stderr)
        return 1


async def _serve(
    config: Config,
    journal: Journal,
    sources: Sources,
    read: Callable[[], Config],
    line: LiveLine | None,
    post: Post | None,
) -> int:
    start_s = time.monotonic()
    loop = asyncio.get_running_loop()
    stop, asked = signals()
    loop.set_exception_handler(
        lambda loop, context: journal.crash("loop", context.get("exception"))
    )
    journal.event("start", version=__version__, pid=os.getpid(), local=config.local)
    embedded: Models = Embedded(journal) if post is None else post.embedded
    if post is not None:
        await post.open(stop, asked)
    shared = None
    try:
        if config.state is not None:
            leases = None if post is None else post.leases
            is_capped = caps(config) is not None
            shared = await Shared.open(config.state, leases, journal, is_capped=is_capped)
        gateway = Gateway(config, journal, embedded, await embedded.wanted(config), shared)
        host, port = await gateway.listen(is_shared=post is not None)
        _keep_from_collector()
        _keep_freed_memory()
        if post is None:
            print(banner(config, host, port), flush=True)
        else:
            post.begin(host, port, gateway.report)
        ready_ms = round((time.monotonic() - start_s) * 1_000)
        journal.event("ready", host=host, port=port, duration_ms=ready_ms)
        reloader = Reloader(
            sources,
            read,
            gateway.reload,
            journal,
            asked,
            told=gateway.count_reload if post is None else lambda is_ok: None,  # as the supervisor
            poll_s=POLL_S if post is None else NEVER_S,
        )
        watching = [loop.create_task(reloader.run(), name="reload")]
        if line is not None:
            watching.append(loop.create_task(line.show(lambda: Numbers.of(gateway.counted()))))
        await stop.wait()
        journal.event("drain", limit_s=gateway.config.drain_s)
        await gateway.drain()
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
    finally:
        if shared is not None:
            await shared.close()
        await embedded.close()
        if post is not None:
            post.close()
    journal.event("stop", dropped=journal.dropped)
    return 0


def signals() -> tuple[asyncio.Event, asyncio.Event]:
    """To stop: set by the first SIGTERM or SIGINT, a second one ends the process; and to reload."""
    stop, asked = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, asked.set)

    def stop_or_die(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_or_die, number)
    return stop, asked


def _keep_from_collector() -> None:
    """What was built at start lives as long as the process: the collector need not look at it.

    Of what requests leave behind nearly nothing is a cycle, so that looking for cycles after every
    700 objects, the default, is some 3 % of all instructions (perf) for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION, 20, 20)


def _keep_freed_memory() -> None:
    """Let the C library keep up to 16 MiB of what was freed for what is allocated next.

    By default it gives each larger body's pages back and asks for new ones, which the kernel has to
    clear: a third of the time that an answer of 256 KiB takes (perf). Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc's alone
        mallopt(_M_TRIM_THRESHOLD, _FREED_BYTES_MAX)
        mallopt(_M_MMAP_THRESHOLD, _FREED_BYTES_MAX // 4)
