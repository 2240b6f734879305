"""With which key, over which connection, and what is tried again.

A ``Delivery`` is one prepared request on its way to an answer; ``Dispatcher.deliver`` tries until
the caller has one or no further try is allowed. The task sleeps while the answer's bytes go from
callback to callback (``http.relay``); when the caller goes, the upstream's connection is closed in
the same tick.

A request is sent again only if the failure says that it is safe (``policy.failures``), nothing has
reached the caller, and tries are left: a paid request whose fate is unknown is never resent, but
for the one case of a reused idle connection that died without a byte.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from freeapi.errors import (
    CapacityExceeded,
    ClientGone,
    ConnectTimeout,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbage,
    UpstreamRefused,
    UpstreamStale,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from freeapi.http.pool import UpstreamPool
from freeapi.http.relay import Relay
from freeapi.http.reply import Reply
from freeapi.http.sse import Usage
from freeapi.journal import Journal
from freeapi.policy import failures
from freeapi.policy.failures import Failure
from freeapi.policy.keys import Key, KeyPool, Lease
from freeapi.policy.payload import Prepared
from freeapi.routes import JSON

#: One request and two more (DESIGN section 5, "Retry"), as many as OpenAI's SDKs make.
TRIES_MAX: Final = 3

#: Exchanges without a complete answer, as the pool knows them.
_FAILURES: Final[Mapping[type[UpstreamError], Failure]] = {
    UpstreamUnreachable: failures.UNREACHABLE,
    ConnectTimeout: failures.UNREACHABLE,
    UpstreamCut: failures.CUT,
    UpstreamStale: failures.STALE,
    UpstreamGarbage: failures.GARBAGE,
    UpstreamTimeout: failures.TIMED_OUT,
}


class Account(msgspec.Struct, frozen=True):
    """One key's way to its upstream: the connections, and a request's head but for its end."""

    pool: UpstreamPool
    head: bytes

    def head_for(self, prepared: Prepared) -> bytes:
        """The complete head of the request that is sent."""
        accept = b"text/event-stream" if prepared.stream else b"application/json"
        return b"%baccept: %b\r\ncontent-length: %d\r\n\r\n" % (
            self.head,
            accept,
            len(prepared.body),
        )


class Delivery:
    """One request and what became of it."""

    __slots__ = (
        "answered_s",
        "final_s",
        "headers",
        "prepared",
        "relay",
        "reply",
        "tried",
        "tries",
        "unknown",
        "upstream",
        "was_stale",
    )

    def __init__(self, prepared: Prepared, reply: Reply, headers: bytes, final_s: float) -> None:
        """``headers`` are ours for the caller's answer; ``final_s`` is when all must be over."""
        self.prepared = prepared
        self.reply = reply
        self.headers = headers
        self.final_s = final_s
        self.relay: Relay | None = None
        self.tries = 0
        self.tried: list[Key] = []
        #: How many of the tries the upstream may bill without our knowing how much.
        self.unknown = 0
        #: A kept-alive connection died under it; it is sent once more, over a new one.
        self.was_stale = False
        #: The upstream of the last try.
        self.upstream = ""
        #: Loop time of its first byte.
        self.answered_s: float | None = None

    @property
    def usage(self) -> Usage | None:
        """What the upstream says that the last try used."""
        return None if self.relay is None else self.relay.usage

    @property
    def is_answering(self) -> bool:
        """Whether the caller has got something of an answer."""
        return self.relay is not None and self.relay.started


class Dispatcher:
    """Sends deliveries with the pool's keys."""

    def __init__(
        self,
        keys: KeyPool,
        accounts: Mapping[str, Sequence[Account]],
        now: Callable[[], float],
        journal: Journal,
    ) -> None:
        """``accounts``: of each upstream's name, one for each of its keys, in the pool's order."""
        self._keys = keys
        self._accounts = accounts
        self._now = now
        self._journal = journal

    async def deliver(self, delivery: Delivery, lease: Lease) -> None:
        """Send until the caller has an answer, the upstream's own or one cut short.

        ``lease`` is the first try's. Raises FreeApiError if there is no answer to be had; then
        nothing has reached the caller.
        """
        while not delivery.reply.is_gone:
            with lease:
                failure = await self._try(delivery, lease)
            if failure is None:
                return
            lease = self._lease(delivery, failure)
        raise ClientGone

    def _lease(self, delivery: Delivery, failure: Failure) -> Lease:
        """A key for the next try; where none is left, the reason why the last one failed.

        Raises CapacityExceeded, UpstreamRefused, or that reason.
        """
        model = delivery.prepared.model
        try:
            return self._keys.lease(
                model.upstream_model, model.upstreams, self._now(), delivery.tried
            )
        except (CapacityExceeded, UpstreamRefused) as none_left:
            if failure.error in (CapacityExceeded, UpstreamRefused):
                raise
            assert failure.error is not None, "the caller's own mistakes are not tried again"
            raise failure.error from none_left

    async def _try(self, delivery: Delivery, lease: Lease) -> Failure | None:
        """Send once and relay. None: the caller has its answer; else why to try again."""
        delivery.tries += 1
        delivery.upstream = lease.key.upstream
        relay = delivery.relay = Relay(
            delivery.reply, delivery.headers, hides_usage=delivery.prepared.hides_usage
        )
        try:
            await self._exchange(delivery, relay, lease)
        except UpstreamError as error:
            return self._interrupted(delivery, relay, lease, error)
        if 200 <= relay.status < 300:
            used_up_s = failures.exhausted_for_s(relay.headers)
            self._keys.succeeded(lease, self._now(), used_up_s)
            delivery.unknown += relay.usage is None
            return None
        return self._refused(delivery, relay, lease)

    def _interrupted(
        self, delivery: Delivery, relay: Relay, lease: Lease, error: UpstreamError
    ) -> Failure | None:
        """No complete answer: tell a caller who has some of it, or try again, or raise."""
        failure = _FAILURES[type(error)]
        self._report(delivery, lease, failure, None)
        if relay.started:
            relay.fail(error)
        delivery.unknown += failure.may_be_billed and relay.usage is None
        if relay.started:
            return None
        if self._may_retry(delivery, lease, failure):
            return failure
        raise error

    def _refused(self, delivery: Delivery, relay: Relay, lease: Lease) -> Failure | None:
        """The answer is no success: pass on what is the caller's own, or try again, or raise."""
        failure = failures.classify(relay.status, *failures.read_error(relay.error_body))
        wait_s = failures.parse_wait(relay.headers, time.time())
        self._report(delivery, lease, failure, wait_s)
        delivery.unknown += failure.may_be_billed
        if failure.error is None:
            body = failures.caller_error_body(relay.status, relay.error_body)
            delivery.reply.send(relay.status, delivery.headers + JSON, body)
            return None
        if self._may_retry(delivery, lease, failure):
            return failure
        raise failure.error(retry_after_s=wait_s)

    async def _exchange(self, delivery: Delivery, relay: Relay, lease: Lease) -> None:
        """One request over one connection, and the whole of its answer."""
        account = self._accounts[lease.key.upstream][lease.key.index]
        connection = None if delivery.was_stale else account.pool.take()
        if connection is None:
            connection = await account.pool.connect()
        was_reused = connection.reused
        reply, prepared = delivery.reply, delivery.prepared
        cancel, reply.on_gone = reply.on_gone, functools.partial(connection.abandon, relay)
        reply.source = connection
        try:
            await connection.exchange(
                account.head_for(prepared), prepared.body, relay, delivery.final_s
            )
        except UpstreamCut:
            if was_reused and connection.answered_s is None:
                raise UpstreamStale from None
            raise
        except ClientGone:
            delivery.unknown += 1
            raise
        finally:
            delivery.answered_s = connection.answered_s
            reply.source = None
            reply.on_gone = cancel

    def _may_retry(self, delivery: Delivery, lease: Lease, failure: Failure) -> bool:
        """Note what was tried; a stale connection says nothing of the key, and counts only once."""
        if failure is failures.STALE:
            is_first, delivery.was_stale = not delivery.was_stale, True
            return is_first
        delivery.tried.append(lease.key)
        return (
            failure.retry_is_safe and delivery.tries < TRIES_MAX and self._now() < delivery.final_s
        )

    def _report(
        self, delivery: Delivery, lease: Lease, failure: Failure, wait_s: float | None
    ) -> None:
        """Tell the pool and the journal of a failure."""
        self._keys.failed(lease, failure, self._now(), wait_s)
        if failure.verdict != "caller":
            self._journal.event(
                "upstream_failure",
                upstream=lease.key.upstream,
                status=(delivery.relay and delivery.relay.status) or None,
                label=failure.label,
                tries=delivery.tries,
                wait_s=wait_s,
            )
