"""Prices for the models of a configuration that have none: from the table in this package.

``prices.json`` holds what the PyPI package genai-prices knows (MIT licence), as far as an upper
bound can be told from it. It is made by ``scripts/prices`` when the locks are, and not read from
the package at start, because importing that takes half a second and brings pydantic and an HTTP
client into a process that holds keys.

Plan: what a model needs follows from its endpoints: prices of tokens for those that are billed by
tokens, of input alone where there is no output, and a price of a unit for images and sound (or a
bound by tokens). What the operator gave stays; prices of text are looked up; what is missing then
is a problem.

What this is not: no download, and no guess: a paid model without a known price stops the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from freeapi.config import Config, ConfigError
from freeapi.policy.models import UNIT_ENDPOINTS, Endpoint, Model
from freeapi.policy.price_table import Price, PriceTable, dearer, parse_table
from freeapi.policy.prices import MTOK
from freeapi.providers import Upstream
from freeapi.reading import Problem, quote

TABLE_PATH: Final = Path(__file__).with_name("prices.json")
#: A field of ``Model`` that holds a price.
Field = Literal["input_nanousd_per_mtok", "output_nanousd_per_mtok", "unit_nanousd"]
INPUT: Final = "input_nanousd_per_mtok"
OUTPUT: Final = "output_nanousd_per_mtok"
UNIT: Final = "unit_nanousd"
#: Which prices bound the cost of a request. Source: OpenAI, "Pricing".
NEEDED: Final[Mapping[Endpoint, frozenset[Field]]] = {
    "chat": frozenset({INPUT, OUTPUT}),
    "completions": frozenset({INPUT, OUTPUT}),
    "responses": frozenset({INPUT, OUTPUT}),
    "embeddings": frozenset({INPUT}),
    "moderations": frozenset({INPUT}),
    "images": frozenset({UNIT}),
    "speech": frozenset({UNIT}),
    "transcriptions": frozenset({UNIT}),
    "translations": frozenset({UNIT}),
}

#: No image, speech or audio file takes more tokens, be it in or out: 25 minutes of sound are 15,000
#: tokens, an image of the best quality 6,240. Source: OpenAI, model pages and "Pricing".
TOKENS_PER_UNIT: Final = 16_384


def priced(config: Config) -> Config:
    """The configuration with all prices that the models of paid upstreams need.

    Reads the table only if one is missing (2 ms), so that a configuration with prices, or without
    paid upstreams, doesn't pay for it.
    Raises ConfigError with every model that lacks a price.
    """
    paid = {model.name: _paid(config, model) for model in config.models}
    if not any(_missing(model) for model in config.models if paid[model.name]):
        return config
    table = parse_table(TABLE_PATH.read_bytes())
    models = [
        _with_prices(table, paid[model.name], model) if paid[model.name] else model
        for model in config.models
    ]
    problems = [problem for model in models if paid[model.name] for problem in _problems(model)]
    if problems:
        raise ConfigError(problems)
    return msgspec.structs.replace(config, models=tuple(models))


def _paid(config: Config, model: Model) -> list[Upstream]:
    """The upstreams that serve the model for money."""
    serving = [
        one for one in config.upstreams if not model.upstreams or one.name in model.upstreams
    ]
    return [upstream for upstream in serving if not upstream.free]


def _missing(model: Model) -> set[Field]:
    """The prices that it needs and hasn't."""
    return {field for field in _needs(model) if getattr(model, field) is None}


def _needs(model: Model) -> set[Field]:
    return {field for endpoint in model.endpoints for field in NEEDED[endpoint]}


def _with_prices(table: PriceTable, upstreams: list[Upstream], model: Model) -> Model:
    """The model with those of the missing prices that are known."""
    missing = _missing(model)
    if UNIT_ENDPOINTS.issuperset(model.endpoints):
        return _with_unit_price(model)
    if INPUT in missing and _is_free(upstreams, model):
        return msgspec.structs.replace(model, input_nanousd_per_mtok=0)
    known = _find(table, upstreams, model) if missing & {INPUT, OUTPUT} else None
    if known is None:
        return model
    # In the table an output price of 0 is none: that of an embedding model.
    found = {INPUT: known.input_nanousd_per_mtok, OUTPUT: known.output_nanousd_per_mtok or None}
    return msgspec.structs.replace(model, **{field: found[field] for field in missing - {UNIT}})


def _with_unit_price(model: Model) -> Model:
    """With a bound from the prices of tokens, if the operator gave them.

    The table has those of text, which those of images and sound are above: it isn't asked.
    """
    prices = (model.input_nanousd_per_mtok, model.output_nanousd_per_mtok)
    if model.unit_nanousd is not None or None in prices:
        return model
    unit_nanousd = -(-TOKENS_PER_UNIT * sum(price or 0 for price in prices) // MTOK)
    return msgspec.structs.replace(model, unit_nanousd=unit_nanousd)


def _is_free(upstreams: list[Upstream], model: Model) -> bool:
    """OpenAI's moderation endpoint costs nothing. Source: OpenAI, "Moderation"."""
    return set(model.endpoints) == {"moderations"} and all(one.is_openai for one in upstreams)


def _find(table: PriceTable, upstreams: list[Upstream], model: Model) -> Price | None:
    """The bound for all of these upstreams; None if one of them has no known price."""
    prices = [table.find(upstream.base_url, model.upstream_model) for upstream in upstreams]
    known = [price for price in prices if price is not None]
    return dearer(*known) if len(known) == len(prices) else None


def _problems(model: Model) -> list[Problem]:
    """What is still missing: one of tokens, one of units."""
    place = f"[[model]] {quote(model.name)}"
    missing, problems = _missing(model), []
    if missing & {INPUT, OUTPUT}:
        names = {INPUT: "input_usd_per_mtok", OUTPUT: "output_usd_per_mtok"}
        wanted = " and ".join(name for field, name in names.items() if field in missing)
        problems.append(
            Problem(
                place,
                f"no price, and none is known of {quote(model.upstream_model)}",
                f"{wanted} here, or free = true on its upstreams",
            )
        )
    if UNIT in missing:
        by_unit = ", ".join(one for one in model.endpoints if UNIT in NEEDED[one])
        problems.append(
            Problem(
                place,
                f"no bound on what {by_unit} may cost",
                "unit_usd here, the most that one may cost, or both prices of tokens, "
                "or free = true on its upstreams",
            )
        )
    return problems
