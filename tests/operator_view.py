"""The operator's side: a gateway with several keys, and the admin port that says their state.

What this is not: a look into the process; it asks ``GET /keys`` as an operator would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.conftest import StartGateway
from tests.crowd import ADDRESS
from tests.free_ports import free_port
from tests.gateway import Gateway
from tests.raw_client import Answer, ask, chat
from tests.scripted_upstream import Request, Script, echo

#: The secret part of every key here; only the four characters after it may ever be shown.
SECRET = "sk-canary-secret-"


class Pool:
    """A running gateway with keys that are known by their last four characters."""

    def __init__(self, gateway: Gateway, admin_port: int) -> None:
        self.gateway = gateway
        self.port = gateway.port
        self.admin_port = admin_port

    async def keys(self) -> list[dict[str, Any]]:
        """What ``GET /keys`` says."""
        shown = await ask(self.admin_port, to_host("localhost", "GET", "/keys"))
        assert shown.status == 200, shown.body
        assert SECRET.encode() not in shown.body
        keys: list[dict[str, Any]] = shown.json()["keys"]
        return keys

    async def states(self) -> dict[str, str]:
        """Each key's state in words, by its last four characters."""
        return {key["tail"]: key["state"] for key in await self.keys()}


async def start_pool(
    start_gateway: StartGateway, *tails: str, config: str = "", **settings: str
) -> Pool:
    """Start one with these keys; nobody waits for capacity unless ``settings`` say so."""
    admin_port = free_port()
    chosen = {
        "OPENAI_API_KEYS": keys_text(*tails),
        "FREEAPI_ADMIN_ADDR": f"{ADDRESS}:{admin_port}",
        "FREEAPI_QUEUE_S": "0",
        **settings,
    }
    return Pool(await start_gateway(config, **chosen), admin_port)


async def ask_often(port: int, times: int) -> list[Answer]:
    """As many requests, one after the other."""
    return [await ask(port, chat()) for _ in range(times)]


def to_host(host: str, method: str, target: str) -> bytes:
    """The bytes of a request with this ``Host``, to which the admin port isn't indifferent."""
    return f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()


def keys_text(*tails: str) -> str:
    """A list of keys, as in the environment."""
    return ",".join(SECRET + tail for tail in tails)


def tail_of(request: Request) -> str:
    """The last four characters of the key that a request came with."""
    return (request.header("authorization") or "")[-4:]


def by_key(scripts: Mapping[str, Script]) -> Callable[[Request], Script]:
    """The upstream's script: by key; those that aren't named echo."""
    return lambda request: scripts.get(tail_of(request)) or echo(request)
