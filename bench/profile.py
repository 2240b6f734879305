"""Where a request's instructions go, by function: once in C (callgrind), once in Python (cProfile).

The first is exact, and knows the interpreter only as a whole. The second knows each function of
Python's by name, and counts its calls exactly; its times are those of a slowed process, in which
small functions look dearer than they are.

usage: python -m bench --profile
"""

from __future__ import annotations

import pstats
import re
import subprocess
import sys
from pathlib import Path

from bench import callgrind
from bench.contenders import Place, settings
from bench.instructions import STEPS, count
from bench.machine import PROXY_CORE, free_port
from bench.replay import Replay
from bench.server import end, is_open, running

#: Whole profiles, for callgrind_annotate, kcachegrind or pstats.
KEPT = Path(".bench/profiles")
TOP = 40
#: How often each step is done under cProfile: enough that the start is little beside it.
_TIMES = {"request": 4_000, "chunk": 40_000}
#: (file, line, function) to (primitive calls, calls, own s, s with what it calls, callers).
_Stats = dict[tuple[str, int, str], tuple[int, int, float, float, object]]


def show(home: Path) -> None:
    """Print the dearest functions of each step."""
    KEPT.mkdir(parents=True, exist_ok=True)
    count(callgrind.gateway, home / "callgrind", PROXY_CORE, KEPT)
    for step in STEPS:
        for inclusive, words in (("no", "by themselves"), ("yes", "with what they call")):
            print(f"\n{step}, C functions {words}:")
            print("\n".join(_in_c(KEPT / step.replace(" ", "-"), inclusive)))
    for step, times in _TIMES.items():
        print(f"\n{step}, Python functions by themselves, µs and calls for each:")
        print("\n".join(_in_python(home / f"python-{step}", step, times)))
    print(f"\nThe whole profiles are in {KEPT}.")


def _in_c(dump: Path, inclusive: str) -> list[str]:
    command = ["callgrind_annotate", f"--inclusive={inclusive}", "--auto=no", str(dump)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = said.partition("file:function")[2].splitlines()[2:]
    return [re.sub(r"\S*/(?=[^/]*:)| \[.*/(?=[^/]*\])", " ", line) for line in lines[:TOP]]


def _in_python(home: Path, step: str, times: int) -> list[str]:
    kept = (KEPT / f"{step}.pstats").resolve()
    with Replay() as replay:
        port = free_port()
        env = settings(Place(home, replay.upstream_port), port)
        profiled = [sys.executable, "-m", "cProfile", "-o", str(kept), "-m", "freeapi", "serve"]
        with running(
            "the gateway under cProfile",
            profiled,
            port=port,
            home=home,
            core=PROXY_CORE,
            env=env,
            is_ready=is_open,
        ) as server:
            replay.connect(port)
            STEPS[step].do(replay, times)
            end(server.process)
    stats: _Stats = vars(pstats.Stats(str(kept)))["stats"]  # which its types don't know
    rows = [
        (own_s, called, of_all_s, name)
        for name, (_, called, own_s, of_all_s, _) in stats.items()
        if called >= times / 2  # what happens once is of the start
    ]
    return [
        f"{1e6 * own_s / times:8.2f} {called / times:6.1f} x  with what it calls "
        f"{1e6 * of_all_s / times:8.2f}  {_named(*name)}"
        for own_s, called, of_all_s, name in sorted(rows, reverse=True)[:TOP]
    ]


def _named(path: str, line: int, function: str) -> str:
    short = "/".join(Path(path).parts[-2:])
    return f"{short}:{line} {function}" if line else function
