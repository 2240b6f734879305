"""Forms with a file as callers write them, part by part, so that a test can stop anywhere.

What this is not: the form that the gateway sends; ``endpoints.form_of`` reads that one.
"""

from __future__ import annotations

from tests.raw_client import request
from tests.sdk_calls import MP3

BOUNDARY = "canary-boundary"
FILE = MP3[1]


def part(name: str, value: bytes, file_name: str = "") -> bytes:
    """One part of a form, as browsers and curl write it."""
    named = f'; filename="{file_name}"\r\ncontent-type: audio/mpeg' if file_name else ""
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def file_part(file: bytes = FILE) -> bytes:
    """The part with the file."""
    return part("file", file, "canary.mp3")


#: The header that a form comes with.
FORM_TYPE = ("content-type", f"multipart/form-data; boundary={BOUNDARY}")
END = f"--{BOUNDARY}--\r\n".encode()


def head_of(body_bytes: int, path: str = "/v1/audio/transcriptions") -> bytes:
    """The head of a form of that length."""
    return request("POST", path, FORM_TYPE, ("content-length", str(body_bytes)))


def form_of_parts(*parts: bytes) -> bytes:
    """A whole form."""
    return b"".join((*parts, END))


def post_form(*parts: bytes, path: str = "/v1/audio/transcriptions") -> bytes:
    """The bytes of a request with a form of these parts."""
    body = form_of_parts(*parts)
    return head_of(len(body), path) + body


MODEL = part("model", b"listener")
