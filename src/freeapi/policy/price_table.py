"""What models cost where no price is configured.

``PriceTable`` looks up the prices of models that have none of their own, by the upstream's address
and the model's name there.

What this is not: no reading of the table's file (``freeapi.prices`` does that), no arithmetic of
costs (``prices``).

Invariants:
- A price is an upper bound: the highest tier, what writing to a cache costs, and at an address
  that the table doesn't know the dearest seller of a model of that name.
- What has no known price has none: a name is looked up as a whole, never guessed from its parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from freeapi.policy.prices import rounded_up

#: OpenAI's regional hosts cost 10 % more. Source: OpenAI, "Pricing", regional processing.
_REGIONAL: Final = re.compile(r"https://\w+\.api\.openai\.com(?:[:/]|$)")
#: A snapshot's date at the end of a model's name, and how the table writes that any will do.
_DATE: Final = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_ANY_DATE: Final = "-YYYY-MM-DD"


class Price(msgspec.Struct, frozen=True, array_like=True):
    """Upper bounds in nano-dollars for a million tokens."""

    input_nanousd_per_mtok: int
    output_nanousd_per_mtok: int


class _Seller(msgspec.Struct, frozen=True):
    """Who sells at addresses that begin with a match of ``pattern``, and for how much."""

    pattern: str
    models: dict[str, Price]


class PriceTable(msgspec.Struct, frozen=True):
    """The prices of many models at many sellers, as of the day on which it was made."""

    source: str
    sellers: dict[str, _Seller]

    def find(self, base_url: str, model: str) -> Price | None:
        """The model's price at an upstream, or None where none is known.

        O(sellers), a few milliseconds for the patterns: once per model and start.
        """
        here = [one for one in self.sellers.values() if re.match(one.pattern, base_url)]
        found = list(_prices(here or list(self.sellers.values()), model.lower()))
        if not found:
            return None
        dearest = dearer(*found)
        if not _REGIONAL.match(base_url):
            return dearest
        return Price(
            rounded_up(dearest.input_nanousd_per_mtok * 11, 10),
            rounded_up(dearest.output_nanousd_per_mtok * 11, 10),
        )


_TABLE: Final = msgspec.json.Decoder(PriceTable)


def parse_table(text: bytes) -> PriceTable:
    """The table that ``scripts/prices`` wrote. Raises msgspec.DecodeError if it is another file."""
    return _TABLE.decode(text)


def dearer(*prices: Price) -> Price:
    """The bound that holds for all of these, of which there is one at least."""
    return Price(
        max(price.input_nanousd_per_mtok for price in prices),
        max(price.output_nanousd_per_mtok for price in prices),
    )


def _prices(sellers: list[_Seller], model: str) -> Iterator[Price]:
    """The model's price at each of these that sells it; one of any date if none of its own."""
    undated = _DATE.sub(_ANY_DATE, model)
    for seller in sellers:
        price = seller.models.get(model) or seller.models.get(undated)
        if price is not None:
            yield price
