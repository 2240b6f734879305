"""A server that would lose money or limits is told from one that keeps them."""

from __future__ import annotations

import pytest

from freeapi.state import valkey_checks
from freeapi.state.valkey import Store
from freeapi.state.valkey_checks import check_server
from tests.valkey_server import serving


async def problems(*settings: str, is_capped: bool = True) -> list[str]:
    """What is found of a server with these settings."""
    with serving(*settings) as server:
        store = Store(server.url)
        await store.start()
        found = await check_server(store, is_capped=is_capped)
        await store.close()
        return found


@pytest.mark.parametrize("fsync", ["everysec", "always"])
async def test_good_server_has_no_problems(fsync: str) -> None:
    """With its append-only file synced, and nothing evicted, there is nothing to say."""
    assert await problems("--appendfsync", fsync, "--maxmemory", "100mb") == []


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (("--appendonly", "no"), "appendonly is no"),
        (("--appendfsync", "no"), "appendfsync is no"),
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), "noeviction"),
    ],
)
async def test_each_problem_is_told(settings: tuple[str, ...], word: str) -> None:
    """Each setting that would break a promise is one sentence that names it."""
    (problem,) = await problems(*settings)
    assert word in problem


async def test_without_caps_nothing_has_to_be_on_disk() -> None:
    """Where no money is kept the append-only file may be off."""
    assert await problems("--appendonly", "no", is_capped=False) == []


async def test_server_that_hides_its_settings_is_taken_at_its_word() -> None:
    """Managed servers have no CONFIG; what INFO says is checked still."""
    assert await problems("--rename-command", "CONFIG", "") == []


async def test_old_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without WAITAOF, as one older than the version that is needed."""
    monkeypatch.setattr(valkey_checks, "VERSION_MIN", (99, 0))
    (problem,) = await problems()
    assert "WAITAOF" in problem


def test_node_of_a_cluster_is_refused() -> None:
    """A decision needs all keys in one server."""
    (problem,) = valkey_checks._cluster_problems({"cluster_enabled": "1"})
    assert "cluster" in problem


async def test_failed_write_of_the_file_is_told() -> None:
    """A server whose disk fails says so itself."""
    found = valkey_checks._persistence_problems(
        {"aof_enabled": "1", "aof_last_write_status": "err"}, "everysec"
    )
    assert "disk" in found[0]
