"""What requests cost in tests about money, reckoned from what the upstream saw.

It is not the gateway's own arithmetic imported: the bill is the scripted upstream's, and the prices
are round. What is left is read where anybody may read it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from tests.gateway import START_MAX_S, Gateway
from tests.raw_client import Answer, ask, request
from tests.scripted_upstream import PATIENCE_S, Request

NANO = 1_000_000_000
DAY_S = 86_400
#: To be added to the model's table: 1,000 nano-dollars for a token in, 2,000 for one out.
PRICES = "input_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n"
_IN_NANOUSD, _OUT_NANOUSD = 1_000, 2_000
#: What a chat template may add to a message and a tool (DESIGN section 5).
_TOKENS_PER_MESSAGE, _TOKENS_PER_TOOL = 16, 64


def cap(nanousd: int, **settings: str) -> dict[str, str]:
    """The settings of a gateway with this cap a day, all of which one caller may have."""
    daily = f"{nanousd / NANO:.9f}"
    return {"FREEAPI_DAILY_USD": daily, "FREEAPI_CALLER_DAILY_USD": "off", **settings}


def cost_nanousd(prompt_tokens: int, completion_tokens: int) -> int:
    """The price of these tokens."""
    return prompt_tokens * _IN_NANOUSD + completion_tokens * _OUT_NANOUSD


def tokens_max(seen: Request) -> tuple[int, int]:
    """The most tokens in and out that an upstream could find in a request."""
    body = seen.json()
    extra = _TOKENS_PER_MESSAGE * len(body["messages"])
    extra += _TOKENS_PER_TOOL * len(body.get("tools", ()))
    return len(seen.body) + extra, body.get("n", 1) * body["max_tokens"]


def ceiling_nanousd(seen: Request) -> int:
    """The most that an upstream could bill for a request."""
    return cost_nanousd(*tokens_max(seen))


async def left_nanousd(gateway: Gateway) -> int:
    """What ``GET /status`` says is left today."""
    page = await ask(gateway.port, request("GET", "/status"))
    left_usd: float = page.json()["budget"]["left_today_usd"]
    return round(left_usd * NANO)


async def left_becomes(gateway: Gateway, nanousd: int) -> None:
    """Wait until that much is left: an answer arrives just before its settlement."""
    async with asyncio.timeout(PATIENCE_S):
        while (left := await left_nanousd(gateway)) != nanousd:
            assert left >= 0
            await asyncio.sleep(0)


def _environ(gateway: Gateway) -> dict[str, str]:
    text = Path(f"/proc/{gateway.process.pid}/environ").read_text()
    return dict(item.split("=", 1) for item in text.split("\0") if item)


async def shown_by_config(gateway: Gateway) -> str:
    """What ``freeapi config`` prints in the environment of this running gateway."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "freeapi", "config"),
        cwd=gateway.home,
        env=_environ(gateway),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(START_MAX_S):
        printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode()


def assert_exhausted(answer: Answer, whose: str = "this instance's daily") -> int:
    """It is the refusal that says: no more money, not before then, don't try; returns when."""
    assert answer.status == 429, answer.body
    assert answer.error()["code"] == "budget_exhausted"
    assert answer.error()["type"] == "insufficient_quota"
    assert whose in answer.error()["message"]
    wait_s = int(answer.header("retry-after") or 0)
    resets_at_s = round((time.time() + wait_s) / DAY_S) * DAY_S
    assert abs(time.time() + wait_s - resets_at_s) < PATIENCE_S
    resets_at = time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime(resets_at_s))
    assert resets_at in answer.error()["message"]
    # In the day's last minute a retry isn't pointless.
    assert answer.header("x-should-retry") == ("false" if wait_s > 60 else None)
    return resets_at_s
