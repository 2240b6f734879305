"""What ``freeapi doctor`` says about the shared state: reachable, how fast, and does it keep money.

What this is not: the judgement of a server's settings is ``state.valkey_checks``'s.

It is imported when it is wanted only (``doctor``): the library takes 100 ms.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from freeapi.commands.diagnosis import Finding, ok, problem, warning
from freeapi.spelling import StateUrl
from freeapi.state.valkey import Store, StoreError, StoreUnavailable
from freeapi.state.valkey_checks import check_server

#: A decision is one round trip: more than this of it is felt by every caller.
ROUND_TRIP_WARNED_S: Final = 0.01
_ROUND_TRIPS: Final = 5


async def check_state(state: StateUrl, *, is_capped: bool) -> list[Finding]:
    """``is_capped``: money is kept there. Changes nothing there."""
    try:
        store = Store(state.url.reveal())
        await store.start()
        try:
            round_trip_s = min([await _round_trip_s(store) for _ in range(_ROUND_TRIPS)])
            problems = await check_server(store, is_capped=is_capped)
        finally:
            await store.close()
    except StoreError as error:
        return [problem("state", str(error), "until it answers, nothing paid for is served")]
    except StoreUnavailable:
        text = f"{state} stopped answering"
        return [problem("state", text, "look at the server's log and load")]
    return [*_speed(state, round_trip_s), *map(_setting, problems)]


async def _round_trip_s(store: Store) -> float:
    start_s = time.monotonic()
    await store.command(b"PING")
    return time.monotonic() - start_s


def _speed(state: StateUrl, round_trip_s: float) -> Iterator[Finding]:
    text = f"{state} answers in {round_trip_s * 1_000:.1f} ms"
    if round_trip_s <= ROUND_TRIP_WARNED_S:
        yield ok("state", text)
    else:
        yield warning("state", text, "keep it in the same data centre: each request waits for it")


def _setting(text: str) -> Finding:
    """Each says what is lost, and then what to do."""
    said, _, remedy = text.rpartition(". ")
    return problem("state", said or text, remedy)
