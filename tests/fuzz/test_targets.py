"""A short run of every fuzz target, as part of the suite; ``make fuzz`` is the long one.

Each target gets its seeds, and what hypothesis makes of them: spliced, cut, repeated, with bytes
replaced. The last tests break something on purpose and see the target notice.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freeapi import reading
from freeapi.http import sse, wire
from freeapi.http.connection import Connection
from freeapi.http.upstream import UpstreamConnection
from freeapi.policy import chat, payload
from freeapi.reading import Reader
from freeapi.spelling import Secret
from tests.fuzz import (
    driver,
    fuzz_config,
    fuzz_multipart,
    fuzz_payload,
    fuzz_request,
    fuzz_sse,
    fuzz_upstream,
)

TARGETS = (
    fuzz_request,
    fuzz_multipart,
    fuzz_payload,
    fuzz_sse,
    fuzz_config,
    fuzz_upstream,
)


def near(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Bytes that resemble the seeds: up to four pieces of them, or of anything."""
    whole = st.sampled_from(seeds)
    part = st.tuples(whole, st.integers(0, 300), st.integers(0, 300)).map(
        lambda given: given[0][min(given[1:]) : max(given[1:])]
    )
    pieces = st.one_of(whole, part, st.binary(max_size=6))
    return st.lists(pieces, max_size=4).map(b"".join)


def damaged(data: bytes, at: int, replacement: bytes) -> bytes:
    """The same with a few bytes replaced."""
    at %= len(data) + 1
    return data[:at] + replacement + data[at + len(replacement) :]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__.split("_")[-1])
async def test_bytes_are_accepted_or_refused_with_a_documented_error(target: ModuleType) -> None:
    """Each seed and whatever resembles it goes through its target without an exception."""
    for seed in target.SEEDS:
        target.check(seed)

    @settings(
        max_examples=150,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(near(target.SEEDS), st.integers(0, 500), st.binary(max_size=3))
    def run(data: bytes, at: int, replacement: bytes) -> None:
        target.check(damaged(data, at, replacement))

    run()


def test_cuts_lose_nothing() -> None:
    """Cutting bytes changes nothing of them, and each cut is one of its own."""
    data = bytes(range(100))
    found = list(driver.cuts(data))
    assert [b"".join(pieces) for pieces in found] == [data] * 3
    assert len({tuple(pieces) for pieces in found}) == 3
    assert list(driver.cuts(data)) == found


def test_what_is_fuzzed_is_instrumented() -> None:
    """atheris sees the branches of the package's own functions, and of nothing else."""
    found = set(driver.instrumentable())
    assert {wire.check_head, payload.prepare, Reader.fit, UpstreamConnection.expire} <= found
    assert driver.cuts not in found


# --- What would be noticed ------------------------------------------------------------------------


def _crash(*_: object, **__: object) -> int:
    raise KeyError("a mistake of ours")


Broken = tuple[object, str, Callable[..., object], ModuleType]
#: What is replaced, by what, and whose seeds show it.
BROKEN: dict[str, Broken] = {
    "crash in the head": (wire, "check_head", _crash, fuzz_request),
    "a query in the path": (wire, "_path", lambda method, target: target, fuzz_request),
    "another body than was sent": (Connection, "on_body", lambda self, body: None, fuzz_request),
    "crash in the body": (chat, "_check_messages", _crash, fuzz_payload),
    "unchecked fields": (chat, "apply", lambda *_: None, fuzz_payload),
    "crash at a parsed usage": (sse, "_data", _crash, fuzz_sse),
    "no memory of the last read": (
        sse.EventStream,
        "_up_to_blank_line",
        lambda self, data: data,
        fuzz_sse,
    ),
    "crash in a value": (Reader, "fit", _crash, fuzz_config),
    "refused without a reason": (reading, "quote", lambda *_, **__: "", fuzz_config),
    "a key that is shown": (Secret, "__repr__", Secret.reveal, fuzz_config),
    "crash at the answer's head": (
        UpstreamConnection,
        "on_headers_complete",
        _crash,
        fuzz_upstream,
    ),
    "no end": (UpstreamConnection, "_finish", lambda self: None, fuzz_upstream),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_broken_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mistake put into a parser, one of its target's seeds fails."""
    owner, attribute, replacement, target = BROKEN[name]
    monkeypatch.setattr(owner, attribute, replacement)

    def run() -> None:
        for seed in target.SEEDS:
            target.check(seed)

    with pytest.raises((AssertionError, KeyError)):
        run()
