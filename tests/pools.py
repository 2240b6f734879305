"""Upstreams' keys as the pool of keys takes them, in one line."""

from __future__ import annotations

from freeapi.policy.keys import KeySpec, UpstreamKeys


def upstream_keys(
    name: str, tails: tuple[str, ...] = ("",), priority: int = 1, share: float = 1.0
) -> UpstreamKeys:
    """An upstream whose keys are told apart by what is shown of them, which is also their account.

    Without tails it is a server that wants no key.
    """
    keys = tuple(KeySpec(tail, tail.encode(), account=tail) for tail in tails)
    return UpstreamKeys(name, keys, priority, share)
