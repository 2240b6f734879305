"""Promise: each cap that the operator sets holds by itself, and says what is left.

The caps are those of the day, the month, one caller and one upstream (a donor's own).
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from tests.answers import answer, chat_json
from tests.conftest import StartGateway
from tests.crowd import events
from tests.gateway import MODEL, run
from tests.money import (
    NANO,
    PRICES,
    assert_exhausted,
    cap,
    cost_nanousd,
    left_becomes,
    shown_by_config,
)
from tests.promises.test_limits_sdk import HELLO, requests_seen
from tests.promises.test_sdk_node import results
from tests.raw_client import Answer, ask, caller, chat, request
from tests.scripted_upstream import ScriptedUpstream, pause, send

#: One costs 2.03 million nano-dollars, and is answered while 2.2 million are left.
DEAR = chat(max_tokens=1_000)
COST = cost_nanousd(30, 1_000)
USED = [send(answer(200, chat_json("Hi", 30, 1_000)))]
#: Enough for three of them.
THREE = 3 * COST + 200_000
#: The server that every caller's address is taken from.
BEHIND_A_PROXY = {"FREEAPI_PROXY_HOPS": "1"}


async def until_refused(port: int, data: bytes = DEAR) -> tuple[int, Answer]:
    """Ask one after another; returns how many were answered, and the refusal."""
    async with caller(port) as connection:
        for number in range(100):
            got = await connection.ask(data)
            if got.status != 200:
                return number, got
    raise AssertionError("never refused")


def from_address(address: str) -> bytes:
    """The same request, of another caller."""
    return chat("Hi", ("x-forwarded-for", address), max_tokens=1_000)


async def test_day_is_spent_until_midnight(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """At the daily cap callers are told the time of the reset; smaller requests still fit."""
    gateway = await start_gateway(PRICES, **cap(THREE))
    upstream.plays(USED)
    count, refused = await until_refused(gateway.port)
    assert count == 3
    assert assert_exhausted(refused) <= time.time() + 86_400
    upstream.plays([send(answer(200, chat_json("Hi", 1, 1)))])
    assert (await ask(gateway.port, chat(max_tokens=10))).status == 200
    assert len(upstream.requests) == 4


async def test_month_is_spent_until_the_first(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A monthly cap holds by itself, and the reset told is the first of the next month."""
    gateway = await start_gateway(
        PRICES, FREEAPI_DAILY_USD="off", FREEAPI_MONTHLY_USD=f"{THREE / NANO:.9f}"
    )
    upstream.plays(USED)
    count, refused = await until_refused(gateway.port)
    assert count == 3
    assert time.gmtime(assert_exhausted(refused, "this instance's monthly")).tm_mday == 1


async def test_one_callers_share_is_not_anothers(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A caller who has had its share of the day is refused, and the next address isn't."""
    share = {"FREEAPI_DAILY_USD": "5", "FREEAPI_CALLER_DAILY_USD": f"{THREE / NANO:.9f}"}
    gateway = await start_gateway(PRICES, **share, **BEHIND_A_PROXY)
    upstream.plays(USED)
    for address in ("192.0.2.1", "192.0.2.2"):
        count, refused = await until_refused(gateway.port, from_address(address))
        assert count == 3
        assert_exhausted(refused, "your share of today's")
    assert (await ask(gateway.port, from_address("192.0.2.3"))).status == 200


async def test_share_is_a_percentage_by_default(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Without a setting, one caller may have a twentieth of the day's money."""
    gateway = await start_gateway(PRICES, FREEAPI_DAILY_USD=f"{20 * THREE / NANO:.9f}")
    upstream.plays(USED)
    count, refused = await until_refused(gateway.port)
    assert count == 3
    assert_exhausted(refused, "your share of today's")


DONORS = """
[[upstream]]
name = "anna"
base_url = "http://127.0.0.1:{port}/anna/v1"
keys_env = "OPENAI_API_KEYS"
daily_usd = {usd:.9f}
priority = 1

[[upstream]]
name = "ben"
base_url = "http://127.0.0.1:{port}/ben/v1"
keys_env = "BENS_KEY"
{bens}
priority = 2
"""


def donors(upstream: ScriptedUpstream, bens: str) -> dict[str, str]:
    """Two donors, the first of which gives enough for three requests; ``bens``: what the other."""
    config = PRICES + DONORS.format(port=upstream.port, usd=THREE / NANO, bens=bens)
    return {"config": config, "BENS_KEY": "sk-canary-ben", **cap(100 * THREE)}


def asked(upstream: ScriptedUpstream) -> list[str]:
    """Whose account each request went to."""
    return [seen.target.split("/")[1] for seen in upstream.requests]


async def test_next_donor_takes_over(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """When one donor's own cap is spent, requests go to the other's account, until that is."""
    gateway = await start_gateway(**donors(upstream, f"daily_usd = {THREE / NANO:.9f}"))
    upstream.plays(USED)
    count, refused = await until_refused(gateway.port)
    assert count == 6
    assert asked(upstream) == ["anna"] * 3 + ["ben"] * 3
    assert_exhausted(refused, "the upstream's daily")
    # Whose caps they were is nobody's business.
    assert b"anna" not in refused.body
    assert b"ben" not in refused.body


async def test_free_upstream_takes_over(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """An upstream that costs nothing goes on when the money is gone, and takes none."""
    gateway = await start_gateway(**donors(upstream, "free = true"))
    upstream.plays(USED)
    async with caller(gateway.port) as connection:
        answers = [await connection.ask(DEAR) for _ in range(10)]
    assert {one.status for one in answers} == {200}
    assert asked(upstream) == ["anna"] * 3 + ["ben"] * 7
    await left_becomes(gateway, 97 * THREE + (3 * THREE - 3 * COST))


async def test_donor_whose_rest_is_reserved_is_passed_over(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """While a donor's money is held by requests under way, the others' go to the next donor."""
    gateway = await start_gateway(**donors(upstream, ""))
    release = asyncio.Event()
    held_script = [pause(release), *USED]
    upstream.plays(held_script, held_script, USED)
    async with asyncio.TaskGroup() as group:
        # What three will cost is the worst case of two.
        held = [group.create_task(ask(gateway.port, DEAR)) for _ in range(2)]
        await upstream.exchange(1)
        assert (await ask(gateway.port, DEAR)).status == 200
        release.set()
    assert [task.result().status for task in held] == [200, 200]
    assert asked(upstream) == ["anna"] * 2 + ["ben"]


async def test_donor_whose_key_cools_is_worth_waiting_for(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """One donor's money being spent and the other's key cooling, callers wait for the key only."""
    gateway = await start_gateway(**donors(upstream, ""))
    upstream.plays(USED)
    async with caller(gateway.port) as connection:
        for _ in range(3):
            assert (await connection.ask(DEAR)).status == 200
        cooling = ("retry-after", "20")
        upstream.plays([send(answer(429, b"{}", cooling))])
        for _ in range(2):
            refused = await connection.ask(DEAR)
            assert refused.error()["code"] == "capacity_exceeded"
            assert 15 <= int(refused.header("retry-after") or 0) <= 20
            assert refused.header("x-should-retry") is None
    assert asked(upstream) == ["anna"] * 3 + ["ben"]


@pytest.mark.parametrize("cap_of_the_day", ["5", "off"])
async def test_what_is_left_is_shown(
    upstream: ScriptedUpstream, start_gateway: StartGateway, cap_of_the_day: str
) -> None:
    """``GET /status`` tells anybody, and ``freeapi config`` the operator, what is left and till."""
    gateway = await start_gateway(PRICES, FREEAPI_DAILY_USD=cap_of_the_day)
    upstream.plays(USED)
    assert (await ask(gateway.port, DEAR)).status == 200
    if cap_of_the_day == "off":
        page = await ask(gateway.port, request("GET", "/status"))
        assert page.json()["budget"] is None
        assert "budget:" not in await shown_by_config(gateway)
        return
    left = 5 * NANO - COST
    await left_becomes(gateway, left)
    page = await ask(gateway.port, request("GET", "/status"))
    resets_at = page.json()["budget"]["resets_at"]
    midnight = time.strptime(resets_at, "%Y-%m-%dT00:00:00Z")
    assert (
        time.gmtime(time.time() + 86_400)[:3] == midnight[:3] or time.gmtime()[:3] == midnight[:3]
    )
    shown = await shown_by_config(gateway)
    line = next(line for line in shown.splitlines() if line.startswith("budget:"))
    assert line.endswith(f"left until {resets_at}")
    # What is leased ahead counts as spent for who only sees the disk: at most 2 %.
    on_disk = float(line.split("$")[1].split()[0]) * NANO
    assert left - 0.02 * 5 * NANO <= on_disk <= left


# --- Who sees it ----------------------------------------------------------------------------------


async def test_python_sdk_does_not_come_back(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """``RateLimitError`` with our code comes at once, and isn't followed by another try."""
    gateway = await start_gateway(PRICES, FREEAPI_REQUEST_LOG="on", **cap(1_000))
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="sk-free-api") as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.code == "budget_exhausted"
    assert caught.value.type == "insufficient_quota"
    assert await requests_seen(gateway) == 1
    assert upstream.requests == []


async def test_node_sdk_does_not_come_back(
    upstream: ScriptedUpstream, start_gateway: StartGateway, node: str
) -> None:
    """The Node SDK, which ignores long waits, gives up at once too."""
    gateway = await start_gateway(PRICES, FREEAPI_REQUEST_LOG="on", **cap(1_000))
    (limited,) = await results(node, gateway, "limited")
    assert (limited["error"], limited["code"]) == ("RateLimitError", "budget_exhausted")
    assert await requests_seen(gateway) == 1
    assert events(gateway, "crash") == 0


def test_paid_model_without_a_price_stops_the_start(tmp_path: Path) -> None:
    """A price is never guessed: exit code 2, with the model's name and what would mend it."""
    config = '[[model]]\nname = "mystery-9"\n[[model]]\nname = "puzzle-9"\n'
    settings = {"OPENAI_API_KEYS": "sk-canary-1", "FREEAPI_DAILY_USD": "5"}
    code, printed = run(tmp_path, settings, config)
    assert code == 2
    assert "mystery-9" in printed
    assert "puzzle-9" in printed
    assert "input_usd_per_mtok" in printed
    assert "Traceback" not in printed
