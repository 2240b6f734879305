"""An application that reads uploads, and requests that bring some."""

from __future__ import annotations

import asyncio
import zlib

from freeapi.errors import FreeApiError
from freeapi.http.reply import Reply
from freeapi.http.upload import UNREAD_BYTES_MAX, Upload
from freeapi.http.wire import Request
from tests.http.conftest import TEXT

JSON = b"content-type: application/json\r\n"


def chunked(*pieces: bytes, target: bytes = b"/u") -> bytes:
    """A POST in chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" % target
    return head + body + b"0\r\n\r\n"


def summary(body: bytes) -> bytes:
    """What the application answers to this body."""
    return b"%d %08x" % (len(body), zlib.crc32(body))


class Readers:
    """An application that reads uploads, and what became of its readings."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.ends: list[str] = []
        #: Nothing is read before this is set.
        self.may_read = asyncio.Event()
        self.may_read.set()

    def __call__(self, request: Request, reply: Reply) -> None:
        if request.upload is None:
            reply.send(200, TEXT, b"%b %b" % (request.path, request.body))
            return
        assert request.body == b""
        reading = self._read(request.upload, reply)
        self.tasks.append(asyncio.get_running_loop().create_task(reading))

    async def _read(self, upload: Upload, reply: Reply) -> None:
        size_bytes = checksum = 0
        await self.may_read.wait()
        try:
            while data := await upload.read():
                assert len(data) < 3 * UNREAD_BYTES_MAX
                size_bytes += len(data)
                checksum = zlib.crc32(data, checksum)
        except FreeApiError as error:
            self.ends.append(error.label)
            reply.send(error.status, JSON, error.body())
        else:
            self.ends.append("whole")
            reply.send(200, TEXT, b"%d %08x" % (size_bytes, checksum))
