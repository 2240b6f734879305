"""Costs and their bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from freeapi.policy.draft import Prepared
from freeapi.policy.models import Model
from freeapi.policy.prices import (
    bound_nanousd,
    cost_nanousd,
)


def prepared(
    input_price: int | None = 150_000_000,
    output_price: int | None = 600_000_000,
    unit_price: int | None = None,
    **changes: object,
) -> Prepared:
    """A request of up to 1,000 tokens for 400, to a model with these prices in nano-dollars."""
    model = Model(
        name="m",
        upstream_model="m",
        rpm=None,
        tpm=None,
        max_output_tokens=1_024,
        output_field="max_tokens",
        input_nanousd_per_mtok=input_price,
        output_nanousd_per_mtok=output_price,
        unit_nanousd=unit_price,
    )
    fields: dict[str, Any] = {
        "endpoint": "chat",
        "body": b"{}",
        "model": model,
        "stream": False,
        "hides_usage": False,
        "prompt_tokens": 250,
        "output_tokens": 400,
        "prompt_tokens_max": 1_000,
        "units": 0,
        "adjusted": b"",
    }
    return Prepared(**fields | changes)


def test_cost_is_tokens_times_prices() -> None:
    """A million tokens cost the price of a million tokens."""
    assert cost_nanousd(prepared(), 1_000_000, 0) == 150_000_000
    assert cost_nanousd(prepared(), 0, 1_000_000) == 600_000_000
    assert cost_nanousd(prepared(), 1_000, 1_000) == 750_000
    assert cost_nanousd(prepared(), 0, 0) == 0


def test_cost_is_rounded_up() -> None:
    """A part of a nano-dollar is a whole one, once for the sum."""
    assert cost_nanousd(prepared(1, 1), 1, 0) == 1
    assert cost_nanousd(prepared(1, 1), 500_000, 500_000) == 1
    assert cost_nanousd(prepared(1, 1), 1_000_000, 1) == 2


@pytest.mark.parametrize("prices", [(None, 1), (1, None)])
def test_paid_model_without_price_is_our_mistake(prices: tuple[int | None, int | None]) -> None:
    """The start refuses such models, so no request can have one."""
    with pytest.raises(AssertionError):
        cost_nanousd(prepared(*prices), 1, 1)
    with pytest.raises(AssertionError):
        bound_nanousd(prepared(*prices))
    with pytest.raises(AssertionError):
        bound_nanousd(prepared(units=1))


def test_bound_is_the_most_tokens_at_their_prices() -> None:
    """The prompt's bound and all that may be answered."""
    assert bound_nanousd(prepared(1_000_000, 1_000_000_000)) == 1_000 + 400 * 1_000


def test_without_output_there_is_no_price_for_it() -> None:
    """An embedding costs its input, whatever the usage record says of output."""
    request = prepared(1_000_000, None, output_tokens=0)
    assert bound_nanousd(request) == 1_000
    assert cost_nanousd(request, 30, 5) == 30


@pytest.mark.parametrize("output_price", [None, 1_000_000_000])
def test_bound_of_pieces_is_their_most_and_the_prompts(output_price: int | None) -> None:
    """Two images at their most; a prompt that has a price comes on top."""
    pieces = {"units": 2, "output_tokens": 0}
    assert bound_nanousd(prepared(None, output_price, 7_000, **pieces)) == 14_000
    assert bound_nanousd(prepared(1_000_000, output_price, 7_000, **pieces)) == 15_000


def test_pieces_cost_their_tokens_where_those_have_prices() -> None:
    """Prices that can't be those of text tell the cost; else each piece costs its most."""
    pieces = {"units": 2, "output_tokens": 0}
    mixed = prepared(1_000_000, 2_000_000, 7_000, **pieces)
    assert cost_nanousd(mixed, 100, 1_000) == 14_100
    painter = msgspec.structs.replace(mixed.model, endpoints=("images",))
    by_tokens = prepared(**pieces, model=painter)
    assert cost_nanousd(by_tokens, 100, 1_000) == 100 + 2_000
    assert cost_nanousd(prepared(None, None, 7_000, **pieces), 100, 1_000) == 14_000
    assert cost_nanousd(prepared(1_000_000, None, 7_000, **pieces), 100, 1_000) == 14_100
