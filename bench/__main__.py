"""``make bench``: this gateway with everything on against nginx and HAProxy as plain proxies.

Prints medians and ratios to nginx; asserts no time. The exit code is 1 only if an answer was wrong
or one of the core set didn't start. All traffic stays on 127.0.0.1, all processes end with it.

usage: python -m bench [PART...] [--quick] [--rounds N] [--peers A,B] [--record]
       python -m bench --profile
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import instructions, memory, peers, plot, profile, requests, streams
from bench.contenders import CORE
from bench.machine import LOAD_CORE, described, open_files_max, pinned
from bench.run import Run
from bench.table import Table, printed

PARTS: Mapping[str, Callable[[Run], None]] = {
    "requests": requests.measure,
    "streams": streams.measure,
    "bodies": requests.measure_bodies,
    "memory": memory.measure,
    "start": memory.measure_start,
    "instructions": instructions.measure,
}
ROUNDS, SECONDS, QUICK_ROUNDS, QUICK_SECONDS = 3, 2.0, 1, 1.0
#: Ignored by git: what a run leaves, and what peers are installed into.
KEPT = Path(".bench")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="one short round: does it work?")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} if not said")
    parser.add_argument(
        "--peers",
        type=lambda text: text.split(","),
        default=["relay"],
        help=f"of {','.join(peers.PEERS)}; relay if not said",
    )
    parser.add_argument("--record", action="store_true", help="keep the figures in bench/")
    parser.add_argument(
        "--profile", action="store_true", help="only show where instructions go, by function"
    )
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if unknown := set(asked.peers) - set(peers.PEERS) - {""}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    return asked


def main() -> int:
    """Measure, print, write down."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what we started is ended
    open_files_max()
    table = Table(described())
    with tempfile.TemporaryDirectory(prefix="freeapi-bench-") as folder, pinned(LOAD_CORE):
        if asked.profile:
            profile.show(Path(folder))
            return 0
        run = Run(
            home=Path(folder),
            table=table,
            contenders={**CORE, **peers.starts(asked.peers)},
            rounds=asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS),
            seconds=QUICK_SECONDS if asked.quick else SECONDS,
            is_recording=asked.record,
        )
        for part in asked.parts or PARTS:
            begun_s = time.monotonic()
            PARTS[part](run)
            print(f"{part}: {time.monotonic() - begun_s:.0f} s", file=sys.stderr, flush=True)
    if table.figures:
        print(printed(table.rows()))
    KEPT.mkdir(exist_ok=True)
    (KEPT / "last.json").write_text(json.dumps(table.as_json(), indent=1) + "\n")
    if asked.record and table.figures:
        plot.RECORDED.write_text(json.dumps(table.as_json(), indent=1) + "\n")
        plot.main()
    for note in table.notes:
        print(note)
    for problem in table.wrong:
        print(f"WRONG: {problem}")
    return 1 if table.wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
