"""The connection to Valkey (or Redis) that several gateways share: calls out, answers in, in order.

``Store`` is one pipelined connection. All calls of one turn of the event loop leave in one write,
and answers resolve futures in the order of the calls. ``Script`` is a function that runs inside the
server, whole or not at all.

What this is not: no decision and no key of the store is known here (``valkey_limits``,
``valkey_purse``), and connecting (TLS, password, database, Unix sockets, the URL's options) is
valkey-py's. Its way of making calls isn't used: it takes 123 us of processor time a call, 69 us at
64 calls at once; with the protocol below it is 24 us and 5 us.

Plan: a call that isn't answered in time says that the connection can't be trusted, so it is closed,
all its calls fail, and a new one is made after a wait that grows and is random, so that gateways
don't return all at once.

Invariants: each call is answered or fails, once, within the time-out and one look; what became of
a call that failed isn't known; ``on_lost`` is called before the futures of the lost calls resolve,
``on_up`` before any call goes out over a new connection. While the store is away calls fail at
once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from hashlib import sha1
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, cast

import libvalkey
from valkey.asyncio.connection import AbstractConnection, ConnectionPool
from valkey.exceptions import ValkeyError

from freeapi.errors import FreeApiError

#: The longest time that a call may take. Healthy ones take less than a millisecond.
TIMEOUT_S: Final = 1.0
#: The first wait before connecting again, and the longest; each is random below its bound.
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 2.0
#: How often the oldest unanswered call is looked at, in a time-out.
_LOOKS: Final = 4
#: What a caller who is refused for want of the store waits: about the longest retry.
_WAIT_S: Final = 2.0
#: Answers that say that the server can't serve anyone now, rather than that the call is wrong.
_AWAY: Final = frozenset(("LOADING", "MASTERDOWN", "READONLY", "MISCONF", "OOM", "BUSY"))
#: All keys of the store begin with it; the braces put them into one slot of a cluster.
NAMESPACE: Final = b"{freeapi}"
_FOLDER: Final = Path(__file__).parent / "lua"


class StoreUnavailable(FreeApiError):
    """The shared store doesn't answer, so nobody knows what may still be spent or sent."""

    status = 503
    code = "upstream_unavailable"
    label = "store_unavailable"
    wording = "This instance can't reach its shared state at the moment. Please try again later."


class StoreError(Exception):
    """The store can't be used at all, and what the operator can do: print it and don't start."""


class Script(NamedTuple):
    """A function of the server: its source, and the hash by which it is called.

    EVALSHA rather than FUNCTION: a function has a name, so that a gateway of another version would
    replace it under those that still run; a hash is one source for good.
    """

    source: bytes
    sha: bytes

    @classmethod
    def load(cls, *names: str) -> Script:
        """The files of ``state/lua`` with these names, one after the other."""
        source = b"\n".join((_FOLDER / f"{name}.lua").read_bytes() for name in names)
        return cls(source, sha1(source, usedforsecurity=False).hexdigest().encode())


class _Call:
    """A call that waits for its answer."""

    __slots__ = ("born", "future", "script")

    def __init__(
        self,
        future: asyncio.Future[Any],
        born: int,
        script: tuple[Script, tuple[bytes, ...]] | None,
    ) -> None:
        self.future = future
        #: The pipe's count of looks when it was made: looks rather than seconds, so that answers
        #: which are here count, though this process was busy with something else.
        self.born = born
        #: What to send again, whole, to a server that has forgotten the script.
        self.script = script


class _Pipe(asyncio.Protocol):
    """One connection after its handshake: calls in, answers out, first in first out."""

    def __init__(self, connection: AbstractConnection, lost: Callable[[_Pipe, str], None]) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._reader = libvalkey.Reader()
        self._calls: deque[_Call] = deque()
        self._out: list[bytes] = []
        self._looks = 0
        # The library has no name for it: the price of its handshake with our pipeline.
        assert connection._writer is not None, "it isn't connected"
        self._transport = cast(asyncio.Transport, connection._writer.transport)
        self._transport.set_protocol(self)
        self.is_open = True

    def send(
        self, parts: Iterable[bytes], script: tuple[Script, tuple[bytes, ...]] | None = None
    ) -> asyncio.Future[Any]:
        """Send at the end of this turn of the loop; the future is the answer's."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(libvalkey.pack_command(tuple(parts)))
        call = _Call(self._loop.create_future(), self._looks, script)
        self._calls.append(call)
        return call.future

    def data_received(self, data: bytes) -> None:
        """Hand out the answers that have come whole."""
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not False:
                self._answered(self._calls.popleft(), answer)
        except (libvalkey.ProtocolError, IndexError):
            self.close("garbage")

    def connection_lost(self, error: Exception | None) -> None:
        """The server, or the way to it, is gone."""
        self.close("closed")

    def look(self) -> None:
        """Close the connection if its oldest call waits for too long."""
        self._looks += 1
        if self._calls and self._looks - self._calls[0].born > _LOOKS:
            self.close("timeout")

    def close(self, why: str) -> None:
        """End it; calls without an answer fail, and nobody knows what became of them."""
        if not self.is_open:
            return
        self.is_open = False
        self._out.clear()
        self._transport.abort()
        # So that it doesn't think that it is open.
        self._connection._writer = self._connection._reader = None
        calls, self._calls = self._calls, deque()
        self._lost(self, why)
        for call in calls:
            if not call.future.done():
                call.future.set_exception(_unavailable())
                call.future.exception()  # seen, also where nobody waits for it

    def _flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def _answered(self, call: _Call, answer: object) -> None:
        if isinstance(answer, libvalkey.ReplyError):
            self._refused(call, answer)
        elif not call.future.done():
            call.future.set_result(answer)

    def _refused(self, call: _Call, error: Exception) -> None:
        word = str(error).partition(" ")[0]
        if word == "NOSCRIPT" and call.script is not None:
            script, tail = call.script
            again = self.send((b"EVAL", script.source, *tail))
            again.add_done_callback(lambda done: _pass_on(done, call.future))
            return
        if not call.future.done():
            call.future.set_exception(_unavailable() if word in _AWAY else error)
            call.future.exception()
        if word in _AWAY:
            self.close(word.lower())


class Store:
    """The connection, kept open. For one event loop.

    A call costs 5 us of processor time at 64 in flight and 24 us alone, without the server's side.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``report`` is told of changes: ``ok``, or one word of ours for what is wrong.

        Raises StoreError: the URL isn't one.
        """
        self._scripts: list[Script] = []
        self._timeout_s = timeout_s
        self._report = report
        self._pool = _pool(url, timeout_s)
        self._loop = asyncio.get_running_loop()
        self._pipe: _Pipe | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._is_closed = False
        self._chance = Random()  # noqa: S311 - spreads reconnections, hides nothing
        #: What has to be done over a new connection before anybody else's calls; may fail.
        self.on_up: list[Callable[[], Awaitable[None]]] = []
        self.on_lost: list[Callable[[], None]] = []
        #: False: calls fail at once.
        self.is_up = False

    def know(self, *names: str) -> Script:
        """A function, to be loaded over each new connection; see ``Script.load``. Reads files."""
        script = Script.load(*names)
        self._scripts.append(script)
        return script

    async def start(self) -> None:
        """Connect for the first time. Raises StoreError, with what the operator can do."""
        try:
            await self._connect()
        except (ValkeyError, OSError, StoreUnavailable) as error:
            raise StoreError(
                f"the shared store doesn't answer ({type(error).__name__}): check FREEAPI_STATE, "
                "that Valkey runs there, and its password and TLS"
            ) from error

    def call(self, script: Script, namespace: bytes, argument: bytes) -> asyncio.Future[Any]:
        """Run the function over the namespace; the future is its answer's.

        It fails with StoreUnavailable, or with libvalkey's ReplyError for a bug of ours.
        """
        if not self.is_up:
            return self._refused()
        return self.call_early(script, namespace, argument)

    def call_early(self, script: Script, namespace: bytes, argument: bytes) -> asyncio.Future[Any]:
        """The same for ``on_up``, when nobody else may call yet."""
        if self._pipe is None:
            return self._refused()
        tail = (b"1", namespace, argument)
        return self._pipe.send((b"EVALSHA", script.sha, *tail), (script, tail))

    def command(self, *parts: bytes) -> asyncio.Future[Any]:
        """Any command of the server's; as ``call``."""
        return self._refused() if self._pipe is None else self._pipe.send(parts)

    async def close(self) -> None:
        """End it for good; open calls fail."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._pipe is not None:
            self._pipe.close("closed")
        if self._look_timer is not None:
            self._look_timer.cancel()

    def __repr__(self) -> str:
        return f"<Store {'up' if self.is_up else 'down'}>"

    async def _connect(self) -> None:
        """Make a connection ready. Raises what the library or the handshake raises."""
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        async with asyncio.timeout(2 * self._timeout_s):
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        self._pipe = _Pipe(connection, self._lost)
        self._look()
        try:
            for script in self._scripts:
                await self._pipe.send((b"SCRIPT", b"LOAD", script.source))
            for step in self.on_up:
                await step()
        except BaseException:
            if self._pipe is not None:
                self._pipe.close("handshake")
            raise
        if self._pipe is None:
            raise _unavailable()
        self.is_up = True
        self._report("ok")

    async def _connect_again(self) -> None:
        """Until it is there."""
        bound_s = RETRY_MIN_S
        while True:
            await asyncio.sleep(self._chance.uniform(bound_s / 2, bound_s))
            try:
                await self._connect()
            except (ValkeyError, OSError, StoreUnavailable, libvalkey.LibvalkeyError):
                bound_s = min(2 * bound_s, RETRY_MAX_S)
            else:
                return

    def _look(self) -> None:
        """One timer for all calls: a timer for each would cost a heap operation."""
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        if self._pipe is not None:
            self._pipe.look()
        if self._pipe is not None:
            self._look_timer = self._loop.call_later(self._timeout_s / _LOOKS, self._look)

    def _lost(self, pipe: _Pipe, why: str) -> None:
        self._pipe = None
        was_up, self.is_up = self.is_up, False
        for told in self.on_lost:
            told()
        if was_up:
            self._report(why)
            if not self._is_closed:
                self._connecting = self._loop.create_task(self._connect_again(), name="store")

    def _refused(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        future.set_exception(_unavailable())
        future.exception()
        return future


def _pool(url: str, timeout_s: float) -> ConnectionPool:
    """The library's reading of the URL: never connects, only makes connections."""
    scheme = url.partition("://")[0]
    if scheme not in ("valkey", "valkeys", "redis", "rediss", "unix"):
        raise StoreError(
            "FREEAPI_STATE must be memory or a URL with valkey://, valkeys://, redis://, rediss:// "
            "or unix://. Sentinel and Cluster aren't supported: a failover may lose leases that "
            "were granted, and with them the cap"
        )
    try:
        return ConnectionPool.from_url(url, socket_connect_timeout=timeout_s)
    except (ValueError, TypeError) as error:
        raise StoreError("FREEAPI_STATE isn't a URL that valkey-py can read") from error


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable(retry_after_s=_WAIT_S)


def _pass_on(done: asyncio.Future[Any], future: asyncio.Future[Any]) -> None:
    if future.done():
        return
    error = done.exception()
    if error is None:
        future.set_result(done.result())
    else:
        future.set_exception(error)
        future.exception()
