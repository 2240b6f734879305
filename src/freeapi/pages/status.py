"""``GET /status``: what anybody may know of the instance, in sums only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from freeapi.policy.budget import NANO, Status

#: ``busy``: every key has to wait; ``down``: none is let in by its upstream.
Availability = Literal["ok", "busy", "down"]


class Left(msgspec.Struct, frozen=True):
    """What a model of the allow-list would let in at this moment, of all callers together."""

    name: str
    #: None: no limit.
    requests_left: int | None
    tokens_left: int | None


class Money(msgspec.Struct, frozen=True):
    """What may still be spent; reservations of requests under way count as spent."""

    #: None: spending has no daily or monthly cap.
    left_today_usd: float | None
    #: RFC 3339; when the cap starts anew that leaves the least.
    resets_at: str

    @classmethod
    def of(cls, status: Status) -> Money:
        """For people: dollars and a date."""
        left = status.left_today_nanousd
        return cls(
            left_today_usd=None if left is None else left / NANO,
            resets_at=f"{datetime.fromtimestamp(status.resets_at_s, UTC):%Y-%m-%dT%H:%M:%SZ}",
        )


class StatusPage:
    """Makes the answer anew each time; it is small."""

    def __init__(
        self,
        is_ready: Callable[[], bool],
        waiting: Callable[[], int],
        money: Callable[[], Status] | None,
        *,
        wait_s: Callable[[], float],
        upstream: Callable[[], Availability],
        capacity: Callable[[], Sequence[Left]],
    ) -> None:
        """``money``: None where nothing is capped; ``wait_s``: a newcomer's in the queue."""
        self._is_ready = is_ready
        self._waiting = waiting
        self._money = money
        self._wait_s = wait_s
        self._upstream = upstream
        self._capacity = capacity

    def body(self) -> bytes:
        """``budget`` is ``{"left_today_usd", "resets_at"}``, or null where nothing is capped."""
        return msgspec.json.encode(
            {
                "status": "ready" if self._is_ready() else "not ready",
                "upstream": self._upstream(),
                "waiting": self._waiting(),
                "wait_s": round(self._wait_s(), 1),
                "budget": None if self._money is None else Money.of(self._money()),
                "models": self._capacity(),
            }
        )
