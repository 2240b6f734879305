"""The line between the supervisor and one worker: a socket pair, and what is said over it.

Messages are msgpack with their length in front. The worker's end of it in life is the other's end:
a worker whose line is cut has lost its supervisor and drains, a supervisor whose line is cut has
lost a worker. Nothing of a caller's is ever said here but sums and counts.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

import msgspec

from freeapi.state.valkey_leases import Leased, Order

_LENGTH: Final = struct.Struct("!I")
#: A worker's report has the metrics of one process: some 100 KB with many models.
MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024


class Orders(msgspec.Struct, frozen=True, tag=True):
    """The first message, to the worker: what it must not decide for itself."""

    #: Settings that win over all others, as the command line's do.
    flags: dict[str, str]
    #: The embedded model's socket, if there is such a model.
    local_socket: str | None
    #: Its leases come from the supervisor's ledger, not from a store that all machines share.
    has_bank: bool


class Reload(msgspec.Struct, frozen=True, tag=True):
    """To the worker: read the configuration anew; the embedded model is at this socket now."""

    local_socket: str | None


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From the worker: it accepts callers."""

    host: str
    port: int


class Tell(msgspec.Struct, frozen=True, tag=True):
    """To the worker: report now, under this number."""

    number: int


class Report(msgspec.Struct, frozen=True, tag=True):
    """From the worker, once a second and when told to: what the admin port shows of it."""

    metrics: bytes
    #: As ``KeyPool.describe``.
    keys: list[dict[str, str | int]]
    #: The one of ``Tell``; 0: nobody asked.
    number: int = 0


class LeaseAsk(msgspec.Struct, frozen=True, tag=True):
    """From the worker: what it should have leased."""

    number: int
    orders: list[Order]


class LeaseAnswer(msgspec.Struct, frozen=True, tag=True):
    """To the worker: what it has, which is on disk by now; None: nothing could be written."""

    number: int
    leased: list[Leased] | None


Message = Orders | Reload | Ready | Tell | Report | LeaseAsk | LeaseAnswer

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)


class LineCut(Exception):
    """The other process is gone."""


class Link:
    """One end, for one event loop. ``say`` never waits: messages are small and few."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Link:
        """Use this end of a socket pair, which is the link's own from now on."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def say(self, message: Message) -> None:
        """Send; to one who is gone it is said in vain."""
        data = _ENCODER.encode(message)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    async def hear(self) -> Message:
        """The next message. Raises LineCut."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MESSAGE_BYTES_MAX:
                raise LineCut
            return _DECODER.decode(await self._reader.readexactly(length))
        except (OSError, EOFError, msgspec.DecodeError) as error:  # IncompleteReadError is EOFError
            raise LineCut from error

    def close(self) -> None:
        """Cut it."""
        self._writer.close()


def hear_orders(end: socket.socket) -> Orders:
    """The first message, for a process whose event loop doesn't run yet. Raises LineCut."""
    try:
        (length,) = _LENGTH.unpack(_receive(end, _LENGTH.size))
        message = _DECODER.decode(_receive(end, length))
    except (OSError, msgspec.DecodeError) as error:
        raise LineCut from error
    if not isinstance(message, Orders):
        raise LineCut
    return message


def _receive(end: socket.socket, size: int) -> bytes:
    data = end.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise LineCut
    return data
