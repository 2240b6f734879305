"""Runs go on in the call that tells them, end once, and leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from freeapi.errors import ClientGone, FreeApiError, UpstreamCut
from freeapi.http.outcome import Outcome, Run


class Steps:
    """A coroutine's account of itself."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def wait(self, *awaited: Outcome | asyncio.Future[None]) -> None:
        """Await each, and note what comes of it."""
        self.seen.append("begun")
        try:
            for one in awaited:
                await one
                self.seen.append("went on")
        except FreeApiError as error:
            self.seen.append(error.label)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise


async def test_run_goes_on_in_the_call_that_resolves() -> None:
    """Each step is taken in the call that makes it possible, none a turn of the loop later."""
    steps, first, second = Steps(), Outcome(), Outcome()
    Run(steps.wait(first, second)).start()
    assert steps.seen == ["begun"]
    first.resolve(None)
    assert steps.seen == ["begun", "went on"]
    second.resolve(UpstreamCut())
    assert steps.seen == ["begun", "went on", "upstream_cut"]


async def test_what_is_known_is_not_waited_for() -> None:
    """An outcome that is known before it is awaited makes no wait; the first one counts."""
    steps, known = Steps(), Outcome()
    known.resolve(UpstreamCut())
    known.resolve(None)
    Run(steps.wait(known)).start()
    assert steps.seen == ["begun", "upstream_cut"]


async def test_run_awaits_futures_and_tasks() -> None:
    """A future's result or a task's, its error and its cancellation arrive as in a task."""
    loop, steps = asyncio.get_running_loop(), Steps()
    future: asyncio.Future[None] = loop.create_future()
    Run(steps.wait(future, loop.create_task(asyncio.sleep(0)))).start()
    future.set_result(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert steps.seen == ["begun", "went on", "went on"]


async def test_cancel_cancels_the_future_that_is_waited_for() -> None:
    """The coroutine sees CancelledError; cancelling it once more, or at its end, does nothing."""
    steps = Steps()
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    run = Run(steps.wait(future))
    run.start()
    run.cancel()
    run.cancel()
    await asyncio.sleep(0)
    run.cancel()
    assert future.cancelled()
    assert steps.seen == ["begun", "cancelled"]


async def test_cancel_leaves_an_outcome_alone() -> None:
    """What ends a wait for an outcome is the outcome."""
    steps, outcome = Steps(), Outcome()
    run = Run(steps.wait(outcome))
    run.start()
    run.cancel()
    assert steps.seen == ["begun"]
    outcome.resolve(ClientGone())
    assert steps.seen == ["begun", "client_gone"]


async def test_cancelled_during_an_outcome_it_waits_for_no_future() -> None:
    """The next one that it would wait for is cancelled at once."""
    steps, outcome = Steps(), Outcome()
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    run = Run(steps.wait(outcome, future))
    run.start()
    run.cancel()
    outcome.resolve(None)
    await asyncio.sleep(0)
    assert future.cancelled()
    assert steps.seen == ["begun", "went on", "cancelled"]


async def test_mistake_is_raised_where_it_was_woken() -> None:
    """What a coroutine doesn't catch reaches who resolved."""

    async def fail(outcome: Outcome) -> None:
        await outcome
        raise LookupError

    outcome = Outcome()
    Run(fail(outcome)).start()
    with pytest.raises(LookupError):
        outcome.resolve(None)


@pytest.mark.parametrize("error", [None, UpstreamCut()])
async def test_future_tells_the_same(error: FreeApiError | None) -> None:
    """A task may wait for the future, made before or after it is known, or have left it."""
    outcome = Outcome()
    before, left = outcome.future(), Outcome()
    left.future().cancel()
    left.resolve(error)
    outcome.resolve(error)
    for future in (before, outcome.future()):
        assert future.done()
        assert future.exception() is error


async def test_failed_run_leaves_no_cycle() -> None:
    """An outcome whose error was raised is freed without the collector."""
    steps, outcome = Steps(), Outcome()
    gone = weakref.ref(steps)
    Run(steps.wait(outcome)).start()
    gc.disable()
    try:
        outcome.resolve(UpstreamCut())
        del steps, outcome
        assert gone() is None
    finally:
        gc.enable()
