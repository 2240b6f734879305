"""The core set: this gateway with everything on, and two plain reverse proxies in C.

Each is set up to be as fast as it can be on one core while it does its work: one worker, kept-alive
connections to the upstream, no log of requests. What we do besides relaying (limits, keys, budget
with its ledger on disk, metrics, privacy policy) is on, with numbers that no run reaches rather
than ``off``, since what is off costs nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from bench.machine import PROXY_CORE, free_port, open_files_max
from bench.server import Server, answers, is_open, running
from bench.texts import MODEL

US, NGINX, HAPROXY = "freeapi", "nginx", "HAProxy"
#: Idle connections that a proxy keeps to its upstream: more than any load opens at once.
KEPT = 512
#: Two for each of 10,000 streams; and nginx turns callers away once 15/16 of its room is taken.
_CONNECTIONS = 22_000

PLENTY = {
    "FREEAPI_CALLER_RPM": "900000000",
    "FREEAPI_CALLER_TPM": "900000000",
    "FREEAPI_CALLER_RPD": "900000000",
    "FREEAPI_CALLER_CONCURRENCY": "1000000",
    "FREEAPI_DAILY_USD": "900000",
    "FREEAPI_MONTHLY_USD": "9000000",
    "FREEAPI_CALLER_DAILY_USD": "800000",
    "FREEAPI_MAX_CONNECTIONS_PER_ADDRESS": "100000",
}
CONFIG = f"""
[[model]]
name = "{MODEL}"
upstream_model = "gpt-4o-mini"
rpm = 900000000
tpm = 900000000
input_usd_per_mtok = 0.15
output_usd_per_mtok = 0.6

[timeouts]
idle_s = 600
total_s = 900
"""
_NGINX = """
worker_processes 1;
pid nginx.pid;
error_log stderr;
{user}
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_body_buffer_size 512k;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s; # longer than a contender waits for its next turn
    {body}
}}
"""
_NGINX_PROXY = """
    upstream model {{
        server 127.0.0.1:{upstream};
        keepalive {kept};
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 600s;
            proxy_buffering {buffering};
            proxy_buffers 64 8k; # a long answer never waits in a file
            proxy_busy_buffers_size 64k;
            proxy_max_temp_file_size 0;
        }}
    }}
"""
_HAPROXY = """
global
    nbthread 1
    maxconn {connections}
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    http-reuse always
    option http-no-delay
frontend callers
    bind 127.0.0.1:{port} backlog 4096
    default_backend model
backend model
    server model 127.0.0.1:{upstream} pool-max-conn {kept}
"""


class Place(NamedTuple):
    """Where a contender runs and what it stands in front of."""

    home: Path
    upstream: int
    is_for_streams: bool = False

    @property
    def is_ready(self) -> Callable[[Server], bool]:
        """How to see that it has started; the upstream of streams gives no other answers."""
        return is_open if self.is_for_streams else answers


#: Starts one; raises NotStarted.
Start = Callable[[Place], AbstractContextManager[Server]]


def nginx_config(body: str) -> str:
    """A configuration of nginx's with this in its http block."""
    user = "user root;" if os.geteuid() == 0 else ""  # else it can't write to a private folder
    return _NGINX.format(body=body, user=user, files=open_files_max(), connections=_CONNECTIONS)


def nginx_command(home: Path) -> list[str]:
    """What starts nginx in ``home``, in the foreground."""
    return ["nginx", "-p", str(home), "-e", "stderr", "-c", "nginx.conf", "-g", "daemon off;"]


def started(
    name: str,
    command: Sequence[str],
    place: Place,
    port: int,
    env: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> AbstractContextManager[Server]:
    """A contender on the proxy's core, once it answers."""
    return running(
        name,
        command,
        port=port,
        home=place.home,
        core=PROXY_CORE,
        env=env,
        is_ready=place.is_ready,
        headers=headers,
    )


def nginx(place: Place) -> AbstractContextManager[Server]:
    """nginx as a reverse proxy."""
    port = free_port()
    write_nginx(place, port)
    command = nginx_command(place.home)
    return started(NGINX, command, place, port)


def write_nginx(place: Place, port: int, more: str = "") -> None:
    """Its configuration as a reverse proxy, with more directives of the outermost level."""
    place.home.mkdir(parents=True)
    body = _NGINX_PROXY.format(
        port=port,
        upstream=place.upstream,
        kept=KEPT,
        buffering="off" if place.is_for_streams else "on",
    )
    (place.home / "nginx.conf").write_text(more + nginx_config(body))


def haproxy(place: Place) -> AbstractContextManager[Server]:
    """HAProxy as a reverse proxy."""
    place.home.mkdir(parents=True)
    port = free_port()
    connections = min(open_files_max(), _CONNECTIONS) // 2 - 100  # each has one of the upstream's
    config = _HAPROXY.format(port=port, upstream=place.upstream, kept=KEPT, connections=connections)
    (place.home / "haproxy.cfg").write_text(config)
    command = ["haproxy", "-db", "-f", "haproxy.cfg"]
    return started(HAPROXY, command, place, port)


def freeapi(place: Place, more: Mapping[str, str] | None = None) -> AbstractContextManager[Server]:
    """This checkout's ``freeapi serve``, everything on; ``more`` settings if need be."""
    command = [str(Path(sys.executable).with_name("freeapi")), "serve"]
    port = free_port()
    env = {**settings(place, port), **(more or {})}
    return started(US, command, place, port, env)


def settings(place: Place, port: int) -> Mapping[str, str]:
    """The environment of a gateway in this place, which gets its freeapi.toml."""
    place.home.mkdir(parents=True)
    (place.home / "freeapi.toml").write_text(CONFIG)
    return {
        **PLENTY,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "FREEAPI_ADMIN_ADDR": f"127.0.0.1:{free_port()}",
        "FREEAPI_DATA_DIR": str(place.home / "data"),
        "OPENAI_API_KEYS": "sk-bench-1,sk-bench-2,sk-bench-3",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{place.upstream}/v1",
    }


CORE: Mapping[str, Start] = {US: freeapi, NGINX: nginx, HAPROXY: haproxy}
