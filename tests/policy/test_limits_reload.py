"""What becomes of limits, and of requests in flight under them, when they are changed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeapi import errors
from freeapi.policy.limits import Limits, ModelBucket
from freeapi.policy.meter import Meter, Rates
from tests.policy.test_limits import ANN, FREE, NOW_S, Desk, limited


def left(desk: Desk, tpm: int) -> int:
    """The tokens that Ann could use at once under this limit, by the header she gets."""
    lines = desk.limits.headers(ANN, limited(tpm=tpm), desk.now_s).splitlines()
    return int(next(line for line in lines if b"remaining" in line).split()[1])


def test_a_changed_limit_keeps_the_part_that_is_used() -> None:
    """Who has used three fifths of a limit has two fifths left of any other."""
    desk = Desk()
    desk.use(ANN, limited(tpm=1_000), tokens=600)
    assert left(desk, 1_000) == 400
    assert left(desk, 500) == 200
    assert left(desk, 5_000) == 2_000


def test_a_changed_limit_is_the_next_requests() -> None:
    """A lowered limit refuses at once, and a raised one lets on."""
    desk = Desk()
    desk.use(ANN, limited(tpm=1_000), tokens=600)
    desk.refuse(errors.TokenRateExceeded, ANN, limited(tpm=500), tokens=201)
    desk.use(ANN, limited(tpm=5_000), tokens=2_000)


def test_the_days_count_outlives_a_reload() -> None:
    """Three of five requests stay used under limits that are new, and equal."""
    desk = Desk()
    for _ in range(3):
        desk.use(ANN, limited(rpd=5))
    for _ in range(2):
        desk.use(ANN, limited(rpd=5))
    desk.refuse(errors.RateLimitExceeded, ANN, limited(rpd=5))
    desk.use(ANN, limited(rpd=6))


def test_a_model_keeps_its_meter() -> None:
    """A model's new limits count what it has served under the old ones."""
    desk = Desk(ModelBucket(None, 1_000))
    desk.use(ANN, tokens=600)
    desk.model.reconfigure(None, 500)
    desk.refuse(errors.CapacityExceeded, ANN, FREE, tokens=201)
    desk.use(ANN, tokens=200)
    desk.model.reconfigure(None, None)
    desk.use(ANN, tokens=9_999)


def test_an_old_request_frees_nothing_of_a_new_one() -> None:
    """A request that ends at its old, cheap rate leaves what others hold at the new one."""
    limits, model = Limits(), ModelBucket(None, 60_000)
    old = limits.admit(ANN, FREE, model, 1_000, NOW_S, 0.0)
    model.reconfigure(None, 600)
    new = limits.admit(ANN, FREE, model, 500, NOW_S, 0.0)
    old.settle(1_000, NOW_S)
    with pytest.raises(errors.CapacityExceeded) as caught:
        limits.admit(ANN, FREE, model, 500, NOW_S, 0.0)
    assert caught.value.retry_after_s == pytest.approx(41.0, abs=0.01)
    new.cancel(NOW_S)
    limits.admit(ANN, FREE, model, 500, NOW_S, 0.0)


@given(
    requests=st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from([10, 1_000, None])),
        max_size=12,
    ),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_time_is_conserved(requests: list[tuple[int, int, int | None]], order: Any) -> None:
    """Whatever the rates they were taken at, requests leave the bucket short of what they used."""
    meter = Meter()
    taken = []
    for reserved, used, tpm in requests:
        rates = Rates(None, tpm)
        meter.take(rates, reserved, NOW_S)
        taken.append((rates, reserved, min(used, reserved)))
    order.shuffle(taken)
    for rates, reserved, used in taken:
        meter.settle(rates, reserved, used, NOW_S)
    used_s = sum(used * rates.token_s for rates, _, used in taken)
    assert meter.in_flight == 0
    assert max(meter.tokens_due_s, NOW_S) == pytest.approx(NOW_S + used_s, abs=1e-6)
