"""Any order of leases, reports and hours keeps the key pool's promises."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from freeapi import errors
from freeapi.policy import failures
from freeapi.policy.failures import Failure
from freeapi.policy.keys import Key, KeyPool, KeySpec, Lease, UpstreamKeys

MODELS = ("small", "large")
FAILURES = [value for value in vars(failures).values() if isinstance(value, Failure)]
NOBODYS = [failure for failure in FAILURES if failure.verdict in ("caller", "unknown")]
THEIRS = [failure for failure in FAILURES if failure not in NOBODYS]
WAITS_S = st.none() | st.floats(min_value=0.001, max_value=failures.WAIT_MAX_S)
#: Longer than any stated wait, absence or pause.
AGES_S = 2 * failures.WAIT_MAX_S


class PoolMachine(RuleBasedStateMachine):
    """A pool of up to three upstreams, driven as the edge does but in any order."""

    @initialize(
        sizes=st.lists(st.integers(0, 3), min_size=1, max_size=3),
        priorities=st.lists(st.integers(1, 2), min_size=3, max_size=3),
        shares=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=3, max_size=3),
        chance=st.floats(0, 1),
    )
    def make(
        self, sizes: list[int], priorities: list[int], shares: list[float], chance: float
    ) -> None:
        """Start with keys of several upstreams, all of them ok."""
        given = [
            UpstreamKeys(f"u{n}", _specs(size), priorities[n], shares[n])
            for n, size in enumerate(sizes)
        ]
        self.pool = KeyPool(given, lambda: chance)
        self.now_s = 0.0
        self.leases: list[Lease] = []
        self.refusal: errors.FreeApiError
        self.key_probes: dict[Key, Lease] = {}
        self.upstream_probes: dict[str, Lease] = {}
        self.keys: list[Key] = []
        for _ in range(sum(max(1, size) for size in sizes)):
            with self.pool.lease("small", (), 0.0, self.keys) as lease:
                self.keys.append(lease.key)

    @rule(seconds=st.sampled_from([0.5, 1.0, 30.0, 600.0, 3_600.0]) | st.floats(0, 90_000))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now_s += seconds

    @rule(model=st.sampled_from(MODELS), data=st.data())
    def request(self, model: str, data: st.DataObject) -> None:
        """A request, or its next try, takes a key that it hasn't tried, or is told when to come."""
        tried = data.draw(st.lists(st.sampled_from(self.keys), unique=True))
        lease = self.take(model, tried)
        assert lease is None or lease.key not in tried
        if lease is None:
            assert self.refusal.retry_after_s is not None
            assert 0 < self.refusal.retry_after_s <= failures.WAIT_MAX_S

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), used_up_for_s=WAITS_S)
    def succeed(self, data: st.DataObject, used_up_for_s: float | None) -> None:
        """A success ends its upstream's pause and its key's absence, if it was the probe."""
        lease = data.draw(st.sampled_from(self.leases))
        was_probe = self.key_probes.get(lease.key) is lease
        self.pool.succeeded(lease, self.now_s, used_up_for_s)
        assert not self.is_paused(lease.key)
        assert lease.key.state == "ok" or not was_probe
        self.forget(lease, key=True, upstream=True)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), failure=st.sampled_from(THEIRS), wait_s=WAITS_S)
    def fail(self, data: st.DataObject, failure: Failure, wait_s: float | None) -> None:
        """A failure reaches no further than its verdict says: one model, one key, one upstream."""
        lease = data.draw(st.sampled_from(self.leases))
        before = self.waits()
        self.pool.failed(lease, failure, self.now_s, wait_s)
        changed = {use for use, wait_s in self.waits().items() if wait_s != before[use]}
        if failure.verdict == "upstream":
            assert not changed
            if self.upstream_probes.get(lease.key.upstream) is lease:
                del self.upstream_probes[lease.key.upstream]
            return
        assert not self.is_paused(lease.key)
        models = (lease.model,) if failure.verdict == "cooling" else MODELS
        assert changed <= {(lease.key, model) for model in models}
        self.forget(lease, key=failure.verdict != "cooling", upstream=True)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), failure=st.sampled_from(NOBODYS), wait_s=WAITS_S)
    def err(self, data: st.DataObject, failure: Failure, wait_s: float | None) -> None:
        """A caller's own failure changes no key's state, count or wait."""
        lease = data.draw(st.sampled_from(self.leases))
        before = (self.waits(), self.pool.describe(self.now_s, MODELS), repr(self.pool))
        self.pool.failed(lease, failure, self.now_s, wait_s)
        assert before == (self.waits(), self.pool.describe(self.now_s, MODELS), repr(self.pool))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), times=st.integers(1, 2))
    def release(self, data: st.DataObject, times: int) -> None:
        """A request ends, whatever became of it."""
        self.end(data.draw(st.sampled_from(self.leases)), times)

    @rule(model=st.sampled_from(MODELS))
    def come_back(self, model: str) -> None:
        """Who comes back after the time that was named, with no probe under way, is served."""
        for lease in list(self.leases):
            self.end(lease, 1)
        if self.take(model, []) is None:
            assert self.refusal.retry_after_s is not None
            self.now_s += self.refusal.retry_after_s + 1e-6  # what floats lose in the sum
            assert self.take(model, []) is not None

    @rule(model=st.sampled_from(MODELS))
    def recover(self, model: str) -> None:
        """Once all requests have ended and a day has gone, every key serves every model again."""
        for lease in list(self.leases):
            self.end(lease, 1)
        self.now_s += AGES_S
        # Tried ones are passed over, so that better and idle keys don't hide the others.
        served: list[Key] = []
        for _ in self.keys:
            again = self.take(model, served)
            assert again is not None, "the pool is empty for good"
            self.pool.succeeded(again, self.now_s)
            self.forget(again, key=True, upstream=True)
            served.append(again.key)
        assert {key.state for key in served} == {"ok"}

    @invariant()
    def in_flight_equals_leases(self) -> None:
        """Every count of requests in flight is the number of open leases."""
        rows = self.pool.describe(self.now_s, MODELS)
        for key in self.keys:
            assert key.in_flight == sum(lease.key is key for lease in self.leases)
        assert sum(int(row["in_flight"]) for row in rows) == len(self.leases)
        assert f" {len(self.leases)} in flight" in repr(self.pool)

    def take(self, model: str, tried: list[Key]) -> Lease | None:
        """Lease a key; what is set aside may have only one such request open at a time."""
        states = {key: (key.state, self.is_paused(key)) for key in self.keys}
        try:
            lease = self.pool.lease(model, (), self.now_s, tried)
        except (errors.CapacityExceeded, errors.UpstreamRefused) as refusal:
            self.refusal = refusal
            return None
        state, is_paused = states[lease.key]
        if state != "ok":
            assert lease.key not in self.key_probes, "two probes of a key"
            self.key_probes[lease.key] = lease
        if is_paused:
            assert lease.key.upstream not in self.upstream_probes, "two probes of an upstream"
            self.upstream_probes[lease.key.upstream] = lease
        self.leases.append(lease)
        return lease

    def end(self, lease: Lease, times: int) -> None:
        """Release a lease; it is nobody's probe any more."""
        self.leases.remove(lease)
        for _ in range(times):
            lease.release()
        self.forget(lease, key=True, upstream=False)
        if self.upstream_probes.get(lease.key.upstream) is lease:
            del self.upstream_probes[lease.key.upstream]

    def forget(self, lease: Lease, *, key: bool, upstream: bool) -> None:
        """Note a verdict: on the key by its own probe only, on the upstream by any answer."""
        if key and self.key_probes.get(lease.key) is lease:
            del self.key_probes[lease.key]
        if upstream:
            self.upstream_probes.pop(lease.key.upstream, None)

    def waits(self) -> dict[tuple[Key, str], float]:
        """For each key and model the time until it may be used, pauses aside."""
        return {
            (key, model): max(0.0, key.health.wait_s(model, self.now_s))
            for key in self.keys
            for model in MODELS
        }

    def is_paused(self, key: Key) -> bool:
        """Does the operator's page say that the key's upstream is failing?"""
        rows: list[dict[str, Any]] = self.pool.describe(self.now_s, MODELS)
        return any("failing" in row["state"] for row in rows if row["upstream"] == key.upstream)


def _specs(size: int) -> tuple[KeySpec, ...]:
    return tuple(KeySpec("tail", b"%d" % n) for n in range(max(1, size)))


PoolMachine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
TestKeyPool = PoolMachine.TestCase
