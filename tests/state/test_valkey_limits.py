"""The decision inside the store is the one of ``policy.limits``, whoever asks and whatever dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from freeapi import errors
from freeapi.errors import CapacityExceeded, FreeApiError
from freeapi.policy.limits import Admission, CallerLimits, Limits, ModelBucket
from freeapi.policy.meter import Rates
from freeapi.state import valkey_limits
from freeapi.state.valkey import Store, StoreUnavailable
from freeapi.state.valkey_limits import (
    ALIVE_S,
    Ask,
    Report,
    SharedAdmission,
    SharedLimits,
    Verdict,
)
from tests.valkey_server import ValkeyServer, serving

DAY_S = 86_400
#: Noon of some day, in the tests' own time.
NOON_S = 20_000.5 * DAY_S
FREE = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=None)
NO_RATES = Rates(None, None)


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """One server; each test has a namespace of its own in it."""
    with serving("--appendonly", "no") as server:
        yield server


@pytest.fixture
def bad_server() -> Iterator[ValkeyServer]:
    """A server that a test may treat badly."""
    with serving() as server:
        yield server


class Gateways:
    """As many as a test wants, which share a store and a clock that only the test moves."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._namespace = b"{%x}" % random.getrandbits(64)
        self.now_s = NOON_S

    async def start(
        self,
        server: ValkeyServer,
        heard: list[Report] | None = None,
        *,
        own_time: bool = True,
        timeout_s: float = 5.0,
    ) -> SharedLimits:
        """One more, that is up; it beats only if the test says so."""
        store = Store(server.url, timeout_s=timeout_s)
        limits = SharedLimits(
            store,
            clock=lambda: self.now_s,
            heard=(heard if heard is not None else []).append,
            namespace=self._namespace,
            store_time=(lambda: self.now_s) if own_time else None,
        )
        await store.start()
        self._stack.push_async_callback(store.close)
        self._stack.push_async_callback(limits.close)
        return limits


@pytest.fixture
async def gateways() -> AsyncIterator[Gateways]:
    """Closed at the end."""
    # Debug mode makes the thousands of calls below ten times slower, and other tests have it on.
    asyncio.get_running_loop().set_debug(False)
    async with AsyncExitStack() as stack:
        yield Gateways(stack)


def ask(
    caller: bytes = b"caller01",
    *,
    limits: CallerLimits = FREE,
    model: str = "m",
    rates: Rates = NO_RATES,
    tokens: int = 10,
    cost: int | None = None,
    nanousd: int = 0,
    share: int | None = None,
) -> Ask:
    """A request; nothing is limited unless the test says so."""
    return Ask(caller, limits, model, rates, tokens, cost or tokens, nanousd, share)


async def settled(limits: SharedLimits) -> None:
    """Wait until the store has confirmed all ends."""
    while limits.unconfirmed:
        await limits.secret(0)  # answered after all that was sent before it


async def refusal(limits: SharedLimits, request: Ask, queue_s: float = 0.0) -> FreeApiError:
    """Why the request isn't let in."""
    with pytest.raises(FreeApiError) as refused:
        await limits.admit(request, queue_s)
    return refused.value


# --- The same decision as policy.limits -----------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_decides_as_policy_limits_does(
    server: ValkeyServer, gateways: Gateways, seed: int
) -> None:
    """On random sequences each admission, refusal (kind, facts, wait) and header is the same."""
    chance = random.Random(seed)
    shared = [await gateways.start(server) for _ in range(2)]
    here = Limits()
    limits = CallerLimits(
        rpm=chance.choice([None, 1, 20]),
        tpm=chance.choice([None, 500]),
        rpd=chance.choice([None, 15]),
        concurrency=chance.choice([None, 3]),
    )
    models = {name: ModelBucket(chance.choice([None, 30]), 900) for name in ("a", "b")}
    callers = [b"caller%02d" % number for number in range(3)]
    open_: list[tuple[Admission, SharedAdmission]] = []
    refused = 0
    for _ in range(250):
        gateways.now_s += chance.choice([0.0, 0.3, 2.0, 30.0, DAY_S / 6])
        now_s = gateways.now_s
        limits_there = chance.choice(shared)
        if open_ and chance.random() < 0.45:
            one, other = open_.pop(chance.randrange(len(open_)))
            if chance.random() < 0.3:
                one.cancel(now_s)
                other.cancel()
            else:
                used = chance.choice([None, 0, 50, 300])
                one.settle(used, now_s)
                other.settle(used, None)
            for gateway in shared:
                await settled(gateway)
            continue
        name, caller = chance.choice("ab"), chance.choice(callers)
        tokens = chance.choice([1, 60, 200, 501, 901])
        request = ask(caller, limits=limits, model=name, rates=models[name].rates, tokens=tokens)
        mine: Admission | FreeApiError
        try:
            mine = here.admit(caller, limits, models[name], tokens, now_s, now_s)
        except FreeApiError as error:
            mine = error
        if isinstance(mine, Admission):
            open_.append((mine, await limits_there.admit(request)))
            continue
        refused += 1
        found = await refusal(limits_there, request)
        assert type(found) is type(mine)
        assert {**found.facts, "wait": ""} == {**mine.facts, "wait": ""}
        assert found.retry_after_s == pytest.approx(mine.retry_after_s, abs=1e-5)
        assert found.should_retry == mine.should_retry
    assert refused > 20


async def test_headers_tell_what_the_last_question_found(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """The caller's lines are those of ``policy.meter``, and a stranger's say that all is free."""
    shared = await gateways.start(server)
    limits = CallerLimits(rpm=60, tpm=None, rpd=None, concurrency=None)
    stranger = shared.headers(b"caller01", limits)
    assert b"x-ratelimit-remaining-requests: 10\r\n" in stranger
    await shared.admit(ask(limits=limits))
    lines = shared.headers(b"caller01", limits)
    assert b"x-ratelimit-remaining-requests: 9\r\nx-ratelimit-reset-requests: 1s\r\n" in lines


async def test_headers_are_remembered_of_so_many_callers(
    server: ValkeyServer, gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of callers beyond the bound the one asked about longest ago is forgotten."""
    monkeypatch.setattr(valkey_limits, "_SEEN_MAX", 2)
    shared = await gateways.start(server)
    limits = CallerLimits(rpm=60, tpm=None, rpd=None, concurrency=None)
    for caller in (b"a", b"b", b"a", b"c"):
        await shared.admit(ask(caller, limits=limits))
    remaining = [b": 10\r\n" not in shared.headers(one, limits) for one in (b"a", b"b", b"c")]
    assert remaining == [True, False, True]


async def test_limit_holds_over_all_gateways_at_once(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """Of 150 requests that three gateways ask for at once exactly as many as fit are let in."""
    three = [await gateways.start(server) for _ in range(3)]
    limits = CallerLimits(rpm=240, tpm=None, rpd=None, concurrency=30)
    results = await asyncio.gather(
        *(gateway.admit(ask(limits=limits)) for gateway in three for _ in range(50)),
        return_exceptions=True,
    )
    granted = [one for one in results if isinstance(one, SharedAdmission)]
    refused = [one for one in results if isinstance(one, errors.ConcurrencyExceeded)]
    assert (len(granted), len(refused)) == (30, 120)
    for admission in granted:
        admission.cancel()
    for gateway in three:
        await settled(gateway)
    assert len([await three[0].admit(ask(limits=limits)) for _ in range(30)]) == 30


# --- The caller's share of the money --------------------------------------------------------------


async def test_share_is_reserved_and_corrected(server: ValkeyServer, gateways: Gateways) -> None:
    """The worst case is held until the settlement; what is unknown stays; a new day starts anew."""
    shared = await gateways.start(server)
    request = ask(nanousd=60, share=100)
    first = await shared.admit(request)
    busy = await refusal(shared, request)
    assert isinstance(busy, errors.BudgetBusy)
    first.settle(1, 30)
    second = await shared.admit(request)
    second.settle(None, None)
    gone = await refusal(shared, request)
    assert isinstance(gone, errors.BudgetExhausted)
    assert gone.retry_after_s == DAY_S / 2
    assert gone.facts["resets_at"] == "2024-10-05T00:00:00Z"
    await shared.admit(ask(nanousd=10, share=100))
    gateways.now_s += DAY_S / 2
    await shared.admit(request)


async def test_cancelled_request_costs_nothing_of_the_share(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """What was never sent gives its money back."""
    shared = await gateways.start(server)
    for _ in range(3):
        (await shared.admit(ask(nanousd=100, share=100))).cancel()


# --- Settled exactly once -------------------------------------------------------------------------


async def test_end_that_is_repeated_counts_once(server: ValkeyServer, gateways: Gateways) -> None:
    """The store ignores an end that it has heard before, and a second one of the same request."""
    shared = await gateways.start(server)
    limits = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=2)
    first, _ = [await shared.admit(ask(limits=limits)) for _ in range(2)]
    first.settle(1, 1)
    first.cancel()
    argument = shared._ends[first._ticket]
    shared._send_end(first._ticket, argument)
    await settled(shared)
    shared._send_end(first._ticket, argument)
    await shared.admit(ask(limits=limits))
    assert isinstance(await refusal(shared, ask(limits=limits)), errors.ConcurrencyExceeded)


@pytest.mark.parametrize("harm", ["pause", "kill"])
async def test_ends_are_kept_while_the_store_is_away(
    bad_server: ValkeyServer, gateways: Gateways, harm: str
) -> None:
    """What ends while the store is away is told as soon as it is back, and nothing begins."""
    shared = await gateways.start(bad_server, timeout_s=0.3)
    limits = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=3)
    open_ = [await shared.admit(ask(limits=limits)) for _ in range(3)]
    getattr(bad_server, harm)()
    with pytest.raises(StoreUnavailable):
        await shared.admit(ask(limits=limits))
    for admission in open_:
        admission.settle(1, 1)
    with pytest.raises(StoreUnavailable):
        await shared.admit(ask(limits=limits))
    assert shared.unconfirmed <= 4, "only what was sent, not what was refused at once"
    (bad_server.resume if harm == "pause" else bad_server.start)()
    await up_again(shared)
    await settled(shared)
    again = [await shared.admit(ask(limits=limits)) for _ in range(3)]
    assert len(again) == 3


async def up_again(shared: SharedLimits) -> None:
    """Wait until the store is back."""
    back = asyncio.Event()

    async def told() -> None:
        back.set()

    shared._store.on_up.append(told)
    if not shared._store.is_up:
        await back.wait()
    assert shared._store.is_up


async def test_question_of_a_lost_connection_is_not_heard_later(
    bad_server: ValkeyServer, gateways: Gateways
) -> None:
    """A request that nobody waits for any more takes nothing, though the server reads it late."""
    shared = await gateways.start(bad_server, timeout_s=0.3)
    limits = CallerLimits(rpm=6, tpm=None, rpd=1, concurrency=1)
    bad_server.pause()
    with pytest.raises(StoreUnavailable):
        await shared.admit(ask(limits=limits))
    bad_server.resume()
    await up_again(shared)
    await settled(shared)
    await shared.admit(ask(limits=limits))


async def test_caller_who_goes_while_it_asks_takes_nothing(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """A request cancelled before its answer is given back."""
    shared = await gateways.start(server)
    limits = CallerLimits(rpm=6, tpm=None, rpd=1, concurrency=1)
    for _ in range(2):
        task = asyncio.get_running_loop().create_task(shared.admit(ask(limits=limits)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await shared.admit(ask(limits=limits))


async def test_dead_gateways_requests_count_as_used(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """Not heard for ALIVE_S, a gateway's slots are free, and its tokens and money are spent."""
    dead, alive = await gateways.start(server), await gateways.start(server)
    limits = CallerLimits(rpm=None, tpm=600, rpd=None, concurrency=1)
    request = ask(limits=limits, tokens=500, nanousd=60, share=100)
    ghost = await dead.admit(request)
    assert isinstance(await refusal(alive, ask(limits=limits)), errors.ConcurrencyExceeded)
    gateways.now_s += ALIVE_S - 1
    await beat(alive)
    assert isinstance(await refusal(alive, ask(limits=limits)), errors.ConcurrencyExceeded)
    gateways.now_s += 2
    await beat(alive)
    assert isinstance(await refusal(alive, request), errors.TokenRateExceeded)
    gateways.now_s += 60
    assert isinstance(await refusal(alive, request), errors.BudgetExhausted)
    # It wasn't dead, after all: what it says of that request comes too late, but it may ask again.
    ghost.settle(0, 0)
    await settled(dead)
    assert isinstance(await refusal(dead, request), errors.BudgetExhausted)
    await dead.admit(ask(limits=limits))


async def beat(shared: SharedLimits) -> None:
    """One beat, and its answer."""
    shared._beat()
    await shared.secret(0)


async def test_store_that_lost_everything_is_joined_again(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """After a flush the next questions, all at once, are answered, and each end is confirmed."""
    shared = await gateways.start(server)
    before = await shared.admit(ask())
    await shared._store.command(b"FLUSHALL")
    results = await asyncio.gather(*(shared.admit(ask()) for _ in range(20)))
    assert len(results) == 20
    before.settle(1, 1)
    await settled(shared)
    await shared._store.command(b"FLUSHALL")
    await beat(shared)
    await shared.close()
    assert shared._epoch > 0


# --- The line -------------------------------------------------------------------------------------


async def asked(shared: SharedLimits, request: Ask, ticket: str, ttl_s: float = 1.5) -> Verdict:
    """One question of a waiter, without the waiting."""
    question = shared._question(request, ticket, 1.0)
    question.ttl_s = ttl_s
    question.asked = 1
    return await shared._ask(request, question)


def slow(cost: int = 10, caller: bytes = b"caller01") -> Ask:
    """For a model of one request a second at most, and one at once."""
    return ask(caller, rates=Rates(6, None), tokens=1, cost=cost)


async def test_least_served_caller_is_next_over_all_gateways(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """Whichever gateway asks first, turns go to the waiting caller with the least cost served."""
    here, there = await gateways.start(server), await gateways.start(server)
    await here.admit(slow())  # the model is short from now on
    for number in range(3):
        assert (await asked(here, slow(caller=b"greedy"), f"g{number}", 99)).kind == 2
    assert (await asked(there, slow(caller=b"modest"), "m0", 99)).kind == 2
    served = []
    for _ in range(4):
        gateways.now_s += 10
        for shared, caller, ticket in (
            (here, b"greedy", "g0"),
            (here, b"greedy", "g1"),
            (here, b"greedy", "g2"),
            (there, b"modest", "m0"),
        ):
            if ticket in served:
                continue
            if (await asked(shared, slow(caller=caller), ticket, 99)).kind == 0:
                served.append(ticket)
    assert served == ["g0", "m0", "g1", "g2"]


async def test_newcomer_does_not_pass_those_who_wait(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """A free place belongs to who waits; but where there are enough for both, both are let in."""
    shared = await gateways.start(server)
    rates = Rates(12, None)  # two at once, one in 5 s
    for _ in range(2):
        await shared.admit(ask(rates=rates, tokens=1))
    old = ask(b"old", rates=rates, tokens=1)
    new = ask(b"new", rates=rates, tokens=1)
    assert (await asked(shared, old, "old", 99)).kind == 2
    gateways.now_s += 5
    assert (await asked(shared, new, "new", 99)).kind == 2
    gateways.now_s += 5
    assert (await asked(shared, new, "new", 99)).kind == 0
    assert (await asked(shared, old, "old", 99)).kind == 0


async def test_large_request_is_not_overtaken(server: ValkeyServer, gateways: Gateways) -> None:
    """Small requests behind a large one wait until there is enough for it."""
    shared = await gateways.start(server)
    rates = Rates(None, 600)
    await shared.admit(ask(rates=rates, tokens=600))
    large = ask(b"large", rates=rates, tokens=500, cost=1)
    small = ask(b"small", rates=rates, tokens=10, cost=1)
    assert (await asked(shared, large, "l", 99)).kind == 2
    for _ in range(4):
        gateways.now_s += 10
        assert (await asked(shared, small, "s", 99)).kind == 2
    gateways.now_s += 10
    assert (await asked(shared, large, "l", 99)).kind == 0


async def test_waiter_that_dies_does_not_stall_the_rest(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """Who doesn't ask again is out of the line once its place expires."""
    dead, alive = await gateways.start(server), await gateways.start(server)
    await dead.admit(slow())
    for number in range(8):
        assert (await asked(dead, slow(caller=b"dead"), f"d{number}")).kind == 2
    assert (await asked(alive, slow(caller=b"live"), "a", 99)).kind == 2
    gateways.now_s += 10.1
    assert (await asked(alive, slow(caller=b"live"), "a", 99)).kind == 0


async def test_cost_is_corrected_at_the_end(server: ValkeyServer, gateways: Gateways) -> None:
    """Who used less than it reserved is before who used it all; unknown costs stay as reserved."""
    shared = await gateways.start(server)
    await shared.admit(slow())
    for caller in (b"saver", b"waster"):
        for number in range(2):
            assert (await asked(shared, slow(100, caller), f"{caller!r}{number}", 999)).kind == 2
    for caller in (b"saver", b"waster"):
        gateways.now_s += 10
        ticket = f"{caller!r}0"
        assert (await asked(shared, slow(100, caller), ticket, 999)).kind == 0
        SharedAdmission(shared, ticket).settle(1, 0, 5 if caller == b"waster" else None)
        await settled(shared)
    gateways.now_s += 10
    assert (await asked(shared, slow(100, b"saver"), f"{b'saver'!r}1", 999)).kind == 2
    assert (await asked(shared, slow(100, b"waster"), f"{b'waster'!r}1", 999)).kind == 0


async def test_line_is_bounded_per_caller_and_in_all(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """A caller's ninth request is refused, and the 1,001st of all; who leaves makes room."""
    shared = await gateways.start(server)
    await shared.admit(slow())
    for number in range(8):
        assert (await asked(shared, slow(caller=b"first"), f"f{number}", 99)).kind == 2
    assert (await asked(shared, slow(caller=b"first"), "f8", 99)).kind == 3
    full = await refusal(shared, slow(caller=b"first"), 100.0)
    assert isinstance(full, CapacityExceeded)
    for n in range(992):
        assert (await asked(shared, slow(caller=b"c%d" % n), f"c{n}", 99)).kind == 2
    assert (await asked(shared, slow(caller=b"late"), "late", 99)).kind == 3
    shared._withdraw(shared._question(slow(caller=b"c0"), "c0", 1.0))
    assert (await asked(shared, slow(caller=b"late"), "late", 99)).kind == 2


async def test_waits_for_its_turn_and_gets_it(server: ValkeyServer, gateways: Gateways) -> None:
    """Two gateways' requests for a short model are all served, without a refusal, in the end."""
    two = [await gateways.start(server, own_time=False) for _ in range(2)]
    rates = Rates(1_200, None)  # 200 at once, 20 a second
    for _ in range(200):
        await two[0].admit(ask(rates=rates, tokens=1))
    waits = [shared.admit(ask(b"c%d" % n, rates=rates), 10.0) for n in range(5) for shared in two]
    assert len(await asyncio.gather(*waits)) == 10
    assert [shared.waiting for shared in two] == [0, 0]


async def test_hopeless_request_is_refused_at_once(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """Where its turn can't come in time it is told when, and leaves no trace in the line."""
    shared = await gateways.start(server)
    await shared.admit(slow())
    error = await refusal(shared, slow(), 5.0)
    assert isinstance(error, CapacityExceeded)
    assert error.retry_after_s == pytest.approx(10.0, abs=1e-5)
    await settled(shared)
    gateways.now_s += 10
    await shared.admit(slow(caller=b"other"))


async def test_caller_who_leaves_the_line_is_forgotten(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """A request cancelled while it waits leaves the line to the others."""
    shared = await gateways.start(server)
    await shared.admit(slow())
    task = asyncio.get_running_loop().create_task(shared.admit(slow(caller=b"gone"), 60.0))
    while not shared.waiting:
        await shared.secret(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(shared)
    gateways.now_s += 10
    await shared.admit(slow(caller=b"other"))


async def test_who_is_over_its_own_limit_leaves_the_line(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """A waiter whose caller has used up its day meanwhile is told so, and is in nobody's way."""
    shared = await gateways.start(server)
    await shared.admit(slow())
    limits = CallerLimits(rpm=None, tpm=None, rpd=1, concurrency=None)
    waiting = ask(b"w", limits=limits, rates=Rates(6, None), tokens=1)
    assert (await asked(shared, waiting, "w", 99)).kind == 2
    await shared.admit(ask(b"w", limits=limits, model="other"))
    assert (await asked(shared, waiting, "w", 99)).kind == 1
    gateways.now_s += 10
    await shared.admit(slow(caller=b"other"))


# --- What gateways tell each other ----------------------------------------------------------------


async def test_news_of_keys_reach_the_others_and_late_comers(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """Each report is heard once by every other gateway, by one that comes later as it stands."""
    heard: list[Report] = []
    own: list[Report] = []
    teller = await gateways.start(server, own)
    listener = await gateways.start(server, heard)
    await teller.publish(Report("key1", "", "dead", 3600.0))
    await teller.publish(Report("key1", "m", "cooling", 30.0))
    await beat(listener)
    await beat(teller)
    assert heard == [Report("key1", "", "dead", 3600.0), Report("key1", "m", "cooling", 30.0)]
    assert own == []
    await teller.publish(Report("key1", "", "ok", 0.0))
    gateways.now_s += 10
    late: list[Report] = []
    await beat(await gateways.start(server, late))
    await beat(listener)
    assert late == [Report("key1", "m", "cooling", 20.0), Report("key1", "", "ok", 0.0)]
    assert heard[2:] == [Report("key1", "", "ok", 0.0)]


async def test_it_beats_by_itself(server: ValkeyServer, gateways: Gateways) -> None:
    """Once begun, news arrive without being asked for."""
    heard: list[Report] = []
    listener = await gateways.start(server, heard)
    listener.begin()
    await (await gateways.start(server)).publish(Report("key1", "", "dead", 1.0))
    async with asyncio.timeout(5):
        while not heard:
            await listener.secret(0)
    assert heard[0].state == "dead"


async def test_secret_is_one_for_all_and_another_each_day(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """All gateways get the same random 32 bytes, another day others, and they expire."""
    one, other = await gateways.start(server), await gateways.start(server)
    first, second = await asyncio.gather(one.secret(5), other.secret(5))
    assert first == second
    assert len(first) == 32
    assert await one.secret(6) != first
    ttl_s = await one._store.command(b"TTL", b"%b:secret:5" % one._namespace)
    assert 86_400 < ttl_s <= 93_600


async def test_everything_in_the_store_expires_but_the_gateways(
    server: ValkeyServer, gateways: Gateways
) -> None:
    """What callers leave behind is gone after two days; no key holds more than sums and tags."""
    shared = await gateways.start(server)
    limits = CallerLimits(rpm=20, tpm=40_000, rpd=10, concurrency=4)
    await shared.admit(ask(limits=limits, rates=Rates(6, None), nanousd=1, share=9))
    await asked(shared, slow(caller=b"w"), "w")
    keys = await shared._store.command(b"KEYS", shared._namespace + b"*")
    lasting = [key for key in keys if await shared._store.command(b"TTL", key) < 0]
    names = {key.split(b":")[1] for key in lasting}
    assert names <= {b"alive", b"nodes", b"epoch", b"tickets", b"waiting"}
    assert {key.split(b":")[1] for key in keys} >= {b"caller", b"model", b"lane", b"turn"}
