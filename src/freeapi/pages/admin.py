"""The admin port: what only the operator may see. It listens apart from the public one.

Its answers name upstreams, models and at most four characters of a key; they never name a caller.
On a loopback address a ``Host`` that is a name other than ``localhost`` is refused: a web page in
the operator's browser could else read these pages by DNS rebinding.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection
from typing import Final, Protocol

import msgspec

from freeapi.errors import FreeApiError, MethodNotAllowed, RouteNotFound
from freeapi.http.reply import Reply
from freeapi.http.wire import Request
from freeapi.pages.operator import GUARDS, OperatorPages, Page
from freeapi.routes import JSON, refuse

#: The port of a Host header; the colons of a bare IPv6 address are within brackets.
_PORT: Final = re.compile(r"(?<=[\]\w]):[0-9]*$")
_HINT: Final = "This is the admin port; it serves GET /, GET /keys and GET /metrics."


class Describes(Protocol):
    """Who knows of keys: a pool, or all workers' together."""

    def describe(self, now_s: float, models: Collection[str]) -> list[dict[str, str | int]]:
        """Each key for the operator; only names in ``models`` are shown."""


class AdminPages:
    """The application of the admin port."""

    def __init__(
        self,
        keys: Describes,
        models: Collection[str],
        now: Callable[[], float],
        *,
        local_only: bool,
        operator: OperatorPages | None = None,
    ) -> None:
        """``models``: those that may be named; ``local_only``: it listens on a loopback address."""
        self._keys = keys
        self._models = models
        self._now = now
        self._local_only = local_only
        self._pages: dict[bytes, Page] = {b"/keys": self._show_keys}
        if operator is not None:
            self._pages |= operator.pages

    def __call__(self, request: Request, reply: Reply) -> None:
        """Answer; never raises a FreeApiError."""
        try:
            self._find(request)(request, reply)
        except FreeApiError as error:
            refuse(reply, error)

    def _find(self, request: Request) -> Page:
        page = self._pages.get(request.path)
        path = request.path.decode("ascii", "replace")[:100]
        method = request.method.decode()
        host = request.headers.get(b"host", b"localhost").decode("ascii", "replace")
        if page is None or (self._local_only and not is_own_address(host)):
            raise RouteNotFound(method=method, path=path, hint=_HINT)
        if request.method not in (b"GET", b"HEAD"):
            raise MethodNotAllowed(method=method, path=path, allow="GET, HEAD")
        return page

    def _show_keys(self, request: Request, reply: Reply) -> None:
        keys = self._keys.describe(self._now(), self._models)
        reply.send(200, GUARDS + JSON, msgspec.json.encode({"keys": keys}))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address that is listened on."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def is_own_address(host: str) -> bool:
    """Whether a Host header is an address or ``localhost``, so that no DNS answer led here.

    >>> is_own_address("127.0.0.1:9464"), is_own_address("[::1]"), is_own_address("evil.example")
    (True, True, False)
    """
    name = _PORT.sub("", host).strip("[]")
    return name == "localhost" or _address(name) is not None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
