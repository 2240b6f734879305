"""The connection to Valkey (or Redis) that several gateways share, kept open.

``Store`` is one pipelined connection. All calls of one turn of the event loop leave in one write,
and are answered in their order: a ``Call`` within the read that brought its answer, a future a turn
later. ``Script`` is a function that runs inside the server, whole or not at all.

What this is not: no decision and no key of the store is known here (``valkey_limits``,
``valkey_leases``), and how bytes become calls and answers is ``valkey_pipe``'s, which brings in
libraries that take 0.1 s to import: it is loaded with the first ``Store``, so that a gateway which
shares with nobody never pays for it.

Plan: a call that isn't answered in time says that the connection can't be trusted, so it is closed,
all its calls fail, and a new one is made after a wait that grows and is random, so that gateways
don't return all at once.

Invariants: each call is answered or fails, once, within the time-out and one look; what became of
a call that failed isn't known; ``on_lost`` is called before the lost calls are told, ``on_up``
before any call goes out over a new connection. While the store is away calls fail at once.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Iterable
from hashlib import sha1
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, Protocol

from freeapi.errors import FreeApiError

#: The longest time that a call may take. Healthy ones take less than a millisecond.
TIMEOUT_S: Final = 1.0
#: The longest that connecting may take, with TLS and the password: a machine that has just started
#: is busy with more than this. Nobody waits for it but the start, as calls fail without it.
CONNECT_TIMEOUT_S: Final = 5.0
#: The first wait before connecting again, and the longest; each is random below its bound.
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 2.0
#: How often the oldest unanswered call is looked at, in a time-out.
LOOKS: Final = 4
#: What a caller who is refused for want of the store waits: about the longest retry.
_WAIT_S: Final = 2.0
#: All keys of the store begin with it; the braces put them into one slot of a cluster.
NAMESPACE: Final = b"{freeapi}"
#: A call of a function over one key, as it goes over the wire: half of packing it part by part.
#: Source: https://valkey.io/topics/protocol
_EVALSHA: Final = b"*5\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
_FOLDER: Final = Path(__file__).parent / "lua"


class StoreUnavailable(FreeApiError):
    """The shared store doesn't answer, so nobody knows what may still be spent or sent."""

    status = 503
    code = "upstream_unavailable"
    label = "store_unavailable"
    wording = "This instance can't reach its shared state at the moment. Please try again later."


class StoreError(Exception):
    """The store can't be used at all, and what the operator can do: print it and don't start."""


class StoreRefused(Exception):
    """The server says that a call is wrong, in the server's words: ours, or an older server."""


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


Again = tuple[Script, tuple[bytes, ...]]
"""A script and its arguments, to be sent whole to a server that has forgotten it."""


class Call:
    """What waits for an answer: told once, of that or that there will be none."""

    __slots__ = ("again", "born")

    def __init__(self) -> None:
        #: What to send again, whole, to a server that has forgotten the script.
        self.again: Again | None = None
        #: The pipe's count of looks when it was sent: looks rather than seconds, so that answers
        #: which are here count, though this process was busy with something else.
        self.born = 0

    def answered(self, answer: object) -> None:
        """The server's answer is here."""

    def failed(self, error: Exception) -> None:
        """StoreUnavailable: what became of it isn't known. StoreRefused: nothing, a bug of ours."""


class _FutureCall(Call):
    """For whoever awaits it."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        super().__init__()
        self.future = future

    def answered(self, answer: object) -> None:
        if not self.future.done():
            self.future.set_result(answer)

    def failed(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen, also where nobody waits for it


class Pipe(Protocol):
    """One connection after its handshake: calls in, answers out, first in first out."""

    def send(self, parts: Iterable[bytes], call: Call) -> None:
        """Send at the end of this turn of the loop."""

    def write(self, command: bytes, call: Call) -> None:
        """Send what is packed already at once, after what was to be sent at this turn's end."""

    def look(self) -> None:
        """Close the connection if its oldest call waits for too long."""

    def close(self, why: str) -> None:
        """End it; calls without an answer fail, and nobody knows what became of them."""


class Dialer(Protocol):
    """What makes connections."""

    async def dial(self, lost: Callable[[str], None]) -> Pipe:
        """Connect, and log in. ``lost`` is told once, and why. Raises StoreError."""


class Store:
    """The connection, kept open. For one event loop.

    A call costs 5 us of processor time at 64 in flight and 14 us alone, without the server's side.
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
        self.timeout_s = timeout_s
        self._report = report
        self._dialer = _dialer(url)
        self._loop = asyncio.get_running_loop()
        self._pipe: Pipe | None = None
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
        except (StoreUnavailable, StoreRefused) as error:
            raise unreachable(error) from error

    def call(self, script: Script, namespace: bytes, argument: bytes) -> asyncio.Future[Any]:
        """Run the function over the namespace; the future is its answer's.

        It fails with StoreUnavailable, or with StoreRefused for a bug of ours.
        """
        if not self.is_up:
            return self._refused()
        return self.call_early(script, namespace, argument)

    def call_early(self, script: Script, namespace: bytes, argument: bytes) -> asyncio.Future[Any]:
        """The same for ``on_up``, when nobody else may call yet."""
        if self._pipe is None:
            return self._refused()
        tail = (b"1", namespace, argument)
        call = _FutureCall(self._loop.create_future())
        call.again = (script, tail)
        self._pipe.send((b"EVALSHA", script.sha, *tail), call)
        return call.future

    def run(self, script: Script, namespace: bytes, argument: bytes, call: Call) -> None:
        """As ``call_early``, at once and without a future: for what is asked all the time."""
        if self._pipe is None:
            call.failed(unavailable())
            return
        call.again = (script, (b"1", namespace, argument))
        parts = script.sha, len(namespace), namespace, len(argument), argument
        self._pipe.write(_EVALSHA % parts, call)

    def command(self, *parts: bytes) -> asyncio.Future[Any]:
        """Any command of the server's; fails as ``call``, but may be used by ``on_up``, too."""
        if self._pipe is None:
            return self._refused()
        call = _FutureCall(self._loop.create_future())
        self._pipe.send(parts, call)
        return call.future

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
        """Make a connection ready. Raises StoreError, StoreUnavailable, StoreRefused."""
        self._pipe = await self._dialer.dial(self._lost)
        self._look()
        try:
            for script in self._scripts:
                await self.command(b"SCRIPT", b"LOAD", script.source)
            for step in self.on_up:
                await step()
        except BaseException:
            if self._pipe is not None:
                self._pipe.close("handshake")
            raise
        if self._pipe is None:
            raise unavailable()
        self.is_up = True
        self._report("ok")

    async def _connect_again(self) -> None:
        """Until it is there."""
        bound_s = RETRY_MIN_S
        while True:
            await asyncio.sleep(self._chance.uniform(bound_s / 2, bound_s))
            try:
                await self._connect()
            except (StoreError, StoreUnavailable, StoreRefused):
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
            self._look_timer = self._loop.call_later(self.timeout_s / LOOKS, self._look)

    def _lost(self, why: str) -> None:
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
        future.set_exception(unavailable())
        future.exception()
        return future


def unavailable() -> StoreUnavailable:
    """For a call without an answer."""
    return StoreUnavailable(retry_after_s=_WAIT_S)


def unreachable(error: Exception) -> StoreError:
    """For an operator whose store can't be connected to."""
    return StoreError(
        f"the shared store doesn't answer ({type(error).__name__}): check FREEAPI_STATE, that "
        "Valkey runs there, and its password and TLS"
    )


def _dialer(url: str) -> Dialer:
    """Loads the libraries, see above. Raises StoreError: the URL isn't one."""
    module = importlib.import_module("freeapi.state.valkey_pipe")
    dialer: Dialer = module.ValkeyDialer(url)
    return dialer
