"""Embeddings and moderations: texts in, numbers out, no output tokens.

What this is not: no check of a text's length or of a token's number: the upstream does that.

Invariants:
- Tokens given as numbers take at least two bytes each, so the body's bytes bound their count too;
  and so do the quotes and brackets of each input for what a model puts around it.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from freeapi.errors import InvalidValue
from freeapi.policy.draft import ITEMS_MAX, NULL, STRING, STRINGS, Draft, Prepared
from freeapi.policy.fields import apply
from freeapi.policy.parts import MODERATION_PARTS, check_parts, decode_parts
from freeapi.policy.tables import EMBEDDING_FIELDS, MODERATION_FIELDS

_TOKENS: Final = msgspec.json.Decoder(list[int])
_TOKEN_LISTS: Final = msgspec.json.Decoder(list[list[int]])


def prepare_embeddings(draft: Draft) -> Prepared:
    """The body of ``POST /v1/embeddings`` as it may be sent."""
    apply(EMBEDDING_FIELDS, draft.fields, draft.changes, "")
    count_inputs(draft.fields.get("input", NULL), "input")
    return draft.finish()


def prepare_moderations(draft: Draft) -> Prepared:
    """The body of ``POST /v1/moderations`` as it may be sent."""
    apply(MODERATION_FIELDS, draft.fields, draft.changes, "")
    given = draft.fields.get("input", NULL)
    texts = _count_texts(given)
    if texts is None:
        wanted = "a string, or a list of strings or of parts (objects)"
        parts = decode_parts(given, "input", wanted)
        _check_count(len(parts), "input")
        check_parts(draft, parts, "input", MODERATION_PARTS)
        draft.fields["input"] = parts
    else:
        _check_count(texts, "input")
    return draft.finish()


def count_inputs(given: Raw, name: str) -> int:
    """How many texts, or lists of tokens, there are; one that stands alone is one.

    Raises InvalidValue unless they are 1 to ITEMS_MAX, all of a kind.
    """
    count = _count_texts(given)
    if count is None:
        count = _count_token_lists(given, name)
    _check_count(count, name)
    return count


def _count_texts(given: Raw) -> int | None:
    """None: it is neither a string nor a list of strings."""
    try:
        STRING.decode(given)
        return 1
    except msgspec.DecodeError:
        pass
    try:
        return len(STRINGS.decode(given))
    except msgspec.DecodeError:
        return None


def _count_token_lists(given: Raw, name: str) -> int:
    try:
        _TOKENS.decode(given)
        return 1
    except msgspec.DecodeError:
        pass
    try:
        return len(_TOKEN_LISTS.decode(given))
    except msgspec.DecodeError:
        problem = "it must be a string, a list of strings, a list of tokens, or a list of those"
        raise InvalidValue(param=name, problem=problem) from None


def _check_count(count: int, name: str) -> None:
    if not 1 <= count <= ITEMS_MAX:
        raise InvalidValue(param=name, problem=f"there must be 1 to {ITEMS_MAX} of them")
