"""What becomes of keys, and of requests under way with them, when the configuration changes."""

from __future__ import annotations

import pytest

from freeapi import errors
from freeapi.policy.failures import KEY_DEAD, UNREACHABLE
from freeapi.policy.keys import KeySpec, UpstreamKeys
from tests.policy.test_keys import fail, make_pool, refusal, states
from tests.pools import upstream_keys


def test_a_key_that_stays_keeps_what_is_known_of_it() -> None:
    """Health, counts and open leases of a key that is still configured live on, new ones start."""
    pool = make_pool(upstream_keys("a", ("aaaa", "bbbb")))
    fail(pool, KEY_DEAD, 0.0)
    lease = pool.lease("m", (), 0.0)
    pool.reconfigure([upstream_keys("a", ("cccc", "bbbb", "aaaa"), priority=7, share=2.0)])
    rows = pool.describe(1.0, [])
    assert [row["tail"] for row in rows] == ["cccc", "bbbb", "aaaa"]
    assert [row["requests"] for row in rows] == [0, 1, 1]
    assert [row["in_flight"] for row in rows] == [0, 1, 0]
    assert str(rows[2]["state"]).startswith("dead")
    assert pool.choose("m", (), 1.0).tail == "cccc", "the one that was never used comes first"
    lease.release()
    assert "0 in flight" in repr(pool)


def test_a_key_that_stays_takes_over_its_new_account() -> None:
    """A kept key is sent with as the new configuration says, also by those who hold it already."""
    pool = make_pool(UpstreamKeys("a", (KeySpec("aaaa", b"1", "old"),)))
    lease = pool.lease("m", (), 0.0)
    pool.reconfigure([UpstreamKeys("a", (KeySpec("aaaa", b"1", "new"),))])
    assert lease.key.account == "new"


def test_a_key_is_known_by_its_identity_within_its_upstream() -> None:
    """Another secret with the same end, or the same secret at another upstream, starts anew."""
    pool = make_pool(UpstreamKeys("a", (KeySpec("aaaa", b"1"),)))
    fail(pool, KEY_DEAD, 0.0)
    pool.reconfigure(
        [
            UpstreamKeys("a", (KeySpec("aaaa", b"2"),)),
            UpstreamKeys("b", (KeySpec("aaaa", b"1"),)),
        ]
    )
    assert states(pool, 1.0) == ["ok", "ok"]


def test_a_secret_that_is_listed_twice_stays_two_keys() -> None:
    """Twins are told apart by their place: one is kept, the other starts anew or goes."""
    twins = UpstreamKeys("a", (KeySpec("aaaa", b"1"), KeySpec("aaaa", b"1")))
    pool = make_pool(twins)
    leases = [pool.lease("m", (), 0.0) for _ in range(4)]
    pool.reconfigure([twins])
    assert len(pool.describe(0.0, [])) == 2
    for lease in leases:
        lease.release()
    assert {pool.lease("m", (), 0.0).key for _ in range(2)} == set(pool._upstreams["a"].keys)


def test_a_removed_key_takes_no_new_lease_and_its_old_ones_end_cleanly() -> None:
    """Requests under way with a removed key report and release as ever, and touch nobody else."""
    pool = make_pool(upstream_keys("a", ("aaaa", "bbbb")), upstream_keys("b", ("cccc",)))
    leases = [pool.lease("m", (), 0.0) for _ in range(3)]
    pool.reconfigure([upstream_keys("a", ("bbbb",))])
    assert {pool.lease("m", (), 0.0).key.tail for _ in range(4)} == {"bbbb"}
    by_tail = {lease.key.tail: lease for lease in leases}
    pool.failed(by_tail["aaaa"], KEY_DEAD, 1.0)
    pool.succeeded(by_tail["cccc"], 1.0)
    for lease in leases:
        lease.release()
    assert [row | {"in_flight": 0} for row in pool.describe(1.0, [])] == [
        {"upstream": "a", "tail": "bbbb", "state": "ok", "in_flight": 0, "requests": 5,
         "failures": 0}
    ]  # fmt: skip


def test_upstreams_that_are_gone_are_passed_over() -> None:
    """A request that was on its way to removed upstreams uses those left, or is told to come back.

    Its route is found anew, also where it was known before.
    """
    pool = make_pool(upstream_keys("a", ("aaaa",)), upstream_keys("b", ("bbbb",), priority=2))
    assert pool.choose("m", ("a", "b"), 0.0).tail == "aaaa"
    pool.reconfigure([upstream_keys("b", ("bbbb",))])
    assert pool.choose("m", ("a", "b"), 0.0).tail == "bbbb"
    with pytest.raises(errors.UpstreamRefused) as caught:
        pool.choose("m", ("a",), 0.0)
    assert caught.value.retry_after_s == 1.0


def test_new_priorities_and_shares_count_at_once() -> None:
    """The next request goes by the new order."""
    a, b = upstream_keys("a", ("aaaa",), 1), upstream_keys("b", ("bbbb",), 2)
    pool = make_pool(a, b)
    assert pool.choose("m", (), 0.0).tail == "aaaa"
    pool.reconfigure([upstream_keys("a", ("aaaa",), 2), upstream_keys("b", ("bbbb",), 1)])
    assert pool.choose("m", (), 0.0).tail == "bbbb"
    pool.reconfigure(
        [upstream_keys("a", ("aaaa",), share=3.0), upstream_keys("b", ("bbbb",), share=1.0)]
    )
    leases = [pool.lease("m", (), 0.0) for _ in range(8)]
    assert sum(lease.key.tail == "aaaa" for lease in leases) == 6


def test_a_paused_upstream_stays_paused() -> None:
    """What is known of an upstream outlives new keys of it."""
    pool = make_pool(upstream_keys("a", ("aaaa",)))
    fail(pool, UNREACHABLE, 0.0, times=5)
    pool.reconfigure([upstream_keys("a", ("bbbb",))])
    assert refusal(pool, errors.CapacityExceeded, 0.5) == 0.5
