"""How a fuzz target is run for long, and how its input is cut.

A target is a module ``fuzz_*.py`` with ``SEEDS`` and ``check(data)``, which returns if the bytes
were accepted or refused with a documented error, and raises otherwise. It may use the running loop.
``test_targets`` runs each for a moment with hypothesis; ``python -m tests.fuzz.fuzz_sse`` runs one
with atheris (coverage-guided), for FUZZ_S seconds: ``make fuzz`` does so for all.

What this is not: it judges nothing. What atheris finds is left in ``.fuzz``: the corpus, from which
it goes on the next time, and ``crash-…`` files, to be added to a target's seeds once it is mended.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import importlib
import os
import random
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from types import FunctionType

Check = Callable[[bytes], None]

ROOT = Path(__file__).parents[2]
#: Longer inputs find little that shorter ones don't; the limits in bytes have tests of their own.
INPUT_BYTES_MAX = 4_096
#: Up to this length an input is also fed one byte at a time.
SINGLE_BYTES_MAX = 160


def cuts(data: bytes) -> Iterable[list[bytes]]:
    """The same bytes in other pieces: in a few of made-up lengths, and each by itself.

    The lengths follow from the bytes, so that an input that fails fails again.
    """
    if not data:
        return
    chance = random.Random(zlib.crc32(data))
    for _ in range(2):
        inner = sorted(chance.randint(1, len(data)) for _ in range(chance.randint(1, 4)))
        yield [data[a:b] for a, b in pairwise([0, *inner, len(data)]) if a < b]
    if len(data) <= SINGLE_BYTES_MAX:
        yield [data[at : at + 1] for at in range(len(data))]


def instrumentable() -> Iterable[FunctionType]:
    """Every function of the package that is loaded, for coverage to be seen."""
    for found in gc.get_objects():
        if isinstance(found, FunctionType) and (found.__module__ or "").startswith("freeapi"):
            yield found


def fuzz(name: str, check: Check, seeds: Sequence[bytes]) -> None:
    """Let atheris look for bytes that ``check`` raises at; ends the process."""
    atheris = importlib.import_module("atheris")  # not there on every platform
    for function in instrumentable():
        atheris.instrument_func(function)
    corpus = ROOT / ".fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    loop = asyncio.new_event_loop()

    async def attempt(data: bytes) -> None:
        check(data)

    arguments = [
        name,
        str(corpus),
        f"-artifact_prefix={corpus.parent}/{name}-",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-max_total_time={os.environ.get('FUZZ_S', '60')}",
        "-timeout=10",
        "-verbosity=0",
        "-print_final_stats=1",
        *sys.argv[1:],
    ]
    atheris.Setup(arguments, lambda data: loop.run_until_complete(attempt(data)))
    atheris.Fuzz()
