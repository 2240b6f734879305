"""Promise: it starts at once, or says all that is in the way.

What a person sees who types ``freeapi serve``: a banner that tells what is served and where, or
every problem of the configuration at once, with a status that a supervisor understands.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from pathlib import Path

from tests.conftest import StartGateway
from tests.gateway import MODEL, POOL_KEY, SERVE, Gateway, run
from tests.raw_client import ask, chat
from tests.scripted_upstream import ScriptedUpstream

#: The libraries that a start loads. One more costs every start, every worker and every container.
LIBRARIES = {
    *("dotenv", "httptools", "msgspec", "mypy_extensions", "python_multipart"),
    *("typing_extensions", "uvloop"),
}
#: What a gateway in front of an upstream has no use for: other commands, other ways to run, and
#: what the standard library has that is slow to load.
NEEDLESS = {
    *("freeapi.commands", "freeapi.state.valkey_pipe", "freeapi.workers.supervisor"),
    *("http.client", "multiprocessing", "unittest", "urllib.request", "xml"),
}
#: 305 with Python 3.11: a tenth more, and someone should look.
MODULES_MAX = 335
#: A line of ``-X importtime``.
IMPORTED = re.compile(r"^import time: .*\| +(\S+)$", re.MULTILINE)


async def test_start_loads_only_what_it_needs(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Up to its first answer a gateway loads few modules, and no library but those it runs on.

    They are two thirds of the processor time of a start. That isn't asserted itself: it depends on
    the machine, and on who else is there.
    """
    gateway = await start_gateway(python=("-X", "importtime", *SERVE))
    assert (await ask(gateway.port, chat())).text() == "Hi"
    await asyncio.to_thread(gateway.stop)
    loaded = IMPORTED.findall("".join(gateway.stderr))
    # What this Python always loads comes first; a compiled module is two.
    names = loaded[loaded.index("site") + 1 :]
    modules = {name for name in names if not name.endswith("__mypyc")}
    assert "freeapi.proxy" in modules
    assert not [one for one in modules if any(f"{one}.".startswith(f"{no}.") for no in NEEDLESS)]
    assert len(modules) < MODULES_MAX
    parts = {one.partition(".")[0] for one in modules}
    assert parts - sys.stdlib_module_names - {"freeapi"} <= LIBRARIES


async def test_banner_tells_what_is_served(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """The banner names address, upstream, number of keys and models, and a line to try; no key."""
    banner = "".join(gateway.stdout)
    assert f"http://127.0.0.1:{gateway.port}/v1" in banner
    assert f"http://127.0.0.1:{upstream.port}/v1" in banner
    assert "1 key" in banner
    assert MODEL in banner
    assert f"curl http://127.0.0.1:{gateway.port}/v1/chat/completions" in banner
    assert POOL_KEY not in banner


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """Wrong values in the environment and in the file are listed together, without any secret."""
    wrong = {
        "PORT": "eighty",
        "FREEAPI_CALLER_RPM": "-1",
        "FREEAPI_CALER_TPM": "7",
        "OPENAI_API_KEYS": 'sk-canary"',
    }
    code, printed = run(tmp_path, wrong, '[[model]]\nnam = "x"\n[timeouts]\nidle_s = "soon"\n')
    assert code == 2
    for name in ("PORT", "FREEAPI_CALLER_RPM", "FREEAPI_CALER_TPM", "OPENAI_API_KEYS", "nam"):
        assert name in printed
    assert "idle_s" in printed
    assert "FREEAPI_CALLER_TPM" in printed  # did you mean
    assert "canary" not in printed
    assert "Traceback" not in printed


def test_busy_port_is_told_in_one_line(tmp_path: Path) -> None:
    """A port that is taken is exit code 1 and a sentence, not a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        settings = {"PORT": str(busy.getsockname()[1]), "OPENAI_API_KEYS": POOL_KEY}
        code, printed = run(tmp_path, settings)
    assert code == 1
    assert "address already in use" in printed.lower()
    assert "Traceback" not in printed
