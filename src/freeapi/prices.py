"""Prices for the models of a configuration that have none: from the table in this package.

``prices.json`` holds what the PyPI package genai-prices knows (MIT licence), as far as an upper
bound can be told from it. It is made by ``scripts/prices`` when the locks are, and not read from
the package at start, because importing that takes half a second and brings pydantic and an HTTP
client into a process that holds keys.

What this is not: no download, and no guess: a paid model without a known price stops the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from freeapi.config import Config, ConfigError, Upstream
from freeapi.policy.models import Model
from freeapi.policy.prices import Price, PriceTable, dearer, parse_table
from freeapi.reading import Problem, quote

TABLE_PATH: Final = Path(__file__).with_name("prices.json")


def priced(config: Config) -> Config:
    """The configuration with a price for each model that a paid upstream serves.

    Reads the table only if one is needed (2 ms), so that a configuration with prices, or without
    paid upstreams, doesn't pay for it.
    Raises ConfigError with every model that has no price.
    """
    unpriced = [model for model in config.models if _paid(config, model) and not _has_prices(model)]
    if not unpriced:
        return config
    table = parse_table(TABLE_PATH.read_bytes())
    found = {model.name: _find(table, _paid(config, model), model) for model in unpriced}
    problems = [_problem(model) for model in unpriced if found[model.name] is None]
    if problems:
        raise ConfigError(problems)
    models = tuple(_with_price(model, found.get(model.name)) for model in config.models)
    return msgspec.structs.replace(config, models=models)


def _paid(config: Config, model: Model) -> list[Upstream]:
    """The upstreams that serve the model for money."""
    serving = [
        one for one in config.upstreams if not model.upstreams or one.name in model.upstreams
    ]
    return [upstream for upstream in serving if not upstream.free]


def _has_prices(model: Model) -> bool:
    return None not in (model.input_nanousd_per_mtok, model.output_nanousd_per_mtok)


def _find(table: PriceTable, upstreams: list[Upstream], model: Model) -> Price | None:
    """The bound for all of these upstreams; None if one of them has no known price."""
    prices = [table.find(upstream.base_url, model.upstream_model) for upstream in upstreams]
    known = [price for price in prices if price is not None]
    return dearer(*known) if len(known) == len(prices) else None


def _with_price(model: Model, price: Price | None) -> Model:
    """What is configured wins, for each of the two."""
    if price is None:
        return model
    given, out = model.input_nanousd_per_mtok, model.output_nanousd_per_mtok
    return msgspec.structs.replace(
        model,
        input_nanousd_per_mtok=price.input_nanousd_per_mtok if given is None else given,
        output_nanousd_per_mtok=price.output_nanousd_per_mtok if out is None else out,
    )


def _problem(model: Model) -> Problem:
    return Problem(
        f"[[model]] {quote(model.name)}",
        f"no price, and none is known of {quote(model.upstream_model)}",
        "input_usd_per_mtok and output_usd_per_mtok here, or free = true on its upstreams",
    )
