"""Which key a request goes out with, and what its fate changes."""

from __future__ import annotations

from collections import Counter

import pytest

from freeapi import errors
from freeapi.policy import failures
from freeapi.policy.failures import KEY_DEAD, OUT_OF_QUOTA, RATE_LIMITED, UNREACHABLE, Failure
from freeapi.policy.keys import Key, KeyPool, Lease, UpstreamKeys
from tests.pools import upstream_keys


def make_pool(*upstreams: UpstreamKeys) -> KeyPool:
    """A pool whose jitter is off, so that waits are whole."""
    return KeyPool(upstreams, chance=lambda: 0.0)


def three_keys() -> KeyPool:
    """One upstream with three keys."""
    return make_pool(upstream_keys("openai", ("aaaa", "bbbb", "cccc")))


def fail(
    pool: KeyPool,
    failure: Failure,
    now_s: float,
    times: int = 1,
    wait_s: float | None = None,
    upstreams: tuple[str, ...] = (),
) -> None:
    """Let that many requests for model m fail, one after the other."""
    for _ in range(times):
        with pool.lease("m", upstreams, now_s) as lease:
            pool.failed(lease, failure, now_s, wait_s)


def refusal(pool: KeyPool, error: type[errors.FreeApiError], now_s: float) -> float | None:
    """The wait that is told to who finds no key for model m."""
    with pytest.raises(error) as caught:
        pool.choose("m", (), now_s)
    return caught.value.retry_after_s


def states(pool: KeyPool, now_s: float) -> list[str]:
    """Each key's state in words."""
    return [str(row["state"]) for row in pool.describe(now_s, ["m", "n"])]


def test_an_idle_pool_rotates() -> None:
    """Requests that follow each other use each key in turn."""
    pool = three_keys()
    used = []
    for now_s in range(6):
        with pool.lease("m", (), now_s) as lease:
            used.append(lease.key.tail)
            pool.succeeded(lease, now_s)
    assert used == ["aaaa", "bbbb", "cccc"] * 2


def test_the_least_loaded_key_is_chosen() -> None:
    """A key with fewer requests in flight goes first, whoever's turn it is."""
    pool = three_keys()
    leases = [pool.lease("m", (), 0.0) for _ in range(6)]
    assert [lease.key.tail for lease in leases] == ["aaaa", "bbbb", "cccc"] * 2
    leases[1].release()
    leases[4].release()
    assert pool.choose("m", (), 0.0) is pool.choose("m", (), 0.0), "choosing takes nothing"
    assert [pool.lease("m", (), 0.0).key.tail for _ in range(3)] == ["bbbb", "bbbb", "aaaa"]


def test_the_lower_priority_number_is_used_while_it_can_be() -> None:
    """A second group serves only while the first one can't, and not beyond."""
    pool = make_pool(
        upstream_keys("paid", ("pppp",), priority=2), upstream_keys("donor", ("dddd",), priority=1)
    )
    leases = [pool.lease("m", (), 0.0) for _ in range(5)]
    assert {lease.key.upstream for lease in leases} == {"donor"}
    pool.failed(leases[0], RATE_LIMITED, 0.0, 5.0)
    assert pool.choose("m", (), 4.9).upstream == "paid"
    assert pool.choose("m", (), 5.0).upstream == "donor"


def test_equal_priorities_share_an_idle_pool_by_share() -> None:
    """Upstreams of one priority get requests in proportion to their shares."""
    pool = make_pool(upstream_keys("a", ("aaaa",), share=3.0), upstream_keys("b", ("bbbb",)))
    used: Counter[str] = Counter()
    for now_s in range(400):
        with pool.lease("m", (), now_s) as lease:
            used[lease.key.upstream] += 1
    assert used == {"a": 300, "b": 100}


def test_equal_priorities_share_a_busy_pool_by_share() -> None:
    """Requests in flight are in proportion to the shares too."""
    pool = make_pool(upstream_keys("a", ("aaaa",), share=3.0), upstream_keys("b", ("bbbb",)))
    used = Counter(pool.lease("m", (), 0.0).key.upstream for _ in range(400))
    assert used == {"a": 300, "b": 100}


def test_an_upstream_that_was_away_gets_no_catching_up() -> None:
    """After an absence an upstream shares the load; it isn't flooded with what it missed."""
    pool = make_pool(upstream_keys("a", ("aaaa",)), upstream_keys("b", ("bbbb",)))
    with pool.lease("m", ("b",), 0.0) as lease:
        pool.failed(lease, OUT_OF_QUOTA, 0.0)
    used = []
    for now_s in [*range(100), *range(600, 620)]:
        with pool.lease("m", (), now_s) as lease:
            used.append(lease.key.upstream)
            pool.succeeded(lease, now_s)
    assert set(used[:100]) == {"a"}
    assert Counter(used[100:]) == {"a": 10, "b": 10}


def test_only_the_models_upstreams_are_used() -> None:
    """A model bound to an upstream never goes elsewhere, not even where it can't be served."""
    pool = make_pool(upstream_keys("a", ("aaaa",)), upstream_keys("b", ("bbbb",)))
    assert {pool.lease("m", ("b",), 0.0).key.upstream for _ in range(4)} == {"b"}
    fail(pool, KEY_DEAD, 0.0, upstreams=("b",))
    with pytest.raises(errors.UpstreamRefused):
        pool.choose("m", ("b",), 1.0)
    assert pool.choose("m", ("b", "a"), 1.0).upstream == "a"


def test_a_server_without_keys_has_an_anonymous_one() -> None:
    """A local server that wants no authorization is used like any other."""
    pool = make_pool(upstream_keys("local"))
    key = pool.lease("m", (), 0.0).key
    assert (key.upstream, key.tail, key.state) == ("local", "", "ok")


def test_the_next_try_prefers_another_upstream_then_another_key() -> None:
    """Tried keys are never used again for the request, tried upstreams only after all others."""
    pool = make_pool(
        upstream_keys("a", ("aaaa", "bbbb")), upstream_keys("spare", ("ssss",), priority=9)
    )
    tried: list[Key] = []
    for _ in range(3):
        tried.append(pool.lease("m", (), 0.0, tried).key)
    assert [key.tail for key in tried] == ["aaaa", "ssss", "bbbb"]
    with pytest.raises(errors.CapacityExceeded) as caught:
        pool.choose("m", (), 0.0, tried)
    assert caught.value.retry_after_s == 1.0


def test_a_second_try_ranks_as_the_first_does() -> None:
    """Among untried upstreams the next try goes by priority and load, used-up keys coming last."""
    a, b, c = upstream_keys("a"), upstream_keys("b", ("bbbb", "cccc")), upstream_keys("c")
    pool = make_pool(a, b, c, upstream_keys("spare", priority=2))
    tried = [pool.lease("m", ("a",), 0.0).key]
    pool.lease("m", ("b",), 0.0)
    pool.lease("m", ("b",), 0.0).release()
    assert pool.choose("m", (), 0.0, tried).upstream == "c"
    with pool.lease("m", ("c",), 0.0) as lease:
        pool.succeeded(lease, 0.0, used_up_for_s=9.0)
    assert pool.choose("m", (), 0.0, tried).tail == "cccc"


def test_a_second_try_is_no_probe_while_there_is_a_choice() -> None:
    """A request that failed once goes to a healthy key before one that is due for a probe."""
    pool = three_keys()
    fail(pool, KEY_DEAD, 0.0)
    for lease in (pool.lease("m", (), 1.0), pool.lease("m", (), 1.0)):
        lease.release()
    first = lease.key
    assert first.tail == "cccc"
    assert pool.choose("m", (), 4_000.0).state == "dead"
    assert pool.choose("m", (), 4_000.0, [first]).tail == "bbbb"
    others = [first, pool.choose("m", (), 4_000.0, [first])]
    assert pool.choose("m", (), 4_000.0, others).state == "dead"


def test_a_used_up_key_is_the_last_choice_but_one() -> None:
    """A key with nothing remaining is avoided until its reset, yet used rather than refusing."""
    pool = make_pool(upstream_keys("a", ("aaaa",), 1), upstream_keys("b", ("bbbb",), 2))
    with pool.lease("m", (), 0.0) as lease:
        pool.succeeded(lease, 0.0, used_up_for_s=30.0)
    assert pool.choose("m", (), 1.0).upstream == "b"
    assert pool.choose("other", (), 1.0).upstream == "a"
    fail(pool, RATE_LIMITED, 1.0, wait_s=60.0)
    assert pool.choose("m", (), 2.0).upstream == "a"
    assert pool.choose("m", (), 30.0).upstream == "a"


@pytest.mark.parametrize("failure", [failures.CALLERS_OWN, failures.STALE, failures.UNEXPECTED])
def test_what_is_not_the_keys_fault_changes_nothing(failure: Failure) -> None:
    """A hundred bad requests leave the pool as it was: same states, no failure counted."""
    pool = three_keys()
    before = pool.describe(0.0, ["m"])
    fail(pool, failure, 0.0, times=99)
    after = pool.describe(0.0, ["m"])
    assert [row | {"requests": 0} for row in after] == before
    assert repr(pool) == repr(three_keys())


@pytest.mark.parametrize("failure", [KEY_DEAD, OUT_OF_QUOTA])
def test_a_refused_key_goes_alone(failure: Failure) -> None:
    """A dead or empty key is set aside for all models; the other keys go on."""
    pool = three_keys()
    fail(pool, failure, 0.0)
    assert [words.split(",")[0] for words in states(pool, 0.0)] == [failure.verdict, "ok", "ok"]
    assert {pool.lease("n", (), 1.0).key.tail for _ in range(4)} == {"bbbb", "cccc"}


def test_a_rate_limit_touches_one_model_of_one_key() -> None:
    """A 429 cools its key for its model; the key's other models and the other keys go on."""
    pool = three_keys()
    fail(pool, RATE_LIMITED, 0.0, wait_s=20.0)
    assert {pool.lease("m", (), 1.0).key.tail for _ in range(4)} == {"bbbb", "cccc"}
    assert {pool.lease("n", (), 1.0).key.tail for _ in range(6)} == {"aaaa", "bbbb", "cccc"}
    assert states(pool, 1.0) == ["cooling for m for 19 s", "ok", "ok"]


def test_all_cooling_is_a_429_with_the_earliest_time() -> None:
    """With every key cooling the caller learns when the first one is back, and then it is."""
    pool = three_keys()
    for wait_s in (30.0, 12.0, 20.0):
        fail(pool, RATE_LIMITED, 0.0, wait_s=wait_s)
    assert refusal(pool, errors.CapacityExceeded, 2.0) == 10.0
    assert errors.CapacityExceeded.status == 429
    assert pool.choose("m", (), 12.0).tail == "bbbb"


@pytest.mark.parametrize(("failure", "wait_s"), [(KEY_DEAD, 3_600.0), (OUT_OF_QUOTA, 600.0)])
def test_all_refused_is_a_503_with_the_next_probes_time(failure: Failure, wait_s: float) -> None:
    """With every key dead or empty the caller gets 503 and the time of the next probe."""
    pool = three_keys()
    fail(pool, failure, 0.0)
    fail(pool, failure, 10.0, times=2)
    assert refusal(pool, errors.UpstreamRefused, 20.0) == wait_s - 20.0
    assert errors.UpstreamRefused.status == 503
    key = pool.choose("m", (), wait_s)
    assert key.tail == "aaaa"
    with pytest.raises(errors.UpstreamRefused) as caught:
        pool.choose("m", (), wait_s, [key])
    assert caught.value.retry_after_s == 1.0


def test_one_cooling_key_among_dead_ones_is_only_a_lack_of_capacity() -> None:
    """Where one key will be back soon the caller is asked to wait, not told of dead keys."""
    pool = three_keys()
    fail(pool, KEY_DEAD, 0.0, times=2)
    fail(pool, RATE_LIMITED, 0.0, wait_s=7.0)
    assert refusal(pool, errors.CapacityExceeded, 0.0) == 7.0


def test_exactly_one_probe_at_a_time_and_its_success_revives() -> None:
    """A key whose time is over gets one request; others wait for it; a good answer revives it."""
    pool = make_pool(upstream_keys("a", ("aaaa",)))
    fail(pool, KEY_DEAD, 0.0)
    probe = pool.lease("m", (), 3_600.0)
    assert refusal(pool, errors.UpstreamRefused, 3_600.0) == 1.0
    pool.succeeded(probe, 3_601.0)
    assert probe.key.state == "ok"
    assert pool.lease("n", (), 3_601.0).key is probe.key


@pytest.mark.parametrize("failure", [None, failures.CALLERS_OWN, UNREACHABLE, RATE_LIMITED])
def test_a_probe_without_a_verdict_leaves_the_next_one_due(failure: Failure | None) -> None:
    """A probe whose caller went away or erred, or that never arrived, says nothing of the key."""
    pool = make_pool(upstream_keys("a", ("aaaa",)))
    fail(pool, OUT_OF_QUOTA, 0.0)
    with pool.lease("m", (), 600.0) as lease:
        if failure is not None:
            pool.failed(lease, failure, 600.0)
    assert lease.key.state == "out of quota"
    assert pool.lease("n", (), 600.0).key is lease.key


def test_five_failures_of_an_upstream_pause_all_its_keys() -> None:
    """An upstream that fails five times in a row is left alone, and the other one serves."""
    pool = make_pool(
        upstream_keys("a", ("aaaa", "bbbb")), upstream_keys("b", ("cccc",), priority=2)
    )
    fail(pool, failures.SERVER_ERROR, 0.0, times=4)
    assert pool.choose("m", (), 0.0).upstream == "a"
    fail(pool, failures.SERVER_ERROR, 0.0)
    assert pool.choose("m", (), 0.5).upstream == "b"
    assert states(pool, 0.5)[:2] == ["ok; upstream failing, next probe in 1 s"] * 2
    fail(pool, KEY_DEAD, 0.5, upstreams=("b",))
    assert refusal(pool, errors.CapacityExceeded, 0.75) == 0.25
    assert pool.choose("m", (), 1.0).upstream == "a"


def test_a_paused_upstream_gets_one_probe_whose_answer_decides() -> None:
    """After the pause one request goes out: its failure doubles the pause, an answer ends it."""
    pool = make_pool(upstream_keys("a", ("aaaa", "bbbb")))
    fail(pool, UNREACHABLE, 0.0, times=5)
    probe = pool.lease("m", (), 1.0)
    with pytest.raises(errors.CapacityExceeded):
        pool.lease("m", (), 1.0)
    pool.failed(probe, UNREACHABLE, 1.0)
    probe.release()
    assert refusal(pool, errors.CapacityExceeded, 1.0) == 2.0
    with pool.lease("m", (), 3.0) as lease:
        pool.succeeded(lease, 3.0)
    assert [pool.lease("m", (), 3.0) for _ in range(9)]
    assert "0 of 1 upstreams paused" in repr(pool)


def test_a_released_probe_of_an_upstream_makes_way_for_the_next() -> None:
    """A probe whose caller went away doesn't leave the upstream paused for good."""
    pool = make_pool(upstream_keys("a", ("aaaa",)))
    fail(pool, UNREACHABLE, 0.0, times=5)
    pool.lease("m", (), 1.0).release()
    assert pool.lease("m", (), 1.0).key.upstream == "a"


def test_a_key_that_is_refused_proves_its_upstream_alive() -> None:
    """A 401 or 429 at the probe ends the pause: it came from an upstream that answers."""
    pool = make_pool(upstream_keys("a", ("aaaa", "bbbb")))
    fail(pool, UNREACHABLE, 0.0, times=5)
    fail(pool, KEY_DEAD, 1.0)
    assert [pool.lease("m", (), 1.0).key.tail for _ in range(2)] == ["aaaa", "aaaa"]


def test_jitter_comes_from_the_chance_given() -> None:
    """An unstated wait is shortened by the pool's chance."""
    pool = KeyPool([upstream_keys("a", ("aaaa",))], chance=lambda: 1.0)
    fail(pool, RATE_LIMITED, 0.0)
    assert refusal(pool, errors.CapacityExceeded, 0.0) == 0.5


def test_a_lease_may_be_released_any_number_of_times() -> None:
    """Only the first release counts, and a ``with`` block releases whatever is raised in it."""
    pool = three_keys()
    lease = pool.lease("m", (), 0.0)
    other = pool.lease("m", (), 0.0)
    lease.release()
    lease.release()
    assert "1 in flight" in repr(pool)
    with pytest.raises(KeyError), other:
        raise KeyError
    assert "0 in flight" in repr(pool)


def test_the_repr_states_the_counts() -> None:
    """A pool's repr says how many keys are in which state, as of the last report."""
    pool = make_pool(
        upstream_keys("a", ("aaaa", "bbbb", "cccc", "dddd")), upstream_keys("b", ("eeee",))
    )
    for failure in (KEY_DEAD, OUT_OF_QUOTA, RATE_LIMITED):
        fail(pool, failure, 0.0, upstreams=("a",), wait_s=9.0)
    fail(pool, UNREACHABLE, 0.0, times=5, upstreams=("b",))
    lease = pool.lease("m", (), 0.0)
    assert repr(pool) == (
        "<KeyPool: 3 of 5 keys ok, 1 cooling, 1 out of quota, 1 dead, "
        "1 in flight, 1 of 2 upstreams paused>"
    )
    pool.succeeded(lease, 9.0)
    assert "0 cooling" in repr(pool)


def test_the_description_holds_what_an_operator_needs() -> None:
    """Each key's row: upstream, tail, state in words, requests in flight and so far, failures."""
    pool = make_pool(upstream_keys("a", ("aaaa", "bbbb")))
    fail(pool, OUT_OF_QUOTA, 0.0)
    pool.lease("m", (), 60.0)
    row = {"upstream": "a", "requests": 1}
    assert pool.describe(60.0, []) == [
        row | {"tail": "aaaa", "state": "out of quota, next probe in 9 min",
               "in_flight": 0, "failures": 1},
        row | {"tail": "bbbb", "state": "ok", "in_flight": 1, "failures": 0},
    ]  # fmt: skip


def test_our_own_mistakes_are_caught() -> None:
    """Long tails, pools and upstreams without keys, twins and late reports are assertion errors."""
    with pytest.raises(AssertionError, match="more of a key"):
        make_pool(upstream_keys("a", ("sk-secret",)))
    with pytest.raises(AssertionError, match="without an upstream"):
        make_pool()
    with pytest.raises(AssertionError, match="of one name"):
        make_pool(upstream_keys("a"), upstream_keys("a"))
    with pytest.raises(AssertionError, match="at least one key"):
        make_pool(UpstreamKeys("a", ()))
    with pytest.raises(AssertionError):
        make_pool(upstream_keys("a", share=0.0))
    pool = three_keys()
    lease = pool.lease("m", (), 0.0)
    lease.release()
    with pytest.raises(AssertionError, match="after the end"):
        pool.succeeded(lease, 0.0)
    with pytest.raises(AssertionError, match="after the end"):
        pool.failed(lease, KEY_DEAD, 0.0)


def test_a_second_probe_is_our_own_mistake() -> None:
    """Taking a key that is being probed, past ``choose``, is an assertion error."""
    pool = make_pool(upstream_keys("a", ("aaaa",)), upstream_keys("b", ("bbbb",)))
    fail(pool, KEY_DEAD, 0.0, upstreams=("a",))
    fail(pool, UNREACHABLE, 0.0, times=5, upstreams=("b",))
    for upstream in ("a", "b"):
        probe = pool.lease("m", (upstream,), 3_600.0)
        with pytest.raises(AssertionError, match="two probes"):
            Lease(probe.key, "m")
