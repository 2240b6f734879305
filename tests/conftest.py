"""Fixtures shared by all tests: a scripted upstream and a real gateway in front of it.

Both are real servers on free ports. The upstream's listening socket outlives the tests, so that one
``gateway`` can serve all tests that leave it as they found it. A test after which it might remember
something (a failing key, a broken upstream), or that ends it, asks for ``fresh_gateway``; one that
needs other settings, for ``start_gateway``. The tests of the embedded model share one more, because
a model takes long to load. Each gateway must end with exit code 0 and without a traceback.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

import freeapi

# The tests of modules see and replace what is inside; the gateways that tests start are compiled.
freeapi.take_sources()

# Before their import: so that a failed assertion in them shows its values.
pytest.register_assert_rewrite("tests.gateway", "tests.raw_client", "tests.scripted_upstream")

from tests.gateway import POOL_KEY, RUNNING, SERVE, UNLIMITED_MODEL, Gateway  # noqa: E402 - see above
from tests.scripted_upstream import ScriptedUpstream, listening_socket  # noqa: E402 - see above

#: Files that take long for how many tests they have. xdist hands out files one by one: those begun
#: last decide when the run ends.
SLOW_FIRST = (
    "deploy/test_image",
    "deploy/test_sbom",
    "promises/test_spend_crash",
    "promises/test_soak",
    "promises/test_slow_clients",
    "promises/test_shared_faults",
    "promises/test_shared_fairness",
    "promises/test_fairness",
    "test_readme",
    "promises/test_page",
    "promises/test_playground",
)
#: Starts a gateway with these settings (names in lower case) and this freeapi.toml.
StartGateway = Callable[..., Awaitable[Gateway]]
NODE_PACKAGES = Path(__file__).parent / "node" / "node_modules"


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are processors: many tests wait for sockets, clocks and disks."""
    return 1 + len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first, the others as they stand."""
    places = {f"{name}.py": place for place, name in enumerate(SLOW_FIRST)}
    root = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        path = item.path
        is_ours = path.is_relative_to(root)
        name = path.relative_to(root).as_posix() if is_ours else path.name
        return places.get(name, len(places))

    items.sort(key=place)


def upstream_settings(port: int) -> dict[str, str]:
    """The environment of a gateway in front of the scripted upstream."""
    return {"OPENAI_API_KEYS": POOL_KEY, "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"}


@pytest.fixture(scope="session", autouse=True)
def end_of_gateways() -> Iterator[None]:
    """No gateway outlives the tests, not even where a fixture failed."""
    yield
    for gateway in set(RUNNING):
        gateway.kill()


@pytest.fixture(autouse=True)
def end_of_own_gateways() -> Iterator[None]:
    """A test that fails takes along those that it started: they would slow down all that follow.

    Those that tests share were there before, as pytest sets up the wider fixtures first.
    """
    before = set(RUNNING)
    yield
    for gateway in RUNNING - before:
        gateway.kill()


@pytest.fixture(scope="session")
def listener() -> Iterator[socket.socket]:
    """The socket on which the scripted upstream of each test accepts its connections."""
    with listening_socket() as listener:
        yield listener


@pytest.fixture
async def upstream(listener: socket.socket) -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream that echoes until a test gives it another script."""
    # asyncio's debug mode is for our own code, which doesn't run in this process here; it makes the
    # scripts ten times slower (10 ms a request instead of 1).
    asyncio.get_running_loop().set_debug(False)
    upstream = ScriptedUpstream()
    await upstream.listen(listener.dup())
    yield upstream
    await upstream.close()


@pytest.fixture
async def start_gateway(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[StartGateway]:
    """Start gateways in front of the scripted upstream; those still running are stopped.

    ``config`` is added to a freeapi.toml with one model, which is without limits; ``python`` are
    other arguments of Python than the operator's.
    """
    started: list[Gateway] = []

    async def start(config: str = "", *, python: Sequence[str] = SERVE, **settings: str) -> Gateway:
        chosen = {**upstream_settings(upstream.port), **settings}
        home = tmp_path / str(len(started))
        gateway = await asyncio.to_thread(Gateway, home, chosen, UNLIMITED_MODEL + config, python)
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        if gateway.process.returncode is None:
            await asyncio.to_thread(gateway.stop)


@pytest.fixture
async def fresh_gateway(start_gateway: StartGateway) -> Gateway:
    """A gateway with default settings for this test alone."""
    return await start_gateway()


@pytest.fixture(scope="session")
def shared_gateway(
    listener: socket.socket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """The gateway with default settings of all tests that leave it as they found it."""
    port: int = listener.getsockname()[1]
    home = tmp_path_factory.mktemp("gateway")
    gateway = Gateway(home, upstream_settings(port), UNLIMITED_MODEL)
    yield gateway
    gateway.stop()


@pytest.fixture
def gateway(upstream: ScriptedUpstream, shared_gateway: Gateway) -> Gateway:
    """The shared gateway, with this test's upstream behind it."""
    assert shared_gateway.process.poll() is None, shared_gateway.output()
    return shared_gateway


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without keys: the embedded model answers, briefly, so that tests are short."""
    settings = {"FREEAPI_MAX_OUTPUT_TOKENS": "200"}
    gateway = Gateway(tmp_path_factory.mktemp("embedded"), settings)
    yield gateway
    gateway.stop()


@pytest.fixture(scope="session")
def node() -> str:
    """The node command; tests of the Node SDK are skipped where it can't be, except in CI."""
    command = shutil.which("node")
    if command and NODE_PACKAGES.is_dir():
        return command
    reason = "node, or tests/node/node_modules, is missing (make setup)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
