"""The dry run: a caller sees the exact request that would be sent upstream, and nothing is sent.

With the header ``x-freeapi-dry-run: 1``, a POST that an upstream would answer is answered by us
instead: with the method, the URL, the headers in their order and the body, as text, that would
leave. So nobody has to believe what PRIVACY.md says.

What this is not: a second way to make a request. The bytes are those of ``Account.head_for`` and of
the prepared body, which are what is sent; here they are only read, and the key is taken out.

It takes no key, no money and no tokens. But it counts as one of the caller's requests, by minute
and by day: reading a body of a megabyte is work, too.
"""

from __future__ import annotations

from typing import Final

import msgspec

from freeapi.account import Account
from freeapi.errors import InvalidValue
from freeapi.http.wire import Request
from freeapi.policy.payload import Prepared

HEADER: Final = b"x-freeapi-dry-run"
_REDACTED: Final = {"authorization": "Bearer [redacted]", "api-key": "[redacted]"}


class _Shown(msgspec.Struct):
    """The answer's fields, in this order."""

    method: str
    url: str
    headers: list[tuple[str, str]]
    body: str


def is_wanted(request: Request) -> bool:
    """Whether the caller wants to see the request rather than to send it.

    Raises InvalidValue for any other value than ``1``: whoever writes ``true`` must not find out
    afterwards that the prompt was sent.
    """
    value = request.headers.get(HEADER)
    if value is not None and value != b"1":
        raise InvalidValue(param=HEADER.decode(), problem="it must be 1, or left out")
    return value is not None


def show(account: Account, prepared: Prepared) -> bytes:
    """The request as JSON; the key's value is all that differs from what is sent."""
    start, *lines = (
        account.head_for(prepared).decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    )
    method, target, _ = start.split(" ")
    headers = [_shown(*line.split(": ", 1)) for line in lines]
    scheme = "https" if account.pool.origin.tls else "http"
    url = f"{scheme}://{dict(headers)['host']}{target}"
    return msgspec.json.encode(_Shown(method, url, headers, prepared.body.decode()))


def _shown(name: str, value: str) -> tuple[str, str]:
    return name, _REDACTED.get(name, value)
