"""Three gateways that share one Valkey: as many real processes, over a real server.

What this is not: a look into any of them; what they share shows in what callers and the upstream
see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import upstream_settings
from tests.gateway import UNLIMITED_MODEL, Gateway
from tests.valkey_server import ValkeyServer

COUNT = 3


@contextmanager
def replicas(
    folder: Path,
    upstream_port: int,
    server: ValkeyServer,
    config: str = UNLIMITED_MODEL,
    settings: Mapping[str, str] | None = None,
    admin_ports: Sequence[int] = (),
) -> Iterator[list[Gateway]]:
    """Gateways that share the server; those that still run at the end must end well.

    ``settings`` may hold others for the keys, and ``config`` is the whole freeapi.toml.
    """
    for number, port in enumerate(admin_ports):  # else they have none
        (folder / str(number)).mkdir()
        (folder / str(number) / ".env").write_text(f"FREEAPI_ADMIN_ADDR=127.0.0.1:{port}\n")
    chosen = {
        **upstream_settings(upstream_port),
        "FREEAPI_STATE": server.url,
        "FREEAPI_MAX_CONNECTIONS_PER_ADDRESS": "2000",
        **({"FREEAPI_ADMIN_ADDR": ""} if admin_ports else {}),
        **(settings or {}),
    }
    with ThreadPoolExecutor(COUNT) as pool:
        started = [
            pool.submit(Gateway, folder / str(number), chosen, config) for number in range(COUNT)
        ]
        gateways = [start.result() for start in started]
        try:
            yield gateways
        finally:
            list(pool.map(_stop, gateways))


def _stop(gateway: Gateway) -> None:
    if gateway.process.returncode is None:
        gateway.stop()
