"""Completions, the older way to continue a text: how many of them, and how long.

What this is not: no check of what the prompts say, nor of tokens' numbers.

Invariants:
- ``max_tokens`` is always in the body: OpenAI's default where nothing was asked for, so an upstream
  with another default can't go on without end.
- What is reserved is the ceiling of each candidate (``best_of`` are made, ``n`` are shown) of each
  prompt.
"""

from __future__ import annotations

from typing import Final

from freeapi.policy.draft import NULL, Draft, Prepared, ask_usage, put_ceiling, take_choices
from freeapi.policy.fields import apply
from freeapi.policy.plain import count_inputs
from freeapi.policy.tables import COMPLETION_FIELDS

#: Output tokens where the caller doesn't say. Source: OpenAI API reference, ``max_tokens``.
_DEFAULT_TOKENS: Final = 16


def prepare(draft: Draft) -> Prepared:
    """The body of ``POST /v1/completions`` as it may be sent; no prompt is a new document."""
    apply(COMPLETION_FIELDS, draft.fields, draft.changes, "")
    ceiling = put_ceiling(draft, "max_tokens", _DEFAULT_TOKENS)
    stream, hides_usage = ask_usage(draft)
    candidates = max(take_choices(draft, "n"), take_choices(draft, "best_of"))
    given = draft.fields.get("prompt", NULL)
    prompts = 1 if given == NULL else count_inputs(given, "prompt")
    return draft.finish(stream, hides_usage, prompts * candidates * ceiling)
