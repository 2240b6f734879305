"""Grants at once and in turn, in one event loop, with the real gate, key pool and queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from freeapi.errors import CapacityExceeded, ConcurrencyExceeded, RateLimitExceeded, UpstreamRefused
from freeapi.gate import Gate, Visitor, new_secret
from freeapi.journal import Journal
from freeapi.policy.callers import CallerId
from freeapi.policy.failures import KEY_DEAD, RATE_LIMITED
from freeapi.policy.keys import KeyPool
from freeapi.policy.limits import CallerLimits
from freeapi.policy.models import Model
from freeapi.policy.payload import Prepared
from freeapi.scheduler import Grant, Scheduler
from tests.pools import upstream_keys

UNLIMITED = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=None)
#: More than the minute that a bucket takes to fill, so that nobody is refused as hopeless.
QUEUE_S = 100.0
#: For what must happen at once; a timer that it has to beat is set for ten seconds.
SOON_S = 2.0


class Site:
    """A scheduler over one model and one key."""

    def __init__(
        self, *, queue_s: float = QUEUE_S, rpm: int | None = None, tpm: int | None = None
    ) -> None:
        now = asyncio.get_running_loop().time
        self.model = Model("m", "m", rpm, tpm, 1_000, "max_tokens", ("u",))
        journal = Journal(None, "error", time.time)
        gate = Gate(
            limits=UNLIMITED,
            tokens=None,
            proxy_hops=0,
            models=[self.model],
            now=now,
            journal=journal,
            secret=new_secret,
        )
        self.keys = KeyPool([upstream_keys("u", ("tail",))], lambda: 0.0)
        self.scheduler = Scheduler(gate, self.keys, queue_s)
        self.now = now

    def prepared(self, tokens: int) -> Prepared:
        """A request that reserves so many tokens."""
        return Prepared("chat", b"", self.model, False, False, 0, tokens, 0, 0, b"")

    async def grant(
        self, caller: bytes, tokens: int = 1, limits: CallerLimits = UNLIMITED
    ) -> Grant:
        """Ask for one."""
        return await self.scheduler.grant(Visitor(CallerId(caller), limits), self.prepared(tokens))

    async def waits(
        self, caller: bytes, tokens: int = 1, limits: CallerLimits = UNLIMITED
    ) -> asyncio.Task[Grant]:
        """Ask for one that can't be had at once."""
        before = self.scheduler.waiting
        loop = asyncio.get_running_loop()
        task = loop.create_task(self.grant(caller, tokens, limits))
        async with asyncio.timeout(SOON_S):
            while self.scheduler.waiting == before:
                assert not task.done(), task
                await asyncio.sleep(0)
        return task


async def soon(task: asyncio.Task[Grant]) -> Grant:
    """What it is granted, which must be now."""
    async with asyncio.timeout(SOON_S):
        return await task


@contextmanager
def too_busy() -> Iterator[None]:
    """The block must be refused for want of capacity, with a time to come back."""
    with pytest.raises(CapacityExceeded) as caught:
        yield
    assert caught.value.retry_after_s


async def abandon(*tasks: asyncio.Task[Grant]) -> None:
    """Their clients go."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_nothing_waits_while_there_is_enough() -> None:
    """Without anybody waiting a grant is given in one step, and the queue isn't touched."""
    site = Site(rpm=600)
    asking = site.grant(b"a")
    with pytest.raises(StopIteration) as returned:
        asking.send(None)
    grant: Grant = returned.value.value
    before = repr(site.scheduler)
    grant.settle(1, 1, 0, 0)
    assert repr(site.scheduler) == before == "<Scheduler <FairQueue: 0 of 0 callers []>>"


async def test_turns_are_by_callers() -> None:
    """When capacity comes back, the newcomer is served before the flood's second request."""
    site = Site(tpm=600)
    held = await site.grant(b"a", 600)
    flood = [await site.waits(b"a", 600) for _ in range(2)]
    newcomer = await site.waits(b"b", 600)
    held.cancel()
    (await soon(flood[0])).cancel()
    (await soon(newcomer)).cancel()
    (await soon(flood[1])).cancel()
    assert site.scheduler.waiting == 0


async def test_newcomer_does_not_pass_those_who_wait() -> None:
    """A small request that would fit waits behind a large one, which else might wait for ever."""
    site = Site(tpm=600)
    held = await site.grant(b"a", 500)
    large = await site.waits(b"b", 200)
    small = await site.waits(b"c", 50)
    held.cancel()
    assert (await soon(large)).is_open
    assert (await soon(small)).is_open


async def test_who_leaves_lets_the_next_have_its_turn() -> None:
    """When the large request in front gives up, a small one behind it is served at once."""
    site = Site(tpm=600)
    await site.grant(b"a", 550)
    large = await site.waits(b"b", 150)
    small = await site.waits(b"c", 40)
    await abandon(large)
    assert (await soon(small)).is_open


async def test_grant_in_the_moment_of_leaving_is_given_back() -> None:
    """Who is cancelled before it could see its grant holds nothing."""
    site = Site(tpm=600)
    held = await site.grant(b"a", 600)
    leaving = await site.waits(b"b", 600)
    held.cancel()  # grants, in this very step
    await abandon(leaving)
    assert leaving.cancelled()
    assert (await site.grant(b"c", 600)).is_open


async def test_caller_has_eight_places() -> None:
    """A caller's ninth waiting request is refused; when one leaves, its place is free at once."""
    site = Site(tpm=600)
    await site.grant(b"a", 500)
    waiting = [await site.waits(b"a", 200) for _ in range(8)]
    with too_busy():
        await site.grant(b"a", 200)
    await abandon(waiting.pop())
    waiting.append(await site.waits(b"a", 200))
    assert site.scheduler.waiting == 8
    await abandon(*waiting)
    assert site.scheduler.waiting == 0


async def test_queue_has_a_thousand_places() -> None:
    """The 1,001st waiting request is refused, whoever it belongs to; one that leaves makes room."""
    asyncio.get_running_loop().set_debug(False)  # it would take six seconds
    site = Site(tpm=600)
    await site.grant(b"a", 500)
    waiting = [await site.waits(b"%d" % (number // 8), 200) for number in range(1_000)]
    with too_busy():
        await site.grant(b"new", 200)
    await abandon(waiting.pop())
    waiting.append(await site.waits(b"new", 200))
    await abandon(*waiting)
    assert site.scheduler.waiting == 0


async def test_without_a_queue_it_is_now_or_never() -> None:
    """With no time to wait, the refusal comes in the same step and says when there is capacity."""
    site = Site(queue_s=0, tpm=600)
    await site.grant(b"a", 600)
    with pytest.raises(CapacityExceeded) as caught:
        site.grant(b"b", 100).send(None)
    assert caught.value.retry_after_s == pytest.approx(10, abs=1)


async def test_hopeless_request_does_not_wait() -> None:
    """Capacity that is known to come too late is refused at once, with that time."""
    site = Site(queue_s=5, tpm=600)
    await site.grant(b"a", 600)
    with pytest.raises(CapacityExceeded) as caught:
        await site.grant(b"b", 100)
    assert caught.value.retry_after_s == pytest.approx(10, abs=1)


async def test_deadline_tells_when_the_keys_are_back() -> None:
    """Who waited in vain, because the key cooled anew, is told how long it will be away."""
    site = Site(queue_s=0.5)
    held = await site.grant(b"a")
    site.keys.failed(held.lease, RATE_LIMITED, site.now(), 0.3)
    waiting = await site.waits(b"b")
    site.keys.failed(held.lease, RATE_LIMITED, site.now(), 20)
    with pytest.raises(CapacityExceeded) as caught:
        await waiting
    assert caught.value.retry_after_s == pytest.approx(19.5, abs=1)


async def test_keys_that_cool_are_waited_for() -> None:
    """When the only key is back after its 300 ms, the request is served."""
    site = Site()
    held = await site.grant(b"a")
    start_s = site.now()
    site.keys.failed(held.lease, RATE_LIMITED, start_s, 0.3)
    waiting = await site.waits(b"b")
    assert (await soon(waiting)).is_open
    assert site.now() - start_s >= 0.3


async def test_keys_that_are_dead_are_not_waited_for() -> None:
    """Those who wait for a key that turns out to be dead are told at once."""
    site = Site()
    held = await site.grant(b"a")
    site.keys.failed(held.lease, RATE_LIMITED, site.now(), 20)
    waiting = await site.waits(b"b")
    site.keys.failed(held.lease, KEY_DEAD, site.now())
    held.settle(1, 1, 0, 0)
    with pytest.raises(UpstreamRefused):
        await soon(waiting)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=1), ConcurrencyExceeded),
        (CallerLimits(rpm=None, tpm=None, rpd=1, concurrency=None), RateLimitExceeded),
    ],
    ids=["concurrency", "requests-a-day"],
)
async def test_own_limits_are_looked_at_when_the_turn_comes(
    limits: CallerLimits, error: type[Exception]
) -> None:
    """Who is over limits of its own by then is told so, and the next is served."""
    site = Site(tpm=600)
    held = await site.grant(b"a", 600)
    first = await site.waits(b"b", 100, limits)
    second = await site.waits(b"b", 100, limits)
    other = await site.waits(b"c", 100)
    held.cancel()
    assert (await soon(first)).is_open
    with pytest.raises(error):
        await soon(second)
    assert (await soon(other)).is_open


async def test_settling_twice_counts_once() -> None:
    """After a grant has been settled or cancelled, neither changes anything."""
    site = Site(tpm=600)
    grant = await site.grant(b"a", 600)
    grant.settle(300, 100, 0, 0)
    grant.settle(0, 0, 0, 0)
    grant.cancel()
    assert (await site.grant(b"b", 200)).is_open
    site = Site(queue_s=0, tpm=600)
    grant = await site.grant(b"a", 600)
    grant.settle(0, 0, 1, 0)
    with too_busy():
        await site.grant(b"b", 200)


async def test_cost_of_those_who_waited_is_corrected() -> None:
    """Who used little of what it reserved comes before one who else would be the next."""
    site = Site(tpm=600)
    held = await site.grant(b"x", 600)
    lavish, thrifty = await site.waits(b"a", 300), await site.waits(b"b", 300)
    second, first = await site.waits(b"a", 200), await site.waits(b"b", 200)
    held.cancel()
    await soon(lavish)
    (await soon(thrifty)).settle(1, 0, 0, 0)
    assert (await soon(first)).is_open
    assert not second.done()
    await abandon(second)


async def test_newcomer_need_not_catch_up_with_reservations() -> None:
    """Who comes while a flood's reservation isn't settled has its turn as if it were, to little."""
    site = Site(tpm=600)
    held = await site.grant(b"x", 600)
    first = await site.waits(b"flood", 600)
    flood = [await site.waits(b"flood", 290) for _ in range(2)]
    held.cancel()
    under_way = await soon(first)
    newcomer = await site.waits(b"new", 290)
    under_way.settle(1, 0, 0, 0)  # which is enough for two of them
    assert (await soon(newcomer)).is_open
    assert (await soon(flood[0])).is_open
    assert not flood[1].done()
    await abandon(flood[1])


async def test_repr_shows_counts_only() -> None:
    """Nobody's tag is in it."""
    site = Site(tpm=600)
    await site.grant(b"a", 600)
    waiting = await site.waits(b"secret", 100)
    assert repr(site.scheduler) == "<Scheduler <FairQueue: 1 of 1 callers [model m: 1]>>"
    await abandon(waiting)
