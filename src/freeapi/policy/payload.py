"""What a request may contain: the caller's JSON checked, adjusted, and written anew.

One function for all JSON endpoints: ``draft`` opens the body, the endpoint's module (``chat``,
``completions``, ``responses``, ``plain``, ``media``) checks it, and a ``Prepared`` comes out. A
plain chat request gets there in one step.
``tables`` says which names may be there at all; the modules look at values.

What this is not: no check of what the upstream checks itself (the range of ``temperature``, the
text of a message), and no counting of tokens or money: later decisions use the numbers it returns.
Forms aren't JSON, and are ``form``'s affair.

Invariants: those of ``draft``, and that no exception but FreeApiError gets out, whatever the body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from freeapi.errors import InvalidJson
from freeapi.policy import chat, completions, media, plain, responses
from freeapi.policy.draft import Draft, Prepared, Rules, open_draft
from freeapi.policy.models import Endpoint, ModelTable

__all__ = ["Prepared", "Rules", "prepare"]

_CHECKS: Final[Mapping[Endpoint, Callable[[Draft], Prepared]]] = {
    "chat": chat.prepare,
    "completions": completions.prepare,
    "embeddings": plain.prepare_embeddings,
    "moderations": plain.prepare_moderations,
    "responses": responses.prepare,
    "images": media.prepare_images,
    "speech": media.prepare_speech,
}


def prepare(endpoint: Endpoint, body: bytes, table: ModelTable, rules: Rules) -> Prepared:
    """The body of a POST to the endpoint as it may be sent.

    Raises InvalidJson, InvalidValue, UnsupportedParameter, ModelNotFound: nothing was taken yet.
    O(bytes): a short chat takes 17,000 instructions, of which msgspec takes 10,000.
    """
    try:
        _check_encoding(body)
        if endpoint == "chat":
            prepared = chat.prepare_plain(body, table)
            if prepared is not None:
                return prepared
        return _CHECKS[endpoint](open_draft(endpoint, body, table, rules))
    except RecursionError:
        # msgspec's way to say so; how deep is too deep depends on the interpreter.
        raise InvalidJson(problem="it is nested too deeply") from None


def _check_encoding(body: bytes) -> None:
    """msgspec doesn't look at the UTF-8 of what it leaves raw, and upstreams differ there.

    Raises InvalidJson.
    """
    if body.isascii():
        return
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJson(problem=f"it is not UTF-8 at byte {error.start}") from None
