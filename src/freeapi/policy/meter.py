"""One bucket of requests, one of tokens, and a day's count: the arithmetic of limits.

What this is not: whose meter it is, what else must hold, and what to answer are ``limits``.

Plan: a bucket is one number, the time at which it will be full again (GCRA). Taking moves that time
later, the clock alone refills. A meter is small enough for a million of them: what it has to know
only while requests are in flight is an object of its own, there only as long, and all meters that
have counted as many requests on the same day share one object that says so.

Invariants: no 60 s window admits more than limit + max(limit / 6, 1) requests, or more than
2 x limit tokens, counted as what each request used in the end. What one uses beyond its
reservation comes on top, as a debt that the next have to wait for. Giving back can't break this:
see ``settle``.
Source: token bucket, RFC 2697 section 3; GCRA, ITU-T I.371 annex A.
"""

from __future__ import annotations

import math
from math import ceil
from typing import Final

from mypy_extensions import mypyc_attr

#: "Per minute" in all limits.
WINDOW_S: Final = 60.0
#: RPM's burst is this part of the limit (DESIGN section 5): a minute's worth can't come at once.
BURST_PARTS: Final = 6
#: Seconds in a double are exact to 1e-8 for a century; 1e-6 s is a thousandth of a token at the
#: default limits, and doesn't add up.
SLACK_S: Final = 1e-6
#: `off`, as a number to compare with: an int, since int against float costs twice as much.
UNLIMITED: Final = 1 << 62
#: Looked up rather than formatted, as are all numbers below: four of them are in every answer.
_SECONDS: Final = tuple(b"%ds" % second for second in range(60))
_MILLISECONDS: Final = tuple(b"%dms" % millisecond for millisecond in range(1_000))
_NUMBERS: Final = tuple(b"%d" % number for number in range(1_000))
_THREE_DIGITS: Final = tuple(b"%03d" % number for number in range(1_000))


class Rates:
    """Requests and tokens per minute (None: no limit), and what follows, computed once.

    A bucket holds time: a request or a token costs the seconds in which one is refilled.
    """

    __slots__ = (
        "_end",
        "_head",
        "_requests_most",
        "_requests_reset",
        "_tokens_head",
        "_tokens_most",
        "_tokens_reset",
        "request_s",
        "requests_room_s",
        "rpm",
        "token_s",
        "tokens_room_s",
        "tpm",
        "tpm_max",
    )

    def __init__(self, rpm: int | None, tpm: int | None) -> None:
        assert rpm is None or rpm >= 1
        assert tpm is None or tpm >= 1
        self.rpm: Final = rpm
        self.tpm: Final = tpm
        self.tpm_max: Final = tpm or UNLIMITED
        self.request_s: Final = WINDOW_S / rpm if rpm else 0.0
        self.token_s: Final = WINDOW_S / tpm if tpm else 0.0
        burst = max((rpm or 0) / BURST_PARTS, 1.0)
        #: How far from full a bucket may be: before a request, and with its tokens taken.
        self.requests_room_s: Final = (burst - 1.0) * self.request_s + SLACK_S if rpm else math.inf
        self.tokens_room_s: Final = WINDOW_S + SLACK_S if tpm else math.inf
        #: What full buckets hold.
        self._requests_most: Final = burst + (SLACK_S / self.request_s if rpm else 0.0)
        self._tokens_most: Final = (tpm or 0) + (SLACK_S / self.token_s if tpm else 0.0)
        # What stands around the four parts of ``headers`` that change.
        end = b"\r\n" if rpm or tpm else b""
        self._head: Final = _header_head("requests", rpm)
        self._requests_reset: Final = b"\r\nx-ratelimit-reset-requests: " if rpm else b""
        self._tokens_head: Final = (end if rpm and tpm else b"") + _header_head("tokens", tpm)
        self._tokens_reset: Final = b"\r\nx-ratelimit-reset-tokens: " if tpm else b""
        self._end: Final = end

    def left(self, meter: Meter, now_s: float) -> tuple[int | None, int | None]:
        """Requests and tokens that would be let in at once; None: no limit."""
        requests = tokens = None
        if self.rpm is not None:
            used_s = max(0.0, meter.requests_due_s - now_s)
            requests = max(0, int(self._requests_most - used_s / self.request_s))
        if self.tpm is not None:
            used_s = max(0.0, meter.tokens_due_s - now_s)
            tokens = max(0, int(self._tokens_most - used_s / self.token_s))
        return requests, tokens

    def headers(self, meter: Meter, now_s: float) -> bytes:
        """The ``x-ratelimit-*`` lines, each ended by CRLF; none about what has no limit.

        `limit` is per minute, `remaining` what would be let in at once, `reset` when all of it is.
        """
        requests = tokens = requests_reset = tokens_reset = b""
        if self.rpm is not None:
            used_s = meter.requests_due_s - now_s
            if used_s < 0.0:
                used_s = 0.0
            free = int(self._requests_most - used_s / self.request_s)
            if free < 0:  # a limit that was lowered meanwhile
                free = 0
            requests, requests_reset = _digits(free), _brief(used_s)
        if self.tpm is not None:
            used_s = meter.tokens_due_s - now_s
            if used_s < 0.0:
                used_s = 0.0
            free = int(self._tokens_most - used_s / self.token_s)
            if free < 0:  # a debt
                free = 0
            tokens, tokens_reset = _digits(free), _brief(used_s)
        return b"%b%b%b%b%b%b%b%b%b" % (
            self._head,
            requests,
            self._requests_reset,
            requests_reset,
            self._tokens_head,
            tokens,
            self._tokens_reset,
            tokens_reset,
            self._end,
        )


@mypyc_attr(acyclic=True, free_list_len=1)
class Flight:
    """What a meter has to know only while requests are in flight."""

    __slots__ = ("begun", "ended", "ended_due_s", "held_s")

    def __init__(self, begun: int, ended: int, held_s: float, ended_due_s: float) -> None:
        #: Requests taken since none was in flight; each remembers its own number.
        self.begun = begun
        self.ended = ended
        #: The sum of what those in flight have reserved: in seconds, since each has its own rates
        #: where a limit was changed meanwhile.
        self.held_s = held_s
        #: When the tokens would be full again if only ended requests had ever taken any.
        self.ended_due_s = ended_due_s


class Tally:
    """So many requests on that day; one object for all who have sent as many.

    A count of its own would say nothing of its day: then all would have to be reset at midnight,
    which takes half a second for a million.
    """

    __slots__ = ("count", "day")

    def __init__(self, day: Day, count: int) -> None:
        self.day: Final = day
        self.count: Final = count


class Day:
    """One UTC day: its end on the wall clock, and the tallies that it has needed."""

    __slots__ = ("_tallies", "midnight_s")

    def __init__(self, midnight_s: float) -> None:
        self.midnight_s: Final = midnight_s
        self._tallies: Final = [Tally(self, 0)]

    def tally(self, count: int) -> Tally:
        """The tally of so many requests, at most one more than any before. O(1)."""
        assert 0 <= count <= len(self._tallies)
        if count == len(self._tallies):
            self._tallies.append(Tally(self, count))
        return self._tallies[count]


@mypyc_attr(acyclic=True)
class Meter:
    """The two buckets of one caller or one model, and the caller's count for the day.

    Compiled, it is out of the garbage collector's sight: a million would make it pause.
    """

    __slots__ = ("flight", "requests_due_s", "tally", "tokens_due_s")

    def __init__(
        self,
        requests_due_s: float = 0.0,
        tokens_due_s: float = 0.0,
        flight: Flight | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.requests_due_s = requests_due_s
        self.tokens_due_s = tokens_due_s
        self.flight = flight
        self.tally = tally

    @property
    def in_flight(self) -> int:
        """Requests between `take` and `settle` or `cancel`."""
        return 0 if self.flight is None else self.flight.begun - self.flight.ended

    def requests_on(self, day: Day) -> int:
        """Requests counted on that day."""
        tally = self.tally
        return tally.count if tally is not None and tally.day is day else 0

    def is_forgettable(self, now_s: float, day: Day) -> bool:
        """Whether a new meter would be just the same."""
        due_s = max(self.requests_due_s, self.tokens_due_s)
        return due_s <= now_s and self.flight is None and not self.requests_on(day)

    def admits(self, rates: Rates, tokens: int, now_s: float) -> bool:
        """Whether one request of so many tokens fits at this moment."""
        return (
            self.requests_due_s - now_s <= rates.requests_room_s
            and self.tokens_due_s - now_s + tokens * rates.token_s <= rates.tokens_room_s
            and tokens <= rates.tpm_max
        )

    def waits_s(self, rates: Rates, tokens: int, now_s: float) -> tuple[float, float]:
        """Seconds until the request, and until its tokens, would fit; up to 0.0: they do."""
        return (
            self.requests_due_s - now_s - rates.requests_room_s,
            self.tokens_due_s - now_s + tokens * rates.token_s - rates.tokens_room_s,
        )

    def take(self, rates: Rates, tokens: int, now_s: float) -> int:
        """Take one request and its tokens; the result is its number, for `cancel`."""
        due_s = self.requests_due_s
        self.requests_due_s = (due_s if due_s > now_s else now_s) + rates.request_s
        due_s = self.tokens_due_s
        if due_s < now_s:
            due_s = now_s
        held_s = tokens * rates.token_s
        self.tokens_due_s = due_s + held_s
        flight = self.flight
        if flight is None:
            self.flight = Flight(1, 0, held_s, due_s)
            return 1
        flight.held_s += held_s
        flight.begun = number = flight.begun + 1
        return number

    def settle(self, rates: Rates, reserved: int, used: int, now_s: float) -> None:
        """End a request that reserved and used so many tokens.

        What is left over can't simply be put back: the clock went on refilling, and had the
        request taken less to begin with, a full bucket would have wasted some of that refill. Two
        bounds are safe. One gives nothing back. The other charges each request only when it ends,
        and holds the whole reservation of those that haven't: the later a charge the more is
        wasted, so this bucket is never fuller than the truth. The fuller of the two counts.
        """
        flight = self.flight
        assert flight is not None, "settled more often than taken"
        due_s = self.tokens_due_s
        if used > reserved:
            due_s = (due_s if due_s > now_s else now_s) + (used - reserved) * rates.token_s
        ended_s = flight.ended_due_s
        ended_s = (ended_s if ended_s > now_s else now_s) + used * rates.token_s
        ended = flight.ended + 1
        if ended == flight.begun:
            self.tokens_due_s = due_s if due_s < ended_s else ended_s
            self.flight = None
            return
        flight.ended = ended
        flight.held_s = held_s = flight.held_s - reserved * rates.token_s
        assert held_s >= -SLACK_S, "gave back more than was held"
        flight.ended_due_s = ended_s
        safe_s = ended_s + held_s
        self.tokens_due_s = due_s if due_s < safe_s else safe_s

    def cancel(self, rates: Rates, reserved: int, number: int, now_s: float) -> None:
        """End a request that was never sent, as if it had never been taken.

        Those taken after it keep their places in full: of its own place comes back what the clock
        can't have refilled and wasted since.
        """
        assert self.flight is not None, "cancelled more often than taken"
        later_s = (self.flight.begun - number) * rates.request_s
        left_s = self.requests_due_s - now_s - later_s
        self.requests_due_s -= min(max(left_s, 0.0), rates.request_s)
        self.settle(rates, reserved, 0, now_s)


def duration(seconds: float) -> str:
    """In OpenAI's spelling, rounded up: ``12ms``, ``1s``, ``6m0s``. O(1).

    >>> duration(0.0), duration(0.0115), duration(0.9999), duration(360.0), duration(3599.5)
    ('0s', '12ms', '1s', '6m0s', '1h0m0s')
    """
    if seconds <= 59.0:
        return _brief(seconds).decode()
    minutes, whole = divmod(ceil(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{whole}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{whole}s"


def _brief(seconds: float) -> bytes:
    """As ``duration``, quick for what is nearly always asked for: up to a minute."""
    if seconds <= 0.0:
        return _SECONDS[0]
    if seconds <= 0.999:
        return _MILLISECONDS[ceil(seconds * 1000.0)]
    return _SECONDS[ceil(seconds)] if seconds <= 59.0 else duration(seconds).encode()


def _digits(number: int) -> bytes:
    """A number from 0 in decimal. O(digits)."""
    if number < 1_000:
        return _NUMBERS[number]
    return _digits(number // 1_000) + _THREE_DIGITS[number % 1_000]


def _header_head(what: str, limit: int | None) -> bytes:
    """The lines about requests or tokens, up to the first number that changes; none: no limit."""
    if limit is None:
        return b""
    return f"x-ratelimit-limit-{what}: {limit}\r\nx-ratelimit-remaining-{what}: ".encode()
