"""Costs and their bounds, and how the price table is looked up."""

from __future__ import annotations

import msgspec
import pytest

from freeapi.policy.models import Model
from freeapi.policy.payload import Prepared
from freeapi.policy.prices import (
    Price,
    PriceTable,
    bound_nanousd,
    cost_nanousd,
    dearer,
    parse_table,
)

OPENAI_URL = "https://api.openai.com/v1"
TABLE = parse_table(
    rb"""{"source": "made up", "sellers": {
    "openai": {"pattern": "https://api\\.openai\\.com", "models":
        {"gpt-x": [100, 400], "gpt-y-YYYY-MM-DD": [7, 9], "gpt-y-2026-01-01": [8, 9]}},
    "reseller": {"pattern": "https://api\\.reseller\\.example", "models":
        {"gpt-x": [90, 500], "only-here": [1, 2]}}}}"""
)


def model(input_price: int | None = 150_000_000, output_price: int | None = 600_000_000) -> Model:
    """A model with prices in nano-dollars for a million tokens."""
    return Model(
        name="m",
        upstream_model="m",
        rpm=None,
        tpm=None,
        max_output_tokens=1_024,
        output_field="max_tokens",
        input_nanousd_per_mtok=input_price,
        output_nanousd_per_mtok=output_price,
    )


def prepared(**changes: object) -> Prepared:
    """A request of 1,000 bytes with 2 messages, 3 tools and 4 choices of 100 tokens."""
    base = Prepared(
        body=b"x" * 1_000,
        model=model(),
        stream=False,
        hides_usage=False,
        choices=4,
        output_tokens_max=100,
        message_count=2,
        tool_count=3,
        adjusted=b"",
    )
    return msgspec.structs.replace(base, **changes)


def test_cost_is_tokens_times_prices() -> None:
    """A million tokens cost the price of a million tokens."""
    assert cost_nanousd(1_000_000, 0, model()) == 150_000_000
    assert cost_nanousd(0, 1_000_000, model()) == 600_000_000
    assert cost_nanousd(1_000, 1_000, model()) == 750_000
    assert cost_nanousd(0, 0, model()) == 0


def test_cost_is_rounded_up() -> None:
    """A part of a nano-dollar is a whole one, once for the sum."""
    assert cost_nanousd(1, 0, model(1, 1)) == 1
    assert cost_nanousd(500_000, 500_000, model(1, 1)) == 1
    assert cost_nanousd(1_000_000, 1, model(1, 1)) == 2


@pytest.mark.parametrize("prices", [(None, 1), (1, None)])
def test_paid_model_without_price_is_our_mistake(prices: tuple[int | None, int | None]) -> None:
    """The start refuses such models, so no request can have one."""
    with pytest.raises(AssertionError):
        cost_nanousd(1, 1, model(*prices))


def test_bound_counts_bytes_messages_tools_and_choices() -> None:
    """Each byte is a token, a message 16 more, a tool 64 more; output is the ceiling by choice."""
    one = model(1_000_000, 1_000_000_000)  # 1 nano-dollar a prompt token, 1,000 an output token
    assert bound_nanousd(prepared(), one) == (1_000 + 2 * 16 + 3 * 64) + 4 * 100 * 1_000


@pytest.mark.parametrize(
    ("url", "name", "price"),
    [
        (OPENAI_URL, "gpt-x", Price(100, 400)),
        (OPENAI_URL, "GPT-X", Price(100, 400)),
        ("https://api.reseller.example", "gpt-x", Price(90, 500)),
        # Snapshots of any date, and one that has its own price.
        (OPENAI_URL, "gpt-y-2026-11-01", Price(7, 9)),
        (OPENAI_URL, "gpt-y-2026-01-01", Price(8, 9)),
        (OPENAI_URL, "gpt-y", None),
        (OPENAI_URL, "gpt-x-2026-11-01", None),
        (OPENAI_URL, "gpt-xx", None),
        (OPENAI_URL, "only-here", None),
        # An address that isn't known: the dearest of all who sell it.
        ("http://127.0.0.1:9000/v1", "gpt-x", Price(100, 500)),
        ("http://127.0.0.1:9000/v1", "only-here", Price(1, 2)),
        ("http://127.0.0.1:9000/v1", "*", None),
        # OpenAI's regional hosts: 10 % more, rounded up.
        ("https://eu.api.openai.com/v1", "gpt-x", Price(110, 550)),
        ("https://eu.api.openai.com", "only-here", Price(2, 3)),
        ("https://eu.api.openai.com.example/v1", "gpt-x", Price(100, 500)),
    ],
)
def test_find(url: str, name: str, price: Price | None) -> None:
    """A model's price is its seller's, or the dearest one where the seller isn't known."""
    assert TABLE.find(url, name) == price


def test_dearer_takes_each_price_for_itself() -> None:
    """The bound of several prices is the highest input and the highest output price."""
    assert dearer(Price(1, 9), Price(5, 2)) == Price(5, 9)


def test_other_files_are_refused() -> None:
    """What isn't a price table raises, and doesn't become an empty one."""
    with pytest.raises(msgspec.DecodeError):
        parse_table(b'{"sellers": {}}')
    assert isinstance(TABLE, PriceTable)
