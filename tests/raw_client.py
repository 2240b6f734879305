"""A caller that sees bytes: a small HTTP/1.1 client over a socket, for tests that count them.

It is not a general client: no redirects, no pool, no retries, nothing repaired. What a test sends
is what goes out, in one write, and an answer that ends too early is reported as incomplete.

Plan: ``request`` and ``chat`` make bytes; ``Caller`` sends them and reads answers, in order, or
piece by piece where a test must see what has arrived so far. It reads only when asked to, so a
caller that isn't read from is a slow reader.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.gateway import MODEL
from tests.scripted_upstream import LINGER_ZERO, PATIENCE_S


def request(method: str, target: str, *headers: tuple[str, str], body: bytes = b"") -> bytes:
    """The bytes of a request; the length is added when there is a body."""
    length = (("content-length", str(len(body))),) if body else ()
    lines = [f"{method} {target} HTTP/1.1", "host: test.invalid"]
    lines += [f"{name}: {value}" for name, value in (*headers, *length)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chat(text: str = "Hi", *headers: tuple[str, str], **fields: object) -> bytes:
    """The bytes of a chat completion request."""
    messages = [{"role": "user", "content": text}]
    body = json.dumps({"model": MODEL, "messages": messages, **fields}).encode()
    return post("/v1/chat/completions", body, *headers)


def post(target: str, body: bytes, *headers: tuple[str, str]) -> bytes:
    """The bytes of a JSON POST."""
    return request("POST", target, ("content-type", "application/json"), *headers, body=body)


@dataclass
class Answer:
    """One answer: its head, and its body without the transfer coding."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    #: False: the connection ended before the framing said so.
    complete: bool = field(default=True)

    def header(self, name: str) -> str | None:
        """The header's value; None where it is missing or there is more than one."""
        values = [value for key, value in self.headers if key == name]
        return values[0] if len(values) == 1 else None

    def json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """The error object, checked to have OpenAI's shape."""
        assert self.header("content-type") == "application/json"
        document = self.json()
        assert set(document) == {"error"}
        error: dict[str, Any] = document["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error

    def text(self) -> str:
        """The text of a completion."""
        assert self.status == 200, self.body
        return str(self.json()["choices"][0]["message"]["content"])

    def events(self) -> list[bytes]:
        """The data of each server-sent event; all must be whole."""
        *events, rest = self.body.split(b"\n\n")
        assert rest == b""
        assert [event for event in events if not event.startswith(b"data: ")] == []
        return [event.removeprefix(b"data: ") for event in events]


class Caller:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send these bytes in one write."""
        self._writer.write(data)
        await self._writer.drain()

    async def ask(self, data: bytes) -> Answer:
        """Send one request and read its answer."""
        await self.send(data)
        return await self.answer(has_body=not data.startswith(b"HEAD"))

    async def answer(self, *, has_body: bool = True) -> Answer:
        """Read the next answer to its end."""
        async with asyncio.timeout(PATIENCE_S):
            answer = await self.head()
            if has_body and answer.status not in (204, 304):
                while await self.piece(answer):
                    pass
        return answer

    async def head(self) -> Answer:
        """Read the next answer's head only."""
        async with asyncio.timeout(PATIENCE_S):
            raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        headers = [(k.lower(), v.strip()) for k, _, v in (line.partition(":") for line in lines)]
        return Answer(int(first.split(" ")[1]), headers)

    async def piece(self, answer: Answer) -> bytes:
        """Read the body's next piece into the answer; b"" at its end, or where it was cut."""
        try:
            piece = await self._piece(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.complete = False
            return b""
        answer.body += piece
        return piece

    async def _piece(self, answer: Answer) -> bytes:
        if answer.header("transfer-encoding") == "chunked":
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            return (await self._reader.readexactly(size + 2))[:-2]
        if (length := answer.header("content-length")) is None:
            return await self._reader.read(65536)
        missing_bytes = int(length) - len(answer.body)
        piece = await self._reader.read(missing_bytes)
        answer.complete = bool(piece) or not missing_bytes
        return piece

    async def receive_until(self, answer: Answer, marker: bytes) -> None:
        """Read on until the body ends with the marker."""
        async with asyncio.timeout(PATIENCE_S):
            while not answer.body.endswith(marker):
                assert await self.piece(answer), f"ended before {marker!r}: {answer.body!r}"

    async def closed(self) -> bytes:
        """Wait for the gateway to close the connection; returns what came before."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    def reset(self) -> None:
        """Break the connection (RST)."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self._writer.transport.abort()

    def close(self) -> None:
        """Close the connection, whether or not an answer is under way."""
        self._writer.close()


@asynccontextmanager
async def caller(port: int) -> AsyncIterator[Caller]:
    """A connection to the gateway, closed at the end."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()
        # The gateway may have reset it, which some tests provoke.
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask(port: int, data: bytes) -> Answer:
    """One request over a connection of its own."""
    async with caller(port) as connection:
        return await connection.ask(data)
