"""When the embedded model runs, and when it ends."""

from __future__ import annotations

import asyncio
import io

import msgspec
import pytest

from freeapi.embedded import Embedded
from freeapi.journal import Journal
from tests.configs import KEY, read
from tests.scripted_upstream import PATIENCE_S

WANTED = read()
UNWANTED = read({"OPENAI_API_KEYS": KEY})


@pytest.fixture
def embedded() -> Embedded:
    """None runs yet."""
    return Embedded(Journal(io.StringIO(), "info", lambda: 0.0))


async def test_it_runs_only_while_it_is_wanted(embedded: Embedded) -> None:
    """The first configuration that wants it starts it, others share it, the last ends it."""
    assert await embedded.wanted(UNWANTED) is None
    model = await embedded.wanted(WANTED)
    assert model is not None
    assert model.is_ready
    assert await embedded.wanted(msgspec.structs.replace(WANTED, queue_s=1.0)) is model
    assert await embedded.wanted(UNWANTED) is None
    embedded.dismiss(0.0)
    async with asyncio.timeout(PATIENCE_S):
        while model.is_ready:  # noqa: ASYNC110 - what ends is another process
            await asyncio.sleep(0.01)
    await embedded.close()


async def test_nothing_is_left_at_the_end(embedded: Embedded) -> None:
    """One whose requests may not be over yet goes on until then, or until the gateway ends."""
    old = await embedded.wanted(WANTED)
    assert old is not None
    embedded.dismiss(1_000.0)
    embedded.dismiss(1_000.0)
    assert old.is_ready
    new = await embedded.wanted(WANTED)
    assert new is not None
    assert new is not old
    await embedded.close()
    assert not old.is_ready
    assert not new.is_ready
