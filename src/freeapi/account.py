"""One key's way to its upstream: the connections, and the heads of its requests.

Nothing in a head is the caller's but the type of a form and the length of what is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from freeapi.http.pool import UpstreamPool
from freeapi.policy.models import Endpoint
from freeapi.policy.payload import Prepared

#: Whose answers needn't be JSON: what kind of sound or subtitles they are, the body says.
_ANY_KIND: Final = frozenset[Endpoint](["speech", "transcriptions", "translations"])
_JSON: Final = b"content-type: application/json\r\ncontent-length: "
#: How long a form will be isn't known when its first bytes leave.
_FORM: Final = b"content-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"


class Account:
    """A key, as far as sending with it goes."""

    __slots__ = ("_plain", "_streaming", "pool")

    def __init__(
        self, pool: UpstreamPool, starts: Mapping[Endpoint, bytes], key_line: bytes
    ) -> None:
        """``starts``: what all heads for an endpoint begin with."""
        self.pool = pool
        # They hold the key, so they aren't in a repr.
        self._plain = {to: start + key_line + _accept(to) for to, start in starts.items()}
        self._streaming = {
            to: start + key_line + b"accept: text/event-stream\r\n" for to, start in starts.items()
        }

    def head_for(self, prepared: Prepared, form_type: bytes | None = None) -> bytes:
        """The complete head of the request that is sent.

        ``form_type``: the content type of a body that follows in chunks; None: the JSON prepared.
        """
        heads = self._streaming if prepared.stream else self._plain
        head = heads[prepared.endpoint]
        if form_type is not None:
            return head + _FORM % form_type
        return b"%b%b%b\r\n\r\n" % (head, _JSON, str(len(prepared.body)).encode())


def _accept(endpoint: Endpoint) -> bytes:
    return b"accept: */*\r\n" if endpoint in _ANY_KIND else b"accept: application/json\r\n"
