"""Bodies of requests, prepared by the policy: what the tests of each endpoint's checks share."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from freeapi.errors import ClientError
from freeapi.policy.models import PATHS, Endpoint, Model, ModelTable
from freeapi.policy.payload import Prepared, Rules, prepare

_SMALL = Model("gpt-3.5-turbo", "small", 60, 1_000, 1_024, "max_completion_tokens")
_ALL = msgspec.structs.replace(
    _SMALL, name="all", endpoints=tuple(PATHS), unit_nanousd=1, max_output_tokens=100
)
#: What an image counts for in tokens.
IMAGE_TOKENS = 700
TABLE = ModelTable(
    [
        _SMALL,
        Model("local", "local", 60, 1_000, 256, "max_tokens"),
        Model("embedder", "e", 60, 1_000, 1, "max_tokens", endpoints=("embeddings",)),
        _ALL,
        msgspec.structs.replace(_ALL, name="seer", image_tokens_max=IMAGE_TOKENS),
    ],
    created=0,
)
DROP = Rules(n_max=4, unknown_fields="drop")
REFUSE = Rules(n_max=4, unknown_fields="refuse")
CANARY = "canary-7f3a"
PIXEL = "data:image/png;base64,iVBORw0KGgo="
#: A good request of each JSON endpoint.
GOOD: dict[Endpoint, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "completions": {"prompt": "once"},
    "embeddings": {"input": "text"},
    "moderations": {"input": "text"},
    "responses": {"input": "hi"},
    "images": {"prompt": "a cat"},
    "speech": {"input": "hi", "voice": "alloy"},
}


def prepare_fields(
    endpoint: Endpoint, rules: Rules = DROP, /, *, model: object = "all", **fields: Any
) -> Prepared:
    """Prepare a good request with these fields added; ``...`` leaves one out."""
    request = {"model": model, **GOOD[endpoint], **fields}
    body = {name: value for name, value in request.items() if value is not ...}
    return prepare(endpoint, json.dumps(body).encode(), TABLE, rules)


def sent(prepared: Prepared) -> dict[str, Any]:
    """The body that leaves."""
    body: dict[str, Any] = json.loads(prepared.body)
    return body


def refusal(
    error: type[ClientError], endpoint: Endpoint, rules: Rules = DROP, /, **fields: Any
) -> ClientError:
    """The error with which such a request is refused."""
    with pytest.raises(error) as caught:
        prepare_fields(endpoint, rules, **fields)
    assert CANARY not in caught.value.message
    return caught.value
