"""What is asked of the shared store for a request, and what its answers mean.

``Ask`` is a request's needs, ``Question`` and ``End`` are the arguments of ``lua/admit.lua`` and
``lua/settle.lua``, ``Verdict`` is the answer, and ``refusal`` puts it into the errors that one
process alone would raise.

What this is not: nothing here waits or reads a clock.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from freeapi.errors import BudgetBusy, BudgetExhausted, CapacityExceeded, FreeApiError
from freeapi.policy.budget import NANO
from freeapi.policy.fairness import RETRY_WAIT_MIN_S, WAITING_MAX, WAITING_PER_CALLER_MAX
from freeapi.policy.limits import CallerLimits, ModelBucket
from freeapi.policy.limits import _refusal as limits_refusal
from freeapi.policy.meter import Flight, Meter, Rates

#: The verdicts, as in ``lua/admit.lua``.
GRANTED, REFUSED, WAITING, FULL, POOR, UNKNOWN_NODE = range(6)
#: As policy.budget: most answers take a few seconds.
_BUSY_S: Final = 2.0
_SHARE: Final = "your share of today's"


class Ask(NamedTuple):
    """All that a request needs."""

    caller: bytes
    limits: CallerLimits
    model: str
    model_rates: Rates
    tokens: int
    #: By ``policy.fairness.token_cost``, at its worst.
    cost: int
    #: The worst case of its money; 0 where it is free.
    amount_nanousd: int = 0
    #: What its caller may spend in a day; None: any amount.
    share_nanousd: int | None = None


class Verdict(NamedTuple):
    """The store's answer to a question; times are from now."""

    kind: int
    requests_due_s: float = 0.0
    tokens_due_s: float = 0.0
    in_flight: int = 0
    day_wait_s: float = 0.0
    model_requests_due_s: float = 0.0
    model_tokens_due_s: float = 0.0
    hint_s: float = 0.0
    spent_nanousd: float = 0
    held_nanousd: float = 0


class Question(msgspec.Struct, array_like=True):
    """The argument of ``admit.lua``; there 0 stands for no limit, and -1 for no share.

    An array, as all that the server reads for each request: by name it would take it twice as long.
    """

    now: float | bool
    node: str
    epoch: int
    ticket: str
    caller: str
    model: str
    rpm: int
    tpm: int
    rpd: int
    concurrency: int
    mrpm: int
    mtpm: int
    tokens: int
    cost: int
    nanousd: int
    share: int
    ttl_s: float
    asked: int = 0
    waiting_max: int = WAITING_MAX
    per_caller_max: int = WAITING_PER_CALLER_MAX


class End(msgspec.Struct, array_like=True):
    """The argument of ``settle.lua``; False where nobody knows."""

    now: float | bool = False
    node: str = ""
    ticket: str = ""
    is_cancelled: bool = False
    tokens: int | bool = False
    nanousd: int | bool = False
    cost: int | bool = False
    #: It may stand in line still.
    is_leaving: bool = False
    model: str = ""
    caller: str = ""


def question_of(ask: Ask, ticket: str, ttl_s: float) -> Question:
    """The question; ``ttl_s``: how long its place in the line lasts, 0 where it doesn't wait."""
    limits, rates = ask.limits, ask.model_rates
    return Question(
        node="",
        epoch=0,
        ticket=ticket,
        caller=ask.caller.hex(),
        model=ask.model,
        rpm=limits.rates.rpm or 0,
        tpm=limits.rates.tpm or 0,
        rpd=limits.rpd or 0,
        concurrency=limits.concurrency or 0,
        mrpm=rates.rpm or 0,
        mtpm=rates.tpm or 0,
        tokens=ask.tokens,
        cost=max(ask.cost, 1),
        nanousd=ask.amount_nanousd,
        share=-1 if ask.share_nanousd is None else ask.share_nanousd,
        ttl_s=ttl_s,
        now=False,
    )


def refusal(ask: Ask, verdict: Verdict, utc_s: float) -> FreeApiError:
    """Why the request wasn't let in, as ``policy.limits`` and ``policy.budget`` would say it."""
    if verdict.kind == POOR:
        return _share_refusal(ask, verdict, utc_s)
    if verdict.kind in (WAITING, FULL):
        return CapacityExceeded(retry_after_s=max(verdict.hint_s, RETRY_WAIT_MIN_S))
    meter = Meter(verdict.requests_due_s, verdict.tokens_due_s)
    if verdict.in_flight:
        meter.flight = Flight(verdict.in_flight, 0, 0, 0.0)
    bucket = ModelBucket(ask.model_rates.rpm, ask.model_rates.tpm)
    bucket.meter.requests_due_s = verdict.model_requests_due_s
    bucket.meter.tokens_due_s = verdict.model_tokens_due_s
    return limits_refusal(meter, ask.limits, bucket, ask.tokens, 0.0, verdict.day_wait_s)


def _share_refusal(ask: Ask, verdict: Verdict, utc_s: float) -> BudgetBusy | BudgetExhausted:
    """Exhausted only if it stays so though all requests under way should cost nothing."""
    if verdict.spent_nanousd + ask.amount_nanousd <= (ask.share_nanousd or 0):
        return BudgetBusy(whose=_SHARE, retry_after_s=_BUSY_S)
    resets_at = datetime.fromtimestamp(round(utc_s + verdict.day_wait_s), UTC)
    return BudgetExhausted(
        retry_after_s=verdict.day_wait_s,
        should_retry=False,
        cost=f"{ask.amount_nanousd / NANO:.6f}",
        whose=_SHARE,
        resets_at=f"{resets_at:%Y-%m-%dT%H:%M:%SZ}",
    )
