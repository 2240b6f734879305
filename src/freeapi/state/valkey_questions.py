"""What is asked of the shared store for a request, and what its answers mean.

``Ask`` is a request's needs. A ``Question`` is one under way, whose ``item`` ``lua/admit.lua``
reads; what ``settled`` and ``cancelled`` say at its end is read by ``lua/decide.lua``. ``Verdict``
is the answer, and ``refusal`` puts it into the errors that one process alone would raise.

What this is not: nothing here waits or reads a clock.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple

from freeapi.errors import BudgetBusy, BudgetExhausted, CapacityExceeded, FreeApiError
from freeapi.policy.budget import NANO
from freeapi.policy.fairness import RETRY_WAIT_MIN_S
from freeapi.policy.limits import CallerLimits, ModelBucket
from freeapi.policy.limits import _refusal as limits_refusal
from freeapi.policy.meter import Flight, Meter, Rates

#: The verdicts, as in ``lua/admit.lua``.
GRANTED: Final = 0
REFUSED: Final = 1
WAITING: Final = 2
FULL: Final = 3
POOR: Final = 4
UNKNOWN_NODE: Final = 5
#: As policy.budget: most answers take a few seconds.
_BUSY_S: Final = 2.0
_SHARE: Final = "your share of today's"

Item = tuple[object, ...]
"""Something for the store to decide or to note, by place: by name it would take it twice as long
to read. Begins with whether it is an end."""


class Ask:
    """All that a request needs."""

    __slots__ = (
        "amount_nanousd",
        "caller",
        "cost",
        "limits",
        "model",
        "model_rates",
        "share_nanousd",
        "tokens",
    )

    def __init__(
        self,
        caller: bytes,
        limits: CallerLimits,
        model: str,
        model_rates: Rates,
        tokens: int,
        cost: int,
        amount_nanousd: int = 0,
        share_nanousd: int | None = None,
    ) -> None:
        """``cost`` is by ``policy.fairness.token_cost``, at its worst; ``amount_nanousd`` the worst
        case of its money, 0 where it is free; ``share_nanousd`` what its caller may spend in a day,
        None: any amount.
        """
        self.caller = caller
        self.limits = limits
        self.model = model
        self.model_rates = model_rates
        self.tokens = tokens
        self.cost = cost
        self.amount_nanousd = amount_nanousd
        self.share_nanousd = share_nanousd


class Verdict(NamedTuple):
    """The store's answer to a question; times are from now. A grant says no more than two."""

    kind: float
    requests_due_s: float = 0.0
    tokens_due_s: float = 0.0
    in_flight: float = 0
    day_wait_s: float = 0.0
    model_requests_due_s: float = 0.0
    model_tokens_due_s: float = 0.0
    hint_s: float = 0.0
    spent_nanousd: float = 0
    held_nanousd: float = 0


class Question:
    """A request that asks, once or, while it stands in line, again and again."""

    __slots__ = ("answer", "ask", "asked", "begun_s", "error", "ticket", "ttl_s")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        #: Its number among those of its gateway.
        self.ticket = 0
        #: How long its place in the line lasts; 0 where it doesn't wait.
        self.ttl_s = 0.0
        self.begun_s = 0.0
        #: How often it has asked again.
        self.asked = 0
        #: The last answer, as the fields of a Verdict; or why there is none.
        self.answer: list[float] = []
        self.error: Exception | None = None

    def told(self) -> None:
        """``answer`` or ``error`` is there: whoever asked goes on."""

    def again(self, first: Question) -> None:
        """Go on where another one for the same request is."""
        self.ticket, self.ttl_s, self.begun_s = first.ticket, first.ttl_s, first.begun_s
        self.answer = first.answer

    def item(self) -> Item:
        """For the store; there 0 stands for no limit, and -1 for no share."""
        ask = self.ask
        limits, rates, share = ask.limits, ask.model_rates, ask.share_nanousd
        return (
            False,
            self.ticket,
            ask.caller.hex(),
            ask.model,
            limits.rates.rpm or 0,
            limits.rates.tpm or 0,
            limits.rpd or 0,
            limits.concurrency or 0,
            rates.rpm or 0,
            rates.tpm or 0,
            ask.tokens,
            ask.cost or 1,  # who costs nothing would be before all others for good
            ask.amount_nanousd,
            -1 if share is None else share,
            self.ttl_s,
            self.asked,
        )

    def withdrawal(self) -> Item:
        """For the store, where nobody wants it any more: cancelled, and out of the line."""
        if self.ttl_s:
            return (*cancelled(self.ticket), self.ask.model, self.ask.caller.hex())
        return cancelled(self.ticket)


def settled(ticket: int, tokens: int | None, nanousd: int | None, cost: int | None) -> Item:
    """For the store: what a granted request has used; None: nobody knows."""
    return (
        True,
        ticket,
        False,
        False if tokens is None else tokens,
        False if nanousd is None else nanousd,
        False if cost is None else cost,
    )


def cancelled(ticket: int) -> Item:
    """For the store: a request was never sent."""
    return (True, ticket, True, False, False, False)


def refusal(ask: Ask, verdict: Verdict, utc_s: float) -> FreeApiError:
    """Why the request wasn't let in, as ``policy.limits`` and ``policy.budget`` would say it."""
    if verdict.kind == POOR:
        return _share_refusal(ask, verdict, utc_s)
    if verdict.kind in (WAITING, FULL):
        return CapacityExceeded(retry_after_s=max(verdict.hint_s, RETRY_WAIT_MIN_S))
    meter = Meter(verdict.requests_due_s, verdict.tokens_due_s)
    if verdict.in_flight:
        meter.flight = Flight(int(verdict.in_flight), 0, 0, 0.0)
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
