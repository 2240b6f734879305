"""The same HTTP requests, most of them wrong, to this proxy and to nginx, Node and uvicorn.

Prints the Markdown table of THREATS.md. Run it from the root of the repository, once
``make test`` has set up what it needs:

    .venv/bin/python -m bench.http_compare

Each server is the real program with its own defaults, started here on a free port of 127.0.0.1 and
ended at the end; nginx and this proxy pass requests on to a small upstream in this process. Each
case is sent on a connection of its own, followed by a plain request that asks for the connection to
be closed. uvicorn is installed in a directory that is thrown away; what isn't there is left out.

What this is not: a test. It judges nothing, and takes as long as the slowest server's patience with
a head of which one byte comes a second (at most SLOW_S).
"""

from __future__ import annotations

import getpass
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import NamedTuple

from tests.gateway import UNLIMITED, Gateway

#: Longer than any of them takes to answer what it is going to answer.
PATIENCE_S = 2.0
#: Longer than nginx's 60 s for a head, and than Node's, which it looks at every 30 s.
SLOW_S = 100.0
START_S = 30.0
#: A process without a proxy's or a key's variables.
CLEAN = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}

NEXT = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
BODY = b'{"model":"gpt-3.5-turbo","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}'
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
_JSON = (
    b'{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"ok"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_JSON),
    _JSON,
)


class Case(NamedTuple):
    """What is sent, and how many requests it is if nobody is fooled."""

    data: bytes
    requests: int = 1


def get(*lines: bytes, first: bytes = b"GET /healthz HTTP/1.1", host: bytes = b"Host: x") -> bytes:
    """A request without a body; its header lines after Host."""
    return b"\r\n".join(line for line in (first, host, *lines) if line) + b"\r\n\r\n"


def post(*lines: bytes, body: bytes = BODY, version: bytes = b"1.1") -> bytes:
    """A request with a body; how it is framed is for ``lines`` to say."""
    first = b"POST /v1/chat/completions HTTP/" + version
    return get(*lines, b"Content-Type: application/json", first=first) + body


def chunks(
    *, size: bytes = b"%x" % len(BODY), end: bytes = b"0\r\n\r\n", crlf: bytes = b"\r\n"
) -> bytes:
    """BODY as one chunk."""
    return size + crlf + BODY + crlf + end


def chunked(**parts: bytes) -> bytes:
    """A chunked request, its chunk as said."""
    return post(CHUNKED, body=chunks(**parts))


CASES: dict[str, Case] = {
    "plain GET": Case(get()),
    "POST with a length": Case(post(LENGTH)),
    "POST in chunks": Case(chunked()),
    "three pipelined": Case(get() + post(LENGTH) + get(), 3),
    "absolute-form target": Case(get(first=b"GET http://x/healthz HTTP/1.1")),
    "HTTP/1.0 without Host": Case(get(first=b"GET /healthz HTTP/1.0", host=b"")),
    "`Expect: 100-continue`": Case(post(LENGTH, b"Expect: 100-continue")),
    "other expectation": Case(post(LENGTH, b"Expect: 200-ok")),
    "Upgrade to h2c": Case(post(LENGTH, b"Connection: Upgrade", b"Upgrade: h2c")),
    "CONNECT": Case(get(first=b"CONNECT x:80 HTTP/1.1")),
    "unknown method": Case(get(first=b"BREW /healthz HTTP/1.1")),
    "HTTP/0.9": Case(b"GET /healthz\r\n\r\n"),
    "HTTP/1.2": Case(get(first=b"GET /healthz HTTP/1.2")),
    "HTTP/2.0": Case(get(first=b"GET /healthz HTTP/2.0")),
    "Host missing": Case(get(host=b"")),
    "Host twice": Case(get(b"Host: y")),
    "Host with a path": Case(get(host=b"Host: x/y")),
    "Host with a user": Case(get(host=b"Host: u@x")),
    "space in the target": Case(get(first=b"GET /health z HTTP/1.1")),
    "byte over 127 in the target": Case(get(first=b"GET /healthz?\xff HTTP/1.1")),
    "length and chunked": Case(post(LENGTH, CHUNKED, body=chunks())),
    "lengths that differ": Case(post(LENGTH, b"Content-Length: 5")),
    "the same length twice": Case(post(LENGTH, LENGTH)),
    "length as a list": Case(post(LENGTH + b", %d" % len(BODY))),
    "length with a plus": Case(post(LENGTH.replace(b": ", b": +"))),
    "length of 20 digits": Case(post(b"Content-Length: 99999999999999999999")),
    "coding gzip": Case(post(b"Transfer-Encoding: gzip")),
    "coding gzip, chunked": Case(post(b"Transfer-Encoding: gzip, chunked", body=chunks())),
    "chunked twice": Case(post(CHUNKED, CHUNKED, body=chunks())),
    "coding misspelt (xchunked)": Case(post(b"Transfer-Encoding: xchunked", body=chunks())),
    "chunked in HTTP/1.0": Case(post(CHUNKED, body=chunks(), version=b"1.0")),
    "folded header line": Case(get(b"X-A: b\r\n c")),
    "bare LF for line ends": Case(get().replace(b"\r\n", b"\n")),
    "bare CR in a value": Case(get(b"X-A: b\rc")),
    "space before the colon": Case(get(b"X-A : b")),
    "NUL in a value": Case(get(b"X-A: b\0c")),
    "name that is no token": Case(get(b"X(A): b")),
    "target of 9 KB": Case(get(first=b"GET /" + b"a" * 9_000 + b" HTTP/1.1")),
    "header of 20 KB": Case(get(b"X-A: " + b"a" * 20_000)),
    "head of 70 KB": Case(get(*(b"X-%d: " % i + b"a" * 990 for i in range(70)))),
    "200 headers": Case(get(*(b"X-%d: a" % i for i in range(200)))),
    "announced body of 2 MB": Case(post(b"Content-Length: 2000000", body=b"")),
    "chunk size in 0x": Case(chunked(size=b"0x%x" % len(BODY))),
    "chunk size over 64 bits": Case(chunked(size=b"fffffffffffffffff")),
    "chunk size, then space": Case(chunked(size=b"%x " % len(BODY))),
    "chunks with bare LF": Case(chunked(crlf=b"\n")),
    "chunk extension": Case(chunked(size=b"%x;a=b" % len(BODY))),
    "bare LF in an extension": Case(chunked(size=b"%x;a\nb" % len(BODY))),
    "extension of 40 KB": Case(chunked(size=b"%x;" % len(BODY) + b"a" * 40_000)),
    "trailer": Case(chunked(end=b"0\r\nX-T: t\r\n\r\n")),
    "trailers of 40 KB": Case(chunked(end=b"0\r\nX-T: " + b"a" * 40_000 + b"\r\n\r\n")),
}
#: What comes at once, and then a byte a second.
SLOW = {
    "head, a byte a second": b"GET /healthz HTTP/1.1\r\nX-A: ",
    "body, a byte a second": post(b"Content-Length: 2000", body=b"{"),
}


# --- One exchange ---------------------------------------------------------------------------------


def outcome(port: int, case: Case) -> str:
    """How the server took it, as the table says it."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        answers, end = b"", ""
        try:
            sock.sendall(case.data + NEXT)
            while data := sock.recv(65_536):
                answers += data
        except TimeoutError:
            end = " …"
        except OSError:  # reset: it closed before it had read everything
            end = ""
    return _cell(answers, case, end)


def _cell(answers: bytes, case: Case, end: str) -> str:
    statuses = [int(status) for status in STATUS.findall(answers)]
    final = [status for status in statuses if status >= 200]
    if not final:
        return "body only" if answers else end.strip() or "closed"
    went_on = " →" if len(final) > case.requests else end
    shown = sorted(set(final[: case.requests])) if case.requests > 1 else final[:1]
    extra = " !" if len(final) > case.requests + 1 else ""
    return "/".join(map(str, shown)) + went_on + extra


def patience(port: int, start: bytes) -> str:
    """After how many seconds of single bytes the server hangs up."""
    began_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=1.0) as sock:
        sock.sendall(start)
        while (waited_s := time.monotonic() - began_s) < SLOW_S:
            try:
                answer = sock.recv(65_536)
            except TimeoutError:
                sock.sendall(b"a")
                continue
            except OSError:
                answer = b""
            found = STATUS.search(answer)
            return f"{found[1].decode() if found else 'closed'}, {waited_s:.0f} s"
    return f"> {SLOW_S:.0f} s"


# --- The servers ----------------------------------------------------------------------------------


class Upstream(StreamRequestHandler):
    """What nginx and this proxy pass requests on to. It refuses nothing."""

    def handle(self) -> None:
        """Take one request after the other, and answer as an API would."""
        while self.rfile.readline():
            length = 0
            while line := self.rfile.readline().strip():
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            self.rfile.read(length)
            self.wfile.write(ANSWER)


@contextmanager
def upstream() -> Iterator[int]:
    """A small server in this process; its port."""
    with ThreadingTCPServer(("127.0.0.1", 0), Upstream) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


@contextmanager
def program(folder: Path, *command: str) -> Iterator[None]:
    """A process of ours, for as long as it is needed."""
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=CLEAN, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            process.wait(START_S)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def wait_for(port: int) -> int:
    """Return the port once something accepts there. Raises TimeoutError."""
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return port
    raise TimeoutError(f"nothing listens on {port}")


def version(*command: str) -> str:
    """The first number with dots that the command prints."""
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"\d+(\.\d+)+", run.stdout + run.stderr)
    return found[0] if found else "?"


Started = dict[str, int]


def start_ours(stack: ExitStack, folder: Path, upstream_port: int) -> Started:
    """``freeapi serve`` with everything at its default but the limits per caller."""
    settings = {**UNLIMITED, "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1"}
    gateway = Gateway(folder, settings)
    stack.callback(gateway.stop)
    return {"freeapi": gateway.port}


def start_nginx(stack: ExitStack, folder: Path, upstream_port: int) -> Started:
    """nginx as a proxy, with Debian's default limits."""
    binary = shutil.which("nginx", path=CLEAN["PATH"])
    if binary is None:
        return {}
    port = free_port()
    (folder / "nginx.conf").write_text(
        # As root it would give its workers a user that can't write to our folder.
        f"user {getpass.getuser()}; worker_processes 1; daemon off; pid {folder}/pid;\n"
        f"error_log {folder}/error.log;\n"
        "events {}\nhttp { access_log off;\n"
        + "".join(
            f"{kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f"server {{ listen 127.0.0.1:{port}; location / {{\n"
        f"proxy_pass http://127.0.0.1:{upstream_port}; proxy_http_version 1.1; }} }} }}\n"
    )
    stack.enter_context(program(folder, binary, "-p", str(folder), "-c", f"{folder}/nginx.conf"))
    return {f"nginx {version(binary, '-v')}": wait_for(port)}


def start_node(stack: ExitStack, folder: Path, upstream_port: int) -> Started:
    """Node's own server."""
    binary = shutil.which("node")
    if binary is None:
        return {}
    port = free_port()
    (folder / "server.js").write_text(
        "require('http').createServer((request, answer) => {\n"
        "  request.resume(); request.on('end', () => answer.end('ok'));\n"
        f"}}).listen({port}, '127.0.0.1')\n"
    )
    stack.enter_context(program(folder, binary, "server.js"))
    return {f"Node {version(binary, '--version')}": wait_for(port)}


def start_uvicorn(stack: ExitStack, folder: Path, upstream_port: int) -> Started:
    """uvicorn with either of its parsers."""
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv/bin/python")
    pip = [python, "-m", "pip", "install", "-qq", "uvicorn", "httptools", "h11"]
    if subprocess.run(pip, check=False).returncode:
        return {}
    (folder / "app.py").write_text(
        "async def app(scope, receive, send):\n"
        "    if scope['type'] != 'http': return\n"
        "    while (await receive()).get('more_body'): pass\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'ok'})\n"
    )
    number = version(python, "-m", "uvicorn", "--version")
    started: Started = {}
    for parser in ("httptools", "h11"):
        port = free_port()
        arguments = ["app:app", "--http", parser, "--ws", "none", "--port", str(port)]
        stack.enter_context(program(folder, python, "-m", "uvicorn", *arguments))
        started[f"uvicorn {number}, {parser}"] = wait_for(port)
    return started


STARTERS: tuple[Callable[[ExitStack, Path, int], Started], ...] = (
    start_ours,
    start_nginx,
    start_node,
    start_uvicorn,
)


# --- The table ------------------------------------------------------------------------------------


def column(port: int) -> dict[str, str]:
    """Each case's outcome at one server."""
    with ThreadPoolExecutor(len(SLOW)) as pool:
        slow = {name: pool.submit(patience, port, start) for name, start in SLOW.items()}
        found = {name: outcome(port, case) for name, case in CASES.items()}
        return found | {name: waited.result() for name, waited in slow.items()}


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown."""
    rows = [["case", *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *(found[name] for found in columns.values())] for name in (*CASES, *SLOW)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """Start what is there, send every case to each, print."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream_port = stack.enter_context(upstream())
        started: Started = {}
        for start in STARTERS:
            home = folder / start.__name__
            home.mkdir()
            found = start(stack, home, upstream_port)
            if not found:
                print(f"left out, since it isn't there: {start.__name__}", file=sys.stderr)
            started |= found
        with ThreadPoolExecutor(len(started)) as pool:
            columns = dict(zip(started, pool.map(column, started.values()), strict=True))
    print(table(columns), end="")


if __name__ == "__main__":
    main()
