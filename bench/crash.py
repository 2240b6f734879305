"""Kill a gateway many hundred times under load, and compare what was billed with the cap.

The long version of ``tests/promises/test_spend_crash.py``: the same lives, as many as one asks for.
It prints; the test asserts.

usage: python -m bench.crash [LIVES]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.money import NANO
from tests.promises.test_spend_crash import CAP, LIVES, careers

LIVES_DEFAULT = 504


def main() -> None:
    """Live, die, count."""
    lives = int(sys.argv[1]) if len(sys.argv) > 1 else LIVES_DEFAULT
    count = -(-lives // LIVES)
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bills = asyncio.run(careers(Path(folder), count, LIVES))
    print(f"{count * LIVES} lives in {time.monotonic() - start_s:.0f} s, {count} ledgers")
    print(f"cap ${CAP / NANO:.3f}, billed at most ${max(bills) / NANO:.6f}")
    print(f"billed in all {100 * sum(bills) / (count * CAP):.1f} % of the caps")
    print(f"ledgers over their cap: {sum(bill > CAP for bill in bills)}")


if __name__ == "__main__":
    main()
