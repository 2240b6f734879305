"""The public page as text, rendered from facts; not a browser (``tests/browser.py`` is)."""

from __future__ import annotations

import asyncio

from freeapi.http.connection import Connection
from freeapi.http.deadlines import Deadlines
from freeapi.http.reply import Reply
from freeapi.http.server import Server, ServerLimits
from freeapi.http.wire import Peer, Request
from freeapi.pages.site import Site
from freeapi.pages.site_facts import SiteFacts


class Outlet(asyncio.Transport):
    """A socket that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.written += data


async def _written(site: Site, request: Request) -> bytes:
    deadlines = Deadlines(asyncio.get_running_loop(), 60.0)
    server = Server(site.answer, ServerLimits(1, 1, None), deadlines)
    outlet, connection = Outlet(), Connection(server)
    connection.connection_made(outlet)
    site.answer(request, Reply(connection, request))
    deadlines.close()
    return outlet.written


def fetch(site: Site, path: bytes, **headers: str) -> tuple[str, bytes]:
    """The head and the body of the answer to a GET; ``headers`` with underscores."""
    request = Request(Peer(""))
    request.method, request.path, request.keep_alive = b"GET", path, True
    for name, value in headers.items():
        request.add_header(name.replace("_", "-").encode(), value.encode())
    head, _, body = asyncio.run(_written(site, request)).partition(b"\r\n\r\n")
    return head.decode(), body


def page(facts: SiteFacts, language: str = "en") -> str:
    """The page of an instance."""
    return fetch(Site(facts), b"/" + language.encode())[1].decode()
