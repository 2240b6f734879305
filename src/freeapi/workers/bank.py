"""The money of all workers of one machine: leases out of the supervisor's ledger.

``Bank`` answers workers' orders as the shared store's ``lease.lua`` does, with the file of
``state/ledger`` for a memory; ``LinkLeases`` is its other end, in the worker.

Plan: an order states sums. What the workers have leased of a cap, and what earlier lives of this
machine had, is one row of the ledger, which is on disk before the answer leaves. A worker that dies
leaves its part leased, that is, spent.

Invariants: of each cap, what all workers have leased <= what the ledger says <= the cap (but for a
cap that was lowered). While the ledger can't be written nothing more is leased.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from freeapi.policy.budget import Grant
from freeapi.state.ledger import Ledger
from freeapi.state.valkey import StoreUnavailable
from freeapi.state.valkey_leases import Leased, Order
from freeapi.workers.link import LeaseAnswer, LeaseAsk, Link

#: After a write that failed.
_RETRY_S: Final = 1.0


class Bank:
    """Who has leased how much. For one event loop; one write at a time."""

    def __init__(
        self, ledger: Ledger, clock: Callable[[], float], report: Callable[[str], None]
    ) -> None:
        """``clock``: seconds since 1970. ``report`` hears ``ok``, or why nothing can be written."""
        self._ledger = ledger
        self._report = report
        #: By cap and period: all that is leased, that of the dead included.
        self._leased = {
            (one.scope, one.period): one.leased_nanousd for one in ledger.grants(clock())
        }
        #: The same by worker, and how much of it requests under way have reserved.
        self._parts: dict[tuple[str, str], dict[int, tuple[int, int]]] = {}
        self._lock = asyncio.Lock()
        self._has_failed = False

    async def lease(self, worker: int, orders: Sequence[Order]) -> list[Leased] | None:
        """Put a worker's orders through; None: they can't be written, and nothing has changed."""
        async with self._lock:
            answers = [self._answer(worker, order) for order in orders]
            rows = [
                Grant(order.scope, order.period, answer.mine + answer.others)
                for order, answer in zip(orders, answers, strict=True)
            ]
            if not await self._write(rows):
                return None
            for order, row, answer in zip(orders, rows, answers, strict=True):
                cap = (order.scope, order.period)
                self._leased[cap] = row.leased_nanousd
                self._parts.setdefault(cap, {})[worker] = (answer.mine, order.reserved)
            return answers

    def forget(self, worker: int) -> None:
        """It has ended: what it had stays leased, and nothing of it comes back."""
        for parts in self._parts.values():
            parts.pop(worker, None)

    async def close(self) -> None:
        """When no worker is left."""
        async with self._lock:
            self._ledger.close()

    def _answer(self, worker: int, order: Order) -> Leased:
        cap = (order.scope, order.period)
        parts = self._parts.get(cap, {})
        mine, _ = parts.get(worker, (0, 0))
        others = self._leased.get(cap, 0) - mine
        granted = max(order.kept, min(order.wanted, order.cap - others))
        pending = sum(reserved for one, (_, reserved) in parts.items() if one != worker)
        return Leased(granted, others, pending)

    async def _write(self, rows: list[Grant]) -> bool:
        try:
            await asyncio.to_thread(self._ledger.write, rows)
        except sqlite3.Error as error:
            self._tell(getattr(error, "sqlite_errorname", type(error).__name__))
            return False
        self._tell("ok")
        return True

    def _tell(self, label: str) -> None:
        has_failed = label != "ok"
        if has_failed is not self._has_failed:
            self._has_failed = has_failed
            self._report(label)


class LinkLeases:
    """A worker's way to the bank; see ``state.valkey_leases.Leases``."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._number = 0
        self._asked: dict[int, asyncio.Future[list[Leased] | None]] = {}
        self._is_cut = False

    async def write(self, orders: Sequence[Order]) -> list[Leased]:
        """Put the orders through, durably. Raises StoreUnavailable."""
        if self._is_cut:
            raise StoreUnavailable(retry_after_s=_RETRY_S)
        self._number += 1
        number = self._number
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._link.say(LeaseAsk(number, list(orders)))
        try:
            leased: list[Leased] | None = await answer
        finally:
            del self._asked[number]
        if leased is None:
            raise StoreUnavailable(retry_after_s=_RETRY_S)
        return leased

    def answered(self, answer: LeaseAnswer) -> None:
        """For whoever listens to the link."""
        asked = self._asked.get(answer.number)
        if asked is not None and not asked.done():
            asked.set_result(answer.leased)

    def cut(self) -> None:
        """The supervisor is gone: nothing more is leased."""
        self._is_cut = True
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result(None)
