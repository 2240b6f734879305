"""One upstream under the eyes of ``freeapi doctor``: how far one gets, and what each key is told.

Plan: go there by hand, one step after the other (name, connection or proxy, TLS), so that it can be
said which one fails; then ask ``GET /models``, which costs nothing, with each key over the
connections that requests use. Where there is no such list, a chat that names no model, and so costs
nothing either, tells whether the address is that of an API at all.

What this is not: a judge; ``checks_upstream`` puts it into words. Nothing of an answer's text is
kept but the names of models.

Invariant: all of it ends in time, also if the upstream or the proxy never answers.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from freeapi import __version__
from freeapi.errors import FreeApiError, UpstreamGarbage, UpstreamTimeout
from freeapi.http.pool import Origin, UpstreamPool
from freeapi.http.tunnel import ProxyRefused, open_tunnel
from freeapi.policy.failures import Failure, classify, read_error
from freeapi.policy.models import PATHS
from freeapi.providers import Upstream
from freeapi.spelling import Secret

#: A step on the way there.
Stage = Literal["name", "connection", "proxy", "TLS"]
#: For all keys of an upstream together.
KEYS_MAX_S: Final = 20.0
#: Requests at a time: a pool of hundreds of keys shouldn't look like an attack.
AT_ONCE_MAX: Final = 8
#: OpenAI lists some hundred models in 20 KB; aggregators send a few hundred KB.
LISTING_BYTES_MAX: Final = 8 * 1024 * 1024
_HTTP_DATE: Final = "%a, %d %b %Y %H:%M:%S GMT"
#: What ``getpeercert`` gives. Source: Python's documentation, ssl.SSLSocket.getpeercert.
_CERTIFICATE_DATE: Final = "%b %d %H:%M:%S %Y GMT"
#: Words of ours for OpenSSL's. Source: openssl-verification-options(1), x509_vfy.h.
_VERDICTS: Final = {
    9: "its certificate isn't valid yet",
    10: "its certificate has expired",
    18: "its certificate is signed by itself",
    19: "its certificate's authority isn't trusted here",
    20: "its certificate's authority isn't trusted here",
    21: "its certificate's authority isn't trusted here",
    62: "its certificate is for another name",
    64: "its certificate is for another address",
}


class Way(msgspec.Struct, frozen=True):
    """How far one gets."""

    #: The step that failed; None: one gets there.
    failed: Stage | None = None
    why: str = ""
    #: Of all steps.
    took_s: float = 0.0
    #: Of the certificate; None without TLS.
    days_left: float | None = None


class KeyAnswer(msgspec.Struct, frozen=True):
    """What became of ``GET /models`` with one key."""

    #: None: the upstream is asked without.
    key: Secret | None
    #: 0: there was no answer.
    status: int = 0
    #: What a status other than 200 means; None for those.
    failure: Failure | None = None
    #: Without an answer: what ended it, by an error's label.
    label: str = ""
    took_s: float = 0.0
    #: The upstream's clock less ours; None if it didn't say.
    skew_s: float | None = None
    #: Names of models; None if it listed none.
    models: frozenset[str] | None = None


class Probe(msgspec.Struct, frozen=True):
    """All that was seen of one upstream."""

    upstream: Upstream
    way: Way
    answers: tuple[KeyAnswer, ...] = ()
    #: Where no key finds a list of models: the status of a chat completion that asks for nothing,
    #: which tells an upstream without such a list from a wrong address. None: it wasn't asked.
    chat_status: int | None = None


async def probe(upstream: Upstream, pool: UpstreamPool) -> Probe:
    """Look at it; ``pool`` has the connections that its requests would use. Never raises."""
    way = await explore(pool.origin, pool.timeouts.connect_s)
    if way.failed is not None:
        return Probe(upstream, way)
    final_s = pool.loop.time() + KEYS_MAX_S
    turn = asyncio.Semaphore(AT_ONCE_MAX)

    async def ask(key: Secret | None) -> KeyAnswer:
        async with turn:
            return await _ask(upstream, pool, key, final_s)

    keys: Iterable[Secret | None] = upstream.keys or (None,)
    answers = tuple(await asyncio.gather(*map(ask, keys)))
    if any(answer.status != 404 for answer in answers):
        return Probe(upstream, way, answers)
    chat = await _ask(upstream, pool, answers[0].key, final_s, chat=True)
    return Probe(upstream, way, answers, chat.status)


# --- The way there --------------------------------------------------------------------------------


async def explore(origin: Origin, limit_s: float) -> Way:
    """Go there step by step, and hang up. Never raises."""
    journey = _Journey(origin)
    start_s = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            await journey.go()
    except TimeoutError:
        return Way(journey.stage, f"no answer within {limit_s:g} s")
    except (OSError, UnicodeError) as error:
        return Way(journey.stage, _why(error))
    finally:
        journey.end()
    return Way(took_s=time.monotonic() - start_s, days_left=journey.days_left)


class _Journey:
    """The steps, and where it is now."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.BaseTransport | None = None
        self.stage: Stage = "name"
        self.days_left: float | None = None

    async def go(self) -> None:
        """Raises OSError or UnicodeError; ``stage`` says where."""
        origin = self._origin
        first = origin if origin.proxy is None else origin.proxy
        await self._loop.getaddrinfo(first.host, first.port, type=socket.SOCK_STREAM)
        if origin.proxy is None:
            self.stage = "connection"
            self._transport, _ = await self._loop.create_connection(
                asyncio.Protocol, origin.host, origin.port
            )
        else:
            self.stage = "proxy"
            tunnel = await open_tunnel(origin.proxy, origin.host, origin.port)
            self._transport, _ = await self._loop.create_connection(asyncio.Protocol, sock=tunnel)
        if origin.tls:
            self.stage = "TLS"
            await self._secure(self._transport)

    async def _secure(self, transport: asyncio.BaseTransport) -> None:
        secured = await self._loop.start_tls(
            transport,  # type: ignore[arg-type]  # a TCP connection's has all that it takes
            asyncio.Protocol(),
            ssl.create_default_context(),
            server_hostname=self._origin.host,
        )
        if secured is None:  # asyncio's answer to a connection that is closed meanwhile
            raise ConnectionResetError
        self._transport = secured
        certificate: dict[str, Any] = secured.get_extra_info("peercert")
        end = datetime.strptime(certificate["notAfter"], _CERTIFICATE_DATE).replace(tzinfo=UTC)
        self.days_left = (end.timestamp() - time.time()) / 86_400

    def end(self) -> None:
        """Hang up."""
        if isinstance(self._transport, asyncio.WriteTransport):
            self._transport.abort()
        elif self._transport is not None:
            self._transport.close()


def _why(error: OSError | UnicodeError) -> str:
    """In words of ours: those of the libraries hold addresses in brackets and line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERDICTS.get(error.verify_code, "its certificate can't be trusted")
    if isinstance(error, ssl.SSLError):
        return "what listens there doesn't speak TLS as we do"
    if isinstance(error, ProxyRefused):
        return str(error)  # ours, too
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, ConnectionError):
        return "it closed the connection"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "no address is known for that name"
    return error.strerror or "it can't be reached"


# --- The keys -------------------------------------------------------------------------------------


class _Listing:
    """Takes an answer, up to a size."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.skew_s: float | None = None

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.skew_s = _skew_s(headers.get(b"date", b""), time.time())

    def on_data(self, data: bytes) -> None:
        self.body += data
        if len(self.body) > LISTING_BYTES_MAX:
            raise UpstreamGarbage

    def on_end(self, data: bytes) -> None:
        self.on_data(data)


async def _ask(
    upstream: Upstream,
    pool: UpstreamPool,
    key: Secret | None,
    final_s: float,
    *,
    chat: bool = False,
) -> KeyAnswer:
    """GET /models with the key, or a chat without a model. Never raises."""
    listing = _Listing()
    start_s = pool.loop.time()
    try:
        if start_s >= final_s:
            raise UpstreamTimeout
        connection = pool.take() or await pool.connect()
        body = b"{}" if chat else b""
        head = _head(upstream, key, chat=chat)
        await connection.exchange(head, body, listing, final_s).future()
    except FreeApiError as error:
        return KeyAnswer(key, label=error.label)
    took_s = pool.loop.time() - start_s
    if listing.status != 200:
        failure = classify(listing.status, *read_error(listing.body))
        return KeyAnswer(key, listing.status, failure, "", took_s, listing.skew_s)
    return KeyAnswer(key, 200, None, "", took_s, listing.skew_s, _names(listing.body))


def _head(upstream: Upstream, key: Secret | None, *, chat: bool) -> bytes:
    query = "" if upstream.api_version is None else f"?api-version={upstream.api_version}"
    path = upstream.base_path
    what = f"POST {path}{PATHS['chat']}" if chat else f"GET {path}/models"
    lines = [
        f"{what}{query} HTTP/1.1",
        f"host: {upstream.authority}",
        f"user-agent: chatgpt-freeapi/{__version__}",
        "accept: application/json",
        "accept-encoding: identity",
        *(("content-type: application/json", "content-length: 2") if chat else ()),
    ]
    if key is not None:
        name = "authorization: Bearer" if upstream.auth == "bearer" else "api-key:"
        lines.append(f"{name} {key.reveal()}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _names(body: bytes) -> frozenset[str] | None:
    """Of the models in a listing of OpenAI's form. Source: OpenAI API reference, "List models"."""
    try:
        rows = msgspec.json.decode(body)["data"]
        return frozenset(str(row["id"]) for row in rows)
    except (msgspec.DecodeError, KeyError, TypeError):
        return None


def _skew_s(date: bytes, now_s: float) -> float | None:
    """The upstream's clock less ours. Its header has whole seconds, cut."""
    try:
        moment = datetime.strptime(date.decode("latin-1"), _HTTP_DATE).replace(tzinfo=UTC)
    except ValueError:
        return None
    return moment.timestamp() + 0.5 - now_s
