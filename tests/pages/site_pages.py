"""The public page as text, rendered from facts; not a browser (``tests/browser.py`` is)."""

from __future__ import annotations

from freeapi.http.reply import Reply
from freeapi.http.wire import Peer, Request
from freeapi.pages.site import Site
from freeapi.pages.site_facts import SiteFacts


class Outlet:
    """A connection that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def head(self, reply: Reply, status: int, headers: bytes) -> bytes:
        """As the connection would, without what is the same for all answers."""
        return b"HTTP/1.1 %d\r\n%b" % (status, headers)

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data

    def abort(self) -> None:
        """The page never cuts."""
        raise AssertionError("aborted")

    def replied(self, reply: Reply) -> None:
        """Nothing follows."""


def fetch(site: Site, path: bytes, **headers: str) -> tuple[str, bytes]:
    """The head and the body of the answer to a GET; ``headers`` with underscores."""
    request = Request(Peer(""))
    request.method, request.path = b"GET", path
    for name, value in headers.items():
        request.add_header(name.replace("_", "-").encode(), value.encode())
    outlet = Outlet()
    site.answer(request, Reply(outlet, request))
    head, _, body = outlet.written.partition(b"\r\n\r\n")
    return head.decode(), body


def page(facts: SiteFacts, language: str = "en") -> str:
    """The page of an instance."""
    return fetch(Site(facts), b"/" + language.encode())[1].decode()
