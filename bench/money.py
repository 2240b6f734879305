"""What a request's money costs in processor time while the lease is warm.

From the reservation to the settlement, as ``dispatch`` does it: the worst case of a prepared
request, the purse's reservation over a daily, a monthly and a caller's cap, the cost of its usage,
the settlement. Issue 4 wants it under 3 µs.

usage: python -m bench.money
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from freeapi.policy.budget import NANO, Caps
from freeapi.policy.models import Model
from freeapi.policy.payload import Prepared
from freeapi.policy.prices import bound_nanousd, cost_nanousd
from freeapi.state.ledger import Ledger, Purse

ROUNDS, REQUESTS = 7, 20_000
MODEL = Model(
    "m",
    "m",
    None,
    None,
    1_024,
    "max_tokens",
    input_nanousd_per_mtok=150_000_000,
    output_nanousd_per_mtok=600_000_000,
)
PREPARED = Prepared("chat", b"x" * 200, MODEL, False, False, 50, 1_024, 216, 0, b"")
CAPS = Caps(
    daily_nanousd=1_000_000 * NANO,
    monthly_nanousd=10_000_000 * NANO,
    caller_daily_nanousd=500_000 * NANO,
)


async def spend(purse: Purse, requests: int) -> float:
    """Processor seconds of so many requests, one after another."""
    start_s = time.process_time()
    for _ in range(requests):
        amount = bound_nanousd(PREPARED)
        reservation = await purse.reserve("openai", b"caller", amount)
        reservation.settle(cost_nanousd(PREPARED, 30, 200))
    return time.process_time() - start_s


async def loop_alone(requests: int) -> float:
    """The same loop around nothing, which is the measurement's own cost."""

    async def nothing() -> None:
        return None

    start_s = time.process_time()
    for _ in range(requests):
        await nothing()
    return time.process_time() - start_s


async def measure() -> None:
    """Print the best of a few rounds."""
    with tempfile.TemporaryDirectory() as folder:
        purse = Purse(CAPS, Ledger(Path(folder)), time.time, print)
        await spend(purse, 100)  # now the lease is there
        times = [await spend(purse, REQUESTS) for _ in range(ROUNDS)]
        empty = min([await loop_alone(REQUESTS) for _ in range(ROUNDS)])
        await purse.close()
    print(f"reserve to settle: {1e6 * min(times) / REQUESTS:.2f} µs CPU for a request")
    print(f"  of which the loop around it: {1e6 * empty / REQUESTS:.2f} µs")


if __name__ == "__main__":
    asyncio.run(measure())
