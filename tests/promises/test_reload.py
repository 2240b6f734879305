"""Promise: a changed configuration is taken over without dropping a request or a counter.

By SIGHUP or when a file has changed; what can't be used is refused with all its problems, and the
old configuration goes on.
"""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.answers import DONE, LAST_CHUNK, STREAM_HEAD, delta, usage_event
from tests.conftest import StartGateway
from tests.crowd import OPEN_DOOR
from tests.gateway import MODEL, UNLIMITED_MODEL, Gateway
from tests.money import PRICES, assert_exhausted, cap, cost_nanousd, left_becomes, left_nanousd
from tests.raw_client import ask, caller, chat, request
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream, chunk, pause, send

KEYS = ("sk-canary-reload-old-AAAA", "sk-canary-reload-new-BBBB")
#: So that ``.env`` says it, which can be changed: an empty variable counts as not set.
FROM_FILE = ""
MODELS = request("GET", "/v1/models")


def model(name: str, *lines: str) -> str:
    """A ``[[model]]`` without limits but those in ``lines``."""
    return "\n".join(
        ["[[model]]", f'name = "{name}"', 'upstream_model = "gpt-4o-mini"', *lines, ""]
    )


def upstream_table(name: str, port: int, keys_file: str) -> str:
    """An ``[[upstream]]`` at the scripted one."""
    return (
        f'[[upstream]]\nname = "{name}"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
        f'keys_file = "{keys_file}"\n'
    )


def events(gateway: Gateway) -> list[dict[str, Any]]:
    """The journal so far."""
    return [json.loads(line) for line in list(gateway.stderr) if line.startswith("{")]


async def logged(gateway: Gateway, *names: str, count: int = 1) -> list[dict[str, Any]]:
    """The events of these names, once there are so many."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = [one for one in events(gateway) if one["event"] in names]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.005)  # a journal can only be looked at


async def reload(gateway: Gateway, toml: str | None = None, **env: str) -> dict[str, Any]:
    """Change the files, send SIGHUP, and wait for what the journal says of it."""
    before = len([one for one in events(gateway) if one["event"].startswith("reload")])
    if env:
        (gateway.home / ".env").write_text("".join(f"{k}={v}\n" for k, v in env.items()))
    if toml is not None:
        (gateway.home / "freeapi.toml").write_text(toml)
    gateway.process.send_signal(signal.SIGHUP)
    return (await logged(gateway, "reloaded", "reload_refused", count=before + 1))[before]


async def statuses(gateway: Gateway, times: int) -> list[int]:
    """What so many requests, one after the other, are answered."""
    return [(await ask(gateway.port, chat())).status for _ in range(times)]


# --- Models, keys, upstreams ----------------------------------------------------------------------


async def test_sighup_adds_and_removes_models(start_gateway: StartGateway) -> None:
    """After SIGHUP the list is the new file's, new models answer and old ones don't."""
    gateway = await start_gateway()
    assert (await ask(gateway.port, chat())).status == 200
    done = await reload(gateway, model("new-model") + model("other"))
    assert (done["event"], done["models"], done["upstreams"]) == ("reloaded", 2, 1)
    listed = (await ask(gateway.port, MODELS)).json()["data"]
    assert [one["id"] for one in listed] == ["new-model", "other"]
    assert (await ask(gateway.port, chat())).error()["code"] == "model_not_found"
    assert (await ask(gateway.port, chat(model="new-model"))).status == 200


async def test_stream_goes_on_when_all_that_it_uses_is_removed(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A stream whose model, key and upstream are gone ends whole, and is paid for as it was."""
    go_on = asyncio.Event()
    rest = [delta("two"), usage_event(10, 20), DONE]
    upstream.plays(
        [send(STREAM_HEAD), chunk(delta("one")), pause(go_on), *map(chunk, rest), send(LAST_CHUNK)]
    )
    gateway = await start_gateway(PRICES, **cap(50_000_000))
    for number, key in enumerate(KEYS):
        (gateway.home / f"keys-{number}").write_text(key)
    old = model(MODEL, PRICES) + upstream_table("old", upstream.port, "keys-0")
    new = model("new", PRICES) + upstream_table("new", upstream.port, "keys-1")
    assert (await reload(gateway, old))["event"] == "reloaded"
    async with caller(gateway.port) as connection:
        await connection.send(chat(stream=True))
        answer = await connection.head()
        await connection.receive_until(answer, delta("one"))
        assert (await reload(gateway, new))["event"] == "reloaded"
        go_on.set()
        await connection.receive_until(answer, DONE)
        assert await connection.piece(answer) == b""
        assert answer.body == delta("one") + delta("two") + DONE
    await left_becomes(gateway, 50_000_000 - cost_nanousd(10, 20))
    assert upstream.requests[0].header("authorization") == f"Bearer {KEYS[0]}"
    assert (await ask(gateway.port, chat(stream=True, model="new"))).status == 200
    assert upstream.requests[1].header("authorization") == f"Bearer {KEYS[1]}"


async def test_key_rotated_in_its_file(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A new file put in the old one's place is noticed without a signal."""
    gateway = await start_gateway()
    keys = gateway.home / "keys"
    keys.write_text(KEYS[0])
    toml = UNLIMITED_MODEL + upstream_table("a", upstream.port, "keys")
    assert (await reload(gateway, toml))["event"] == "reloaded"
    assert await statuses(gateway, 1) == [200]
    (gateway.home / "keys.new").write_text(KEYS[1])
    (gateway.home / "keys.new").rename(keys)
    await logged(gateway, "reloaded", count=2)
    assert await statuses(gateway, 1) == [200]
    used = [one.header("authorization") for one in upstream.requests]
    assert used == [f"Bearer {key}" for key in KEYS]
    assert not any(key in gateway.output() for key in KEYS)


async def test_key_rotated_by_a_symbolic_link(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Mounted secrets change as in Kubernetes: the folder that a link leads to is another one."""
    gateway = await start_gateway()
    for number, key in enumerate(KEYS):
        (gateway.home / f"..{number}").mkdir()
        (gateway.home / f"..{number}" / "keys").write_text(key)
    link = gateway.home / "..data"
    link.symlink_to("..0")
    (gateway.home / "keys").symlink_to("..data/keys")
    toml = UNLIMITED_MODEL + upstream_table("a", upstream.port, "keys")
    assert (await reload(gateway, toml))["event"] == "reloaded"
    (gateway.home / "..new").symlink_to("..1")
    (gateway.home / "..new").rename(link)
    await logged(gateway, "reloaded", count=2)
    assert await statuses(gateway, 1) == [200]
    assert upstream.requests[0].header("authorization") == f"Bearer {KEYS[1]}"


# --- Counters -------------------------------------------------------------------------------------


async def test_callers_counters_survive(start_gateway: StartGateway) -> None:
    """Who has used three of five requests has two left, on open connections too."""
    gateway = await start_gateway(FREEAPI_CALLER_RPD="5", **OPEN_DOOR)
    async with caller(gateway.port) as connection:
        for _ in range(3):
            await connection.send(chat())
            assert (await connection.answer()).status == 200
        assert (await reload(gateway, UNLIMITED_MODEL + model("another")))["event"] == "reloaded"
        for expected in (200, 200, 429):
            await connection.send(chat())
            assert (await connection.answer()).status == expected


async def test_a_changed_limit_is_for_known_callers_too(start_gateway: StartGateway) -> None:
    """A caller with an open connection meets its new limit with its next request."""
    gateway = await start_gateway(FREEAPI_CALLER_RPD=FROM_FILE, **OPEN_DOOR)
    async with caller(gateway.port) as connection:
        for limit, expected in (("1", 200), ("1", 429), ("2", 200), ("off", 200)):
            await reload(gateway, FREEAPI_CALLER_RPD=limit)
            await connection.send(chat())
            assert (await connection.answer()).status == expected


async def test_token_keeps_its_count_when_another_is_added(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """A new list of access tokens is used at once, and its old members go on where they were."""
    tokens = tmp_path / "tokens"
    tokens.write_text("tok-1 ann rpd=2\n")
    gateway = await start_gateway(FREEAPI_ACCESS_TOKENS_FILE=str(tokens))
    one, two = (("authorization", f"Bearer tok-{number}") for number in (1, 2))
    assert (await ask(gateway.port, chat("Hi", one))).status == 200
    assert (await ask(gateway.port, chat("Hi", two))).status == 401
    tokens.write_text("tok-2 bob\ntok-1 ann rpd=2\n")
    await logged(gateway, "reloaded")
    assert (await ask(gateway.port, chat("Hi", two))).status == 200
    assert [(await ask(gateway.port, chat("Hi", one))).status for _ in range(2)] == [200, 429]


async def test_budget_survives(start_gateway: StartGateway) -> None:
    """What was spent counts for a lowered cap at once, and a raised one lets go on."""
    settings = cap(0, FREEAPI_DAILY_USD=FROM_FILE)
    gateway = await start_gateway(PRICES, **settings)
    await reload(gateway, FREEAPI_DAILY_USD="0.05")
    assert await statuses(gateway, 1) == [200]
    spent = cost_nanousd(5, 7)
    await left_becomes(gateway, 50_000_000 - spent)
    await reload(gateway, FREEAPI_DAILY_USD=f"{spent / 1e9:.9f}")
    assert await left_nanousd(gateway) == 0
    assert_exhausted(await ask(gateway.port, chat()))
    await reload(gateway, FREEAPI_DAILY_USD="0.05")
    assert await statuses(gateway, 1) == [200]
    await left_becomes(gateway, 50_000_000 - 2 * spent)


async def start_uncapped(start_gateway: StartGateway, tmp_path: Path, config: str = "") -> Gateway:
    """A gateway without any cap, and so without a ledger, that may get one."""
    home = tmp_path / "0"  # the first one's
    home.mkdir()
    (home / ".env").write_text("FREEAPI_DAILY_USD=off\n")
    gateway = await start_gateway(
        config, FREEAPI_DAILY_USD=FROM_FILE, FREEAPI_CALLER_DAILY_USD="off"
    )
    assert gateway.home == home
    assert not (home / "ledger.db").exists()
    return gateway


async def test_caps_come_into_being_and_go(start_gateway: StartGateway, tmp_path: Path) -> None:
    """A gateway that started without any cap keeps to one from the reload on, until it is off."""
    gateway = await start_uncapped(start_gateway, tmp_path)
    assert await statuses(gateway, 1) == [200]
    priced = UNLIMITED_MODEL + PRICES
    assert (await reload(gateway, priced, FREEAPI_DAILY_USD="0"))["event"] == "reloaded"
    assert_exhausted(await ask(gateway.port, chat()))
    assert (await reload(gateway, FREEAPI_DAILY_USD="off"))["event"] == "reloaded"
    assert await statuses(gateway, 1) == [200]
    assert (await ask(gateway.port, request("GET", "/status"))).json()["budget"] is None


async def test_who_waits_is_served_by_the_new_limits(start_gateway: StartGateway) -> None:
    """A request in the queue goes through as soon as a reload makes room for it."""
    gateway = await start_gateway("rpm = 1\n", FREEAPI_QUEUE_S="100")
    assert await statuses(gateway, 1) == [200]
    waiting = asyncio.get_running_loop().create_task(ask(gateway.port, chat()))
    async with asyncio.timeout(PATIENCE_S):
        while (await ask(gateway.port, request("GET", "/status"))).json()["waiting"] != 1:
            assert not waiting.done(), (await waiting).body
    await reload(gateway, UNLIMITED_MODEL)
    assert (await waiting).status == 200


# --- What can't be used, and what can't be changed ------------------------------------------------


async def test_bad_file_is_refused_with_all_its_problems(start_gateway: StartGateway) -> None:
    """The old configuration goes on, stderr says all that is wrong; a good file is taken then."""
    gateway = await start_gateway(FREEAPI_QUEUE_S=FROM_FILE)
    bad = '[[model]]\nname = "x"\nrpm = -1\n[timeouts]\nidle_s = "soon"\n[polcy]\n'
    refused = await reload(gateway, bad, FREEAPI_QUEUE_S="sk-canary-secret", FREEAPI_CALER_RPM="1")
    assert (refused["event"], refused["problems"]) == ("reload_refused", 5)
    said = gateway.output()
    for place in ("rpm", "idle_s", "polcy", "FREEAPI_QUEUE_S", "FREEAPI_CALER_RPM"):
        assert place in said
    assert "canary" not in said
    assert await statuses(gateway, 1) == [200]
    (gateway.home / ".env").unlink()
    (gateway.home / "freeapi.toml").write_text(model("good"))
    await logged(gateway, "reloaded")
    assert (await ask(gateway.port, chat(model="good"))).status == 200


async def test_a_file_that_vanishes_is_refused(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Without its keys file the configuration can't be used; when it is back, it is read."""
    gateway = await start_gateway()
    keys = gateway.home / "keys"
    keys.write_text(KEYS[0])
    await reload(gateway, UNLIMITED_MODEL + upstream_table("a", upstream.port, "keys"))
    keys.unlink()
    await logged(gateway, "reload_refused")
    assert await statuses(gateway, 1) == [200]
    keys.write_text(KEYS[1])
    await logged(gateway, "reloaded", count=2)
    assert await statuses(gateway, 1) == [200]
    assert upstream.requests[1].header("authorization") == f"Bearer {KEYS[1]}"


async def test_what_wants_a_restart_is_named(start_gateway: StartGateway) -> None:
    """A listening address stays as it was, the journal says so; all else is taken over."""
    gateway = await start_gateway(FREEAPI_ADMIN_ADDR=FROM_FILE, FREEAPI_REQUEST_LOG=FROM_FILE)
    await reload(gateway, FREEAPI_ADMIN_ADDR="127.0.0.1:1", FREEAPI_REQUEST_LOG="on")
    assert [one["setting"] for one in await logged(gateway, "restart_needed")] == [
        "FREEAPI_ADMIN_ADDR"
    ]
    assert await statuses(gateway, 1) == [200]
    await logged(gateway, "request")


async def test_damaged_ledger_refuses_the_caps_that_want_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Caps that can't be kept aren't taken over: the old configuration goes on."""
    gateway = await start_uncapped(start_gateway, tmp_path, PRICES)
    (gateway.home / "ledger.db").write_bytes(b"")
    refused = await reload(gateway, FREEAPI_DAILY_USD="1")
    assert (refused["event"], refused["problems"]) == ("reload_refused", 1)
    assert "ledger" in gateway.output()
    assert await statuses(gateway, 1) == [200]


async def test_log_level_changes(start_gateway: StartGateway) -> None:
    """From the reload on, only events of the new level are written, its own among them."""
    gateway = await start_gateway(FREEAPI_LOG=FROM_FILE)
    (gateway.home / ".env").write_text("FREEAPI_LOG=error\n")
    (gateway.home / "freeapi.toml").write_text(model("new"))
    gateway.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(PATIENCE_S):
        while (await ask(gateway.port, chat(model="new"))).status != 200:
            pass
    assert (await reload(gateway, "]"))["event"] == "reload_refused"
    assert not any(one["event"] == "reloaded" for one in events(gateway))


# --- Under load -----------------------------------------------------------------------------------


async def test_a_storm_of_reloads_loses_no_request(start_gateway: StartGateway) -> None:
    """200 callers at once, some of them streaming, while models come and go ten times."""
    gateway = await start_gateway(**OPEN_DOOR)

    async def one(number: int) -> bool:
        text = f"request {number}"
        answer = await ask(gateway.port, chat(text, stream=number % 2 == 0))
        assert answer.complete
        return answer.status == 200 and text[-3:].encode() in answer.body

    async def storm() -> None:
        for turn in range(10):
            extra = model("extra", f"rpm = {turn + 1}") if turn % 2 else ""
            assert (await reload(gateway, UNLIMITED_MODEL + extra))["event"] == "reloaded"

    answers, _ = await asyncio.gather(
        asyncio.gather(*(one(number) for number in range(200))), storm()
    )
    assert all(answers)


async def test_the_embedded_model_comes_when_it_is_wanted(start_gateway: StartGateway) -> None:
    """It is started by the reload that wants it, and answers when the money is gone."""
    gateway = await start_gateway(PRICES, **cap(0))
    assert_exhausted(await ask(gateway.port, chat()))
    assert not any(one["event"] == "local_ready" for one in events(gateway))
    stand_in = '[policy]\nwhen_exhausted = "local"\n[timeouts]\ntotal_s = 60\n'
    gateway.stdout.clear()
    assert (await reload(gateway, UNLIMITED_MODEL + PRICES + stand_in))["event"] == "reloaded"
    await logged(gateway, "local_ready")
    answer = await ask(gateway.port, chat(max_tokens=4))
    assert (answer.status, answer.header("x-freeapi-served-by")) == (200, "local")
    assert gateway.stdout == [], "the banner isn't printed again"
    assert (await reload(gateway, UNLIMITED_MODEL + PRICES))["event"] == "reloaded"
    assert_exhausted(await ask(gateway.port, chat()))


@pytest.mark.parametrize("name", [".env", "freeapi.toml"])
async def test_any_of_the_files_is_watched(start_gateway: StartGateway, name: str) -> None:
    """A change in ``.env`` or in the file is noticed, also if there was none at the start."""
    gateway = await start_gateway(FREEAPI_REQUEST_LOG=FROM_FILE)
    text = "FREEAPI_REQUEST_LOG=on\n" if name == ".env" else UNLIMITED_MODEL + model("late")
    (gateway.home / name).write_text(text)
    await logged(gateway, "reloaded")
