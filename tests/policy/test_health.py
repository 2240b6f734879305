"""When a key or an upstream that failed may be used again."""

from __future__ import annotations

import doctest

import pytest

from freeapi.policy import health
from freeapi.policy.health import Breaker, KeyHealth, KeyState

#: Stands for requests of which nothing else matters.
OTHER = object()


def _probe(subject: KeyHealth | Breaker) -> object:
    """A request that is let through as the probe, as a lease does it."""
    subject.probe = object()
    return subject.probe


def test_a_new_key_is_ok_for_every_model() -> None:
    """Nothing is held against a key at first."""
    key = KeyHealth()
    assert key.state == "ok"
    assert key.wait_s("any", 0.0) == 0.0
    assert key.is_fresh("any", 0.0)
    assert key.describe(0.0, ["any"]) == "ok"


def test_a_stated_wait_cools_that_model_only() -> None:
    """A rate limit's wait holds to the second, and for its model alone."""
    key = KeyHealth()
    key.cool("a", 10.0, 5.0, chance=0.5)
    assert key.wait_s("a", 10.0) == 5.0
    assert key.wait_s("a", 14.5) == 0.5
    assert key.wait_s("a", 15.0) <= 0
    assert not key.is_fresh("a", 14.9)
    assert key.is_fresh("a", 15.0)
    assert key.is_fresh("b", 10.0)
    assert key.is_cooling(14.9)
    assert not key.is_cooling(15.0)


def test_a_shorter_wait_never_shortens_a_longer_one() -> None:
    """Of several stated waits the latest end counts."""
    key = KeyHealth()
    key.cool("a", 0.0, 60.0, chance=0.0)
    key.cool("a", 1.0, 2.0, chance=0.0)
    assert key.wait_s("a", 1.0) == 59.0


def test_waits_that_nobody_stated_double_to_a_minute() -> None:
    """Without a stated wait a model cools for 1 s, then twice as long each time, 60 s at most."""
    key = KeyHealth()
    now_s = 0.0
    waits_s = []
    for _ in range(8):
        key.cool("a", now_s, None, chance=0.0)
        waits_s.append(key.wait_s("a", now_s))
        now_s += waits_s[-1]
    assert waits_s == [1, 2, 4, 8, 16, 32, 60, 60]


def test_jitter_takes_off_up_to_half() -> None:
    """Chance spreads the end of a wait between half and the whole of it."""
    waits_s = []
    for chance in (0.0, 0.5, 1.0):
        key = KeyHealth()
        key.cool("a", 0.0, None, chance)
        waits_s.append(key.wait_s("a", 0.0))
    assert waits_s == [1.0, 0.75, 0.5]


def test_a_burst_of_refusals_counts_once() -> None:
    """A hundred requests in flight that are all refused double the wait once, not to a minute."""
    key = KeyHealth()
    for _ in range(100):
        key.cool("a", 0.0, None, chance=0.0)
    assert key.wait_s("a", 0.0) == 1.0


def test_a_success_forgets_past_refusals_of_its_model() -> None:
    """After a success the next refusal starts at 1 s again; other models' records stay."""
    key = KeyHealth()
    for model in ("a", "b"):
        key.cool(model, 0.0, None, chance=0.0)
        key.cool(model, 1.0, None, chance=0.0)
    key.served(OTHER, "a", 3.0, None)
    for model in ("a", "b"):
        key.cool(model, 3.0, None, chance=0.0)
    assert (key.wait_s("a", 3.0), key.wait_s("b", 3.0)) == (1.0, 4.0)


def test_a_success_older_than_the_refusal_changes_nothing() -> None:
    """An answer to a request from before the 429 doesn't end the cooling."""
    key = KeyHealth()
    key.cool("a", 0.0, 20.0, chance=0.0)
    key.served(OTHER, "a", 1.0, None)
    assert key.wait_s("a", 1.0) == 19.0


def test_a_used_up_key_is_usable_but_not_fresh_until_the_reset() -> None:
    """A count of zero remaining marks the model until its reset, and a later success clears it."""
    key = KeyHealth()
    key.served(OTHER, "a", 0.0, 30.0)
    assert key.is_used_up("a", 29.9)
    assert key.wait_s("a", 0.0) <= 0
    assert not key.is_fresh("a", 29.9)
    assert key.is_fresh("b", 0.0)
    assert key.is_fresh("a", 30.0)
    key.served(OTHER, "a", 1.0, None)
    assert key.is_fresh("a", 1.0)


@pytest.mark.parametrize(
    ("state", "waits_s"),
    [
        ("out of quota", [600, 1_200, 2_400, 4_800, 9_600, 19_200, 21_600, 21_600]),
        ("dead", [3_600, 7_200, 14_400, 28_800, 57_600, 86_400, 86_400]),
    ],
)
def test_failed_probes_double_the_time_away(state: KeyState, waits_s: list[float]) -> None:
    """A key away for all models is probed after DESIGN's first wait, doubled to its cap."""
    key = KeyHealth()
    now_s = 0.0
    probe = OTHER
    for wait_s in waits_s:
        key.leave(state, probe, now_s)
        assert key.state == state
        assert key.wait_s("a", now_s) == wait_s
        now_s += wait_s
        assert key.wait_s("a", now_s) == 0.0
        probe = _probe(key)


def test_while_a_probe_is_under_way_no_other_request_is_let_through() -> None:
    """Half-open means one request: the others are told to come back soon."""
    key = KeyHealth()
    key.leave("dead", OTHER, 0.0)
    _probe(key)
    assert key.wait_s("a", 99_999.0) == 1.0
    assert not key.is_fresh("a", 99_999.0)


def test_a_probes_success_revives_the_key_and_its_schedule() -> None:
    """After a good probe the key is ok, and a later failure starts at the first wait."""
    key = KeyHealth()
    key.leave("dead", OTHER, 0.0)
    key.leave("dead", _probe(key), 3_600.0)
    key.served(_probe(key), "a", 10_800.0, None)
    assert (key.state, key.probe) == ("ok", None)
    key.leave("dead", OTHER, 10_900.0)
    assert key.wait_s("a", 10_900.0) == 3_600.0


def test_a_probe_that_finds_another_reason_starts_that_schedule() -> None:
    """A dead key that turns out to be out of quota is probed as such."""
    key = KeyHealth()
    key.leave("dead", OTHER, 0.0)
    key.leave("out of quota", _probe(key), 3_600.0)
    assert key.state == "out of quota"
    assert key.wait_s("a", 3_600.0) == 600.0


def test_late_news_neither_revives_nor_lengthens() -> None:
    """Answers to requests from before a key was set aside leave it as it is."""
    key = KeyHealth()
    key.leave("out of quota", OTHER, 0.0)
    key.leave("out of quota", OTHER, 300.0)
    key.leave("dead", OTHER, 300.0)
    key.served(OTHER, "a", 300.0, None)
    assert key.state == "out of quota"
    assert key.wait_s("a", 300.0) == 300.0


def test_models_remembered_are_bounded_oldest_out() -> None:
    """A caller who invents model names can't grow the record; the oldest is forgotten."""
    key = KeyHealth()
    for number in range(300):
        key.cool(f"m{number}", 0.0, 60.0, chance=0.0)
    assert len(key.coolings) == 256
    assert key.is_fresh("m43", 0.0)
    assert not key.is_fresh("m44", 0.0)
    assert not key.is_fresh("m299", 0.0)


def test_the_longer_of_two_reasons_counts() -> None:
    """A key due for its probe but cooling for the model waits for the cooling."""
    key = KeyHealth()
    key.leave("out of quota", OTHER, 0.0)
    key.cool("a", 590.0, 60.0, chance=0.0)
    assert key.wait_s("a", 600.0) == 50.0
    assert key.wait_s("b", 600.0) == 0.0


def test_states_read_as_words() -> None:
    """An operator reads the state, until when, and only configured models' names."""
    key = KeyHealth()
    key.cool("gpt-4o-mini", 0.0, 11.2, chance=0.0)
    key.cool("CANARY", 0.0, 60.0, chance=0.0)
    assert key.describe(0.0, ["gpt-4o-mini"]) == (
        "cooling for gpt-4o-mini for 12 s, models not listed (1)"
    )
    assert key.describe(20.0, ["gpt-4o-mini"]) == "cooling for models not listed (1)"
    assert key.describe(60.0, ["gpt-4o-mini"]) == "ok"
    key.leave("dead", OTHER, 0.0)
    assert key.describe(120.0, []) == "dead, next probe in 58 min"
    assert key.describe(3_600.0, []) == "dead, next probe now"
    _probe(key)
    assert key.describe(120.0, []) == "dead, next probe now"


def test_at_most_five_models_are_named() -> None:
    """A key cooling for many models stays one readable line."""
    key = KeyHealth()
    names = [f"m{number}" for number in range(7)]
    for name in names:
        key.cool(name, 0.0, 5.0, chance=0.0)
    words = key.describe(0.0, names)
    assert words.count("for 5 s") == 5
    assert words.endswith("models not listed (2)")


def test_five_failures_in_a_row_pause_an_upstream() -> None:
    """Four failures, or more with an answer between, don't pause an upstream; five in a row do."""
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(OTHER, 0.0)
    breaker.answered()
    for _ in range(4):
        breaker.failed(OTHER, 0.0)
    assert breaker.wait_s(0.0) == 0.0
    assert breaker.describe(0.0) == ""
    breaker.failed(OTHER, 0.0)
    assert breaker.wait_s(0.0) == 1.0
    assert breaker.describe(0.0) == "; upstream failing, next probe in 1 s"


def test_failed_probes_double_the_pause_to_half_a_minute() -> None:
    """Each failed probe doubles the pause; failures of other requests meanwhile don't."""
    breaker = Breaker()
    for _ in range(5):
        breaker.failed(OTHER, 0.0)
    now_s = 0.0
    waits_s = []
    for _ in range(7):
        breaker.failed(OTHER, now_s)
        waits_s.append(breaker.wait_s(now_s))
        now_s += waits_s[-1]
        assert breaker.wait_s(now_s) == 0.0
        assert breaker.describe(now_s) == "; upstream failing, next probe now"
        probe = _probe(breaker)
        assert breaker.wait_s(now_s) == 1.0
        assert breaker.describe(now_s) == "; upstream failing, next probe now"
        breaker.failed(probe, now_s)
    assert waits_s == [1, 2, 4, 8, 16, 30, 30]


def test_an_answer_closes_the_breaker_and_ends_its_probe() -> None:
    """One answer that isn't the upstream's failure lets all requests through again."""
    breaker = Breaker()
    for _ in range(5):
        breaker.failed(OTHER, 0.0)
    _probe(breaker)
    breaker.answered()
    assert breaker.probe is None
    assert breaker.wait_s(0.0) == 0.0
    for _ in range(4):
        breaker.failed(OTHER, 0.0)
    assert breaker.wait_s(0.0) == 0.0


def test_our_own_mistakes_are_caught() -> None:
    """Impossible waits, chances, states and probes are assertion errors, not silent states."""
    key = KeyHealth()
    with pytest.raises(AssertionError):
        key.cool("a", 0.0, 0.0, chance=0.0)
    with pytest.raises(AssertionError):
        key.cool("a", 0.0, 1.0, chance=2.0)
    with pytest.raises(AssertionError):
        key.served(OTHER, "a", 0.0, 0.0)
    with pytest.raises(AssertionError):
        key.leave("ok", OTHER, 0.0)
    with pytest.raises(AssertionError, match="a key that is ok"):
        key.leave("dead", _probe(key), 0.0)
    breaker = Breaker()
    with pytest.raises(AssertionError, match="isn't paused"):
        breaker.failed(_probe(breaker), 0.0)


def test_examples_in_the_docstrings_hold() -> None:
    """The doctests of the module run."""
    results = doctest.testmod(health)
    assert results.failed == 0
    assert results.attempted > 0
