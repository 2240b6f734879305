"""Canaries are unique, and are found in every spelling, where they mustn't be and only there."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import get_args
from urllib.parse import quote

import pytest

from freeapi.commands.canaries import (
    PLACES,
    Canary,
    Evidence,
    Finding,
    Place,
    address,
    search,
    word,
)

TEXT = "canary0123456789ab"
ADDRESS = "198.18.123.210"


def found(text: str, data: bytes) -> list[str]:
    """The spelling in which the text is found in a file, if it is."""
    canary = Canary(text, "prompt", frozenset())
    return [one.spelling for one in search([canary], [Evidence("files", "a file", data)])]


@pytest.mark.parametrize(
    ("data", "spelling"),
    [
        (b"...Canary0123456789AB...", "as it is"),
        (TEXT[::-1].encode(), "reversed"),
        (TEXT.encode().hex().upper().encode(), "hexadecimal"),
        ("".join(f"%{byte:02X}" for byte in TEXT.encode()).encode(), "percent-encoded"),
        ("".join(f"\\x{byte:02x}" for byte in TEXT.encode()).encode(), "escaped (\\x)"),
        ("".join(f"\\u{byte:04x}" for byte in TEXT.encode()).encode(), "escaped (\\u)"),
        (("says " + TEXT).encode("utf-16-le"), "UTF-16"),
        (("says " + TEXT).encode("utf-16-be"), "UTF-16"),
        (hashlib.sha256(TEXT.encode()).hexdigest().encode(), "sha256 hash"),
        (hashlib.blake2b(TEXT.encode()).hexdigest().encode(), "blake2b hash"),
    ],
)
def test_every_spelling_is_found(data: bytes, spelling: str) -> None:
    """Escaped, encoded, reversed, wide and hashed forms count, in any case."""
    assert found(TEXT, b"before " + data + b" after") == [spelling]


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("after", range(3))
def test_base64_is_found_at_any_offset(before: int, after: int) -> None:
    """Whatever stands around it in the encoded text, its own part is recognised."""
    text = b"<" * before + TEXT.encode() + b">" * after
    assert found(TEXT, base64.b64encode(text)) == ["base64"]


@pytest.mark.parametrize(
    ("data", "spelling"),
    [
        (f"::ffff:{ADDRESS}", "as it is"),
        ("C6127BD2", "a number (hexadecimal)"),
        (str(0xC6127BD2), "a number"),
        (hashlib.md5(ADDRESS.encode(), usedforsecurity=False).hexdigest(), "md5 hash"),
    ],
)
def test_addresses_are_found_as_numbers_too(data: str, spelling: str) -> None:
    """An address is recognised in its other forms, and where it was hashed without a salt."""
    assert found(ADDRESS, data.encode()) == [spelling]


def test_what_looks_alike_is_not_found() -> None:
    """A canary's beginning, its encoding's beginning or another canary's text is no finding."""
    others = [TEXT[:-1], base64.b64encode(TEXT[:-2].encode()).decode(), word(), ADDRESS, "x" * 99]
    assert found(TEXT, json.dumps(others).encode() + quote(TEXT[1:]).encode()) == []


def test_places_and_requests_decide_what_is_a_finding() -> None:
    """A text may be where it belongs, for its own request, and nowhere else."""
    canary = Canary(TEXT, "prompt", frozenset[Place]({"upstream", "answer"}), "mine")
    own = [Evidence(place, "own", TEXT.encode(), "mine") for place in ("upstream", "answer")]
    assert search([canary], own) == []
    others = [
        Evidence("answer", "another's answer", TEXT.encode(), "theirs"),
        Evidence("upstream", "another's request", TEXT.encode(), "theirs"),
        Evidence("output", "stderr", TEXT.encode()),
        Evidence("files", "a file", TEXT.encode()),
    ]
    assert search([canary], [*own, *others]) == [
        Finding("prompt", one.name, "as it is") for one in others
    ]


def test_a_text_of_all_requests_may_be_in_each_of_them() -> None:
    """The instance's own key goes upstream with every request, and never into an answer."""
    key = Canary(TEXT, "key", frozenset[Place]({"upstream"}))
    sent = [Evidence("upstream", "a request", TEXT.encode(), name) for name in ("one", "two")]
    answer = Evidence("answer", "an answer", TEXT.encode(), "one")
    assert search([key], sent) == []
    assert [finding.name for finding in search([key], [*sent, answer])] == ["an answer"]


def test_canaries_are_unique_and_long() -> None:
    """No two words are the same, and no address is the beginning of another one."""
    words = {word() for _ in range(1_000)}
    assert len(words) == 1_000
    addresses = {address("127.") for _ in range(100)} | {address("198.18.") for _ in range(100)}
    assert {len(text.split(".")) for text in addresses} == {4}
    assert not [a for a in addresses for b in addresses if a != b and b.startswith(a)]


def test_every_place_has_words_for_people() -> None:
    """The report can name each place."""
    assert set(PLACES) == set(get_args(Place))
