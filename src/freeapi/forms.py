"""Forms with an audio file, which go up as they come.

A ``Form`` reads a caller's form as far as its file, so that it is known what is asked for, and then
sends another form upstream: the file's bytes as they are read, then the fields that may pass. No
more than a few pieces of the file are in memory, but for one case.

That case: a form is free to name its model after its file, as openai-node and most curl lines do.
With one model configured for the endpoint it is clear which is meant. With several, the file is
held until the name is there; all files that are held take ``HELD_BYTES_MAX`` at most.

Invariants:
- The fields are checked as a whole before the form's last bytes leave: one that may not pass ends
  the request upstream unfinished, which is no request and can't be billed.
- Nothing of the caller's form is passed on but the file's bytes and fields that were checked.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final

from freeapi.errors import CapacityExceeded, InvalidForm, InvalidValue
from freeapi.http.multipart import (
    Field,
    FileData,
    FileStart,
    FormReader,
    FormWriter,
    boundary_of,
)
from freeapi.http.upload import Upload
from freeapi.http.upstream import Sink, UpstreamConnection
from freeapi.policy import form
from freeapi.policy.models import ANY_MODEL, Endpoint, ModelTable
from freeapi.policy.payload import Prepared, Rules

#: Of all files that wait for their model's name.
HELD_BYTES_MAX: Final = 67_108_864
#: To hope for room: the time that others take to send what is held of them.
_ROOM_WAIT_S: Final = 2.0
_FILE: Final = "file"


class Room:
    """How much more may be held, by all forms together."""

    __slots__ = ("left",)

    def __init__(self, bytes_max: int = HELD_BYTES_MAX) -> None:
        self.left = bytes_max


class Form:
    """One form on its way: ``open`` it, ``exchange`` it once, ``close`` it in any case."""

    __slots__ = (
        "_assumed",
        "_endpoint",
        "_fields",
        "_file_name",
        "_held",
        "_held_bytes",
        "_is_read",
        "_reader",
        "_room",
        "_rules",
        "_table",
        "_writer",
        "is_begun",
        "is_sent",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        upload: Upload,
        content_type: bytes,
        table: ModelTable,
        rules: Rules,
        room: Room,
    ) -> None:
        """``content_type`` is the caller's. Raises UnsupportedMediaType, InvalidForm."""
        self._endpoint = endpoint
        self._reader = FormReader(upload, boundary_of(content_type))
        self._table = table
        self._rules = rules
        self._room = room
        self._writer = FormWriter(secrets.token_hex(16).encode())
        self._fields: list[tuple[str, bytes]] = []
        #: The model, while the form itself doesn't name one.
        self._assumed: tuple[tuple[str, bytes], ...] = ()
        self._file_name = ""
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_read = False
        #: Something of the file has left, so that it can't be sent again.
        self.is_begun = False
        #: All of it has left: only now may it be billed.
        self.is_sent = False

    @property
    def content_type(self) -> bytes:
        """The content type of what is sent."""
        return self._writer.content_type

    async def open(self) -> Prepared:
        """Read until it is clear what is asked for. Raises FreeApiError."""
        async for part in self._reader:
            if isinstance(part, Field):
                self._fields.append(part)
            elif isinstance(part, FileStart):
                self._begin_file(part)
                break
        else:
            raise InvalidValue(param=_FILE, problem="it is missing")
        if not self._names_model():
            serving = self._table.serving(self._endpoint)
            if len(serving) == 1 and serving[0].name != ANY_MODEL:
                self._assumed = (("model", serving[0].name.encode()),)
            else:
                await self._hold()
        return self._checked().prepared

    async def exchange(
        self, head: bytes, connection: UpstreamConnection, sink: Sink, final_s: float
    ) -> None:
        """Send all of it and let ``sink`` have the answer, which may come before the end.

        Raises what the outcome of ``UpstreamConnection.begin`` does, and FreeApiError for what is
        wrong with the form: what has left by then is no complete request.
        """
        self.is_begun = True
        answer = connection.begin(head, sink, final_s).future()
        sending = asyncio.get_running_loop().create_task(self._send(connection))
        try:
            await asyncio.wait((sending, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await sending
            await answer
        finally:
            if not answer.done():
                connection.abandon(sink)
            sending.cancel()
            for future in (sending, answer):  # whatever else went wrong is no news any more
                if future.done() and not future.cancelled():
                    future.exception()

    def close(self) -> None:
        """Let go of what is held."""
        self._room.left += self._held_bytes
        self._held_bytes = 0
        self._held.clear()

    async def _send(self, connection: UpstreamConnection) -> None:
        """Send it; stop where no more of it is wanted. Raises FreeApiError."""
        known = self._checked()
        start = self._writer.file_start(_FILE, known.file_name, known.file_type)
        if not await connection.send(start + b"".join(self._held)):
            return
        self.close()
        async for part in self._reader:
            if isinstance(part, FileData):
                if not await connection.send(part.data):
                    return
            elif isinstance(part, Field):
                self._fields.append(part)
        self._is_read = True
        fields = [self._writer.field(name, value) for name, value in self._checked().fields]
        if await connection.send(b"".join(fields) + self._writer.end()):
            self.is_sent = True
            connection.finish()

    async def _hold(self) -> None:
        """Read it to its end. Raises CapacityExceeded where others hold too much already."""
        async for part in self._reader:
            if isinstance(part, FileData):
                self._keep(part.data)
            elif isinstance(part, Field):
                self._fields.append(part)
        self._is_read = True

    def _keep(self, data: bytes) -> None:
        if len(data) > self._room.left:
            raise CapacityExceeded(retry_after_s=_ROOM_WAIT_S)
        self._room.left -= len(data)
        self._held_bytes += len(data)
        self._held.append(data)

    def _begin_file(self, start: FileStart) -> None:
        if start.name != _FILE:
            raise InvalidForm(problem="its file must be in the field 'file'")
        self._file_name = start.file_name

    def _names_model(self) -> bool:
        return any(name == "model" for name, _ in self._fields)

    def _checked(self) -> form.Form:
        """What is known of it by now. Raises FreeApiError."""
        fields: Sequence[tuple[str, bytes]] = self._fields
        if not self._names_model() and not self._is_read:
            fields = [*self._assumed, *fields]
        return form.check_form(
            self._endpoint, fields, self._table, self._rules, self._file_name, self._is_read
        )
