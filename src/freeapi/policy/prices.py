"""What a request may cost, and what it has cost.

Plan: the bound on a request's tokens that ``payload`` found, times the model's prices, is the worst
case that the budget reserves; images, speeches and audio files cost a price a piece at most.

What this is not: no look-up of prices (``price_table``), no choice of which model needs one, no
caps.

Invariants:
- Money is whole nano-dollars, rounded up.
"""

from __future__ import annotations

from typing import Final

from freeapi.policy.draft import Prepared
from freeapi.policy.models import UNIT_ENDPOINTS, Model

#: Tokens for which prices are given.
MTOK: Final = 1_000_000


def bound_nanousd(prepared: Prepared) -> int:
    """The most that the request can cost, output at its ceiling and nothing cached."""
    nanousd = known_bound_nanousd(prepared)
    assert nanousd is not None, "a paid model without a price"
    return nanousd


def known_bound_nanousd(prepared: Prepared) -> int | None:
    """The same; None where it isn't known: of a request older than the first cap."""
    if prepared.units:
        return _units_nanousd(prepared, prepared.prompt_tokens_max)
    return _tokens_nanousd(prepared, prepared.prompt_tokens_max, prepared.output_tokens)


def cost_nanousd(prepared: Prepared, prompt_tokens: int, completion_tokens: int) -> int:
    """What known usage cost at most; hidden reasoning is among the completion's tokens.

    Images, speeches and files cost what was reserved for them, unless the model has prices of
    tokens that can only be meant for them.
    """
    if prepared.units and not _has_own_token_prices(prepared.model):
        nanousd = _units_nanousd(prepared, prompt_tokens)
    else:
        nanousd = _tokens_nanousd(prepared, prompt_tokens, completion_tokens)
    assert nanousd is not None, "a paid model without a price"
    return nanousd


def is_priced(prepared: Prepared) -> bool:
    """Whether a bound of its cost is known."""
    return known_bound_nanousd(prepared) is not None


def _has_own_token_prices(model: Model) -> bool:
    """Whether its prices of tokens are those of images and sound, as it serves nothing else."""
    prices = (model.input_nanousd_per_mtok, model.output_nanousd_per_mtok)
    return None not in prices and UNIT_ENDPOINTS.issuperset(model.endpoints)


def _tokens_nanousd(prepared: Prepared, prompt_tokens: int, completion_tokens: int) -> int | None:
    """None without a price; without one for output there must be none: embeddings, moderations."""
    model = prepared.model
    input_nanousd_per_mtok = model.input_nanousd_per_mtok
    output_nanousd_per_mtok = model.output_nanousd_per_mtok
    if output_nanousd_per_mtok is None and not prepared.output_tokens:
        output_nanousd_per_mtok = 0
    if input_nanousd_per_mtok is None or output_nanousd_per_mtok is None:
        return None
    return rounded_up(
        prompt_tokens * input_nanousd_per_mtok + completion_tokens * output_nanousd_per_mtok, MTOK
    )


def _units_nanousd(prepared: Prepared, prompt_tokens: int) -> int | None:
    """Each at its most, and the prompt if it has a price of its own; None without a price."""
    model = prepared.model
    if model.unit_nanousd is None:
        return None
    prompt_nanousd = rounded_up(prompt_tokens * (model.input_nanousd_per_mtok or 0), MTOK)
    return prompt_nanousd + prepared.units * model.unit_nanousd


def rounded_up(amount: int, divisor: int) -> int:
    """The quotient, a part of one counted as one."""
    return -(-amount // divisor)
