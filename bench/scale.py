"""How far one store goes: what docs/scaling.md says, measured here.

Prints the gateway's processor time for a request in memory and in Valkey mode, Valkey's own, how
many cores of gateways one Valkey carries, and a simulation of what leases of budget strand as
gateways are added. What chunks and open streams cost is in ``make bench``.

usage: python -m bench.scale (needs wrk and nginx; about a minute)
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.contenders import Place, freeapi
from bench.texts import PLAIN
from bench.upstream import upstream
from bench.wrk import load
from freeapi.policy.budget import ALL
from freeapi.state.valkey_leases import Leased, Order
from freeapi.state.valkey_slices import SLICES_PER_CAP, Account, SharedReservation
from tests.valkey_server import serving

CONNECTIONS, SECONDS, ROUNDS = 64, 2, 9


def of_process(pid: int) -> float:
    """Processor seconds of a process so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def measure_requests(home: Path) -> tuple[float, float, float, float]:
    """µs for a request: in memory mode, in Valkey mode, and Valkey's own; medians.

    Besides, how many times the first the second is, in the median round: of what is measured right
    after the other, the machine's moods concern both.
    """
    alone, shared, stores = [], [], []
    with (
        serving("--appendfsync", "everysec") as valkey,
        upstream(home / "upstream", PLAIN) as direct,
        freeapi(Place(home / "memory", direct.port)) as one,
        freeapi(Place(home / "valkey", direct.port), {"FREEAPI_STATE": valkey.url}) as other,
    ):
        for _ in range(ROUNDS):
            alone.append(load(one, PLAIN, CONNECTIONS, SECONDS, home).cpu_us)
            before_s = of_process(valkey.pid)
            seen = load(other, PLAIN, CONNECTIONS, SECONDS, home)
            shared.append(seen.cpu_us)
            stores.append(1e6 * (of_process(valkey.pid) - before_s) / seen.requests)
            assert not seen.wrong, seen.words
    times = [other / one for one, other in zip(alone, shared, strict=True)]
    return median(alone), median(shared), median(stores), median(times)


# --- Simulation -----------------------------------------------------------------------------------


class _Leases:
    """The store's arithmetic (``lease.lua``) for one cap."""

    def __init__(self, nodes: int, cap: int) -> None:
        self.accounts = [
            Account(ALL, "2026-11-23", cap, cap // SLICES_PER_CAP) for _ in range(nodes)
        ]
        self.leased = [0] * nodes
        self.cap = cap
        self.orders = 0

    def order(self, node: int, wanted: int = 0) -> None:
        """Have the node order what it should have, as its purse does."""
        account = self.accounts[node]
        account.wanted = wanted
        order: Order | None = account.order()
        if order is None:
            return
        self.orders += 1
        others = sum(self.leased) - self.leased[node]
        granted = max(order.kept, min(order.wanted, self.cap - others))
        self.leased[node] = granted
        account.take_over(order, Leased(granted, others, 0), 0.0)


def strand(nodes: int, cap: int, worst: int) -> tuple[float, float, float]:
    """Parts of the cap: unspent at the first refusal, unspent at the end, lost if a node dies.

    Besides that, orders for each request. Requests come to random nodes and cost a third.
    """
    chance = random.Random(1)  # noqa: S311 - a simulation is to be the same each time
    leases = _Leases(nodes, cap)
    spent, requests, first, refused = 0, 0, 0.0, 0
    slices = []
    while refused < 3 * nodes:
        node = chance.randrange(nodes)
        account = leases.accounts[node]
        requests += 1
        if account.left < worst:
            leases.order(node, worst)
        if account.left < worst:
            first = first or 1 - spent / cap
            refused += 1
            continue
        refused = 0
        reservation = SharedReservation((account,), worst, lambda: None)
        reservation.settle(worst // 3)
        spent += worst // 3
        leases.order(node)
        if spent < cap / 2:
            slices.append(account.left / cap)
    return (
        first,
        1 - spent / cap,
        max(slices),
    )


def main() -> None:
    """Print it all."""
    with tempfile.TemporaryDirectory() as folder:
        alone, shared, store, times = measure_requests(Path(folder))
    print(f"CPU for a request at {CONNECTIONS} at once, everything on and a cap:")
    print(
        f"  memory {alone:.0f} µs, Valkey {shared:.0f} µs ({times:.2f} x), "
        f"the server itself {store:.0f} µs"
    )
    carries = 1e6 / store
    print(
        f"one Valkey: {carries:.0f} requests a second, {carries * shared / 1e6:.1f} gateway cores"
    )
    print("budget leases, requests of 1/1000 and 1/50 of the cap at their worst:")
    for part in (1_000, 50):
        for nodes in (1, 3, 10, 30, 100):
            start_s = time.perf_counter()
            first, end, lost = strand(nodes, 10_000_000_000, 10_000_000_000 // part)
            print(
                f"  1/{part:<5} {nodes:4} nodes: first refusal with {first:6.1%} unspent, "
                f"{end:6.1%} at the end, {lost:5.1%} lost with a node "
                f"({time.perf_counter() - start_s:.1f} s)"
            )


if __name__ == "__main__":
    main()
