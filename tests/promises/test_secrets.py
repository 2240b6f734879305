"""Promise: a key is in the request that it pays for, and nowhere else.

A key with a canary in it goes into the real command, and then all goes wrong that can: wrong
configurations, unreadable files, upstreams that refuse, that aren't there, that repeat the key in
their error, a crash of the process in Python's most talkative mode. Whatever is printed, answered
or left in a file is searched. And no object of ours that holds a key shows it.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import signal
import subprocess
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freeapi.config import Config, load
from freeapi.embedded import Embedded
from freeapi.gateway import Gateway as Application
from freeapi.journal import Journal
from tests.answers import error
from tests.conftest import StartGateway
from tests.gateway import POOL_KEY, Gateway, run
from tests.raw_client import ask, caller, chat, request
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream, close, send

CANARY = "canary"
KEY = f"sk-proj-{CANARY}-0123456789-WXYZ"
assert CANARY in POOL_KEY
#: What makes Python say more than it does by default, about mistakes and at its end.
TALKATIVE = {
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONFAULTHANDLER": "1",
    "FREEAPI_LOG": "debug",
    "FREEAPI_REQUEST_LOG": "on",
}


def hides_it(text: str) -> bool:
    """Whether the text has nothing of a key but at most its last four characters."""
    return CANARY not in text and "0123456789" not in text and "sk-proj" not in text


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"OPENAI_API_KEYS": f'{KEY}"'}, ""),
        ({"OPENAI_API_KEYS": f"{KEY}\N{EN DASH}x"}, ""),
        ({"OPENAI_API_KEYS": KEY, "PORT": KEY}, ""),
        ({"OPENAI_API_KEYS_FILE": KEY}, ""),
        ({"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"https://{KEY}@127.0.0.1/v1"}, ""),
        (
            {KEY: "1", f"FREEAPI_{KEY}": "1"},
            f"{KEY} = 1\n[policy]\n{KEY} = 1\n[[upstream]]\n{KEY} = 1",
        ),
        ({}, f"[[upstream]]\nname = 'a'\nkeys = '{KEY}'\n"),
        ({}, f"[[upstream]]\nname = 'a'\nkeys_env = '{KEY}'\n"),
        ({}, f"[[upstream]]\nname = '{KEY}\n"),
        ({}, f"[[upstream]]\nname = '{KEY}'\nbase_url = '{KEY}'\n{KEY} = 1\n"),
        ({}, f"[[model]]\nname = '{KEY}'\nupstreams = ['{KEY}']\nrpm = '{KEY}'\n"),
        ({"FREEAPI_CONFIG": KEY}, ""),
    ],
)
def test_wrong_configuration_isnt_quoted(
    tmp_path: Path, settings: dict[str, str], config: str
) -> None:
    """Whatever is wrong with a key or where one is pasted by mistake, the words don't have it."""
    code, printed = run(tmp_path, settings | TALKATIVE, config)
    assert code == 2, printed
    assert len(printed) > 50
    assert hides_it(printed), printed


def unreadable(path: Path) -> None:
    """A folder in the file's place."""
    path.mkdir()


def binary(path: Path) -> None:
    """A key in UTF-16, as some editors save it."""
    path.write_text(KEY, "utf-16")


def broken(path: Path) -> None:
    """A key with what no header may hold."""
    path.write_text(f"{KEY}\x00\n{KEY}\x7f")


@pytest.mark.parametrize("make", [unreadable, binary, broken])
@pytest.mark.parametrize("name", ["OPENAI_API_KEYS_FILE", "FREEAPI_ACCESS_TOKENS_FILE"])
def test_file_of_keys_that_cant_be_used_isnt_quoted(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    """A file of keys or tokens that can't be read is named, and nothing of its text."""
    make(tmp_path / "secrets")
    code, printed = run(tmp_path, {name: str(tmp_path / "secrets")} | TALKATIVE)
    assert code == 2, printed
    assert name in printed
    assert hides_it(printed)


def test_busy_port_doesnt_quote_the_key(tmp_path: Path, gateway: Gateway) -> None:
    """A start that fails after the keys were read says nothing of them."""
    settings = {"OPENAI_API_KEYS": KEY, "PORT": str(gateway.port)}
    code, printed = run(tmp_path, settings | TALKATIVE)
    assert code == 1
    assert hides_it(printed)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_upstream_that_isnt_there_isnt_told_of_keys(
    start_gateway: StartGateway, scheme: str
) -> None:
    """Refused connections and failed handshakes: neither the answer nor the log has the key."""
    gateway = await start_gateway(
        "[timeouts]\nconnect_s = 0.3\n",
        OPENAI_API_KEYS=KEY,
        OPENAI_BASE_URL=f"{scheme}://127.0.0.1:1/v1",
        **TALKATIVE,
    )
    answer = await ask(gateway.port, chat())
    assert answer.status in (502, 503)
    gateway.stop()
    assert hides_it(gateway.output() + str(answer))


async def test_plain_upstream_at_a_tls_address_doesnt_get_the_key(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A TLS failure shows the key to nobody: not to the peer, the caller or the log."""
    base_url = f"https://127.0.0.1:{upstream.port}/v1"
    gateway = await start_gateway(
        "[timeouts]\nconnect_s = 0.3\n", OPENAI_API_KEYS=KEY, OPENAI_BASE_URL=base_url, **TALKATIVE
    )
    answer = await ask(gateway.port, chat())
    assert answer.status in (502, 504)
    assert len(upstream.connections) > 0
    assert upstream.requests == []
    gateway.stop()
    assert hides_it(gateway.output() + str(answer))


async def test_upstream_that_repeats_the_key_is_not_relayed(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Error bodies, headers and garbage with the key in it stop here, whatever their status."""
    gateway = await start_gateway(OPENAI_API_KEYS=KEY, **TALKATIVE)
    words = f"Incorrect API key provided: {KEY}. You can find your key at"
    garbage = f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode()
    upstream.script = lambda asked: (
        [send(garbage), close()]
        if asked.prompt() == "0"
        else [send(error(int(asked.prompt()), "x", words, ("x-key", KEY)))]
    )
    for status in (400, 404, 422, 500, 0, 429, 403, 401):
        answer = await ask(gateway.port, chat(str(status)))
        assert answer.status >= 400
        assert hides_it(str(answer))
    assert {seen.header("authorization") for seen in upstream.requests} == {f"Bearer {KEY}"}
    gateway.stop()
    assert hides_it(gateway.output())


async def test_crash_leaves_no_key(upstream: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Killed by a fault with requests under way, it prints where it was, and no key; nor a core."""
    gateway = await start_gateway(OPENAI_API_KEYS=KEY, **TALKATIVE)
    async with caller(gateway.port) as connection:
        assert (await connection.ask(chat())).text() == "Hi"
        gateway.process.send_signal(signal.SIGABRT)
        await connection.closed()
    assert await asyncio.to_thread(gateway.wait) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in gateway.output()
    assert hides_it(gateway.output())
    files = [path for path in gateway.home.rglob("*") if path.is_file()]
    assert files
    assert all(CANARY.encode() not in path.read_bytes() for path in files)
    assert [path.name for path in files if path.name.startswith("core")] == []


@pytest.mark.skipif(not shutil.which("ps"), reason="there is no ps here")
def test_ps_doesnt_show_it(shared_gateway: Gateway) -> None:
    """The command line, which every user of the machine can see, has no key."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(shared_gateway.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "freeapi" in listed.stdout
    assert hides_it(listed.stdout)


async def test_no_page_and_no_file_shows_it(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """No answer that a caller can get has the key, nor any file that the process wrote."""
    gateway = await start_gateway(OPENAI_API_KEYS=KEY, **TALKATIVE)
    pages = ["/", "/status", "/healthz", "/readyz", "/v1/models", "/v1/keys", "/keys", "/metrics"]
    answers = [await ask(gateway.port, request("GET", page)) for page in pages]
    answers += [await ask(gateway.port, chat("Hi", ("x-freeapi-dry-run", "1")))]
    answers += [await ask(gateway.port, chat())]
    assert answers[-1].text() == "Hi"
    assert hides_it(str(answers))
    gateway.stop()
    assert hides_it(gateway.output())
    kept = b"".join(path.read_bytes() for path in gateway.home.rglob("*") if path.is_file())
    assert CANARY.encode() not in kept


def reachable(root: object) -> Iterator[object]:
    """All that can be reached from an object without passing through modules, classes or code."""
    walls = (types.ModuleType, type, types.CodeType, types.FrameType, asyncio.AbstractEventLoop)
    seen = {id(root)}
    todo = [root]
    while todo:
        one = todo.pop()
        yield one
        # A function's globals lead to everything that was ever imported.
        inner = one.__closure__ if isinstance(one, types.FunctionType) else gc.get_referents(one)
        for found in inner or ():
            if id(found) not in seen and not isinstance(found, walls):
                seen.add(id(found))
                todo.append(found)


async def test_no_repr_shows_it(tmp_path: Path) -> None:
    """Of all objects of a whole gateway that are ours, none has a key in its repr or str."""
    environ = {
        "OPENAI_API_KEYS": KEY,
        "FREEAPI_DATA_DIR": str(tmp_path),
        "FREEAPI_DAILY_USD": "off",
    }
    config: Config = load(environ, None, read_file=lambda path: "")
    journal = Journal(None, "error", float)
    application = Application(config, journal, Embedded(journal), None)
    found = list(reachable([application, config]))
    holders = [one for one in found if isinstance(one, bytes | str) and CANARY in str(one)]
    assert len(holders) >= 2, "the walk hasn't come to where the key is"
    ours = [one for one in found if type(one).__module__.startswith("freeapi.")]
    kinds = {type(one).__name__ for one in ours}
    assert {"Account", "Config", "Dispatcher", "KeyPool", "Secret", "Upstreams"} <= kinds
    assert [type(one) for one in ours if not hides_it(repr(one) + str(one))] == []
    async with asyncio.timeout(PATIENCE_S):
        await application.drain()
