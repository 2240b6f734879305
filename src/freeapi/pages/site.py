"""The instance's public page with its playground, in English and Chinese.

``GET /`` answers in the language that the browser prefers; ``/en`` and ``/zh`` are the two pages
themselves, so that the link between them works without JavaScript and can be shared. What follows
from the configuration is rendered once, at the start and at each reload; what changes by itself is
fetched by the page from ``GET /status``.

What this is not: it knows no caller, no key and no upstream's name, and it isn't a template engine.
``static/site.html`` has the structure, ``static/site.*.toml`` the words, ``site_facts`` the facts.

Invariants:
- Nothing of a third party is loaded, nothing inline is run: the policy in the headers forbids both.
- All facts are escaped before they get here; the words are our own HTML.
- No answer depends on who asks, but for the language and the coding that the browser names.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Final

import msgspec

from freeapi.errors import RouteNotFound
from freeapi.http.reply import Reply
from freeapi.http.wire import Request
from freeapi.pages.site_facts import SiteFacts, image_type

LANGUAGES: Final = ("en", "zh")

#: ``form-action 'none'``: forms are sent by our script or not at all. Trusted Types make the
#: browser refuse to turn any text, a model's answer above all, into HTML. Source: CSP Level 3.
_POLICY: Final = (
    b"content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; "
    b"img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'\r\n"
    b"cross-origin-opener-policy: same-origin\r\n"
    b"permissions-policy: camera=(), geolocation=(), microphone=()\r\n"
    b"referrer-policy: no-referrer\r\n"
    b"x-content-type-options: nosniff\r\n"
    b"x-frame-options: DENY\r\n"
)
#: Ask each time whether it is still the same; a reload of the configuration shows at once.
_ASK: Final = b"cache-control: no-cache\r\n"
#: Its address changes with its content.
_KEEP: Final = b"cache-control: public, max-age=31536000, immutable\r\n"
_HTML: Final = b"text/html; charset=utf-8"
#: ``gzip`` unless its weight is zero (RFC 9110 section 12.5.3).
_TAKES_GZIP: Final = re.compile(rb"(?:^|[,\s])gzip\s*(?:$|,|;\s*q=(?!0(?:\.0*)?\s*(?:,|$)))", re.I)
_HASH_CHARS: Final = 16


class _Content:
    """One answer, ready made: plain and compressed, with what a browser needs to keep it."""

    __slots__ = ("_plain", "_zipped", "body", "hash")

    def __init__(self, kind: bytes, body: bytes, caching: bytes, *, zips: bool = True) -> None:
        self.body = body
        self.hash = hashlib.sha256(body).hexdigest()[:_HASH_CHARS]
        head = b"content-type: %b\r\n%b%b" % (kind, caching, _POLICY)
        self._plain = self._coded(head, body, "")
        self._zipped = self._plain
        if zips:
            head += b"content-encoding: gzip\r\n"
            self._zipped = self._coded(head, gzip.compress(body, mtime=0), "-gz")

    def _coded(self, head: bytes, body: bytes, suffix: str) -> tuple[bytes, bytes, bytes]:
        tag = f'"{self.hash}{suffix}"'.encode()
        return tag, head + b"etag: %b\r\n" % tag, body

    def answer(self, request: Request, reply: Reply, vary: bytes) -> None:
        """200, or 304 where the browser has it. Source: RFC 9110 section 13.1.2."""
        takes_gzip = _TAKES_GZIP.search(request.headers.get(b"accept-encoding", b""))
        tag, head, body = self._zipped if takes_gzip else self._plain
        head += b"vary: %b\r\n" % vary
        known = request.headers.get(b"if-none-match", b"")
        if known == b"*" or tag in known:
            reply.send(304, head, b"")
        else:
            reply.send(200, head, body)


class Site:
    """The handlers of the page's paths; each answers GET and HEAD. O(1) per request."""

    PATHS: Final = (b"/", b"/en", b"/zh", b"/site.css", b"/site.js", b"/favicon.svg", b"/sponsor")

    def __init__(self, facts: SiteFacts) -> None:
        """Read the files of the package and render."""
        static = Path(__file__).parent / "static"
        self._page = Template((static / "site.html").read_text("utf-8"))
        self._texts = {
            language: msgspec.toml.decode((static / f"site.{language}.toml").read_bytes())
            for language in LANGUAGES
        }
        css, js = ((static / name).read_bytes() for name in ("site.css", "site.js"))
        self._css = _Content(b"text/css; charset=utf-8", css, _KEEP)
        self._js = _Content(b"text/javascript; charset=utf-8", js, _KEEP)
        icon = (static / "favicon.svg").read_bytes()
        self._icon = _Content(b"image/svg+xml", icon, _ASK)
        self.replace(facts)

    def replace(self, facts: SiteFacts) -> None:
        """Render anew: the configuration has changed."""
        pages = {language: self._render(facts, language) for language in LANGUAGES}
        self._contents: dict[bytes, _Content] = {
            b"/en": pages["en"],
            b"/zh": pages["zh"],
            b"/site.css": self._css,
            b"/site.js": self._js,
            b"/favicon.svg": self._icon,
        }
        if facts.sponsor is not None and facts.sponsor.image:
            image = facts.sponsor.image
            kind = image_type(image)
            assert kind is not None, "checked where it is read"
            self._contents[b"/sponsor"] = _Content(kind.encode(), image, _ASK, zips=False)

    def answer(self, request: Request, reply: Reply) -> None:
        """Answer one of ``PATHS``. Raises RouteNotFound for a picture that there isn't."""
        path, vary = request.path, b"accept-encoding"
        if path == b"/":
            path = b"/" + preferred(request.headers.get(b"accept-language", b"")).encode()
            vary += b", accept-language"
        content = self._contents.get(path)
        if content is None:
            raise RouteNotFound(method="GET", path=path.decode(), hint="There is no picture here.")
        content.answer(request, reply, vary)

    def _render(self, facts: SiteFacts, language: str) -> _Content:
        texts = self._texts[language]
        own = {name: text for name, text in texts.items() if isinstance(text, str)}
        values = {f"f_{name}": value for name, value in facts.render(own).items()}
        values |= {
            "f_css": self._css.hash,
            "f_js": self._js.hash,
            "f_words": _words(texts, is_free=facts.is_free),
        }
        values |= {f"t_{name}": Template(text).substitute(values) for name, text in own.items()}
        return _Content(_HTML, self._page.substitute(values).encode(), _ASK)


def preferred(accept_language: bytes) -> str:
    """``zh`` where the browser prefers it to English, else ``en``.

    >>> preferred(b"zh-CN,zh;q=0.9,en;q=0.8"), preferred(b"en,zh;q=0.5"), preferred(b"fr, *;q=0.1")
    ('zh', 'en', 'en')
    """
    weights = {b"zh": 0.0, b"en": 0.0}
    for part in accept_language.lower().split(b","):
        name, _, weight = part.strip().partition(b";q=")
        primary = name.partition(b"-")[0]
        if primary in weights:
            weights[primary] = max(weights[primary], _weight(weight))
    return "zh" if weights[b"zh"] > weights[b"en"] else "en"


def _weight(text: bytes) -> float:
    """A weight of RFC 9110 section 12.4.2; 1 where it is missing, 0 where it is none."""
    if not text:
        return 1.0
    return float(text) if re.fullmatch(rb"[01](\.\d{0,3})?", text) else 0.0


def _words(texts: Mapping[str, object], *, is_free: bool) -> str:
    """What the script says, as JSON that can't end the element it stands in."""
    words = texts["words"]
    assert isinstance(words, dict)
    shown = {**words, "errors": texts["errors"], "gap": texts["gap"], "isFree": is_free}
    return msgspec.json.encode(shown).decode().replace("<", "\\u003c")
