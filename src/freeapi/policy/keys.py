"""The pool of upstream keys: which key a request goes out with.

What this is not: it knows no secrets (of a key it has an identity that tells nothing, and an opaque
``account``, the owner's way to the upstream), reads no answers (``policy/failures`` does) and never
waits. When a key may be used again is ``policy/health``.

Plan: ``lease`` chooses and takes in one synchronous call and returns a guard; the edge reports
``succeeded`` or ``failed`` for it and releases it at the end of the answer. The choice among equals
is by fewest requests in flight, then by turn: a slow key gets less, and an idle pool rotates.

Invariants: in-flight counts equal open leases; a caller's own mistakes change nothing; a key that
was set aside gets one request when its time is over, so the pool is never empty for good. What is
known of a key lasts as long as it is configured, whatever else is (``KeyPool.reconfigure``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Literal, NamedTuple

from mypy_extensions import mypyc_attr

from freeapi import errors
from freeapi.policy.failures import Failure
from freeapi.policy.health import Breaker, KeyHealth, KeyState

#: What to tell a caller whose only hope is a key that this very request has tried.
_SOON_S: Final = 1.0
#: How much of a key may be shown (DESIGN section 2, ``GET /keys``).
_TAIL_MAX_CHARS: Final = 4


class KeySpec(NamedTuple):
    """One key as configured."""

    #: What may be shown of it: its last characters. Empty for a server that wants no key.
    tail: str
    #: Equal for the same secret, and tells nothing of it.
    identity: bytes
    #: For whoever sends with it; never looked at here.
    account: Any = None


class UpstreamKeys(NamedTuple):
    """One upstream and its keys, of which a server without authorization has an anonymous one."""

    name: str
    keys: tuple[KeySpec, ...]
    #: Lower is tried first.
    priority: int = 1
    #: Among equal priorities.
    share: float = 1.0


class Key:
    """One key of one upstream, with what is known of its health and its load."""

    __slots__ = (
        "_upstream",
        "account",
        "failures",
        "health",
        "identity",
        "in_flight",
        "requests",
        "tail",
    )

    def __init__(self, upstream: _Upstream, given: KeySpec) -> None:
        assert len(given.tail) <= _TAIL_MAX_CHARS, "more of a key than may be shown"
        self._upstream = upstream
        self.identity = given.identity
        self.tail = given.tail
        self.account: Any = given.account
        self.health = KeyHealth()
        self.in_flight = 0
        self.requests = 0
        self.failures = 0

    @property
    def upstream(self) -> str:
        """Its upstream's name; with ``identity`` it identifies the key."""
        return self._upstream.name

    @property
    def state(self) -> KeyState:
        """Its state for every model; cooling is per model (``health``)."""
        return self.health.state


class _Upstream:
    """An upstream's keys, breaker and share of the load."""

    __slots__ = ("breaker", "by_turn", "in_flight", "keys", "name", "priority", "share", "turn")

    def __init__(self, name: str) -> None:
        self.name = name
        self.priority = 1
        self.share = 1.0
        self.keys: tuple[Key, ...] = ()
        #: The one that was used longest ago first.
        self.by_turn: list[Key] = []
        self.breaker = Breaker()
        self.in_flight = 0
        #: Requests so far by share, as a start tag of fair queueing (see ``KeyPool._take_turn``).
        self.turn = 0.0

    def reconfigure(self, given: UpstreamKeys) -> None:
        """Have these keys: those known by their identity go on as they are, with new accounts."""
        assert given.share > 0, given.name
        assert given.keys, "an upstream has at least one key"
        self.priority = given.priority
        self.share = given.share
        known: dict[bytes, Key | None] = {key.identity: key for key in self.keys}
        # Taken out of the known ones, since a secret may be listed twice.
        self.keys = tuple(known.pop(one.identity, None) or Key(self, one) for one in given.keys)
        for key, spec in zip(self.keys, given.keys, strict=True):
            key.account = spec.account
        kept = [key for key in self.by_turn if key in self.keys]
        self.by_turn = [key for key in self.keys if key not in kept] + kept

    def load(self) -> tuple[float, float]:
        """Least first: requests in flight by share (nginx's least_conn), then turns by share."""
        return self.in_flight / self.share, self.turn

    def least_loaded_key(self, model: str, now_s: float) -> Key | None:
        """The key to use if any is usable at once and not used up.

        O(keys) under load, with one comparison for most; O(1) while some key is idle.
        """
        best: Key | None = None
        least = 0
        for key in self.by_turn:
            if best is not None and key.in_flight >= least:
                continue
            health = key.health
            # Looking here first spares nearly every request a call, a twentieth of its cost here.
            if (health.state == "ok" and not health.coolings) or health.is_fresh(model, now_s):
                best = key
                least = key.in_flight
                if not least:
                    break
        return best


@mypyc_attr(free_list_len=1)  # one for each request: the last one's memory is the next one's
class Lease:
    """The guard of one request with one key; ``release`` may be called any number of times."""

    __slots__ = ("is_released", "key", "model")

    def __init__(self, key: Key, model: str) -> None:
        upstream = key._upstream
        self.key = key
        self.model = model
        self.is_released = False
        key.requests += 1
        key.in_flight += 1
        upstream.in_flight += 1
        if key.health.state != "ok":
            assert key.health.probe is None, "two probes of one key"
            key.health.probe = self
        if upstream.breaker.pause_s:
            assert upstream.breaker.probe is None, "two probes of one upstream"
            upstream.breaker.probe = self

    def release(self) -> None:
        """Give the key back; a probe that ended without a verdict leaves the next one to be it."""
        if self.is_released:
            return
        self.is_released = True
        key = self.key
        upstream = key._upstream
        if key.health.probe is self:
            key.health.probe = None
        if upstream.breaker.probe is self:
            upstream.breaker.probe = None
        key.in_flight -= 1
        upstream.in_flight -= 1
        assert key.in_flight >= 0
        assert upstream.in_flight >= key.in_flight

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class KeyPool:
    """All keys of all upstreams.

    A lease with its report costs 1.5 µs for up to ten keys, its release 0.3 µs; O(keys). ``chance``
    returns a random number in 0 to 1.
    """

    def __init__(self, upstreams: Sequence[UpstreamKeys], chance: Callable[[], float]) -> None:
        self._upstreams: dict[str, _Upstream] = {}
        #: Told of a key, and the model that was asked for, when its health has changed.
        self.on_news: Callable[[Key, str], None] | None = None
        self._chance = chance
        #: By the models' lists of upstreams, which are the operator's: as many as models.
        self._routes: dict[tuple[str, ...], tuple[_Upstream, ...]] = {}
        self._turn = 0.0
        self._now_s = -math.inf
        self.reconfigure(upstreams)

    def reconfigure(self, upstreams: Sequence[UpstreamKeys]) -> None:
        """Have these upstreams and keys; what is known of those that were there already stays.

        Keys that aren't there any more take no new lease; open leases of theirs go on. O(keys).
        """
        assert upstreams, "a pool without an upstream"
        known, self._upstreams = self._upstreams, {}
        for given in upstreams:
            assert given.name not in self._upstreams, "two upstreams of one name"
            upstream = known.get(given.name) or _Upstream(given.name)
            upstream.reconfigure(given)
            self._upstreams[given.name] = upstream
        self._routes.clear()

    def lease(
        self,
        model: str,
        upstreams: tuple[str, ...],
        now_s: float,
        tried: Collection[Key] = (),
    ) -> Lease:
        """Choose a key and take it; arguments and Raises as for ``choose``."""
        key = self.choose(model, upstreams, now_s, tried)
        assert not tried or key not in tried, "the same key twice"
        self._take_turn(key)
        return Lease(key, model)

    def choose(
        self,
        model: str,
        upstreams: tuple[str, ...],
        now_s: float,
        tried: Collection[Key] = (),
    ) -> Key:
        """The least loaded usable key of the best of these upstreams (empty: of all); takes none.

        ``tried`` are this request's earlier keys: another upstream is preferred, then another key.
        Raises CapacityExceeded (wait, or say when) if keys are only cooling, UpstreamRefused if all
        are dead or out of quota, both with ``retry_after_s``; after a try, its own error says more.
        Upstreams that were removed meanwhile are passed over; UpstreamRefused if all were.
        O(keys). ``now_s`` is monotonic.
        """
        self._now_s = now_s
        route = self._routes.get(upstreams) or self._new_route(upstreams)
        key = _first_choice(route, model, now_s) if not tried else None
        key = key or _next_choice(route, model, now_s, tried)
        if key is None:
            raise _refusal(route, model, now_s)
        return key

    def succeeded(self, lease: Lease, now_s: float, used_up_for_s: float | None = None) -> None:
        """The upstream accepted the request (its 200's head is here).

        ``used_up_for_s`` is ``failures.exhausted_for_s``: such a key is used only if no other is
        left, until then. O(1).
        """
        assert not lease.is_released, "a report after the end"
        self._now_s = now_s
        breaker = lease.key._upstream.breaker
        health = lease.key.health
        # Looking first spares a healthy pool two calls, a tenth of what a request costs here.
        if breaker.failures_in_a_row:
            breaker.answered()
        if health.state != "ok" or health.coolings or used_up_for_s is not None:
            was_away = health.state != "ok"
            health.served(lease, lease.model, now_s, used_up_for_s)
            if was_away and self.on_news is not None and health.state == "ok":
                self.on_news(lease.key, "")

    def failed(
        self, lease: Lease, failure: Failure, now_s: float, wait_s: float | None = None
    ) -> None:
        """The request failed; ``wait_s`` is ``failures.parse_wait``, heeded for rate limits. O(1).

        A caller's own mistake and what is nobody's fault change nothing, so a probe that ends in
        one is still due.
        """
        assert not lease.is_released, "a report after the end"
        if failure.verdict == "caller" or failure.verdict == "unknown":
            return
        self._now_s = now_s
        key = lease.key
        key.failures += 1
        if failure.verdict == "upstream":
            key._upstream.breaker.failed(lease, now_s)
            return
        key._upstream.breaker.answered()
        if failure.verdict == "cooling":
            key.health.cool(lease.model, now_s, wait_s, self._chance())
        else:
            key.health.leave(failure.verdict, lease, now_s)
        if self.on_news is not None:
            self.on_news(key, lease.model)

    def heard(self, identity: bytes, model: str, state: str, wait_s: float, now_s: float) -> None:
        """What another gateway says of a key that both have. O(keys)."""
        for upstream in self._upstreams.values():
            for key in upstream.keys:
                if key.identity == identity:
                    key.health.hear(model, state, wait_s, now_s)

    def describe(self, now_s: float, models: Collection[str]) -> list[dict[str, str | int]]:
        """Each key for the operator, its state in words; only names in ``models`` are shown."""
        return [
            {
                "upstream": upstream.name,
                "tail": key.tail,
                "state": key.health.describe(now_s, models) + upstream.breaker.describe(now_s),
                "in_flight": key.in_flight,
                "requests": key.requests,
                "failures": key.failures,
            }
            for upstream in self._upstreams.values()
            for key in upstream.keys
        ]

    def availability(self, now_s: float) -> Literal["ok", "busy", "down"]:
        """For the public: some key may be used (ok), all must wait (busy), or none is let in."""
        keys = [key for upstream in self._upstreams.values() for key in upstream.keys]
        sound = [
            key for key in keys if key.state == "ok" and not key._upstream.breaker.wait_s(now_s)
        ]
        if not sound:
            return "down"
        return "busy" if all(key.health.is_cooling(now_s) for key in sound) else "ok"

    def __repr__(self) -> str:
        """The counts as of the last decision or report."""
        keys = [key for upstream in self._upstreams.values() for key in upstream.keys]
        states = [key.state for key in keys]
        cooling = sum(key.health.is_cooling(self._now_s) for key in keys)
        paused = sum(upstream.breaker.pause_s > 0 for upstream in self._upstreams.values())
        return (
            f"<KeyPool: {states.count('ok')} of {len(keys)} keys ok, {cooling} cooling, "
            f"{states.count('out of quota')} out of quota, {states.count('dead')} dead, "
            f"{sum(key.in_flight for key in keys)} in flight, "
            f"{paused} of {len(self._upstreams)} upstreams paused>"
        )

    def _new_route(self, upstreams: tuple[str, ...]) -> tuple[_Upstream, ...]:
        """The upstreams by priority, kept for the next request. Raises UpstreamRefused: none."""
        names = upstreams or tuple(self._upstreams)
        there = [self._upstreams[name] for name in names if name in self._upstreams]
        if not there:
            raise errors.UpstreamRefused(retry_after_s=_SOON_S)
        self._routes[upstreams] = tuple(sorted(there, key=lambda up: up.priority))
        return self._routes[upstreams]

    def _take_turn(self, key: Key) -> None:
        """Count the turn of the key, and of its upstream by share.

        An upstream that was away starts from the others' present turn: it gets no catching up.
        Source: start-time fair queueing, Goyal et al., SIGCOMM 1996.
        """
        upstream = key._upstream
        if upstream.by_turn[-1] is not key:
            upstream.by_turn.remove(key)
            upstream.by_turn.append(key)
        if upstream.turn > self._turn:
            self._turn = upstream.turn
        upstream.turn = self._turn + 1 / upstream.share


def _first_choice(route: tuple[_Upstream, ...], model: str, now_s: float) -> Key | None:
    """The choice of nearly every request: no try yet, and a key that isn't used up."""
    best: Key | None = None
    for upstream in route:
        if best is not None:
            if upstream.priority > best._upstream.priority:
                break
            if upstream.load() >= best._upstream.load():
                continue
        if upstream.breaker.pause_s and upstream.breaker.wait_s(now_s) > 0:
            continue
        best = upstream.least_loaded_key(model, now_s) or best
    return best


def _next_choice(
    route: tuple[_Upstream, ...], model: str, now_s: float, tried: Collection[Key]
) -> Key | None:
    """The choice for a second try, or among keys that are used up: of all usable ones the best."""
    upstreams_tried = {key.upstream for key in tried}
    usable = [
        key
        for upstream in route
        if upstream.breaker.wait_s(now_s) <= 0
        for key in upstream.by_turn
        if key not in tried and key.health.wait_s(model, now_s) <= 0
    ]

    def rank(key: Key) -> tuple[object, ...]:
        upstream = key._upstream
        is_probe = key.state != "ok" or upstream.breaker.pause_s > 0
        return (
            # A request that has failed once shouldn't be the one that tests a broken key.
            is_probe and bool(tried),
            key.health.is_used_up(model, now_s),
            upstream.name in upstreams_tried,
            upstream.priority,
            upstream.load(),
            key.in_flight,
        )

    return min(usable, key=rank, default=None)  # of equals the first, so the one to take its turn


def _refusal(route: tuple[_Upstream, ...], model: str, now_s: float) -> errors.FreeApiError:
    """Why no key can be had, and when the first one might."""
    keys = [key for upstream in route for key in upstream.keys]
    waits = (max(k._upstream.breaker.wait_s(now_s), k.health.wait_s(model, now_s)) for k in keys)
    soonest_s = min(waits)
    assert soonest_s < math.inf, "a pool that is empty for good"
    if all(key.state != "ok" for key in keys):
        return errors.UpstreamRefused(retry_after_s=soonest_s or _SOON_S)
    return errors.CapacityExceeded(retry_after_s=soonest_s or _SOON_S)
