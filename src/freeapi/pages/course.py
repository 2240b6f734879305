"""The day's course for the operator page: one point a minute, and how late the event loop runs.

``Pulse`` is a timer of one second. Its lateness is the event loop's lag, of which the worst of the
last minute is kept; at each new minute ``Course`` takes a point out of what the metrics say.

What this is not: a time series database; Prometheus is one, and this is for who has none. Nothing
here is on disk, so a restart begins anew (the budget itself doesn't: its ledger knows).

Invariant: at most ``POINTS_MAX`` points, about 200 bytes each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from freeapi.measures import Families, Sample

#: A day in minutes.
POINTS_MAX: Final = 1_440
MINUTE_S: Final = 60
#: Between two beats, and so the most that a beat may be off the minute.
BEAT_S: Final = 1.0


class Totals(msgspec.Struct, frozen=True):
    """What has happened since the start."""

    requests: int
    #: By ``error_type``: those that got no answer of the upstream's.
    refused: dict[str, int]
    input_tokens: int
    output_tokens: int
    spent_usd: float
    #: None: not capped.
    left_usd: float | None

    @classmethod
    def of(cls, families: Families) -> Totals:
        """Sums over endpoints, models and upstreams."""
        requests = 0
        refused: dict[str, int] = {}
        for (_, _, _, error_type, blame), count in families["freeapi_requests_total"].items():
            requests += int(single(count))
            if blame != "none":
                refused[error_type] = refused.get(error_type, 0) + int(single(count))
        tokens = {"input": 0, "output": 0}
        for (*_, kind), sample in families["gen_ai_client_token_usage"].items():
            tokens[kind] += int(several(sample)[-1])
        left = families["freeapi_budget_left_usd"].get(("all",))
        return cls(
            requests=requests,
            refused=refused,
            input_tokens=tokens["input"],
            output_tokens=tokens["output"],
            spent_usd=sum(map(single, families["freeapi_cost_usd_total"].values())),
            left_usd=None if left is None else single(left),
        )


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One minute; the names of its fields go with the points."""

    #: Its end, in seconds since 1970.
    until_s: int
    requests: int
    refused: int
    tokens: int
    spent_usd: float
    left_usd: float | None


class Course:
    """The last 24 hours, as far as this process knows them."""

    def __init__(self, collect: Callable[[], Families]) -> None:
        self._collect = collect
        self._last = Totals.of(collect())
        self.points: deque[Point] = deque(maxlen=POINTS_MAX)

    def take(self, until_s: int) -> None:
        """A minute is over: add its point. Sums that fell (a worker died) count as no change."""
        last, now = self._last, Totals.of(self._collect())
        self._last = now
        tokens = now.input_tokens + now.output_tokens - last.input_tokens - last.output_tokens
        refused = sum(now.refused.values()) - sum(last.refused.values())
        self.points.append(
            Point(
                until_s=until_s,
                requests=max(0, now.requests - last.requests),
                refused=max(0, refused),
                tokens=max(0, tokens),
                spent_usd=max(0.0, now.spent_usd - last.spent_usd),
                left_usd=now.left_usd,
            )
        )

    def body(self) -> bytes:
        """``{"fields": [names], "points": [[values], ...]}``, oldest first."""
        return msgspec.json.encode({"fields": Point.__struct_fields__, "points": [*self.points]})


class Pulse:
    """Beats once a second, from its making until ``close``."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        each_minute: Callable[[int], object],
    ) -> None:
        """``clock``: seconds since 1970. ``each_minute`` is called with each full minute's."""
        self._loop = loop
        self._clock = clock
        self._each_minute = each_minute
        self._minute = int(clock() // MINUTE_S)
        self._lags_s: deque[float] = deque([0.0], maxlen=MINUTE_S)
        self._timer = loop.call_later(BEAT_S, self.beat, loop.time() + BEAT_S)

    @property
    def lag_s(self) -> float:
        """The latest that a beat came in the last minute."""
        return max(self._lags_s)

    def beat(self, due_s: float) -> None:
        """Called by the event loop at ``due_s``, or later."""
        now_s = self._loop.time()
        self._lags_s.append(max(0.0, now_s - due_s))
        self._timer = self._loop.call_later(BEAT_S, self.beat, now_s + BEAT_S)
        minute = int(self._clock() // MINUTE_S)
        if minute != self._minute:
            self._minute = minute
            self._each_minute(minute * MINUTE_S)

    def close(self) -> None:
        """No more beats."""
        self._timer.cancel()


def single(sample: Sample) -> float:
    """The value of a counter or gauge."""
    assert not isinstance(sample, list)
    return sample


def several(sample: Sample) -> list[float]:
    """The values of a histogram."""
    assert isinstance(sample, list)
    return sample
