"""Fuzz the reader of forms: python-multipart, and our bounds around it.

Whatever comes, there are events in a sensible order, or one InvalidForm. However the bytes are cut,
both are the same. What was read can be written by ``FormWriter`` and is then read as the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from freeapi.errors import InvalidForm
from freeapi.http.multipart import (
    PARTS_MAX,
    TEXT_BYTES_MAX,
    Event,
    Field,
    FileData,
    FileStart,
    FormReader,
    FormWriter,
)
from freeapi.http.upload import Upload
from tests.fuzz.driver import cuts, fuzz

BOUNDARY = b"bb"
PART = b'--bb\r\ncontent-disposition: form-data; name="a"\r\n\r\n'
FILE = PART.replace(b'"a"', b'"file"; filename="x.mp3"')

SEEDS = (
    PART + b"whisper-1\r\n" + FILE + b"ID3\0\r\n--b\r\n\r\n--bb--\r\n",
    b"\r\n" + FILE + b"\r\n" + PART + b"\r\n--bb--\r\nepilogue",
    PART + b"1\r\n--bb \r\n--bb--",
    PART + b"1\r\n--bbb\r\n--bb-\r\n--bb--",
    PART.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n") + b"eA==\r\n--bb--",
    FILE + b"1\r\n" + FILE + b"2\r\n--bb--\r\n",
    b'--bb\r\nCONTENT-DISPOSITION:form-data;name="a\\"b;c" ; filename*=x\r\n\r\n\r\n--bb--',
    b"--bb--\r\n",
    PART + b"unfinished",
)


class Pieces:
    """What stands behind an upload: these pieces, one whenever it is waited for."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self.upload = Upload(self)

    def await_body(self) -> None:
        """The next one, or the end."""
        piece = next(self._pieces, b"")
        if piece:
            self.upload.feed(piece)
        else:
            self.upload.finish()

    def receive(self) -> None:
        """It comes when it is waited for."""


async def _collect(reader: FormReader, events: list[Event]) -> None:
    async for event in reader:
        last = events[-1] if events else None
        if isinstance(event, FileData) and isinstance(last, FileData):
            events[-1] = FileData(last.data + event.data)
        else:
            events.append(event)


def read(pieces: Iterable[bytes], boundary: bytes = BOUNDARY) -> list[Event] | None:
    """The events, or None for a form that is refused; without the loop, which never has to wait."""
    events: list[Event] = []
    reading = _collect(FormReader(Pieces(pieces).upload, boundary), events)
    try:
        while True:
            reading.send(None)
    except StopIteration:
        return events
    except InvalidForm:
        return None


def check_events(events: list[Event]) -> None:
    """One file at most, its data behind its start, and all within the bounds."""
    starts = [event for event in events if not isinstance(event, FileData)]
    assert len(starts) <= PARTS_MAX
    assert sum(isinstance(event, FileStart) for event in events) <= 1
    assert sum(len(event.value) for event in events if isinstance(event, Field)) <= TEXT_BYTES_MAX
    for before, event in zip([None, *events], events, strict=False):
        assert not isinstance(event, FileData) or isinstance(before, FileStart)


def rewritten(events: list[Event], boundary: bytes) -> bytes:
    """The same as a form of ours, in which names are ours too."""
    writer = FormWriter(boundary)
    out = b""
    for event in events:
        if isinstance(event, Field):
            out += writer.field("a", event.value)
        elif isinstance(event, FileStart):
            out += writer.file_start("file", "audio.mp3", "audio/mpeg")
        else:
            out += event.data
    return out + writer.end()


def renamed(event: Event) -> Event:
    """The event with the names that ``rewritten`` gives."""
    if isinstance(event, Field):
        return Field("a", event.value)
    return FileStart("file", "audio.mp3") if isinstance(event, FileStart) else event


def check(data: bytes) -> None:
    """The bytes are a form or refused, and are so however they come."""
    events = read([data])
    for pieces in cuts(data):
        assert read(pieces) == events, "it matters how the bytes are cut"
    if events is not None:
        check_events(events)
        ours = b"d6e2f1a09b7c4385"
        assert read([rewritten(events, ours)], ours) == [renamed(event) for event in events]


if __name__ == "__main__":
    fuzz("multipart", check, SEEDS)
