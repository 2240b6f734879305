"""What gateways share through a real store, seen from two of them in one event loop."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from freeapi.errors import ConcurrencyExceeded
from freeapi.journal import Journal
from freeapi.policy.failures import KEY_DEAD
from freeapi.policy.keys import KeyPool, KeySpec, UpstreamKeys
from freeapi.policy.limits import CallerLimits
from freeapi.policy.meter import Rates
from freeapi.shared import Shared
from freeapi.spelling import Secret, StateUrl
from freeapi.state.valkey import StoreError
from freeapi.state.valkey_questions import Ask
from tests.scripted_upstream import PATIENCE_S
from tests.valkey_server import ValkeyServer, serving

ONE_AT_A_TIME = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=1)
ASK = Ask(b"caller", ONE_AT_A_TIME, "m", Rates(None, None), 1, 1)


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """A server that forgets all when it is killed."""
    with serving("--appendonly", "no") as server:
        yield server


class Site:
    """Gateways' parts in one store, and what they log."""

    def __init__(self, server: ValkeyServer) -> None:
        self._url = server.url
        self._log = io.StringIO()
        self.opened: list[Shared] = []

    async def open(self, *, is_capped: bool = False) -> Shared:
        """One more."""
        state = StateUrl("unix", Secret(self._url))
        journal = Journal(self._log, "info", time.time)
        shared = await Shared.open(state, None, journal, is_capped=is_capped)
        self.opened.append(shared)
        return shared

    def events(self) -> list[str]:
        """What the journal says of the store."""
        lines = map(json.loads, self._log.getvalue().splitlines())
        return [line["label"] for line in lines if line["event"] == "store"]


@pytest.fixture
async def site(server: ValkeyServer) -> AsyncIterator[Site]:
    """Closed at the end."""
    site = Site(server)
    yield site
    for shared in site.opened:
        await shared.close()


def pool(identity: bytes) -> KeyPool:
    """A pool of one key."""
    return KeyPool([UpstreamKeys("u", (KeySpec("tail", identity, None),))], lambda: 0.0)


def dies(keys: KeyPool) -> None:
    """The upstream has refused its key."""
    now_s = asyncio.get_running_loop().time()
    with keys.lease("m", ("u",), now_s) as lease:
        keys.failed(lease, KEY_DEAD, now_s)


async def until_dead(keys: KeyPool) -> None:
    """Wait until the key is known as dead."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE_S):
        while "dead" not in (state := str(keys.describe(loop.time(), ())[0]["state"])):
            assert state == "ok"
            await asyncio.sleep(0.01)


async def test_secret_is_one_and_outlives_a_store_that_forgets(
    site: Site, server: ValkeyServer
) -> None:
    """All have the day's secret; a store that comes back empty has it again from them."""
    first, second = await site.open(), await site.open()
    secret = first.secret()
    assert second.secret() == secret
    server.kill()
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(PATIENCE_S):
        while len(events := site.events()) < 4:
            assert set(events) <= {"closed", "ok"}
            await asyncio.sleep(0.01)
    assert sorted(site.events()) == ["closed", "closed", "ok", "ok"]
    assert (await site.open()).secret() == secret


async def test_last_settlement_is_not_lost_at_the_end(site: Site) -> None:
    """What is settled just before a gateway leaves is settled for the others."""
    first, second = await site.open(), await site.open()
    admission = await first.limits.admit(ASK)
    with pytest.raises(ConcurrencyExceeded):
        await second.limits.admit(ASK)
    admission.settle(1, 0, 1)
    await first.close()
    (await second.limits.admit(ASK)).cancel()
    assert site.events() == []  # one's own leaving is no news


async def test_news_of_a_key_reach_the_others(site: Site) -> None:
    """A key that one has found dead is so for all that have it, those who come later too."""
    first, second = await site.open(), await site.open()
    pools = [pool(b"identity") for _ in range(3)]
    first.join(pools[0])
    second.join(pools[1])
    dies(pools[0])
    await until_dead(pools[1])
    (await site.open()).join(pools[2])
    await until_dead(pools[2])


async def test_servers_without_keys_are_not_told_of(site: Site) -> None:
    """Each machine may have its own server without a key, so nobody hears of another's."""
    first, second = await site.open(), await site.open()
    anonymous, known = (pool(b""), pool(b"")), (pool(b"identity"), pool(b"identity"))
    first.join(anonymous[0])
    dies(anonymous[0])
    first.join(known[0])
    dies(known[0])
    second.join(anonymous[1])
    other = await site.open()
    other.join(known[1])
    await until_dead(known[1])  # what was said before it has been heard by now
    loop = asyncio.get_running_loop()
    assert anonymous[1].describe(loop.time(), ())[0]["state"] == "ok"


async def test_store_that_forgets_cannot_have_the_money(site: Site) -> None:
    """With caps the start is refused in words, and nothing stays open."""
    with pytest.raises(StoreError, match="appendonly is no"):
        await site.open(is_capped=True)
