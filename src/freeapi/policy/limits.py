"""How much one caller, and everyone together, may ask for.

One synchronous ``Limits.admit`` decides over the caller's RPM, TPM, RPD and concurrency and the
model's RPM and TPM; a refusal raises, and has taken nothing. What it gives, an ``Admission``, is
settled with the tokens that were really used, or cancelled if the request was never sent.

What this is not: no queue (``fairness``), no money (``budget``), no arithmetic (``meter``) and no
clock: ``now_s`` is monotonic; ``utc_s`` is the wall clock, which only the day's count follows.

Plan: a bounded table of callers in the order in which they were last seen.

Invariants: what ``meter`` promises holds for each caller's life in the table. One who is forgotten,
because as many others as the table holds were seen since, comes back with full buckets and a new
day's count: at most once for every ``callers_max`` requests of others. Requests in flight are never
forgotten, so concurrency holds always. A limit that is changed counts from the next request on: a
bucket stays as far from full, in time, as it was, and what is in flight is settled at the rates at
which it was taken.
"""

from __future__ import annotations

from collections import OrderedDict
from operator import itemgetter
from typing import Final

from mypy_extensions import mypyc_attr

from freeapi import errors
from freeapi.policy.meter import UNLIMITED, Day, Meter, Rates, duration

DAY_S: Final = 86_400.0
#: openai-node ignores any longer wait and hammers instead, unless told not to (OPENAI_FACTS).
RETRY_WAIT_MAX_S: Final = 60.0
#: When one of the caller's requests will end isn't known; the SDKs' second try comes about then.
CONCURRENCY_WAIT_S: Final = 1.0
#: Callers looked at for each new one: more than one, so that a table that was full shrinks again.
FORGOTTEN_PER_NEW: Final = 4

_RPM: Final = "requests per min (RPM)"
_TPM: Final = "tokens per min (TPM)"
_RPD: Final = "requests per day (RPD)"


class CallerLimits:
    """What one caller may do; None: no limit."""

    __slots__ = ("concurrency", "concurrency_max", "rates", "rpd", "rpd_max")

    def __init__(
        self, *, rpm: int | None, tpm: int | None, rpd: int | None, concurrency: int | None
    ) -> None:
        self.rates: Final = Rates(rpm, tpm)
        self.rpd: Final = rpd
        self.concurrency: Final = concurrency
        self.rpd_max: Final = UNLIMITED if rpd is None else rpd
        self.concurrency_max: Final = UNLIMITED if concurrency is None else concurrency


class ModelBucket:
    """One model's limits for the whole instance."""

    __slots__ = ("meter", "rates")

    def __init__(self, rpm: int | None, tpm: int | None) -> None:
        self.meter: Final = Meter()
        self.reconfigure(rpm, tpm)

    def reconfigure(self, rpm: int | None, tpm: int | None) -> None:
        """Limit the next requests by these; what was taken stays taken."""
        self.rates = Rates(rpm, tpm)


@mypyc_attr(free_list_len=1)  # one for each request: the last one's memory is the next one's
class Admission:
    """A request that was let in: settled or cancelled once; any further call does nothing."""

    __slots__ = (
        "day",
        "is_open",
        "limits",
        "meter",
        "model_meter",
        "model_number",
        "model_rates",
        "number",
        "tokens",
    )

    def __init__(
        self,
        meter: Meter,
        limits: CallerLimits,
        model_meter: Meter,
        model_rates: Rates,
        tokens: int,
        number: int,
        model_number: int,
        day: Day,
    ) -> None:
        """``number`` and ``model_number`` are the request's on the two meters."""
        self.meter = meter
        self.limits = limits
        self.model_meter = model_meter
        self.model_rates = model_rates
        self.tokens = tokens
        self.number = number
        self.model_number = model_number
        self.day = day
        self.is_open = True

    def settle(self, used_tokens: int | None, now_s: float) -> None:
        """The request has ended: charge what it used (None: unknown, so all that was reserved)."""
        if self.is_open:
            self.is_open = False
            tokens = self.tokens
            used = tokens if used_tokens is None else used_tokens
            self.meter.settle(self.limits.rates, tokens, used, now_s)
            self.model_meter.settle(self.model_rates, tokens, used, now_s)

    def cancel(self, now_s: float) -> None:
        """The request was never sent: give all of it back."""
        if not self.is_open:
            return
        self.is_open = False
        self.meter.cancel(self.limits.rates, self.tokens, self.number, now_s)
        self.model_meter.cancel(self.model_rates, self.tokens, self.model_number, now_s)
        count = self.meter.requests_on(self.day)
        if count and self.limits.rpd is not None:
            self.meter.tally = self.day.tally(count - 1)


class Limits:
    """The table of callers, and the decision.

    O(1) per request. A million callers take 270 MB.
    """

    def __init__(self, callers_max: int = 1_000_000) -> None:
        assert callers_max >= 1
        self._callers_max: Final = callers_max
        #: The least recently seen comes first.
        self._callers: Final[OrderedDict[bytes, Meter]] = OrderedDict()
        self._day = Day(0.0)

    def __repr__(self) -> str:
        in_flight = sum(meter.in_flight for meter in self._callers.values())
        return f"<Limits callers={len(self._callers)} in_flight={in_flight}>"

    def admit(
        self,
        caller: bytes,
        limits: CallerLimits,
        model: ModelBucket,
        tokens: int,
        now_s: float,
        utc_s: float,
    ) -> Admission:
        """Take one request of so many tokens from the caller's and the model's limits, or nothing.

        Raises RateLimitExceeded or ConcurrencyExceeded (the caller's own limits), CapacityExceeded
        (only the model's, so that waiting for others helps), all with the wait. O(1).
        """
        assert tokens >= 0
        day = self._day
        if not day.midnight_s - DAY_S <= utc_s < day.midnight_s:
            # Midnight, or the wall clock was set to another day.
            self._day = day = Day((utc_s // DAY_S + 1) * DAY_S)
        callers = self._callers
        known = meter = callers.get(caller)
        if meter is None:
            meter = Meter()
        else:
            callers.move_to_end(caller)
        tally, flight = meter.tally, meter.flight
        requests_today = tally.count if tally is not None and tally.day is day else 0
        rates, model_rates, model_meter = limits.rates, model.rates, model.meter
        if (
            (flight is not None and flight.begun - flight.ended >= limits.concurrency_max)
            or requests_today >= limits.rpd_max
            or not meter.admits(rates, tokens, now_s)
            or not model_meter.admits(model_rates, tokens, now_s)
        ):
            day_wait_s = day.midnight_s - utc_s if requests_today >= limits.rpd_max else 0.0
            raise _refusal(meter, limits, model, tokens, now_s, day_wait_s)
        if known is None:
            self._make_room(now_s)
            callers[caller] = meter
        if limits.rpd is not None:
            meter.tally = day.tally(requests_today + 1)
        number = meter.take(rates, tokens, now_s)
        model_number = model_meter.take(model_rates, tokens, now_s)
        return Admission(meter, limits, model_meter, model_rates, tokens, number, model_number, day)

    def headers(self, caller: bytes, limits: CallerLimits, now_s: float) -> bytes:
        """The caller's ``x-ratelimit-*`` lines, for any answer of any status. O(1)."""
        return limits.rates.headers(self._callers.get(caller) or Meter(), now_s)

    def _make_room(self, now_s: float) -> None:
        """Forget callers whom that costs nothing and, in a full table, the least recently seen.

        One with requests in flight stays, or their count would be lost: the table may be larger
        than `callers_max` by as many.
        """
        callers = self._callers
        for _ in range(min(FORGOTTEN_PER_NEW, len(callers))):
            is_full = len(callers) >= self._callers_max
            oldest = next(iter(callers))
            meter = callers[oldest]
            if meter.is_forgettable(now_s, self._day) or (is_full and meter.flight is None):
                del callers[oldest]
            elif is_full:
                callers.move_to_end(oldest)
            else:
                break


def _refusal(
    meter: Meter,
    limits: CallerLimits,
    model: ModelBucket,
    tokens: int,
    now_s: float,
    day_wait_s: float,
) -> errors.FreeApiError:
    """Why the request doesn't fit, and when nothing will stand against it (as far as is known)."""
    for name, rates in ((_TPM, limits.rates), (f"{_TPM} of the model", model.rates)):
        if tokens > rates.tpm_max:
            return errors.RequestAboveTokenLimit(
                limit_name=name, limit=rates.tpm, requested=tokens, should_retry=False
            )
    requests_s, tokens_s = meter.waits_s(limits.rates, tokens, now_s)
    own = (
        (day_wait_s, errors.RateLimitExceeded, _RPD, limits.rpd, 1),
        (requests_s, errors.RateLimitExceeded, _RPM, limits.rates.rpm, 1),
        (tokens_s, errors.TokenRateExceeded, _TPM, limits.rates.tpm, tokens),
    )
    own_s, kind, name, limit, requested = max(own, key=itemgetter(0))
    wait_s = max(own_s, *model.meter.waits_s(model.rates, tokens, now_s))
    should_retry = False if wait_s > RETRY_WAIT_MAX_S else None
    if own_s > 0.0:
        return kind(
            limit_name=name,
            limit=limit,
            requested=requested,
            wait=duration(wait_s),
            retry_after_s=wait_s,
            should_retry=should_retry,
        )
    if meter.in_flight >= limits.concurrency_max:
        wait_s = max(wait_s, CONCURRENCY_WAIT_S)
        return errors.ConcurrencyExceeded(
            limit=limits.concurrency, retry_after_s=wait_s, should_retry=should_retry
        )
    return errors.CapacityExceeded(retry_after_s=wait_s, should_retry=should_retry)
