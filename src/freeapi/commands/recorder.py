"""The recording upstream: takes OpenAI's place on loopback, keeps every byte that it is sent.

It answers by a ``Reply``, which may be wrong on purpose: cut, broken, silent, full of an account's
secrets. A request is read to its end by its content-length, as the gateway writes them.

What this is not: a model, or a check of anything; ``canaries.search`` reads what is kept.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import Final

import msgspec

#: Longer than any reply takes: the gateway's own time-outs come first.
_PATIENCE_S: Final = 20.0
_READ_BYTES: Final = 65_536
#: Close by RST. Source: socket(7), SO_LINGER.
RESET: Final = struct.pack("ii", 1, 0)


class Reply(msgspec.Struct, frozen=True):
    """Raw bytes, in pieces with a pause between them, and what happens then."""

    pieces: tuple[bytes, ...]
    pause_s: float = 0.0
    #: ``hang``: say nothing until the gateway closes the connection.
    then: str = "go on"


class Recorder:
    """The listening server; ``port`` is where."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        #: The exchange that is under way, and how it is answered.
        self.exchange = ""
        self.reply = Reply(())
        #: (exchange, bytes) of each request, oldest first.
        self.requests: list[tuple[str, bytes]] = []
        self._connections: list[socket.socket] = []
        self._news = threading.Condition()
        threading.Thread(target=self._accept, name="recorder", daemon=True).start()

    def close(self) -> None:
        """Stop listening and drop what is connected."""
        for one in (self._listener, *self._connections):
            # Not close() alone: a thread that waits in accept() or recv() wouldn't notice.
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
            finally:
                one.close()

    def wait_for_request(self, number: int) -> None:
        """Wait until there are more than ``number`` requests, but not for long."""
        with self._news:
            self._news.wait_for(lambda: len(self.requests) > number, _PATIENCE_S)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(_PATIENCE_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while request := _read_request(connection):
                    with self._news:
                        self.requests.append((self.exchange, request))
                        self._news.notify_all()
                    if not self._answer(connection, self.reply):
                        return
            except OSError:
                return

    def _answer(self, connection: socket.socket, reply: Reply) -> bool:
        """Play the reply; whether the connection may be used again."""
        pause = threading.Event()
        for piece in reply.pieces:
            connection.sendall(piece)
            pause.wait(reply.pause_s)
        if reply.then == "hang":
            connection.recv(1)
        elif reply.then == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return reply.then == "go on"


def _read_request(connection: socket.socket) -> bytes:
    """A whole request; empty at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := connection.recv(_READ_BYTES)):
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    missing = _length(head) - len(body)
    while missing > 0 and (piece := connection.recv(_READ_BYTES)):
        data += piece
        missing -= len(piece)
    return data


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return 0
