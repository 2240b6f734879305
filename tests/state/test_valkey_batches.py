"""What one turn of the loop brings is decided in one call, in its order, as if one by one."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from freeapi.errors import FreeApiError
from freeapi.policy.limits import Admission, CallerLimits, Limits, ModelBucket
from freeapi.state.valkey import Script, StoreRefused
from freeapi.state.valkey_batches import BATCH_MAX
from freeapi.state.valkey_limits import SharedAdmission, SharedLimits, _FutureQuestion
from freeapi.state.valkey_questions import GRANTED, Ask, Question
from tests.sharers import FREE, Limiters, ask, settled
from tests.valkey_server import ValkeyServer

ONE_AT_A_TIME = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=1)


def asking(shared: SharedLimits, request: Ask) -> _FutureQuestion:
    """A question of this turn."""
    question = _FutureQuestion(request)
    question.future = asyncio.get_running_loop().create_future()
    shared.ask(question, 0.0)
    return question


async def answered(question: _FutureQuestion) -> None:
    """Wait for its answer."""
    assert question.future is not None
    await question.future


async def functions_called(shared: SharedLimits) -> int:
    """How many calls of functions the server has had."""
    stats: bytes = await shared._store.command(b"INFO", b"commandstats")
    lines = (line for line in stats.splitlines() if line.startswith(b"cmdstat_evalsha:calls="))
    return sum(int(line.split(b"=")[1].split(b",")[0]) for line in lines)


async def tickets(shared: SharedLimits) -> int:
    """How many requests the store has as granted to this gateway."""
    key = b"%b:tickets:%b" % (shared._namespace, shared._node.encode())
    count: int = await shared._store.command(b"HLEN", key)
    return count


@pytest.mark.parametrize("seed", range(4))
async def test_decides_in_batches_as_one_by_one(
    server: ValkeyServer, gateways: Limiters, seed: int
) -> None:
    """On random batches of questions and ends each outcome is that of ``policy.limits``."""
    chance = random.Random(seed)
    shared = await gateways.start(server)
    here = Limits()
    limits = CallerLimits(rpm=20, tpm=2_000, rpd=chance.choice([None, 40]), concurrency=4)
    models = {name: ModelBucket(60, 4_000) for name in ("a", "b")}
    callers = [b"caller%02d" % number for number in range(3)]
    open_: list[tuple[Admission, SharedAdmission]] = []
    granted = refused = 0
    for _ in range(60):
        gateways.now_s += chance.choice([0.5, 5.0, 40.0])
        now_s = gateways.now_s
        turn: list[tuple[Admission | None, _FutureQuestion]] = []
        for _ in range(chance.randrange(1, 9)):
            if open_ and chance.random() < 0.4:
                mine, there = open_.pop(chance.randrange(len(open_)))
                if chance.random() < 0.3:
                    mine.cancel(now_s)
                    there.cancel()
                else:
                    used = chance.choice([None, 0, 50, 300])
                    mine.settle(used, now_s)
                    there.settle(used, None)
                continue
            name, caller, tokens = (
                chance.choice("ab"),
                chance.choice(callers),
                chance.choice([1, 300]),
            )
            request = ask(
                caller, limits=limits, model=name, rates=models[name].rates, tokens=tokens
            )
            try:
                expected = here.admit(caller, limits, models[name], tokens, now_s, now_s)
            except FreeApiError:
                expected = None
            turn.append((expected, asking(shared, request)))
        for expected, question in turn:
            await answered(question)
            admission = shared.granted(question)
            assert (admission is None) is (expected is None)
            if admission is not None and expected is not None:
                open_.append((expected, admission))
        granted += sum(expected is not None for expected, _ in turn)
        refused += sum(expected is None for expected, _ in turn)
    await settled(shared)
    assert granted > 40
    assert refused > 20
    assert await tickets(shared) == len(open_)


async def test_one_turn_is_one_call(server: ValkeyServer, gateways: Limiters) -> None:
    """Of questions and ends together; only what is more than a batch holds takes another."""
    shared = await gateways.start(server)
    admissions = await asyncio.gather(*(shared.admit(ask()) for _ in range(20)))
    before = await functions_called(shared)
    for admission in admissions:
        admission.settle(1, 1)
    await asyncio.gather(*(shared.admit(ask()) for _ in range(20)))
    assert await functions_called(shared) == before + 2, "ends were before the tasks' turn"
    await asyncio.gather(*(shared.admit(ask()) for _ in range(2 * BATCH_MAX + 1)))
    assert await functions_called(shared) == before + 2 + 3
    assert await tickets(shared) == 20 + 2 * BATCH_MAX + 1


async def test_order_within_a_turn_is_kept(server: ValkeyServer, gateways: Limiters) -> None:
    """What ends makes room for what follows; what is asked and withdrawn takes nothing."""
    shared = await gateways.start(server)
    request = ask(limits=ONE_AT_A_TIME)
    (await shared.admit(request)).settle(1, 1)
    second, third = asking(shared, request), asking(shared, request)
    shared._withdraw(second)
    fourth = asking(shared, request)
    for question in (second, third, fourth):
        await answered(question)
    assert [one.answer[0] == GRANTED for one in (second, third, fourth)] == [True, False, True]
    await settled(shared)
    assert await tickets(shared) == 1


async def test_function_that_was_forgotten_is_sent_again(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """A server whose scripts were flushed decides all the same, and each once."""
    shared = await gateways.start(server)
    await shared._store.command(b"SCRIPT", b"FLUSH")
    admission = await shared.admit(ask(limits=ONE_AT_A_TIME))
    await shared._store.command(b"SCRIPT", b"FLUSH")
    admission.settle(1, 1)
    await settled(shared)
    await shared.admit(ask(limits=ONE_AT_A_TIME))


class Broken(Question):
    """Whose request has a bug."""

    def told(self) -> None:
        raise RuntimeError("a bug")


async def test_a_bug_behind_one_answer_keeps_no_other_waiting(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """Those after it in the batch are told all the same, and the loop hears of the bug."""
    shared = await gateways.start(server)
    bugs: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: bugs.append(context["exception"]))
    before = asking(shared, ask())
    shared.ask(Broken(ask()), 0.0)
    shared.ask(Broken(ask()), 0.0)
    after = asking(shared, ask())
    for question in (before, after):
        await answered(question)
    assert [one.answer[0] for one in (before, after)] == [GRANTED, GRANTED]
    assert len(bugs) == 2


async def test_batch_that_the_server_refuses_is_not_repeated(
    server: ValkeyServer, gateways: Limiters
) -> None:
    """A bug of ours is told to those who ask, each with an error of its own; nothing is kept."""
    shared = await gateways.start(server)
    admission = await shared.admit(ask(limits=FREE))
    good, shared._batches._decide = shared._batches._decide, Script(b"return nil .. 1", b"3" * 40)
    admission.settle(1, 1)
    asked = (shared.admit(ask()) for _ in range(2))
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(error) for error in errors] == [StoreRefused, StoreRefused]
    assert errors[0] is not errors[1]
    await settled(shared)
    shared._batches._decide = good
    await shared.admit(ask())
    assert shared.unconfirmed == 0
