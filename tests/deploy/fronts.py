"""The proxies that we ship a configuration for, run with it: Caddy and nginx.

Only addresses, names and certificates are replaced; each replacement must meet something, so a
test can't pass over a configuration that has been written anew.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.scripted_upstream import PATIENCE_S

DEPLOY = Path(__file__).parents[2] / "deploy"
#: nginx wants folders that are its own, and what a site's file is included by.
_NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr crit;
events {}
http {
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi; access_log off;
    include site.conf;
}
"""


def tool(name: str, package: str) -> str:
    """The command; a test is skipped where it isn't installed, except in CI."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])  # nginx is there, in Debian
    if command := shutil.which(name, path=path):
        return command
    reason = f"{name} is missing: apt-get install {package} (make setup, as root)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """The text with each pattern replaced wherever it is; it must be somewhere."""
    for pattern, value in pairs:
        text, count = re.subn(pattern, value, text)
        assert count, f"the configuration has no {pattern}"
    return text


def caddy(folder: Path, port: int, gateway_port: int) -> list[str]:
    """The command that runs the Caddyfile of our Compose file."""
    text = (DEPLOY / "compose" / "Caddyfile").read_text()
    site = (r"\{\$SITE:localhost\}", f"http://:{port}")
    upstream = (r"name gateway\s+port 8080", f"name 127.0.0.1\nport {gateway_port}")
    (folder / "Caddyfile").write_text(replaced(text, site, upstream))
    command = tool("caddy", "caddy")
    return [command, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


def nginx(folder: Path, port: int, gateway_port: int) -> list[str]:
    """The command that runs our nginx site."""
    text = (DEPLOY / "nginx" / "freeapi.conf").read_text()
    listen = ("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    certificate = (r"ssl_certificate\w* [^;]+;", "")
    upstream = (r"server 127\.0\.0\.1:8080;", f"server 127.0.0.1:{gateway_port};")
    (folder / "site.conf").write_text(replaced(text, listen, certificate, upstream))
    (folder / "nginx.conf").write_text(_NGINX)
    return [tool("nginx", "nginx"), "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]


class Front:
    """A running proxy: its port, and what it has logged."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log

    def output(self) -> str:
        """All that it printed so far."""
        return self._log.read_text()


def _start(folder: Path, log: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with log.open("w") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


@asynccontextmanager
async def running(folder: Path, port: int, command: Sequence[str]) -> AsyncIterator[Front]:
    """Run a proxy until the end of the block; it accepts connections at its beginning."""
    log = folder / "output"
    process = _start(folder, log, command)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await _accepts(port):
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.01)
        yield Front(port, log)
    finally:
        process.kill()
        process.wait()


async def _accepts(port: int) -> bool:
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        return True
    return False
