"""The store stays connected: a real Valkey is paused and killed under it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from freeapi.state.valkey import Script, Store, StoreError, StoreUnavailable
from tests.sharers import TIMEOUT_S, Heard, answers, started
from tests.valkey_server import ValkeyServer


async def test_script_runs_and_survives_being_forgotten(bad_server: ValkeyServer) -> None:
    """A function that the server has forgotten is sent again, and its call is answered."""
    store = await started(bad_server, Heard())
    script = Script(b"return {KEYS[1], ARGV[1]}", b"0" * 40)
    known = store.know("meter", "join")
    assert len(known.sha) == 40
    assert await store.call(script, b"n", b"a") == [b"n", b"a"]
    await store.command(b"SCRIPT", b"FLUSH")
    assert await store.call(script, b"n", b"b") == [b"n", b"b"]
    await store.close()


@pytest.mark.parametrize("harm", ["pause", "kill"])
async def test_calls_fail_in_time_and_it_recovers_by_itself(
    bad_server: ValkeyServer, harm: str
) -> None:
    """Calls to a server that hangs or dies fail by the time-out; later ones at once; and when
    it is back so is the store, after its steps for a new connection."""
    heard = Heard()
    store = await started(bad_server, heard, timeout_s=TIMEOUT_S)
    steps: list[bytes] = []

    async def step() -> None:
        steps.append(await store.call_early(Script(b"return 'hi'", b"1" * 40), b"n", b""))
        assert not store.is_up, "nobody else may call before the steps are done"

    store.on_up.append(step)
    getattr(bad_server, harm)()
    failed = await answers([store.command(b"PING") for _ in range(10)])
    assert all(isinstance(error, StoreUnavailable) for error in failed)
    assert not store.is_up
    with pytest.raises(StoreUnavailable):
        await store.call(Script(b"", b""), b"n", b"")
    (bad_server.resume if harm == "pause" else bad_server.start)()
    await heard.until(3)
    assert heard.words == ["ok", "timeout" if harm == "pause" else "closed", "ok"]
    assert await store.command(b"PING") == b"PONG"
    assert steps == [b"hi"]
    await store.close()


async def test_closing_fails_what_is_open_and_stays_closed(bad_server: ValkeyServer) -> None:
    """After the end open calls have failed, and no connection is made again."""
    store = await started(bad_server, Heard())
    bad_server.pause()
    call = store.command(b"PING")
    await store.close()
    with pytest.raises(StoreUnavailable):
        await call
    bad_server.resume()
    assert "down" in repr(store)
    with pytest.raises(StoreUnavailable):
        await store.command(b"PING")


async def test_closing_while_it_connects(bad_server: ValkeyServer) -> None:
    """The end stops the attempts to connect again."""
    heard = Heard()
    store = await started(bad_server, heard)
    bad_server.kill()
    await heard.until(2)
    await store.close()
    assert not store.is_up


async def test_start_without_a_server_says_what_to_do(tmp_path: Path) -> None:
    """A store that isn't there stops the start with a sentence for the operator."""
    store = Store(f"unix://{tmp_path}/none")
    with pytest.raises(StoreError, match="check FREEAPI_STATE"):
        await store.start()
    await store.close()


def test_libraries_are_loaded_only_where_the_state_is_shared() -> None:
    """A gateway that is alone doesn't pay 0.1 s at its start for clients that it doesn't use."""
    code = "import sys, freeapi.cli; print({'valkey', 'libvalkey'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"set()\n"
