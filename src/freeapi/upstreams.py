"""The configured upstreams, built: connections, keys, and the head that each key's requests have.

The embedded model is one of them, under the name ``local``: the only one where no other is
configured, a stand-in for an exhausted budget where the operator wants it, else absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from freeapi import __version__
from freeapi.config import Config, Upstream
from freeapi.http.deadlines import Deadlines
from freeapi.http.pool import Origin, Timeouts, UpstreamPool
from freeapi.policy.budget import Caps
from freeapi.policy.keys import UpstreamKeys
from freeapi.policy.models import Model
from freeapi.policy.payload import Prepared

#: The embedded model among the upstreams' names.
LOCAL: Final = "local"
_CHAT_PATH: Final = "/chat/completions"


class Account:
    """One key's way to its upstream: the connections, and a request's head but for its end."""

    __slots__ = ("_head", "pool")

    def __init__(self, pool: UpstreamPool, head: bytes) -> None:
        self.pool = pool
        #: Holds the key, so it isn't in a repr.
        self._head = head

    def head_for(self, prepared: Prepared) -> bytes:
        """The complete head of the request that is sent."""
        accept = b"text/event-stream" if prepared.stream else b"application/json"
        return b"%baccept: %b\r\ncontent-length: %d\r\n\r\n" % (
            self._head,
            accept,
            len(prepared.body),
        )


class Upstreams(msgspec.Struct, frozen=True):
    """All of them. ``accounts``: of each name, one for each of its keys, in the pool's order."""

    pools: Mapping[str, UpstreamPool]
    keys: Sequence[UpstreamKeys]
    accounts: Mapping[str, Sequence[Account]]
    #: Those that cost nothing.
    free: frozenset[str]


def build(config: Config, local_socket: str | None, deadlines: Deadlines) -> Upstreams:
    """Build them; ``local_socket`` is the embedded model's. Nothing is connected yet."""
    timeouts = Timeouts(
        connect_s=config.timeouts.connect_s,
        first_byte_s=config.timeouts.first_byte_s,
        idle_s=config.timeouts.idle_s,
    )
    pools = {one.name: UpstreamPool(_origin(one), timeouts, deadlines) for one in config.upstreams}
    accounts = {one.name: _accounts(one, pools[one.name]) for one in config.upstreams}
    keys = [_keys(one) for one in config.upstreams]
    if local_socket is not None:
        origin = Origin(host="localhost", port=0, socket_path=local_socket)
        pools[LOCAL] = UpstreamPool(origin, timeouts, deadlines)
        accounts[LOCAL] = [Account(pools[LOCAL], _head("localhost", "/v1", None))]
        keys.append(UpstreamKeys(LOCAL, ()))
    free = frozenset(one.name for one in config.upstreams if one.free) | {LOCAL}
    return Upstreams(pools, keys, accounts, free)


def routed(config: Config) -> tuple[Model, ...]:
    """The models, each with the names of the upstreams that serve it."""
    everyone = tuple(one.name for one in config.upstreams) or (LOCAL,)
    return tuple(
        msgspec.structs.replace(model, upstreams=model.upstreams or everyone)
        for model in config.models
    )


def caps(config: Config) -> Caps | None:
    """The spend caps; None where nothing is paid for or nothing is capped."""
    paid = [one for one in config.upstreams if not one.free]
    own = {one.name: one.daily_nanousd for one in paid if one.daily_nanousd is not None}
    shared = (config.daily_nanousd, config.monthly_nanousd, config.caller_daily_nanousd)
    if not paid or (not own and all(cap is None for cap in shared)):
        return None
    return Caps(
        daily_nanousd=config.daily_nanousd,
        monthly_nanousd=config.monthly_nanousd,
        caller_daily_nanousd=config.caller_daily_nanousd,
        upstream_daily_nanousd=own,
    )


def _origin(upstream: Upstream) -> Origin:
    return Origin(host=upstream.host, port=upstream.port, tls=upstream.scheme == "https")


def _keys(upstream: Upstream) -> UpstreamKeys:
    return UpstreamKeys(
        upstream.name,
        tuple(key.tail for key in upstream.keys),
        priority=upstream.priority,
        share=upstream.share,
    )


def _accounts(upstream: Upstream, pool: UpstreamPool) -> list[Account]:
    keys: list[str | None] = [key.reveal() for key in upstream.keys]
    return [
        Account(pool, _head(upstream.authority, upstream.base_path, key)) for key in keys or [None]
    ]


def _head(authority: str, base_path: str, key: str | None) -> bytes:
    """All of a request's head that doesn't change: nothing in it is the caller's."""
    authorization = "" if key is None else f"authorization: Bearer {key}\r\n"
    return (
        f"POST {base_path}{_CHAT_PATH} HTTP/1.1\r\n"
        f"host: {authority}\r\n"
        f"{authorization}"
        f"user-agent: chatgpt-freeapi/{__version__}\r\n"
        "accept-encoding: identity\r\n"
        "content-type: application/json\r\n"
    ).encode()
