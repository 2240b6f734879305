"""Whether a Valkey or Redis server can keep what is promised: for the start and ``freeapi doctor``.

Each problem is a sentence that says what is lost and what to do. With money capped they stop the
start; without caps they are worth a warning, but for the ones about versions and cluster mode.

What this is not: it changes no setting of the server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from freeapi.state.valkey import Store, StoreRefused

#: WAITAOF came with Redis 7.2, from which Valkey comes.
VERSION_MIN: Final = (7, 2)


async def check_server(store: Store, *, is_capped: bool) -> list[str]:
    """What is wrong with the server, in words; nothing for a good one.

    ``is_capped``: money is to be kept there. Raises StoreUnavailable.
    """
    server = _fields(await store.command(b"INFO", b"server"))
    cluster = _fields(await store.command(b"INFO", b"cluster"))
    memory = _fields(await store.command(b"INFO", b"memory"))
    persistence = _fields(await store.command(b"INFO", b"persistence"))
    problems = _version_problems(server) + _cluster_problems(cluster)
    problems += _memory_problems(memory)
    if is_capped:
        problems += _persistence_problems(persistence, await _setting(store, b"appendfsync"))
    return problems


def _version_problems(server: Mapping[str, str]) -> list[str]:
    version = server.get("valkey_version") or server.get("redis_version", "0")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers >= VERSION_MIN:
        return []
    return [
        f"the server is version {version}: without WAITAOF (Valkey, or Redis from 7.2) nobody can "
        "tell whether a lease of money is on its disk. Use Valkey 7.2 or later"
    ]


def _cluster_problems(cluster: Mapping[str, str]) -> list[str]:
    if cluster.get("cluster_enabled", "0") == "0":
        return []
    return [
        "the server is a node of a cluster: a decision is one function over one server. Use a "
        "server of its own"
    ]


def _memory_problems(memory: Mapping[str, str]) -> list[str]:
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy == "noeviction" or memory.get("maxmemory", "0") == "0":
        return []
    return [
        f"maxmemory-policy is {policy}: when memory is full the server would forget what was spent "
        "and what callers have used. Set it to noeviction"
    ]


def _persistence_problems(persistence: Mapping[str, str], appendfsync: str | None) -> list[str]:
    if persistence.get("aof_enabled") != "1":
        return [
            "appendonly is no: after a restart of the server nothing would be known of what was "
            "spent, and the caps would count from zero. Set appendonly to yes"
        ]
    if appendfsync == "no":
        return [
            "appendfsync is no: a lease of money would wait for the disk for up to half a minute. "
            "Set it to everysec, or to always"
        ]
    if persistence.get("aof_last_write_status", "ok") != "ok":
        return ["the server's last write of its append-only file failed: check its disk"]
    return []


async def _setting(store: Store, name: bytes) -> str | None:
    """None where the server doesn't say (managed ones hide CONFIG)."""
    try:
        answer: list[Any] = await store.command(b"CONFIG", b"GET", name)
    except StoreRefused:
        return None
    return answer[1].decode() if len(answer) == 2 else None


def _fields(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode().splitlines())
    return {name: value for name, colon, value in lines if colon}
