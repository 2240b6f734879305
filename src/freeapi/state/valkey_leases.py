"""Leases of money in the shared store, each on the server's disk before it may be spent from.

``LeaseStore.write`` is for several gateways what the ledger's file is for one: an order names what
this gateway wants to have leased of a cap, and the answer what it has. One function of the server
(``lua/lease.lua``) and WAITAOF, in one write.

What this is not: it doesn't decide how much to lease (``valkey_slices``, ``valkey_purse``).

Invariants: the sum of all gateways' leases of a cap, dead ones' too, is never above it; what
``write`` returned is on the disk. An order states sums, so one whose fate is unknown is simply made
anew, and one that arrives late, over a connection that was given up, is ignored by its number.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from freeapi.state.valkey import NAMESPACE, Script, Store, StoreRefused, StoreUnavailable

#: `everysec` syncs once a second, a busy disk later; then the order counts as failed.
SYNC_TIMEOUT_S: Final = 3.0
#: Of a connection for leases, which must outlast a sync.
LEASE_TIMEOUT_S: Final = 5.0
#: After a failed order.
RETRY_S: Final = 1.0


class Order(msgspec.Struct, frozen=True):
    """What this gateway should have leased of one cap; sums in nano-dollars."""

    scope: str
    period: str
    cap: int
    wanted: int
    #: Of it, what it may have reserved already and can't give back.
    kept: int
    #: By requests under way or about to be.
    reserved: int


class Leased(NamedTuple):
    """The answer to an order."""

    mine: int
    others: int
    #: Of the others', what may come back soon.
    pending: int


class Leases(Protocol):
    """Where leases are kept."""

    async def write(self, orders: Sequence[Order]) -> list[Leased]:
        """Put the orders through, durably. Raises StoreUnavailable: whether it did isn't known."""


class LeaseStore:
    """Leases in the shared store. Its connection should be its own: the disk may take a second."""

    def __init__(
        self,
        store: Store,
        *,
        namespace: bytes = NAMESPACE,
        store_time: Callable[[], float] | None = None,
    ) -> None:
        """``store``'s time-out must be over ``SYNC_TIMEOUT_S``: ``LEASE_TIMEOUT_S``."""
        assert store.timeout_s > SYNC_TIMEOUT_S, "a slow disk would cost the connection"
        self._store = store
        self._namespace = namespace
        self._store_time = store_time
        self._node = secrets.token_hex(8)
        self._number = 0
        self._lease = Script.load("meter", "lease").source

    async def write(self, orders: Sequence[Order]) -> list[Leased]:
        """As ``Leases``: one atomic function, and its sync, in one write."""
        self._number += 1
        argument = {
            "node": self._node,
            "number": self._number,
            "orders": list(orders),
            "now": False if self._store_time is None else self._store_time(),
        }
        packed = msgspec.msgpack.encode(argument)
        # Not by its hash: a server that had forgotten it would get it again after the WAITAOF,
        # which would then speak of what was written before.
        written = self._store.command(b"EVAL", self._lease, b"1", self._namespace, packed)
        synced = self._store.command(b"WAITAOF", b"1", b"0", b"%d" % (SYNC_TIMEOUT_S * 1_000))
        try:
            answer, (on_disk, _) = await written, await synced
        except StoreRefused as error:  # an older server, or appendonly was switched off
            raise StoreUnavailable(retry_after_s=RETRY_S) from error
        leased = [Leased(*map(int, one)) for one in msgspec.msgpack.decode(answer)]
        if on_disk < 1 or len(leased) != len(orders):
            raise StoreUnavailable(retry_after_s=RETRY_S)
        return leased
