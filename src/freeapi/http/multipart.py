"""multipart/form-data: a caller's form read while it arrives, and a form of our own written.

``FormReader`` gives events, of which those of the file pass on as they come; ``FormWriter`` makes
bytes of what is to be sent. Nothing of the caller's framing goes into ours: its boundary, its part
headers and its order of them end here. Whether a field is allowed is for ``policy`` to say.

The grammar is python-multipart's push parser, in which only its own bounds (8 headers a part, 4 KiB
each) are relied on. It finds boundaries by one search for each piece, and forgives what follows the
last one. A form without a last one it doesn't notice, and at what goes on wrongly behind a boundary
it looks byte by byte (up to 1 s/MB): both are refused here.

Invariants: text is bounded in each name and over the whole form, and the number of parts; of the
file no more is kept than one piece; the cost is linear in the bytes, however they are cut.

Source: RFC 7578 (multipart/form-data), RFC 2046 section 5.1 (multipart).
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple, Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from freeapi.errors import InvalidForm, UnsupportedMediaType
from freeapi.http.upload import Upload

#: OpenAI's audio endpoints have about 12 fields, of which lists may repeat one a few times.
PARTS_MAX = 32
#: Names and values of all fields together; a prompt has some hundred bytes.
TEXT_BYTES_MAX = 65_536
#: The longest name of a field of the API has 26 bytes.
NAME_BYTES_MAX = 64
#: What file systems allow (255 characters), in UTF-8.
FILE_NAME_BYTES_MAX = 1_024
#: RFC 2046 section 5.1.1, without the space that nobody uses.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=?-]{1,70}")
#: What it means to say nothing; RFC 7578 section 4.7 deprecates all others.
_PLAIN_ENCODINGS = frozenset((b"7bit", b"8bit", b"binary"))
_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]")
_DISPOSITION = b"content-disposition"
_ENCODING = b"content-transfer-encoding"


class Field(NamedTuple):
    """A text field, whole."""

    name: str
    value: bytes


class FileStart(NamedTuple):
    """The file begins; ``file_name`` as the caller spelt it, perhaps empty."""

    name: str
    file_name: str


class FileData(NamedTuple):
    """A piece of the file, never empty."""

    data: bytes


Event = Field | FileStart | FileData


def boundary_of(content_type: bytes) -> bytes:
    """The boundary that a form's Content-Type announces.

    Raises UnsupportedMediaType for anything but a form, InvalidForm for one without a proper one.
    """
    kind, parameters = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise UnsupportedMediaType(kind="a form", content_type="multipart/form-data; boundary=...")
    boundary = parameters.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidForm(problem="its Content-Type has no valid boundary")
    return boundary


class FormReader:
    """The events of one form, once: ``async for event in FormReader(upload, boundary)``.

    Reads the upload to its end. Raises InvalidForm, and what reading the upload raises.
    """

    def __init__(self, upload: Upload, boundary: bytes) -> None:
        self._upload = upload
        self._delimiter = b"\r\n--" + boundary
        #: With the byte behind it, which says whether a part or nothing follows.
        self._boundary = re.compile(re.escape(self._delimiter) + b"(?=(.))", re.DOTALL)
        self._boundaries = 0
        #: The end of the last piece, in which one may have begun; the first needs no line end.
        self._tail = b"\r\n"
        self._held = b""
        self._is_begun = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_begin": self._on_header_begin,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )
        # What it complains of quotes the caller's bytes; our error says what is wrong.
        self._parser.logger.disabled = True
        self._events: deque[Event] = deque()
        self._is_ended = False
        self._parts = 0
        self._files = 0
        self._text_bytes = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        #: Of the part in hand, as far as they mean anything.
        self._headers: dict[bytes, bytes] = {}
        #: The field in hand; None in a file.
        self._name: str | None = None
        self._value = bytearray()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            data = await self._upload.read()
            if not data:
                self._check_end()
                raise StopAsyncIteration
            self._feed(data)
        return self._events.popleft()

    def _feed(self, data: bytes) -> None:
        if not self._is_begun:
            data = self._begin(data)
        probe = self._tail + data
        if self._delimiter in probe:
            self._check_boundaries(probe)
        self._tail = probe[-len(self._delimiter) :]
        try:
            self._parser.write(data)
        except FormParserError:
            raise InvalidForm(problem="it is not valid multipart/form-data") from None

    def _begin(self, data: bytes) -> bytes:
        """What there is of a form that begins with its boundary: nothing, till that is whole.

        RFC 2046 allows other text before it, of which the parser makes this or that by its cuts.
        """
        data = self._held + data
        if len(data) < len(self._delimiter):
            self._held = data
            return b""
        if not data.startswith((self._delimiter, self._delimiter[2:])):
            raise InvalidForm(problem="it doesn't begin with its boundary")
        self._is_begun = True
        return data

    def _check_boundaries(self, probe: bytes) -> None:
        """RFC 2046 section 5.1.1: no line of a part begins with the boundary. Nor do we take blanks
        behind one, which nobody sends.
        """
        for found in self._boundary.finditer(probe):
            self._boundaries += 1
            if found[1] not in b"\r-" or self._boundaries > PARTS_MAX + 1:
                raise InvalidForm(problem="it has its boundary where no part ends, or too often")

    def _check_end(self) -> None:
        if not self._is_ended:
            raise InvalidForm(problem="its last boundary is missing")

    # --- the parser's callbacks -------------------------------------------------------------------

    def _on_part_begin(self) -> None:
        self._headers = {}
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise InvalidForm(problem=f"it has more than {PARTS_MAX} parts")

    def _on_header_begin(self) -> None:
        self._header_name.clear()
        self._header_value.clear()

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        name = bytes(self._header_name).lower()
        if name not in (_DISPOSITION, _ENCODING):
            return
        if name in self._headers:
            raise InvalidForm(problem="a part has the same header twice")
        self._headers[name] = bytes(self._header_value).strip(b" \t")

    def _on_headers_finished(self) -> None:
        if self._headers.get(_ENCODING, b"binary").lower() not in _PLAIN_ENCODINGS:
            raise InvalidForm(problem="a part has a Content-Transfer-Encoding; send it as it is")
        kind, parameters = parse_options_header(self._headers.get(_DISPOSITION, b""))
        name = parameters.get(b"name")
        if kind != b"form-data" or name is None:
            raise InvalidForm(problem="a part has no 'Content-Disposition: form-data' with a name")
        self._name = _text(name, NAME_BYTES_MAX, "the name of a part")
        self._value.clear()
        self._count_text(len(name))
        file_name = parameters.get(b"filename")
        if file_name is not None:
            self._begin_file(self._name, _text(file_name, FILE_NAME_BYTES_MAX, "a file's name"))

    def _begin_file(self, name: str, file_name: str) -> None:
        self._name = None
        self._files += 1
        if self._files > 1:
            raise InvalidForm(problem="it has more than one file")
        self._events.append(FileStart(name, file_name))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            self._events.append(FileData(data[start:end]))
        else:
            self._count_text(end - start)
            self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._name is not None:
            self._events.append(Field(self._name, bytes(self._value)))

    def _on_end(self) -> None:
        self._is_ended = True

    def _count_text(self, size_bytes: int) -> None:
        self._text_bytes += size_bytes
        if self._text_bytes > TEXT_BYTES_MAX:
            raise InvalidForm(problem=f"its text fields have more than {TEXT_BYTES_MAX} bytes")


def _text(value: bytes, bytes_max: int, what: str) -> str:
    """A name as text; raises InvalidForm where it can't be one."""
    if len(value) > bytes_max:
        raise InvalidForm(problem=f"{what} has more than {bytes_max} bytes")
    if _CONTROLS.search(value):
        raise InvalidForm(problem=f"{what} has a control character")
    return value.decode("utf-8", "replace")


class FormWriter:
    """A form as bytes: fields, one file at most whose data the caller puts behind its start, end.

    >>> writer = FormWriter(b"b")
    >>> writer.field("model", b"whisper-1") + writer.end()
    b'--b\\r\\ncontent-disposition: form-data; name="model"\\r\\n\\r\\nwhisper-1\\r\\n--b--\\r\\n'
    """

    def __init__(self, boundary: bytes) -> None:
        """``boundary``: at least 128 random bits in ASCII, so that no file can hold it."""
        self._first = True
        self._boundary = boundary

    @property
    def content_type(self) -> bytes:
        """For the request's head."""
        return b"multipart/form-data; boundary=" + self._boundary

    def field(self, name: str, value: bytes) -> bytes:
        """A whole text field."""
        return self._part(b'name="%b"' % _quotable(name), b"") + value

    def file_start(self, name: str, file_name: str, content_type: str) -> bytes:
        """The head of the file; its bytes follow, and then another part or the end."""
        named = b'name="%b"; filename="%b"' % (_quotable(name), _quotable(file_name))
        return self._part(named, b"content-type: %b\r\n" % _quotable(content_type))

    def end(self) -> bytes:
        """The last boundary."""
        return self._delimiter() + b"--\r\n"

    def _part(self, named: bytes, headers: bytes) -> bytes:
        return b"%b\r\ncontent-disposition: form-data; %b\r\n%b\r\n" % (
            self._delimiter(),
            named,
            headers,
        )

    def _delimiter(self) -> bytes:
        """It begins with the line end that isn't the part's before it, where there is one."""
        first, self._first = self._first, False
        return b"%b--%b" % (b"" if first else b"\r\n", self._boundary)


def _quotable(text: str) -> bytes:
    """Names are ours; one that would end its quotes or its line is a mistake of ours."""
    value = text.encode("utf-8")
    assert not _CONTROLS.search(value), "a control character in a part's header"
    assert b'"' not in value, "a quote in a part's header"
    return value
