"""The configured upstreams, built: connections, keys, and the head that each key's requests have.

The embedded model is one of them, under the name ``local``: the only one where no other is
configured, the last of a model's list where the operator says so, a stand-in for an exhausted
budget, else absent.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from freeapi import __version__
from freeapi.account import Account
from freeapi.config import Config
from freeapi.http.deadlines import Deadlines
from freeapi.http.pool import Origin, Timeouts, UpstreamPool
from freeapi.http.tunnel import ProxyAddress
from freeapi.policy.budget import Caps
from freeapi.policy.keys import KeySpec, UpstreamKeys
from freeapi.policy.models import PATHS, Endpoint, Model
from freeapi.providers import LOCAL, Upstream
from freeapi.spelling import Secret

#: What it can stand in for: its words are words; its vectors aren't another model's.
STAND_IN_FOR: Final = frozenset[Endpoint](["chat", "completions"])
#: After all that an operator can configure.
_LAST: Final = 1_000_000


class Upstreams(NamedTuple):
    """All of them."""

    pools: Mapping[str, UpstreamPool]
    keys: Sequence[UpstreamKeys]
    #: Those that cost nothing.
    free: frozenset[str]
    #: Whether an answer of the embedded model has to be marked: callers expect another's.
    marks_local: bool

    def retire(self, successor: Upstreams) -> None:
        """Close what the successor doesn't use, each connection when its request is over."""
        kept = set(successor.pools.values())
        for pool in self.pools.values():
            if pool not in kept:
                pool.retire()

    def close(self) -> None:
        """Close every connection."""
        for pool in self.pools.values():
            pool.close()


def build(
    config: Config,
    local_socket: str | None,
    deadlines: Deadlines,
    predecessor: Upstreams | None = None,
) -> Upstreams:
    """Build them; ``local_socket`` is the embedded model's. Nothing is connected yet.

    Connections of the predecessor to the same origin go on being used.
    """
    timeouts = Timeouts(
        connect_s=config.timeouts.connect_s,
        first_byte_s=config.timeouts.first_byte_s,
        idle_s=config.timeouts.idle_s,
    )
    origins = {one.name: _origin(one) for one in config.upstreams}
    if local_socket is not None:
        origins[LOCAL] = Origin(host="localhost", port=0, socket_path=local_socket)
    known = {} if predecessor is None else predecessor.pools
    pools = {
        name: _same(known.get(name), origin, timeouts) or UpstreamPool(origin, timeouts, deadlines)
        for name, origin in origins.items()
    }
    keys = [_keys(one, pools[one.name]) for one in config.upstreams]
    if local_socket is not None:
        account = Account(pools[LOCAL], _starts("localhost", "/v1", None), b"")
        keys.append(UpstreamKeys(LOCAL, (KeySpec("", b"", account),), priority=_LAST))
    free = frozenset(one.name for one in config.upstreams if one.free) | {LOCAL}
    return Upstreams(pools, keys, free, marks_local=bool(config.upstreams))


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


# --- Connections ----------------------------------------------------------------------------------


def _same(pool: UpstreamPool | None, origin: Origin, timeouts: Timeouts) -> UpstreamPool | None:
    """The pool, if it is to this origin and as patient."""
    if pool is None or pool.origin != origin or pool.timeouts != timeouts:
        return None
    return pool


def _origin(upstream: Upstream) -> Origin:
    return Origin(
        host=upstream.host,
        port=upstream.port,
        tls=upstream.scheme == "https",
        proxy=_proxy(upstream),
    )


def _proxy(upstream: Upstream) -> ProxyAddress | None:
    if upstream.proxy is None:
        return None
    return ProxyAddress(
        host=upstream.proxy.host,
        port=upstream.proxy.port,
        authorization=None if upstream.proxy_auth is None else _basic(upstream.proxy_auth),
    )


def _basic(credentials: Secret) -> bytes:
    """Source: RFC 7617 section 2."""
    return b"Basic " + base64.b64encode(credentials.reveal().encode())


# --- Keys and heads -------------------------------------------------------------------------------


def _keys(upstream: Upstream, pool: UpstreamPool) -> UpstreamKeys:
    """Its keys; a server that wants none has one anonymous key."""
    starts = _starts(upstream.authority, upstream.base_path, upstream.api_version)
    specs = [
        KeySpec(key.tail, _identity(key), Account(pool, starts, _key_line(upstream, key)))
        for key in upstream.keys
    ]
    return UpstreamKeys(
        upstream.name,
        tuple(specs) or (KeySpec("", b"", Account(pool, starts, b"")),),
        priority=upstream.priority,
        share=upstream.share,
    )


def _identity(key: Secret) -> bytes:
    """By which a key is known again, here and at other replicas; it can't be told from it."""
    return hashlib.blake2b(key.reveal().encode(), digest_size=16, person=b"freeapi key").digest()


def _key_line(upstream: Upstream, key: Secret) -> bytes:
    name = "authorization: Bearer" if upstream.auth == "bearer" else "api-key:"
    return f"{name} {key.reveal()}\r\n".encode()


def _starts(authority: str, base_path: str, api_version: str | None) -> dict[Endpoint, bytes]:
    """What all heads for an endpoint begin with: nothing in it is the caller's."""
    query = "" if api_version is None else f"?api-version={api_version}"
    return {
        endpoint: (
            f"POST {base_path}{path}{query} HTTP/1.1\r\n"
            f"host: {authority}\r\n"
            f"user-agent: chatgpt-freeapi/{__version__}\r\n"
            "accept-encoding: identity\r\n"
        ).encode()
        for endpoint, path in PATHS.items()
    }
