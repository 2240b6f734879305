"""The decision inside the store is the one of ``policy.limits``, whoever asks."""

from __future__ import annotations

import asyncio
import random

import pytest

from freeapi import errors
from freeapi.errors import FreeApiError
from freeapi.policy.limits import Admission, CallerLimits, Limits, ModelBucket
from freeapi.state import valkey_limits
from freeapi.state.valkey_limits import SharedAdmission
from tests.sharers import DAY_S, Limiters, ask, refusal, settled
from tests.valkey_server import ValkeyServer


@pytest.mark.parametrize("seed", range(6))
async def test_decides_as_policy_limits_does(
    server: ValkeyServer, gateways: Limiters, seed: int
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
    server: ValkeyServer, gateways: Limiters
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
    server: ValkeyServer, gateways: Limiters, monkeypatch: pytest.MonkeyPatch
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
    server: ValkeyServer, gateways: Limiters
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


async def test_share_is_reserved_and_corrected(server: ValkeyServer, gateways: Limiters) -> None:
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
    server: ValkeyServer, gateways: Limiters
) -> None:
    """What was never sent gives its money back."""
    shared = await gateways.start(server)
    for _ in range(3):
        (await shared.admit(ask(nanousd=100, share=100))).cancel()


async def test_what_costs_nothing_needs_no_share(server: ValkeyServer, gateways: Limiters) -> None:
    """A caller that has spent more than its share, since that was lowered, may ask for free."""
    shared = await gateways.start(server)
    (await shared.admit(ask(nanousd=100, share=100))).settle(1, 100)
    assert (await shared.admit(ask(nanousd=0, share=50))).is_open
    with pytest.raises(errors.BudgetExhausted):
        await shared.admit(ask(nanousd=1, share=50))
