"""A small outbound HTTP proxy: it notes what it is asked, and opens tunnels or plays an answer.

Every tunnel ends at one port of this machine, whatever name was asked for, so that a test can use
names that nobody can resolve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from tests.scripted_upstream import listening_socket

OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"


class ConnectProxy:
    """Listens on a port of its own; ``asked`` holds the head of every request."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.asked: list[bytes] = []
        #: What it answers, each piece in a write of its own.
        self.answer: Sequence[bytes] = [OPEN]
        self.then: Literal["relay", "hang", "close"] = "relay"
        #: Somebody whom it let hang has gone.
        self.gone = asyncio.Event()

    async def listen(self) -> None:
        """Begin to accept."""
        listener = listening_socket()
        self.port: int = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=listener)

    def close(self) -> None:
        """Accept no more; what is open ends with its other end."""
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in self.answer:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)  # the other end, in the same loop, may read it by itself
            if self.then == "relay":
                await self._relay(reader, writer)
            elif self.then == "hang":
                await reader.read()
                self.gone.set()
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(reader, up_writer))
            both.create_task(_pump(up_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on all bytes, and the end."""
    with suppress(ConnectionError):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
    writer.close()
