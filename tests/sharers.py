"""Gateways' parts of a shared store, many in one process, for the tests of the store.

What this is not: real gateways (``replicas``). Each has its own connection and its own name, so to
the store they are different processes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from freeapi.errors import FreeApiError
from freeapi.policy.budget import Caps
from freeapi.policy.limits import CallerLimits
from freeapi.policy.meter import Rates
from freeapi.state.valkey import Store
from freeapi.state.valkey_leases import LEASE_TIMEOUT_S, LeaseStore, Order
from freeapi.state.valkey_limits import LINE_TTL_S, Report, SharedLimits, _FutureQuestion
from freeapi.state.valkey_purse import SharedPurse
from freeapi.state.valkey_questions import Ask, Verdict
from tests.valkey_server import ValkeyServer

#: Short, since tests wait for it; a paused server answers never.
TIMEOUT_S = 0.2
DAY_S = 86_400
#: Noon of some day, in the tests' own time.
NOON_S = 20_000.5 * DAY_S
FREE = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=None)
NO_RATES = Rates(None, None)
#: 2026-11-23, 12:00 UTC.
UTC_S = 1_795_435_200.0
CAP = Caps(daily_nanousd=1_000)


class Limiters:
    """As many as a test wants, which share a store and a clock that only the test moves."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._namespace = b"{%x}" % random.getrandbits(64)
        self.now_s = NOON_S

    async def start(
        self,
        server: ValkeyServer,
        heard: list[Report] | None = None,
        *,
        own_time: bool = True,
        timeout_s: float = 5.0,
    ) -> SharedLimits:
        """One more, that is up; it beats only if the test says so."""
        store = Store(server.url, timeout_s=timeout_s)
        limits = SharedLimits(
            store,
            clock=lambda: self.now_s,
            heard=(heard if heard is not None else []).append,
            namespace=self._namespace,
            store_time=(lambda: self.now_s) if own_time else None,
        )
        await store.start()
        self._stack.push_async_callback(store.close)
        self._stack.push_async_callback(limits.close)
        return limits


class Purses:
    """As many as a test wants, over one clock and one set of caps."""

    def __init__(self, stack: AsyncExitStack, server: ValkeyServer) -> None:
        self._stack = stack
        self._server = server
        self.namespace = b"{%x}" % random.getrandbits(64)
        self.utc_s = UTC_S
        #: As patient with the disk as a gateway, for a test on a busy machine.
        self.timeout_s = LEASE_TIMEOUT_S
        self.reports: list[str] = []

    async def leases(self) -> LeaseStore:
        """A connection and its leases."""
        store = Store(self._server.url, timeout_s=self.timeout_s)
        leases = LeaseStore(store, namespace=self.namespace)
        await store.start()
        self._stack.push_async_callback(store.close)
        return leases

    async def start(self, caps: Caps = CAP) -> SharedPurse:
        """One more purse."""
        leases = await self.leases()
        return SharedPurse(caps, leases, lambda: self.utc_s, self.reports.append)

    async def leased(self, scope: str = "all", period: str = "2026-11-23") -> int:
        """What the store says is leased to all."""
        (answer,) = await (await self.leases()).write([Order(scope, period, 0, 0, 0, 0)])
        return answer.others


def ask(
    caller: bytes = b"caller01",
    *,
    limits: CallerLimits = FREE,
    model: str = "m",
    rates: Rates = NO_RATES,
    tokens: int = 10,
    cost: int | None = None,
    nanousd: int = 0,
    share: int | None = None,
) -> Ask:
    """A request; nothing is limited unless the test says so."""
    return Ask(caller, limits, model, rates, tokens, cost or tokens, nanousd, share)


async def settled(limits: SharedLimits) -> None:
    """Wait until the store has confirmed all ends."""
    while limits.unconfirmed:
        await limits.secret(0)  # answered after all that was sent before it


async def refusal(limits: SharedLimits, request: Ask, queue_s: float = 0.0) -> FreeApiError:
    """Why the request isn't let in."""
    with pytest.raises(FreeApiError) as refused:
        await limits.admit(request, queue_s)
    return refused.value


async def up_again(shared: SharedLimits) -> None:
    """Wait until the store is back."""
    back = asyncio.Event()

    async def told() -> None:
        back.set()

    shared._store.on_up.append(told)
    if not shared._store.is_up:
        await back.wait()
    assert shared._store.is_up


async def beat(shared: SharedLimits) -> None:
    """One beat, and its answer."""
    shared._beat()
    await shared.secret(0)


async def idle(purse: SharedPurse) -> None:
    """Wait until its orders are through."""
    while purse._writing is not None:
        await asyncio.wait([purse._writing])


def waiting(request: Ask, ticket: int, ttl_s: float = LINE_TTL_S) -> _FutureQuestion:
    """A question that has been asked before."""
    question = _FutureQuestion(request)
    question.ticket, question.ttl_s, question.asked = ticket, ttl_s, 1
    return question


async def asked(shared: SharedLimits, request: Ask, ticket: int, ttl_s: float = 1.5) -> Verdict:
    """One question of a waiter, without the waiting."""
    question = waiting(request, ticket, ttl_s)
    await shared._ask(question)
    return Verdict(*question.answer)


def slow(cost: int = 10, caller: bytes = b"caller01") -> Ask:
    """For a model of one request a second at most, and one at once."""
    return ask(caller, rates=Rates(6, None), tokens=1, cost=cost)


class Heard:
    """What the store reports, and a way to wait for it."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._new = asyncio.Event()

    def __call__(self, word: str) -> None:
        self.words.append(word)
        self._new.set()

    async def until(self, count: int) -> None:
        """Wait until so many were reported."""
        while len(self.words) < count:
            self._new.clear()
            await self._new.wait()


async def started(server: ValkeyServer, heard: Heard, *, timeout_s: float = 5.0) -> Store:
    """A store that is up. ``timeout_s``: ``TIMEOUT_S`` for a server that will not answer."""
    store = Store(server.url, timeout_s=timeout_s, report=heard)
    await store.start()
    return store


def answers(futures: list[asyncio.Future[Any]]) -> Awaitable[list[Any]]:
    """All of them, errors as values."""
    return asyncio.gather(*futures, return_exceptions=True)
