"""Forms: what is read of a caller's, in any cut, what is refused, and what ours looks like.

The reader is fed through a real ``Upload``; the sockets behind it are test_upload's.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import random
import time
from collections.abc import Iterable

import pytest

from freeapi.errors import ClientGone, FreeApiError, InvalidForm, UnsupportedMediaType
from freeapi.http import multipart
from freeapi.http.multipart import (
    Event,
    Field,
    FileData,
    FileStart,
    FormReader,
    FormWriter,
    boundary_of,
)
from freeapi.http.upload import Upload
from tests.scripted_upstream import PATIENCE_S

FORM_DATA = b"content-disposition: form-data; "


def form(*parts: bytes, boundary: bytes = b"b", end: bytes = b"--\r\n") -> bytes:
    """The parts (heads and bodies) as a form."""
    return b"".join(b"--%b\r\n%b\r\n" % (boundary, p) for p in parts) + b"--%b%b" % (boundary, end)


def field(name: bytes, value: bytes, *headers: bytes) -> bytes:
    """A part that is a field, or a file if the name brings more parameters."""
    lines = [FORM_DATA + b'name="%b"' % name, *headers, b"", value]
    return b"\r\n".join(lines)


MODEL = field(b"model", b"whisper-1")
FILE = field(b'file"; filename="a b.mp3', b"\r\n--\r\n-\0\xff--b", b"Content-Type: audio/mpeg")


class Pieces:
    """What stands behind an upload: these pieces, one whenever it is waited for."""

    def __init__(self, pieces: Iterable[bytes], error: FreeApiError | None = None) -> None:
        self._pieces = iter(pieces)
        self._error = error
        self.upload = Upload(self)

    def await_body(self) -> None:
        """The next one, or how it ends."""
        piece = next(self._pieces, None)
        if piece is not None:
            self.upload.feed(piece)
        elif self._error is not None:
            self.upload.fail(self._error)
        else:
            self.upload.finish()

    def receive(self) -> None:
        """It comes when it is waited for."""


def merged(events: Iterable[Event]) -> list[Event]:
    """The events as if the file had come in one piece."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, FileData) and isinstance(last, FileData):
            out[-1] = FileData(last.data + event.data)
        else:
            out.append(event)
    return out


async def read(
    pieces: Iterable[bytes], boundary: bytes = b"b", error: FreeApiError | None = None
) -> list[Event]:
    """All events of a form."""
    async with asyncio.timeout(PATIENCE_S):
        source = Pieces(pieces, error)
        return [event async for event in FormReader(source.upload, boundary)]


async def test_any_cut_gives_the_same_events() -> None:
    """Cut at every byte, or into single bytes, a form is read as when it comes at once."""
    long = form(MODEL, FILE, field(b"prompt", "ü".encode()), boundary=b"bb-b")
    expected = [
        Field("model", b"whisper-1"),
        FileStart("file", "a b.mp3"),
        FileData(b"\r\n--\r\n-\0\xff--b"),
        Field("prompt", b"\xc3\xbc"),
    ]
    assert merged(await read([long], b"bb-b")) == expected
    for cut in range(1, len(long)):
        assert merged(await read([long[:cut], long[cut:]], b"bb-b")) == expected
    assert merged(await read([bytes([byte]) for byte in long], b"bb-b")) == expected


async def test_what_is_allowed_beside_the_usual() -> None:
    """Blank lines around, odd spacing, other headers, an empty file and an empty form are read."""
    odd = b'CONTENT-Disposition:   FORM-DATA ; NAME=a; filename=""; x="y;z"\r\nX-A: b\r\n\r\n'
    assert await read([b"\r\n" + form(odd) + b"\r\nepilogue"]) == [FileStart("a", "")]
    plain = field(b"a", b"1", b"content-transfer-encoding: 8BIT")
    assert await read([form(plain)]) == [Field("a", b"1")]
    assert await read([form()]) == []


async def test_file_passes_on_as_it_comes() -> None:
    """Each piece of a file is an event before the next piece is there."""
    head, _, rest = form(field(b'file"; filename="a', b"12345678")).partition(b"1")
    come: list[bytes] = []

    def pieces() -> Iterable[bytes]:
        for piece in (head, b"1234", b"5678", rest[7:]):
            come.append(piece)
            yield piece

    seen = [(event, len(come)) async for event in FormReader(Pieces(pieces()).upload, b"b")]
    start = FileStart("file", "a")
    assert seen == [(start, 1), (FileData(b"1234"), 2), (FileData(b"5678"), 3)]


LONG = multipart.TEXT_BYTES_MAX
REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "no boundary": b"hello",
    "another boundary": form(MODEL, boundary=b"c"),
    "no last boundary": form(MODEL, end=b"\r\n"),
    "cut in the last boundary": form(MODEL, end=b"-"),
    "cut in a part": form(MODEL)[:-10],
    "something before it": b"x" + form(MODEL),
    "something before it, after a line end": b"\r\0" + form(MODEL),
    "a boundary that goes on": form(MODEL, field(b"a", b"1\r\n--bc")),
    "blanks behind a boundary": form(MODEL).replace(b"--b\r", b"--b \r"),
    "boundaries in the file": form(field(b'file"; filename="a', b"\r\n--b-" * 40)),
    "no disposition": form(b"content-type: text/plain\r\n\r\nx"),
    "no headers": form(b"\r\nx"),
    "no name": form(b'content-disposition: form-data; filename="a"\r\n\r\nx'),
    "another disposition": form(b'content-disposition: attachment; name="a"\r\n\r\nx'),
    "two dispositions": form(field(b"a", b"x", FORM_DATA + b'name="b"')),
    "two files": form(FILE, FILE),
    "base64": form(field(b"a", b"eA==", b"Content-Transfer-Encoding: base64")),
    "a header that is none": form(b"content disposition: x\r\n\r\n"),
    "a header without its end": form(b"content-disposition: form-data\r"),
    "a control in a name": form(field(b"a\nb", b"x")),
    "a long name": form(field(b"a" * 65, b"x")),
    "a long file name": form(field(b'file"; filename="' + b"a" * 1_025, b"x")),
    "a long header": form(field(b"a", b"x", b"x-a: " + b"a" * 5_000)),
    "many headers": form(field(b"a", b"x", *(b"x-%d: a" % i for i in range(8)))),
    "33 parts": form(*[field(b"a", b"")] * 33),
    "a long value": form(field(b"a", b"x" * LONG)),
    "long values": form(*[field(b"a", b"x" * (LONG // 2))] * 2),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("size", [1, 100_000])
async def test_form_that_is_refused(
    name: str, size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has one error, which says what is wrong, however it comes; nothing is logged of it."""
    data = REFUSED[name]
    size = max(size, len(data) // 1_000)
    with pytest.raises(InvalidForm) as raised:
        await read([data[at : at + size] for at in range(0, len(data), size)])
    assert raised.value.facts["problem"]
    assert capfd.readouterr() == ("", "")


async def test_limits_themselves_are_allowed() -> None:
    """32 parts, 64 KiB of names and values together, and the longest names are read."""
    assert len(await read([form(*[field(b"a", b"")] * 32)])) == 32
    assert len(await read([form(field(b"a", b"x" * (LONG - 1)))])) == 1
    name = field(b"a" * 64 + b'"; filename="' + b"n" * 1_024, b"")
    assert await read([form(name)]) == [FileStart("a" * 64, "n" * 1_024)]


async def test_upload_that_fails_fails_the_form() -> None:
    """What ends the upload is what the reader raises, not the form's missing end."""
    with pytest.raises(ClientGone):
        await read([form(FILE)[:50]], error=ClientGone())


@pytest.mark.parametrize(
    "filler", [b"\r", b"\r\n--", b"\r\n--" + b"b" * 69 + b"a", b"\r\n--" + b"b" * 69 + b"\r"]
)
async def test_near_boundaries_cost_no_more_than_other_bytes(filler: bytes) -> None:
    """A file made of almost-boundaries is read within a few times what a dull one takes."""

    async def took_s(filler: bytes) -> float:
        data = form(field(b'file"; filename="a', filler * (1_000_000 // len(filler))), boundary=b70)
        best_s = float("inf")
        for _ in range(2):
            begun_s = time.process_time()
            await read([data[at : at + 65_536] for at in range(0, len(data), 65_536)], b70)
            best_s = min(best_s, time.process_time() - begun_s)
        return best_s

    b70 = b"b" * 70
    assert await took_s(filler) < 10 * await took_s(b"x") + 0.02


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data; charset=utf-8; Boundary="a b"'.replace(b" b", b"=b"), b"a=b"),
        (b"multipart/form-data;boundary=----WebKitFormBoundaryA1", b"----WebKitFormBoundaryA1"),
    ],
)
def test_boundary_is_found(content_type: bytes, boundary: bytes) -> None:
    """Quoted or not, in any case, beside other parameters."""
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    ("content_type", "error"),
    [
        (b"", UnsupportedMediaType),
        (b"application/json", UnsupportedMediaType),
        (b"multipart/mixed; boundary=a", UnsupportedMediaType),
        (b"application/json; x=multipart/form-data; boundary=a", UnsupportedMediaType),
        (b"multipart/form-data", InvalidForm),
        (b"multipart/form-data; boundary=", InvalidForm),
        (b'multipart/form-data; boundary=""', InvalidForm),
        (b"multipart/form-data; boundary=" + b"a" * 71, InvalidForm),
        (b'multipart/form-data; boundary="a\rb"', InvalidForm),
        (b"multipart/form-data; boundary=a\xff", InvalidForm),
    ],
)
def test_no_boundary_is_refused(content_type: bytes, error: type[FreeApiError]) -> None:
    """What isn't a form is told from a form that can't be read; both say what to send."""
    with pytest.raises(error) as raised:
        boundary_of(content_type)
    assert "form" in raised.value.message


# --- Written --------------------------------------------------------------------------------------


def written(writer: FormWriter, data: bytes) -> bytes:
    """A form with a field, a file, and a field behind it."""
    return (
        writer.field("model", b"whisper-1")
        + writer.file_start("file", "audio.mp3", "audio/mpeg")
        + data
        + writer.field("include[]", b"logprobs")
        + writer.end()
    )


async def test_written_form_is_what_others_read() -> None:
    """Python's own parser of mail, and our reader, find in it what was put in."""
    writer = FormWriter(b"0123456789abcdef")
    data = random.Random(7).randbytes(100_000).replace(b"\n", b"") + b"\r\n"
    body = written(writer, data)
    events = merged(await read([body], boundary_of(writer.content_type)))
    assert events == [
        Field("model", b"whisper-1"),
        FileStart("file", "audio.mp3"),
        FileData(data),
        Field("include[]", b"logprobs"),
    ]
    plain = written(FormWriter(b"0123456789abcdef"), b"abc")
    head = b"content-type: %b\r\n\r\n" % writer.content_type
    message = email.message_from_bytes(head + plain, policy=email.policy.HTTP)
    parts = list(message.iter_parts())
    assert [part["content-disposition"].params["name"] for part in parts] == [
        "model",
        "file",
        "include[]",
    ]
    assert parts[1].get_content() == b"abc"
    assert [part.get_content_type() for part in parts] == ["text/plain", "audio/mpeg", "text/plain"]


def test_form_of_nothing() -> None:
    """Without parts it is its last boundary only."""
    assert FormWriter(b"x").end() == b"--x--\r\n"


@pytest.mark.parametrize("name", ['a"; filename="b', "a\r\nb: c", "a\0"])
def test_name_that_would_break_out_is_our_mistake(name: str) -> None:
    """A quote or a line end in a name is never written."""
    with pytest.raises(AssertionError):
        FormWriter(b"x").field(name, b"")
    with pytest.raises(AssertionError):
        FormWriter(b"x").file_start("file", name, "audio/mpeg")
