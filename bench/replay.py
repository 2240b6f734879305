"""A fixed replay: caller and upstream in one thread, each byte at its turn, so always the same.

Both ends of the gateway are blocking sockets of this process. The caller sends a request, the
upstream receives it and answers, the caller reads the answer, and only then comes the next; of a
stream, the next chunk comes only when the caller has the last. So nothing depends on who is faster.
"""

from __future__ import annotations

import socket
from typing import Self

from bench.texts import DONE, LAST_CHUNK, STOP, STREAM_HEAD, USAGE, chunked, event, whole

_PATIENCE_S = 120.0  # under callgrind all takes fifty times as long


class Wrong(Exception):
    """The caller got something else than the upstream sent."""


class Replay:
    """One caller's connection, and the upstream's end of the one that the gateway opens for it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_PATIENCE_S)
        self.upstream_port: int = self._listener.getsockname()[1]
        self._caller: socket.socket | None = None
        self._upstream: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._caller, self._upstream, self._listener):
            if end is not None:
                end.close()

    def connect(self, port: int) -> None:
        """Become a caller of the server at this port."""
        self._caller = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)

    def exchange(self, request: bytes, answer: bytes) -> None:
        """One JSON request and its answer's body. Raises Wrong."""
        caller, upstream = self._ask(request)
        upstream.sendall(whole(answer))
        head, body = _received_head(caller)
        length = int(head.lower().split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += _received(caller)
        if body != answer or not head.startswith(b"HTTP/1.1 200"):
            raise Wrong(f"{head!r} {bytes(body[:300])!r}")

    def stream(self, request: bytes, chunks: int) -> None:
        """One streamed answer of so many pieces of text. Raises Wrong."""
        caller, upstream = self._ask(request)
        upstream.sendall(STREAM_HEAD)
        received = bytearray()
        for number in range(chunks):
            piece = event(f" {number:06}")
            upstream.sendall(chunked(piece))
            while not received.endswith(b"\n\n\r\n"):
                received += _received(caller)
            if piece not in received:
                raise Wrong(repr(bytes(received[:600])))
            received.clear()
        upstream.sendall(chunked(STOP) + chunked(USAGE + DONE) + LAST_CHUNK)
        while not received.endswith(LAST_CHUNK):
            received += _received(caller)

    def _ask(self, request: bytes) -> tuple[socket.socket, socket.socket]:
        assert self._caller is not None
        self._caller.sendall(request)
        if self._upstream is None:
            self._upstream, _ = self._listener.accept()
            self._upstream.settimeout(_PATIENCE_S)
        head, body = _received_head(self._upstream)
        length = int(head.lower().split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += _received(self._upstream)
        return self._caller, self._upstream


def _received(end: socket.socket) -> bytes:
    data = end.recv(1 << 20)
    if not data:
        raise Wrong("the connection was closed")
    return data


def _received_head(end: socket.socket) -> tuple[bytes, bytearray]:
    received = bytearray()
    while b"\r\n\r\n" not in received:
        received += _received(end)
    head, _, body = received.partition(b"\r\n\r\n")
    return bytes(head) + b"\r\n", body
