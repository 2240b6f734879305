"""Canaries: texts that occur nowhere else, so that wherever one turns up, it came from us.

Each one goes into one channel (a header, a field, an upstream's answer) and says where it may turn
up. ``search`` looks for all of them in all that was collected, in the spellings that software makes
of a text: escaped, encoded, in another alphabet's width, or hashed.

What this is not: proof against intent. A text that was encrypted, compressed or hashed with a salt
isn't found by looking for it. That is why files, connections and programs are counted as well.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

Place = Literal["upstream", "answer", "output", "files", "pages", "surroundings"]
#: What people call these places.
PLACES: Final[Mapping[Place, str]] = {
    "upstream": "the upstream",
    "answer": "the caller's own answer",
    "output": "stdout and stderr",
    "files": "files written",
    "pages": "status and operator pages",
    "surroundings": "the process list",
}
#: Characters of a canary that count: 2^48 of them, so none occurs by chance.
_RANDOM_BYTES: Final = 6
#: As long as the shortest form that is looked for: an address in hexadecimal.
_WINDOW_BYTES: Final = 8
_HASHES: Final = ("md5", "sha1", "sha256", "sha512", "blake2b", "blake2s")


class Canary(msgspec.Struct, frozen=True):
    """One unique text and the places where it may be found."""

    text: str
    #: What it was sent as, for people.
    channel: str
    allowed: frozenset[Place]
    #: The request that it was sent with; None: with all of them.
    exchange: str | None = None


class Evidence(msgspec.Struct, frozen=True):
    """Something collected: where, what to call it, and of which request, if it is one's own."""

    place: Place
    name: str
    data: bytes
    exchange: str | None = None


class Finding(msgspec.Struct, frozen=True):
    """A canary where it mustn't be."""

    channel: str
    name: str
    spelling: str


def word() -> str:
    """A new unique word, of letters and digits only, so that it fits anywhere."""
    return f"canary{secrets.token_hex(_RANDOM_BYTES)}"


def address(network: str) -> str:
    """A new address in an IPv4 /8 or /15, such as ``127.`` or ``198.18.``; its numbers are long.

    Three digits each: so that none is the beginning of another one.
    """
    missing = 4 - network.count(".")
    return network + ".".join(str(100 + secrets.randbelow(150)) for _ in range(missing))


def spellings(text: str) -> Iterator[tuple[str, bytes]]:
    """The forms of the text that are looked for, in lower case, with their names."""
    raw = text.encode()
    yield "as it is", raw.lower()
    yield "reversed", raw[::-1].lower()
    yield "hexadecimal", raw.hex().encode()
    yield "percent-encoded", b"".join(b"%%%02x" % byte for byte in raw)
    yield "escaped (\\x)", b"".join(b"\\x%02x" % byte for byte in raw)
    yield "escaped (\\u)", b"".join(b"\\u%04x" % byte for byte in raw)
    yield "UTF-16", text.encode("utf-16-le").lower().rstrip(b"\0")
    yield from (("base64", core) for core in _base64_cores(raw))
    yield from ((f"{name} hash", hashlib.new(name, raw).hexdigest().encode()) for name in _HASHES)
    if _is_ipv4(text):
        packed = socket.inet_aton(text)
        yield "a number (hexadecimal)", packed.hex().encode()
        yield "a number", str(int.from_bytes(packed, "big")).encode()


def _base64_cores(raw: bytes) -> Iterator[bytes]:
    """What stays the same of base64 wherever in a longer text the bytes stand."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw).rstrip(b"=")
        # The first character after the padding bytes, and the last, mix in bits of neighbours.
        start = (before * 8 + 5) // 6
        end = len(encoded) - (1 if (before + len(raw)) % 3 else 0)
        yield encoded[start:end].lower()


def _is_ipv4(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 4
    except ValueError:
        return False


def search(canaries: Iterable[Canary], collected: Sequence[Evidence]) -> list[Finding]:
    """Every canary that is where it mustn't be, once for each place.

    O(bytes + canaries): all windows of the data go into one set, in which most forms aren't, so
    that only those that are somewhere have to be looked for everywhere. (0.1 s instead of 3.)
    """
    lowered = [(evidence, evidence.data.lower()) for evidence in collected]
    windows = {data[at : at + _WINDOW_BYTES] for _, data in lowered for at in range(len(data))}
    findings: dict[Finding, None] = {}
    for canary in canaries:
        forms = [form for form in spellings(canary.text) if form[1][:_WINDOW_BYTES] in windows]
        for evidence, data in lowered if forms else ():
            spelling = _found(forms, data) if _is_out_of_place(canary, evidence) else None
            if spelling is not None:
                findings[Finding(canary.channel, evidence.name, spelling)] = None
    return list(findings)


def _is_out_of_place(canary: Canary, evidence: Evidence) -> bool:
    """Where a canary may be in a request or an answer, it still may only be in its own."""
    is_own = evidence.exchange == canary.exchange
    return evidence.place not in canary.allowed or not (is_own or canary.exchange is None)


def _found(forms: Iterable[tuple[str, bytes]], data: bytes) -> str | None:
    return next((name for name, form in forms if form in data), None)
