"""How the price table is looked up."""

from __future__ import annotations

import msgspec
import pytest

from freeapi.policy.price_table import Price, PriceTable, dearer, parse_table

OPENAI_URL = "https://api.openai.com/v1"
TABLE = parse_table(
    rb"""{"source": "made up", "sellers": {
    "openai": {"pattern": "https://api\\.openai\\.com", "models":
        {"gpt-x": [100, 400], "gpt-y-YYYY-MM-DD": [7, 9], "gpt-y-2026-01-01": [8, 9]}},
    "reseller": {"pattern": "https://api\\.reseller\\.example", "models":
        {"gpt-x": [90, 500], "only-here": [1, 2]}}}}"""
)


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
