"""The upstream of JSON requests: Debian's nginx, since it has to be faster than nginx as a proxy.

A contender that waits for its upstream isn't busy, and a proxy that isn't busy is dearer by request
(it goes to sleep and wakes up), so a slow upstream would make the fast ones look slow.

Plan: it answers from memory, without looking at the request. Where the prompt is long it has to
read all of it first, or its answer would come before the proxy had sent it: such requests take
one more hop inside it, and the answer says how many bytes came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.contenders import nginx_command, nginx_config
from bench.machine import LOAD_CORE, free_port
from bench.server import Server, running
from bench.texts import RECEIVED, Exchange

_PIECE = 4_000
_AT_ONCE = """
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        default_type application/json;
        location / {{ {answer} }}
    }}
"""
_READ_FIRST = """
    upstream itself {{
        server 127.0.0.1:{inner};
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://itself;
            proxy_http_version 1.1;
            proxy_pass_request_headers off;
            proxy_pass_request_body off;
            proxy_set_header Connection "";
            proxy_set_header Content-Length "";
            proxy_set_header Received $content_length;
        }}
    }}
    server {{
        listen 127.0.0.1:{inner} backlog=4096;
        default_type application/json;
        location / {{ {answer} }}
    }}
"""


@contextmanager
def upstream(home: Path, exchange: Exchange) -> Iterator[Server]:
    """One that gives the exchange's answer to every request."""
    home.mkdir(parents=True)
    port, answer = free_port(), exchange.answer.decode()
    if RECEIVED in answer:
        answer = answer.replace(RECEIVED, "$http_received")
        body = _READ_FIRST.format(port=port, inner=free_port(), answer=_return(answer))
    else:
        body = _AT_ONCE.format(port=port, answer=_return(answer))
    (home / "nginx.conf").write_text(nginx_config(body))
    command = nginx_command(home)
    with running("the upstream", command, port=port, home=home, core=LOAD_CORE) as server:
        yield server


def _return(answer: str) -> str:
    """The directives that answer so, in pieces, since a word of nginx's ends at 4 KB."""
    pieces = [answer[begin : begin + _PIECE] for begin in range(0, len(answer), _PIECE)]
    sets = [f"set $piece{number} '{piece}';" for number, piece in enumerate(pieces)]
    return " ".join(
        [*sets, "return 200", "".join(f"${{piece{n}}}" for n in range(len(pieces))), ";"]
    )
