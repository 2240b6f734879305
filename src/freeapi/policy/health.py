"""What is known of a key's and an upstream's health, and when each may be used again.

A key is *ok*, *out of quota* or *dead*; besides, it may be cooling for some models. An upstream
with many failures in a row is paused as a whole (a circuit breaker). Whatever is set aside comes
back by itself: once its time is over exactly one request is let through as a probe (half-open), and
what becomes of it decides. So nothing is ever lost for good.

What this is not: it chooses nothing and counts no load (``policy/keys`` does), and it knows no
reason for a failure (``policy/failures`` does).

Invariants: at most one probe at a time; what one model did to a key doesn't touch other models;
late news of requests that were sent before a key was set aside never lengthens its absence.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Final, Literal, NamedTuple

KeyState = Literal["ok", "out of quota", "dead"]


class _Schedule(NamedTuple):
    """How long something stays away: ``first_s``, doubled at each failed probe up to ``max_s``."""

    first_s: float
    max_s: float

    def longer(self, last_s: float) -> float:
        """The wait after ``last_s``; 0.0 stands for none so far."""
        return min(2 * last_s, self.max_s) if last_s else self.first_s


#: DESIGN section 5. A quota comes back when someone pays or a day or month ends: 6 h finds it the
#: same day. A dead key needs its owner: a day costs one lost try.
_AWAY: Final[Mapping[str, _Schedule]] = {
    "out of quota": _Schedule(600.0, 21_600.0),
    "dead": _Schedule(3_600.0, 86_400.0),
}
#: For a 429 that names no wait. OpenAI's rate windows are a minute long.
_BACKOFF: Final = _Schedule(1.0, 60.0)
#: For an upstream: a restart takes a second; half a minute is the longest that a recovery may go
#: unnoticed.
_PAUSE: Final = _Schedule(1.0, 30.0)
#: Failures in a row that pause an upstream: one request with its two retries must not suffice.
_FAILURES_IN_A_ROW_MAX: Final = 5
#: What to say of a wait that ends with the probe under way, whenever that may be.
_SOON_S: Final = 1.0
#: Models remembered per key, oldest out: with ``name = "*"`` their names are the callers' choice.
_MODELS_MAX: Final = 256
#: As many as an operator wants to read in one line of ``describe``.
_MODELS_NAMED_MAX: Final = 5


class Cooling:
    """What one model did to one key."""

    __slots__ = ("backoff_s", "until_s", "used_up_until_s")

    def __init__(self) -> None:
        self.until_s = 0.0
        self.backoff_s = 0.0
        #: Until then nothing remains by the upstream's own count: used only if nothing else is.
        self.used_up_until_s = 0.0


class KeyHealth:
    """One key's health: for every model (``state``), and for each model that refused it.

    O(1) each; under 1 KB but for at most ``_MODELS_MAX`` models. A probe is any object that stands
    for one request and for nothing else.
    """

    __slots__ = ("_away_s", "_probe_at_s", "coolings", "probe", "state")

    def __init__(self) -> None:
        self.state: KeyState = "ok"
        #: The one request that is let through while the key is set aside.
        self.probe: object | None = None
        self._probe_at_s = 0.0
        self._away_s = 0.0
        self.coolings: dict[str, Cooling] = {}

    def wait_s(self, model: str, now_s: float) -> float:
        """Seconds until this key may be used for the model; 0.0 for now."""
        wait_s = 0.0
        if self.state != "ok":
            wait_s = _SOON_S if self.probe else max(0.0, self._probe_at_s - now_s)
        cooling = self.coolings.get(model)
        return wait_s if cooling is None else max(wait_s, cooling.until_s - now_s)

    def is_fresh(self, model: str, now_s: float) -> bool:
        """May this key be used for the model now, with capacity left as far as is known?"""
        return self.wait_s(model, now_s) <= 0 and not self.is_used_up(model, now_s)

    def is_used_up(self, model: str, now_s: float) -> bool:
        """Did the upstream say that nothing is left for the model, for a time not over yet?"""
        cooling = self.coolings.get(model)
        return cooling is not None and now_s < cooling.used_up_until_s

    def cool(self, model: str, now_s: float, wait_s: float | None, chance: float) -> None:
        """Set the key aside for one model, for the wait that was asked for or a growing one.

        A burst of refusals at once doubles the wait once. ``chance``, in 0 to 1, takes up to half
        of it off, so that keys that cooled together don't come back together.
        """
        assert wait_s is None or wait_s > 0, wait_s
        assert 0.0 <= chance <= 1.0, chance
        cooling = self._cooling(model)
        if wait_s is None:
            if now_s < cooling.until_s:
                return
            cooling.backoff_s = _BACKOFF.longer(cooling.backoff_s)
            wait_s = cooling.backoff_s * (1 - chance / 2)
        cooling.until_s = max(cooling.until_s, now_s + wait_s)

    def served(self, probe: object, model: str, now_s: float, used_up_for_s: float | None) -> None:
        """Forget what the success disproves: it may be older than the model's last refusal."""
        assert used_up_for_s is None or used_up_for_s > 0, used_up_for_s
        if self.probe is probe:
            self.state, self.probe = "ok", None
        cooling = self.coolings.get(model)
        if cooling is not None and now_s >= cooling.until_s:
            del self.coolings[model]
        if used_up_for_s is not None:
            self._cooling(model).used_up_until_s = now_s + used_up_for_s

    def leave(self, state: KeyState, probe: object, now_s: float) -> None:
        """Set the key aside for every model; a probe that found no change doubles the time."""
        is_probe = self.probe is probe
        assert state in _AWAY, state
        assert not is_probe or self.state != "ok", "a probe of a key that is ok"
        if self.state != "ok" and not is_probe:
            return
        self._away_s = _AWAY[state].longer(self._away_s if state == self.state else 0.0)
        self._probe_at_s = now_s + self._away_s
        self.state, self.probe = state, None

    def report(self, model: str, now_s: float) -> tuple[str, str, float]:
        """What other gateways should know after a request for the model: whom it concerns (a model,
        or "" for all), the state in a word, and for how long from now.
        """
        if self.state != "ok":
            return "", self.state, max(0.0, self._probe_at_s - now_s)
        cooling = self.coolings.get(model)
        wait_s = 0.0 if cooling is None else cooling.until_s - now_s
        return (model, "cooling", wait_s) if wait_s > 0.0 else ("", "ok", 0.0)

    def hear(self, model: str, state: str, wait_s: float, now_s: float) -> None:
        """Another gateway's report: never older news than our own, as far as both can tell."""
        if state == "cooling":
            cooling = self._cooling(model)
            cooling.until_s = max(cooling.until_s, now_s + wait_s)
        elif state == "ok":
            self.state, self.probe = "ok", None
        elif self.state == "ok" and wait_s > 0.0:
            self.state = "dead" if state == "dead" else "out of quota"
            self._away_s, self._probe_at_s = wait_s, now_s + wait_s

    def describe(self, now_s: float, models: Collection[str]) -> str:
        """Say the state for an operator, naming only those of ``models``.

        A name outside ``models`` is a caller's own (``name = "*"``), so it isn't shown.
        """
        if self.state != "ok":
            wait_s = self._probe_at_s - now_s
            when = "now" if self.probe or wait_s <= 0 else f"in {in_words(wait_s)}"
            return f"{self.state}, next probe {when}"
        waits_s = {
            model: cooling.until_s - now_s
            for model, cooling in self.coolings.items()
            if cooling.until_s > now_s
        }
        named = [model for model in waits_s if model in models][:_MODELS_NAMED_MAX]
        parts = [f"{model} for {in_words(waits_s[model])}" for model in named]
        if len(waits_s) > len(named):
            parts.append(f"models not listed ({len(waits_s) - len(named)})")
        return f"cooling for {', '.join(parts)}" if parts else "ok"

    def is_cooling(self, now_s: float) -> bool:
        """Is it set aside for any model? O(models that it ever cooled for)."""
        return any(now_s < cooling.until_s for cooling in self.coolings.values())

    def _cooling(self, model: str) -> Cooling:
        """The model's record, made where there is none, the oldest going where there are many."""
        cooling = self.coolings.get(model)
        if cooling is None:
            if len(self.coolings) >= _MODELS_MAX:
                del self.coolings[next(iter(self.coolings))]
            cooling = self.coolings[model] = Cooling()
        assert len(self.coolings) <= _MODELS_MAX
        return cooling


class Breaker:
    """Pauses an upstream after several failures in a row, then lets one probe through at a time."""

    __slots__ = ("failures_in_a_row", "pause_s", "paused_until_s", "probe")

    def __init__(self) -> None:
        self.failures_in_a_row = 0
        #: 0.0: closed. Else open until ``paused_until_s`` and half-open from then on.
        self.pause_s = 0.0
        self.paused_until_s = 0.0
        self.probe: object | None = None

    def wait_s(self, now_s: float) -> float:
        """Seconds until a request may go out; 0.0 for now."""
        if not self.pause_s:
            return 0.0
        return _SOON_S if self.probe else max(0.0, self.paused_until_s - now_s)

    def failed(self, probe: object, now_s: float) -> None:
        """Count a failure; while paused only the probe's counts, since the rest is old news."""
        is_probe = self.probe is probe
        assert not is_probe or self.pause_s, "a probe of an upstream that isn't paused"
        self.failures_in_a_row += 1
        if is_probe or (not self.pause_s and self.failures_in_a_row >= _FAILURES_IN_A_ROW_MAX):
            self.pause_s = _PAUSE.longer(self.pause_s)
            self.paused_until_s = now_s + self.pause_s
            self.probe = None

    def answered(self) -> None:
        """The upstream gave an answer that isn't its own failure: it is up."""
        self.failures_in_a_row = 0
        self.pause_s = 0.0
        self.probe = None

    def describe(self, now_s: float) -> str:
        """What to add to the state of each of the upstream's keys while it is paused."""
        if not self.pause_s:
            return ""
        wait_s = self.paused_until_s - now_s
        when = "now" if self.probe or wait_s <= 0 else f"in {in_words(wait_s)}"
        return f"; upstream failing, next probe {when}"


def in_words(wait_s: float) -> str:
    """Rounded up, so that nobody comes too early.

    >>> [in_words(wait_s) for wait_s in (0.2, 90, 91, 5_400, 21_600)]
    ['1 s', '90 s', '2 min', '90 min', '6 h']
    """
    if wait_s <= 90:
        return f"{math.ceil(wait_s)} s"
    if wait_s <= 5_400:
        return f"{math.ceil(wait_s / 60)} min"
    return f"{math.ceil(wait_s / 3_600)} h"
