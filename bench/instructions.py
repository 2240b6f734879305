"""Instructions for a request: a ratchet that no noise of the machine moves.

Hardware counters are often closed to guests, so the gateway runs under callgrind. What a step costs
is the difference between many and few of it, by the difference of their numbers, so that whatever
is there once falls out. bench/instructions.json has what it was when last recorded; a version whose
path is dearer is seen here, whatever else the machine does. It knows only instructions: not the
kernel's, and nothing of caches. Compiled parts of other versions (of Python, uvloop) count too.

usage: python -m bench instructions [--record]
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from bench import callgrind
from bench.callgrind import Counted, instructions
from bench.contenders import NGINX, US, Place
from bench.machine import LOAD_CORE, PROXY_CORE
from bench.replay import Replay
from bench.run import Run
from bench.table import printed
from bench.texts import KIB, PLAIN, answer, post, request

RECORDED = Path(__file__).with_name("instructions.json")
#: Dearer by more than this part is said loudly; two runs of one version differ by less.
DEARER = 0.03
_WARM_UP = 100


class Step(NamedTuple):
    """What is counted: something done so many times. ``few`` and ``many`` are those numbers."""

    do: Callable[[Replay, int], None]
    few: int
    many: int


def _repeated(body: bytes, answered: bytes) -> Callable[[Replay, int], None]:
    sent = post(body)

    def do(replay: Replay, times: int) -> None:
        for _ in range(times):
            replay.exchange(sent, answered)

    return do


def _streamed(replay: Replay, chunks: int) -> None:
    replay.stream(post(request(300, stream=True)), chunks)


STEPS: Mapping[str, Step] = {
    "request": Step(_repeated(PLAIN.request, PLAIN.answer), 200, 1_000),
    "chunk": Step(_streamed, 500, 4_000),
    "answer of 256 KB": Step(_repeated(request(300), answer(256 * KIB)), 10, 40),
    "prompt of 256 KB": Step(_repeated(request(256 * KIB), answer(700)), 10, 40),
}


#: Starts what is counted, on a core.
_Start = Callable[[Place, int], AbstractContextManager[Counted]]


def count(start: _Start, home: Path, core: int, profiles: Path | None = None) -> dict[str, int]:
    """Instructions of each step in one fresh process; where said, its dumps are kept."""
    with Replay() as replay, start(Place(home, replay.upstream_port, True), core) as counted:
        replay.connect(counted.server.port)
        counted.begin()
        for step in STEPS.values():
            step.do(replay, min(_WARM_UP, step.few))
        return {
            name: _cost(counted, replay, step, profiles and profiles / name.replace(" ", "-"))
            for name, step in STEPS.items()
        }


def _cost(counted: Counted, replay: Replay, step: Step, profile: Path | None) -> int:
    counted.dump()
    step.do(replay, step.few)
    few = instructions(counted.dump())
    step.do(replay, step.many)
    dump = counted.dump()
    if profile is not None:
        shutil.copy(dump, profile)
    return round((instructions(dump) - few) / (step.many - step.few))


def measure(run: Run) -> None:
    """Count twice, and compare with what is recorded."""
    if shutil.which("valgrind") is None:
        run.table.notes.append("instructions: there is no valgrind")
        return
    first, second, reference = _counts(run.home / "instructions")
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if recorded and recorded["python"] != platform.python_version():
        run.table.notes.append(f"instructions were recorded with Python {recorded['python']}")
    rows = [["instructions", "now", "two runs differ by", "recorded", "change", f"times {NGINX}"]]
    for step in STEPS:
        counts = (first[step], second[step])
        rows.append(_row(run, step, counts, recorded.get(US, {}).get(step), reference[step]))
    print(printed(rows), "\n", flush=True)
    if run.is_recording:
        least = {step: min(first[step], second[step]) for step in STEPS}
        record = {"python": platform.python_version(), US: least, NGINX: reference}
        RECORDED.write_text(json.dumps(record, indent=2) + "\n")


def _counts(home: Path) -> list[dict[str, int]]:
    """Two runs of ours and one of nginx's, two of the three at a time."""
    with ThreadPoolExecutor(2) as threads:
        counts = [
            threads.submit(count, callgrind.gateway, home / "first", PROXY_CORE),
            threads.submit(count, callgrind.gateway, home / "second", LOAD_CORE),
            threads.submit(count, callgrind.nginx, home / "nginx", PROXY_CORE),
        ]
        return [one.result() for one in counts]


def _row(
    run: Run, step: str, counts: tuple[int, int], recorded: int | None, reference: int
) -> list[str]:
    now = min(counts)
    cells = [f"a {step}", f"{now:,}", f"{max(counts) / now - 1:.2%}"]
    if recorded is None:
        return [*cells, "-", "", f"{now / reference:.2f}"]
    change = now / recorded - 1
    if change > DEARER:
        words = f"a {step} takes {now:,} instructions, {change:+.1%} on the recorded {recorded:,}"
        run.table.notes.append(f"DEARER: {words}")
    return [*cells, f"{recorded:,}", f"{change:+.1%}", f"{now / reference:.2f}"]
