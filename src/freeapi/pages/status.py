"""``GET /status``: what anybody may know of the instance, in sums only."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from freeapi.policy.budget import NANO, Status


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
    ) -> None:
        """``money``: None where nothing is capped."""
        self._is_ready = is_ready
        self._waiting = waiting
        self._money = money

    def body(self) -> bytes:
        """``{"status", "waiting", "budget": {"left_today_usd", "resets_at"} or null}``."""
        return msgspec.json.encode(
            {
                "status": "ready" if self._is_ready() else "not ready",
                "waiting": self._waiting(),
                "budget": None if self._money is None else Money.of(self._money()),
            }
        )
