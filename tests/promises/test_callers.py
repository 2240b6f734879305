"""Promise: a caller is an address or an access token, and nothing that it can write makes it two.

Each test gives every caller a single request a day, so that "another caller" means a 200 and "the
same caller" a 429. What addresses mean (IPv6 /64 and so on) is in ``tests/policy/test_callers``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from openai import AsyncOpenAI, AuthenticationError

from tests.conftest import StartGateway
from tests.crowd import ask_from, events, number
from tests.gateway import Gateway, run
from tests.raw_client import Answer, ask, caller, chat, post
from tests.scripted_upstream import ScriptedUpstream

NOT_JSON = post("/v1/chat/completions", b"{")
ONCE = {"FREEAPI_CALLER_RPD": "1"}
TOKENS = (
    "tok-canary-one alice  # takes the limits of all\ntok-canary-two bob rpm=6 rpd=off\n# the end\n"
)
#: As many requests of one tag as nobody sends in an hour who is alone (``SharedTagWatch``).
MANY = 200


def forwarded(*lines: str) -> bytes:
    """A request with these lines of X-Forwarded-For."""
    return chat("Hi", *(("X-Forwarded-For", line) for line in lines))


def bearer(token: str) -> bytes:
    """A request with this token."""
    return chat("Hi", ("authorization", f"Bearer {token}"))


async def statuses(gateway: Gateway, requests: Sequence[bytes]) -> list[int]:
    """What each of these gets, one after the other."""
    return [(await ask(gateway.port, data)).status for data in requests]


# --- Addresses ------------------------------------------------------------------------------------


async def test_forwarding_headers_are_ignored_without_trusted_proxies(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """With ``FREEAPI_PROXY_HOPS`` 0 no header, and no made-up key, makes a new caller."""
    gateway = await start_gateway(**ONCE)
    spoofed = [
        chat(),
        forwarded("192.0.2.1"),
        forwarded("192.0.2.1", "192.0.2.2"),
        chat("Hi", ("Forwarded", "for=192.0.2.3"), ("X-Real-IP", "192.0.2.3")),
        bearer("sk-made-up-1"),
        bearer("sk-made-up-2"),
    ]
    assert await statuses(gateway, spoofed) == [200] + [429] * 5
    assert (await ask_from("127.0.0.9", gateway.port, chat())).status == 200


async def test_rightmost_address_counts_behind_one_proxy(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """With ``FREEAPI_PROXY_HOPS`` 1 the caller is who the proxy saw, whatever stands left of it."""
    gateway = await start_gateway(FREEAPI_PROXY_HOPS="1", **ONCE)
    spoofed = [
        forwarded("192.0.2.1"),
        forwarded("198.51.100.1, 192.0.2.1"),
        forwarded("198.51.100.2", "192.0.2.1"),
        forwarded("::ffff:192.0.2.1"),
        forwarded("192.0.2.1:4711"),
    ]
    assert await statuses(gateway, spoofed) == [200] + [429] * 4
    # The rightmost decides also where it is new, and where it differs within one IPv6 subscriber.
    others = [
        forwarded("192.0.2.1, 192.0.2.2"),
        forwarded("2001:db8:0:1::1"),
        forwarded("2001:db8:0:1:ffff::2"),
        forwarded("2001:db8:0:2::1"),
    ]
    assert await statuses(gateway, others) == [200, 200, 429, 200]


async def test_second_address_from_the_right_counts_behind_two_proxies(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """All lines of the header are one list, in their order (RFC 9110 section 5.3)."""
    gateway = await start_gateway(FREEAPI_PROXY_HOPS="2", **ONCE)
    same = [
        forwarded("192.0.2.1, 10.0.0.1"),
        forwarded("192.0.2.1", "10.0.0.2"),
        forwarded("198.51.100.1, 198.51.100.2, 192.0.2.1", "10.0.0.3"),
        forwarded("198.51.100.1", "192.0.2.1, 10.0.0.4"),
    ]
    assert await statuses(gateway, same) == [200, 429, 429, 429]


async def test_peer_counts_where_the_proxy_says_nothing_usable(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Garbage, or too few addresses, is the peer's own request: never nobody's."""
    gateway = await start_gateway(FREEAPI_PROXY_HOPS="1", **ONCE)
    unusable = [chat(), *map(forwarded, ("unknown", "", "192.0.2.1,", "_", "192.0.2.1;"))]
    assert await statuses(gateway, unusable) == [200] + [429] * 5


# --- The forgotten proxy --------------------------------------------------------------------------


async def ask_many(gateway: Gateway) -> list[Answer]:
    """Requests of one caller that cost nothing, over one connection."""
    async with caller(gateway.port) as connection:
        return [await connection.ask(NOT_JSON) for _ in range(MANY)]


@pytest.mark.parametrize(("hops", "warnings"), [("0", 1), ("1", 0)])
async def test_one_callers_traffic_is_warned_of(
    start_gateway: StartGateway, hops: str, warnings: int
) -> None:
    """Once, where all requests come under one tag and no proxy is configured."""
    gateway = await start_gateway(FREEAPI_PROXY_HOPS=hops)
    for _ in range(2):
        assert {one.status for one in await ask_many(gateway)} == {400}
    await asyncio.to_thread(gateway.stop)
    assert events(gateway, "one_caller") == warnings
    assert "127.0.0.1" not in "".join(line for line in gateway.stderr if "one_caller" in line)


# --- Access tokens --------------------------------------------------------------------------------


@pytest.fixture
async def guarded(start_gateway: StartGateway, tmp_path: Path) -> Gateway:
    """A gateway that answers to two tokens only."""
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    return await start_gateway(FREEAPI_ACCESS_TOKENS_FILE=str(path), **ONCE)


async def test_only_known_tokens_may_call(upstream: ScriptedUpstream, guarded: Gateway) -> None:
    """Anything else is 401 ``invalid_api_key`` without a look at the body, and never sent on."""
    unknown = [
        chat(),
        NOT_JSON,
        bearer("tok-canary"),
        bearer("tok-canary-one2"),
        bearer(""),
        chat("Hi", ("authorization", "Basic tok-canary-one")),
        chat("Hi", ("authorization", "tok-canary-one")),
    ]
    for data in unknown:
        refused = await ask(guarded.port, data)
        assert (refused.status, refused.error()["code"]) == (401, "invalid_api_key")
        assert b"canary" not in refused.body
    assert upstream.requests == []
    assert (await ask(guarded.port, bearer("tok-canary-one"))).text() == "Hi"
    assert all("tok-canary" not in str(seen.headers) for seen in upstream.requests)


async def test_each_token_has_its_own_limits(upstream: ScriptedUpstream, guarded: Gateway) -> None:
    """A token's line lifts or sets limits; the rest are everyone's; the address doesn't matter."""
    assert await statuses(guarded, [bearer("tok-canary-one")] * 2) == [200, 429]
    moved = await ask_from("127.0.0.9", guarded.port, bearer("tok-canary-one"))
    assert moved.status == 429
    other = await ask(guarded.port, bearer("tok-canary-two"))
    assert (other.status, number(other, "x-ratelimit-limit-requests")) == (200, 6)
    refused = await ask(guarded.port, bearer("tok-canary-two"))
    assert (refused.status, refused.error()["code"]) == (429, "rate_limit_exceeded")
    assert 0 < number(refused, "retry-after") <= 10


async def test_python_sdk_sees_an_authentication_error(
    upstream: ScriptedUpstream, guarded: Gateway
) -> None:
    """A wrong token is the SDK's own class of error; a right one is its API key."""
    async with AsyncOpenAI(base_url=guarded.base_url, api_key="tok-wrong") as client:
        ask_model = client.chat.completions.create
        with pytest.raises(AuthenticationError) as caught:
            await ask_model(model="gpt-3.5-turbo", messages=[{"role": "user", "content": "Hi"}])
        assert caught.value.code == "invalid_api_key"


def test_wrong_tokens_file_stops_the_start(tmp_path: Path) -> None:
    """All its problems are told by line, without a token; a missing file is one, too."""
    path = tmp_path / "tokens"
    path.write_text("tok-canary-a rpm=none\ntok-canary-b tpm=5\ntok-canary-b\n")
    code, printed = run(tmp_path, {"FREEAPI_ACCESS_TOKENS_FILE": str(path)})
    assert code == 2
    assert "line 1" in printed
    assert "line 3" in printed
    assert "canary" not in printed
    code, printed = run(tmp_path, {"FREEAPI_ACCESS_TOKENS_FILE": str(tmp_path / "nothing")})
    assert code == 2
    assert "FREEAPI_ACCESS_TOKENS_FILE" in printed
