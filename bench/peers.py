"""Others that do what we do, or a part of it: optional, by ``--peers``.

Each is installed once, by its ecosystem's own client, into .bench/peers, and run with one process
and without what isn't needed (no database, no log of requests). Answers of theirs may be written
anew, so they have to hold the upstream's mark rather than be the same to the byte, and streams are
not compared. One that can't be installed or doesn't start is left out, and said so.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.contenders import Place, Start, started
from bench.machine import free_port
from bench.server import NotStarted, Server
from bench.texts import MODEL

ROOT = Path(".bench/peers").absolute()
_INSTALL_MAX_S = 900
#: LiteLLM doesn't start without one.
_MASTER_KEY = f"sk-{secrets.token_hex(32)}"
_LITELLM = """
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/gpt-4o-mini
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: sk-bench
"""
_CADDY = """
{{
    admin off
    auto_https off
}}
http://127.0.0.1:{port} {{
    reverse_proxy 127.0.0.1:{upstream} {{
        flush_interval -1
    }}
}}
"""


class Peer(NamedTuple):
    """How to get it and how to start it; {port}, {upstream}, {home}, {bin} are filled in."""

    command: Sequence[str]
    packages: Sequence[str] = ()
    is_npm: bool = False
    env: Mapping[str, str] = {}
    files: Mapping[str, str] = {}
    is_exact: bool = False
    headers: Mapping[str, str] = {}


_UVICORN = ("--host", "127.0.0.1", "--port", "{port}", "--no-access-log", "--log-level", "warning")
PEERS: Mapping[str, Peer] = {
    "relay": Peer((sys.executable, "-m", "bench.relay", "{port}", "{upstream}"), is_exact=True),
    "caddy": Peer(
        ("caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"),
        env={"GOMAXPROCS": "1"},
        files={"Caddyfile": _CADDY},
        is_exact=True,
    ),
    "fastapi": Peer(
        ("{bin}/python", "-m", "uvicorn", "bench.fastapi_relay:app", *_UVICORN),
        ("fastapi", "httpx", "uvicorn[standard]"),
        env={"UPSTREAM": "http://127.0.0.1:{upstream}/v1"},
        is_exact=True,
    ),
    # Of 1.107 a version that wasn't its authors' was once published.
    "litellm": Peer(
        ("{bin}/litellm", "--config", "config.yaml", "--host", "127.0.0.1", "--port", "{port}"),
        ("litellm[proxy]!=1.107.*",),
        env={
            "LITELLM_LOG": "ERROR",
            "LITELLM_MASTER_KEY": _MASTER_KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        },
        files={"config.yaml": _LITELLM},
        headers={"Authorization": f"Bearer {_MASTER_KEY}"},
    ),
    "openai-forward": Peer(
        ("{bin}/aifd", "run", "--port", "{port}", "--workers", "1"),
        ("openai-forward", "pyyaml"),
        env={
            "FORWARD_CONFIG": '[{{"base_url":"http://127.0.0.1:{upstream}","route":"/","type":"openai"}}]',
            "LOG_GENERAL": "false",
        },
    ),
    "portkey": Peer(
        (
            "node",
            "{modules}/@portkey-ai/gateway/build/start-server.js",
            "--port={port}",
            "--headless",
        ),
        ("@portkey-ai/gateway",),
        is_npm=True,
        headers={
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": "http://127.0.0.1:{upstream}/v1",
        },
    ),
}


#: Those that carry 1,000 streams and 10,000 open ones.
FAST = ("relay", "caddy")


def starts(names: Sequence[str]) -> dict[str, Start]:
    """How to start those peers, as for the core set."""
    return {name: _start_of(name, PEERS[name]) for name in names if name}


def _start_of(name: str, peer: Peer) -> Start:
    @contextmanager
    def start(place: Place) -> Iterator[Server]:
        folder = _installed(name, peer)
        port = free_port()
        words = {
            "port": port,
            "upstream": place.upstream,
            "home": place.home,
            "bin": folder / "bin",
            "modules": folder / "node_modules",
            "model": MODEL,
        }
        place.home.mkdir(parents=True)
        for file, text in peer.files.items():
            (place.home / file).write_text(text.format(**words))
        env = {key: text.format(**words) for key, text in peer.env.items()}
        command = [word.format(**words) for word in peer.command]
        path = {"PYTHONPATH": str(Path.cwd())}
        headers = {key: text.format(**words) for key, text in peer.headers.items()}
        with started(name, command, place, port, {**path, **env}, headers) as server:
            server.is_exact = peer.is_exact
            yield server

    return start


def _installed(name: str, peer: Peer) -> Path:
    """Where it is. Raises NotStarted if it can't be installed."""
    folder = ROOT / name
    ready = folder / ".ready"
    if not peer.packages or ready.exists():
        return folder
    print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    if peer.is_npm:
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder)]
    else:
        venv.create(folder, with_pip=True)
        pip = str(folder / "bin" / "python")
        command = [pip, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    try:
        subprocess.run([*command, *peer.packages], check=True, timeout=_INSTALL_MAX_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotStarted(f"{name} can't be installed: {error}") from error
    ready.touch()
    return folder
