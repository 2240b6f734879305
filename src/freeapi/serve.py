"""``freeapi serve`` in one process: start the gateway, serve until told to stop, drain.

Starting comes in the order of what may fail: the embedded model first, the public port last, so
that a port that answers has everything behind it. Stopping is the reverse: no new callers, open
answers finish (at most ``FREEAPI_DRAIN_S``), then the connections to upstreams close.
"""

from __future__ import annotations

import asyncio
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
from freeapi.embedded import Embedded
from freeapi.gateway import CannotListen, Gateway
from freeapi.journal import Journal
from freeapi.local import LocalModelError
from freeapi.reload import Reloader, Sources
from freeapi.state.ledger import LedgerError

#: Young objects between two looks of the cycle collector; at 1 KB each, 20 MB at most.
_OBJECTS_PER_COLLECTION: Final = 20_000


def run(config: Config, journal: Journal, sources: Sources, read: Callable[[], Config]) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 after a drain, 1 if it can't start.

    Prints the banner on stdout, and why it can't start on stderr. ``read`` makes a new
    configuration of the ``sources``, at SIGHUP or when one of them has changed.
    """
    try:
        return uvloop.run(_serve(config, journal, sources, read))
    except (LocalModelError, LedgerError, CannotListen) as error:
        # They happen before the first caller, so the words are about this machine only.
        print(f"freeapi can't start: {error}", file=sys.stderr)
        return 1


async def _serve(
    config: Config, journal: Journal, sources: Sources, read: Callable[[], Config]
) -> int:
    start_s = time.monotonic()
    loop = asyncio.get_running_loop()
    stop = _stop_signal()
    asked = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    loop.set_exception_handler(
        lambda loop, context: journal.crash("loop", context.get("exception"))
    )
    journal.event("start", version=__version__, pid=os.getpid(), local=config.local)
    embedded = Embedded(journal)
    try:
        gateway = Gateway(config, journal, embedded, await embedded.wanted(config))
        host, port = await gateway.listen()
        _keep_from_collector()
        print(banner(config, host, port), flush=True)
        ready_ms = round((time.monotonic() - start_s) * 1_000)
        journal.event("ready", host=host, port=port, duration_ms=ready_ms)
        reloader = Reloader(
            sources, read, gateway.reload, journal, asked, told=gateway.count_reload
        )
        reloading = loop.create_task(reloader.run(), name="reload")
        await stop.wait()
        reloading.cancel()
        await asyncio.wait([reloading])
        journal.event("drain", limit_s=gateway.config.drain_s)
        await gateway.drain()
    finally:
        await embedded.close()
    journal.event("stop", dropped=journal.dropped)
    return 0


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


def _keep_from_collector() -> None:
    """What was built at start lives as long as the process: the collector need not look at it.

    Of what requests leave behind nearly nothing is a cycle, so that looking for cycles after every
    700 objects, the default, is some 3 % of all instructions (perf) for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION, 20, 20)
