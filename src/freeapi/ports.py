"""The two ports of a gateway: opening them, and what a caller may take of their room."""

from __future__ import annotations

import resource
from typing import Final

from freeapi.config import Config
from freeapi.http.server import Server, ServerLimits
from freeapi.journal import Journal
from freeapi.listening import listen_advice, listen_failure

ADMIN_SETTING: Final = "FREEAPI_ADMIN_ADDR"
#: Left for upstream connections, the model, files: a caller's request takes two descriptors.
_DESCRIPTORS_SPARE: Final = 64


class CannotListen(Exception):
    """An address to listen on can't be had; the text says which and why."""


async def listen(server: Server, config: Config, *, is_shared: bool) -> tuple[str, int]:
    """Open the public port; returns its address. Raises CannotListen."""
    return await _listen(server, config.host, config.port, "HOST and PORT", is_shared=is_shared)


async def listen_for_operator(admin: Server, config: Config, journal: Journal) -> None:
    """Open the admin port, if there is to be one. Raises CannotListen."""
    address = config.admin
    if address is None:
        return
    try:
        await _listen(admin, address.host, address.port, ADMIN_SETTING)
    except CannotListen:
        # Nobody asked for the default one: a second gateway on a machine goes without.
        if config.is_set(ADMIN_SETTING):
            raise
        journal.event("admin_off", port=address.port)


async def _listen(
    server: Server, host: str, port: int, setting: str, *, is_shared: bool = False
) -> tuple[str, int]:
    try:
        return (await server.listen(host, port, is_shared=is_shared))[0]
    except OSError as error:
        what, advice = listen_failure(host, port, error), listen_advice(setting, error)
        raise CannotListen(f"{what}. {advice}") from error


def server_limits(config: Config) -> ServerLimits:
    room = _connections_max()  # in any case: it raises the limit that a configured cap needs too
    return ServerLimits(
        body_bytes_max=config.max_body_bytes,
        upload_bytes_max=config.max_upload_bytes,
        connections_max=config.max_connections or room,
        connections_per_address_max=(
            None if config.proxy_hops else config.max_connections_per_address
        ),
    )


def _connections_max() -> int:
    """As many callers as the open-files limit has room for, with an upstream connection each.

    The soft limit is raised to the hard one first, as nginx's worker_rlimit_nofile would.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 1_048_576 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(16, (limit - _DESCRIPTORS_SPARE) // 2)
