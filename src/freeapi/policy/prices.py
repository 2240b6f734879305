"""What a request may cost and has cost, and what models cost where no price is configured.

Plan: the bound on a request's tokens that ``payload`` found, times the model's prices, is the worst
case that the budget reserves; images, speeches and audio files cost a price a piece at most.
``PriceTable`` looks up the prices of models that have none of their own, by the upstream's address
and the model's name there.

What this is not: no reading of the table's file (``freeapi.prices`` does that), no choice of which
model needs a price, no caps.

Invariants:
- Money is whole nano-dollars, rounded up.
- A price is an upper bound: the highest tier, what writing to a cache costs, and at an address
  that the table doesn't know the dearest seller of a model of that name.
- What has no known price has none: a name is looked up as a whole, never guessed from its parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from freeapi.policy.draft import Prepared
from freeapi.policy.models import UNIT_ENDPOINTS

#: Tokens for which prices are given.
MTOK: Final = 1_000_000
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
            _up(dearest.input_nanousd_per_mtok * 11, 10),
            _up(dearest.output_nanousd_per_mtok * 11, 10),
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


def bound_nanousd(prepared: Prepared) -> int:
    """The most that the request can cost, output at its ceiling and nothing cached."""
    if not prepared.units:
        return _tokens_nanousd(prepared, prepared.prompt_tokens_max, prepared.output_tokens)
    return _units_nanousd(prepared, prepared.prompt_tokens_max)


def cost_nanousd(prepared: Prepared, prompt_tokens: int, completion_tokens: int) -> int:
    """What known usage cost at most; hidden reasoning is among the completion's tokens.

    Images, speeches and files cost what was reserved for them, unless the model has prices of
    tokens that can only be meant for them.
    """
    model = prepared.model
    prices = (model.input_nanousd_per_mtok, model.output_nanousd_per_mtok)
    if prepared.units and (None in prices or not UNIT_ENDPOINTS.issuperset(model.endpoints)):
        return _units_nanousd(prepared, prompt_tokens)
    return _tokens_nanousd(prepared, prompt_tokens, completion_tokens)


def is_priced(prepared: Prepared) -> bool:
    """Whether a bound of its cost is known: not for a request older than the first cap."""
    model = prepared.model
    if prepared.units:
        return model.unit_nanousd is not None
    has_output_price = model.output_nanousd_per_mtok is not None or not prepared.output_tokens
    return model.input_nanousd_per_mtok is not None and has_output_price


def _tokens_nanousd(prepared: Prepared, prompt_tokens: int, completion_tokens: int) -> int:
    """Without a price for output there must be none: embeddings and moderations."""
    model = prepared.model
    assert model.input_nanousd_per_mtok is not None, "a paid model without a price"
    output_nanousd_per_mtok = model.output_nanousd_per_mtok
    if output_nanousd_per_mtok is None:
        assert not prepared.output_tokens, "a paid model without a price"
        output_nanousd_per_mtok = 0
    return _up(
        prompt_tokens * model.input_nanousd_per_mtok + completion_tokens * output_nanousd_per_mtok,
        MTOK,
    )


def _units_nanousd(prepared: Prepared, prompt_tokens: int) -> int:
    """Each at its most, and the prompt if it has a price of its own."""
    model = prepared.model
    assert model.unit_nanousd is not None, "a paid model without a price"
    prompt_nanousd = _up(prompt_tokens * (model.input_nanousd_per_mtok or 0), MTOK)
    return prompt_nanousd + prepared.units * model.unit_nanousd


def _up(amount: int, divisor: int) -> int:
    return -(-amount // divisor)


def _prices(sellers: list[_Seller], model: str) -> Iterator[Price]:
    """The model's price at each of these that sells it; one of any date if none of its own."""
    undated = _DATE.sub(_ANY_DATE, model)
    for seller in sellers:
        price = seller.models.get(model) or seller.models.get(undated)
        if price is not None:
            yield price
