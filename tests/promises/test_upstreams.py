"""Promise: several upstreams work as one, in the order and in the shares that the operator set.

An upstream is one organisation, or one server, with keys of its own: none of them is ever sent to
another's address.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest

from tests.answers import error
from tests.conftest import StartGateway
from tests.operator_view import ask_often, keys_text, start_pool, tail_of
from tests.raw_client import ask, chat
from tests.scripted_upstream import ScriptedUpstream, listening_socket, says, send

TWO_KEYS = {"KEYS_ONE": keys_text("1111"), "KEYS_TWO": keys_text("2222"), "OPENAI_API_KEYS": ""}


@pytest.fixture
async def second() -> AsyncIterator[ScriptedUpstream]:
    """Another organisation's upstream."""
    upstream = ScriptedUpstream()
    await upstream.listen(listening_socket())
    yield upstream
    await upstream.close()


def two(first: int, second: int, first_is: str, second_is: str) -> str:
    """The configuration of two upstreams at these ports."""
    return "".join(
        f'[[upstream]]\nname = "{name}"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
        f'keys_env = "KEYS_{name.upper()}"\n{more}\n'
        for name, port, more in (("one", first, first_is), ("two", second, second_is))
    )


async def test_upstreams_of_lower_priority_wait_for_their_turn(
    upstream: ScriptedUpstream, second: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """All goes to the first while it can; what it fails is the second's, each with its own keys."""
    config = two(upstream.port, second.port, "priority = 1", "priority = 2")
    pool = await start_pool(start_gateway, config=config, **TWO_KEYS)
    assert {one.text() for one in await ask_often(pool.port, 5)} == {"Hi"}
    assert second.requests == []
    upstream.plays([send(error(401, "invalid_api_key", "x"))])
    assert {one.text() for one in await ask_often(pool.port, 5)} == {"Hi"}
    assert {tail_of(request) for request in upstream.requests} == {"1111"}
    assert [tail_of(request) for request in second.requests] == ["2222"] * 5
    assert await pool.states() == {"1111": "dead, next probe in 60 min", "2222": "ok"}


async def test_equal_upstreams_share_the_load(
    upstream: ScriptedUpstream, second: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Of 40 requests an upstream of share 3 gets 30, one of share 1 ten."""
    config = two(upstream.port, second.port, "share = 3", "share = 1")
    pool = await start_pool(start_gateway, config=config, **TWO_KEYS)
    await ask_often(pool.port, 40)
    assert len(upstream.requests) == pytest.approx(30, abs=1)
    assert len(upstream.requests) + len(second.requests) == 40


async def test_unreachable_upstream_is_fallen_back_from(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Where nothing listens nothing was sent: the other upstream answers, and no caller notices."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        config = two(port, upstream.port, "priority = 1", "priority = 2")
        pool = await start_pool(start_gateway, config=config, **TWO_KEYS)
        assert {one.text() for one in await ask_often(pool.port, 8)} == {"Hi"}
        assert "upstream failing" in (await pool.states())["1111"]
    assert len(upstream.requests) == 8


async def test_models_go_to_their_own_upstreams(
    upstream: ScriptedUpstream, second: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A model is never sent to an upstream that isn't in its list, even if its own can't serve."""
    config = 'upstreams = ["one"]\n' + two(upstream.port, second.port, "", "")
    pool = await start_pool(start_gateway, config=config, **TWO_KEYS)
    upstream.plays(says("mine"), [send(error(401, "invalid_api_key", "x"))])
    assert (await ask(pool.port, chat())).text() == "mine"
    assert (await ask(pool.port, chat())).status == 503
    assert second.requests == []
