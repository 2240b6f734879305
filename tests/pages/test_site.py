"""The public page as answers: languages, headers, what browsers keep, and its weight."""

from __future__ import annotations

import gzip
import re
import tomllib
from importlib.resources import files

import msgspec
import pytest

from freeapi.errors import RouteNotFound
from freeapi.pages.site import Site, preferred
from freeapi.pages.site_facts import SiteFacts, Sponsor
from tests.configs import read
from tests.gateway import Gateway
from tests.pages.site_pages import fetch
from tests.raw_client import ask, request

#: All that a visitor's browser fetches, before compression (issue 8).
BYTES_MAX = 60_000
STATIC = files("freeapi.pages") / "static"


@pytest.fixture
def facts() -> SiteFacts:
    """Those of an instance without any setting."""
    return SiteFacts.of(read())


@pytest.fixture
def site(facts: SiteFacts) -> Site:
    """Its page."""
    return Site(facts)


def header(head: str, name: str) -> str | None:
    """The header's value."""
    found = re.search(rf"(?m)^{name}: (.*?)\r?$", head)
    return None if found is None else found[1]


def texts(language: str) -> dict[str, object]:
    """All texts of a language, by their names."""
    tree = tomllib.loads((STATIC / f"site.{language}.toml").read_text("utf-8"))
    flat = {key: value for key, value in tree.items() if isinstance(value, str)}
    tables = {key: value for key, value in tree.items() if isinstance(value, dict)}
    return flat | {f"{key}.{name}": v for key, table in tables.items() for name, v in table.items()}


def test_page_is_light(site: Site) -> None:
    """Page, style, script and icon are under 60 KB together, in either language."""
    for page in (b"/en", b"/zh"):
        paths = (page, b"/site.css", b"/site.js", b"/favicon.svg")
        assert sum(len(fetch(site, path)[1]) for path in paths) < BYTES_MAX


@pytest.mark.parametrize("path", [b"/", b"/en", b"/site.css", b"/site.js", b"/favicon.svg"])
def test_policy_is_strict(site: Site, path: bytes) -> None:
    """Each answer forbids all that isn't ours, being framed, guessing types and telling others."""
    head, _ = fetch(site, path)
    policy = header(head, "content-security-policy") or ""
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert {"frame-ancestors 'none'", "trusted-types 'none'"} <= set(policy.split("; "))
    assert header(head, "x-content-type-options") == "nosniff"
    assert header(head, "referrer-policy") == "no-referrer"
    assert header(head, "cross-origin-opener-policy") == "same-origin"
    assert header(head, "set-cookie") is None


def test_page_itself_keeps_to_the_policy(site: Site) -> None:
    """Nothing inline that runs or styles, and no address of another host."""
    for path in (b"/en", b"/zh"):
        page = fetch(site, path)[1].decode()
        assert not re.search(r"\sstyle=|\son\w+=|<style|javascript:", page)
        assert re.findall(r'(?:src|href)="(?:https?:)?//', page) == []
        assert re.findall('<script (?!type="(?:module" src|application/json))', page) == []


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("zh", "zh"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("ZH-hant-TW", "zh"),
        ("en-GB, zh;q=0.9", "en"),
        ("en;q=0.3, zh;q=0.4", "zh"),
        ("zh;q=0", "en"),
        ("zh;q=nan", "en"),
        ("zh;q=0.5, en;q=0.5", "en"),
        ("de, fr;q=0.9", "en"),
        ("zhx", "en"),
    ],
)
def test_language_is_the_browsers(site: Site, accepted: str, language: str) -> None:
    """Chinese for those who prefer it to English, English for all others."""
    assert preferred(accepted.encode()) == language
    head, body = fetch(site, b"/", accept_language=accepted)
    assert body == fetch(site, b"/" + language.encode())[1]
    assert header(head, "vary") == "accept-encoding, accept-language"


def test_languages_have_the_same_texts() -> None:
    """Each text is there in both, with the same facts and placeholders in it."""
    english, chinese = texts("en"), texts("zh")
    assert list(english) == list(chinese)
    marks = re.compile(r"\$\{\w+\}|\{\w+\}|</?\w+>")
    for name, text in english.items():
        assert sorted(marks.findall(str(text))) == sorted(marks.findall(str(chinese[name]))), name


def test_no_text_is_left_over() -> None:
    """Each text is used by the page, the facts or the script."""
    used = "".join(
        (STATIC / name).read_text("utf-8")
        for name in ("site.html", "site.js", "../site.py", "../site_facts.py")
    )
    names = [name.removeprefix("words.") for name in texts("en") if not name.startswith("errors.")]
    assert [name for name in names if not re.search(rf'["{{_.]{name}\b', used)] == []


@pytest.mark.parametrize(
    ("accepted", "coded"),
    [
        ("gzip, deflate, br", True),
        ("br;q=1.0, gzip;q=0.8", True),
        ("GZIP", True),
        ("br,gzip;q=0", False),
        ("gzip;q=0.0, br", False),
        ("x-gzip", False),
        ("", False),
    ],
)
def test_page_is_compressed_for_those_who_take_it(site: Site, accepted: str, coded: bool) -> None:
    """With gzip where it is accepted, and then under another tag."""
    plain_head, plain = fetch(site, b"/en")
    head, body = fetch(site, b"/en", accept_encoding=accepted)
    assert (header(head, "content-encoding") == "gzip") is coded
    assert (gzip.decompress(body) if coded else body) == plain
    assert (header(head, "etag") == header(plain_head, "etag")) is not coded


async def test_browser_that_has_it_gets_304(gateway: Gateway) -> None:
    """An answer that the browser still has is a head without a body or a length."""
    whole = await ask(gateway.port, request("GET", "/"))
    assert (whole.status, whole.header("cache-control")) == (200, "no-cache")
    tag = whole.header("etag") or ""
    for known in (tag, f'W/{tag}, "other"', "*"):
        answer = await ask(gateway.port, request("GET", "/", ("if-none-match", known)))
        assert (answer.status, answer.header("content-length")) == (304, None)
        assert answer.header("etag") == tag
    other = await ask(gateway.port, request("GET", "/", ("if-none-match", '"other"')))
    assert other.status == 200


async def test_head_is_that_of_get(gateway: Gateway) -> None:
    """HEAD tells the same without a body."""
    whole = await ask(gateway.port, request("GET", "/"))
    head = await ask(gateway.port, request("HEAD", "/"))
    assert (head.status, head.body) == (200, b"")
    assert head.header("content-length") == str(len(whole.body))


def test_style_and_script_are_kept_for_good(site: Site) -> None:
    """Their address in the page changes with their content, so they are never asked for again."""
    page = fetch(site, b"/en")[1].decode()
    for name in ("site.css", "site.js"):
        head, _ = fetch(site, f"/{name}".encode())
        assert f'"{name}?v={(header(head, "etag") or "").strip(chr(34))}"' in page
        assert "immutable" in (header(head, "cache-control") or "")


def test_reload_changes_the_page(site: Site, facts: SiteFacts) -> None:
    """New facts are in the next answer, under another tag."""
    before, _ = fetch(site, b"/")
    site.replace(msgspec.structs.replace(facts, title="Our lab"))
    after, body = fetch(site, b"/")
    assert b"<title data-t>Our lab</title>" in body
    assert header(before, "etag") != header(after, "etag")


def test_sponsors_picture_is_ours_to_serve(site: Site, facts: SiteFacts) -> None:
    """It comes from this instance, as what it is; without one there is no such page."""
    picture = b"\x89PNG\r\n\x1a\n..."
    with pytest.raises(RouteNotFound):
        fetch(site, b"/sponsor")
    site.replace(msgspec.structs.replace(facts, sponsor=Sponsor("A", "", picture)))
    head, body = fetch(site, b"/sponsor", accept_encoding="gzip")
    assert (header(head, "content-type"), body) == ("image/png", picture)
    assert header(head, "content-encoding") is None


def test_words_cannot_end_their_element(site: Site) -> None:
    """The script's texts have no ``<`` in the page, so no tag of theirs is one of its."""
    page = fetch(site, b"/en")[1].decode()
    words = page.partition('id="words">')[2].partition("</script>")[0]
    assert "<" not in words
    assert msgspec.json.decode(words)["hello"] == "Hello!"
