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

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from freeapi import dryrun
from freeapi.account import Account
from freeapi.delivery import Delivery
from freeapi.errors import (
    BudgetBusy,
    BudgetExhausted,
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
from freeapi.http.outcome import Outcome
from freeapi.http.relay import Relay
from freeapi.http.upstream import UpstreamConnection
from freeapi.journal import Journal
from freeapi.metrics import Metrics
from freeapi.policy import failures
from freeapi.policy.budget import Reservation
from freeapi.policy.failures import Failure
from freeapi.policy.keys import KeyPool, Lease
from freeapi.policy.payload import Prepared
from freeapi.policy.prices import cost_nanousd as cost_of
from freeapi.policy.prices import known_bound_nanousd
from freeapi.providers import LOCAL
from freeapi.routes import JSON
from freeapi.state.ledger import Purse
from freeapi.state.valkey_purse import SharedPurse
from freeapi.state.valkey_slices import SharedReservation
from freeapi.upstreams import STAND_IN_FOR, Upstreams

#: One request and two more (DESIGN section 5, "Retry"), as many as OpenAI's SDKs make.
TRIES_MAX: Final = 3

_SERVED_BY_LOCAL: Final = b"x-freeapi-served-by: local\r\n"

#: For a caller whose tries all met keys that failed while others are usable: an SDK's next try.
KEY_WAIT_S: Final = 1.0

#: Exchanges without a complete answer, as the pool knows them.
_FAILURES: Final[Mapping[type[UpstreamError], Failure]] = {
    UpstreamUnreachable: failures.UNREACHABLE,
    ConnectTimeout: failures.UNCONNECTED,
    UpstreamCut: failures.CUT,
    UpstreamStale: failures.STALE,
    UpstreamGarbage: failures.GARBAGE,
    UpstreamTimeout: failures.TIMED_OUT,
}


class Dispatcher:
    """Sends deliveries with the pool's keys."""

    def __init__(
        self,
        keys: KeyPool,
        upstreams: Upstreams,
        purse: Purse | SharedPurse | None,
        *,
        has_stand_in: bool,
        now: Callable[[], float],
        journal: Journal,
        metrics: Metrics,
    ) -> None:
        """``purse``: None where nothing is capped.

        ``has_stand_in``: the embedded model goes on when the money is gone.
        """
        self._keys = keys
        self._upstreams = upstreams
        self._purse = purse
        self._has_stand_in = has_stand_in
        self._now = now
        self._journal = journal
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()

    async def deliver(self, delivery: Delivery, lease: Lease) -> None:
        """Send until the caller has an answer, the upstream's own or one cut short.

        ``lease`` is the first try's. Raises FreeApiError if there is no answer to be had; then
        nothing has reached the caller.
        """
        while not delivery.reply.is_gone:
            try:
                try:
                    failure = await self._try(delivery, lease)
                finally:
                    lease.release()
            except (BudgetExhausted, BudgetBusy) as broke:
                lease = self._without_money(delivery, lease, broke)
                continue
            if failure is None:
                return
            lease = self._lease(delivery, failure)
        raise ClientGone

    def reconfigure(
        self, upstreams: Upstreams, purse: Purse | SharedPurse | None, *, has_stand_in: bool
    ) -> None:
        """Use these from now on; deliveries under way go on with what they have."""
        self._upstreams = upstreams
        self._purse = purse
        self._has_stand_in = has_stand_in

    def rehearse(self, prepared: Prepared) -> bytes:
        """The request that ``deliver`` would send first, as JSON without its key; takes nothing.

        Raises CapacityExceeded or UpstreamRefused where it would be sent to nobody now.
        """
        model = prepared.model
        key = self._keys.choose(model.upstream_model, model.upstreams, self._now())
        return dryrun.show(key.account, prepared)

    def _lease(self, delivery: Delivery, failure: Failure) -> Lease:
        """A key for the next try; where none is left, the reason why the last one failed.

        Raises CapacityExceeded, UpstreamRefused, or that reason.
        """
        try:
            return self._another_key(delivery)
        except (CapacityExceeded, UpstreamRefused) as none_left:
            if failure.error in (CapacityExceeded, UpstreamRefused):
                raise
            assert failure.error is not None, "the caller's own mistakes are not tried again"
            raise failure.error from none_left

    def _without_money(
        self, delivery: Delivery, lease: Lease, error: BudgetExhausted | BudgetBusy
    ) -> Lease:
        """A key of another upstream, which may have a cap of its own or be free.

        The embedded model stands in for money that is gone, not for what may come back soon.
        Raises CapacityExceeded if the others' keys are cooling; else the error that was given.
        """
        broke = lease.key.upstream
        delivery.upstreams = tuple(name for name in delivery.upstreams if name != broke)
        can_stand_in = (
            self._has_stand_in
            and isinstance(error, BudgetExhausted)
            and delivery.prepared.endpoint in STAND_IN_FOR
        )
        if not delivery.upstreams and can_stand_in and broke != LOCAL:
            delivery.upstreams = (LOCAL,)
        if not delivery.upstreams:
            raise error
        try:
            return self._another_key(delivery)
        except UpstreamRefused:
            raise error from None

    def _another_key(self, delivery: Delivery) -> Lease:
        """One that it hasn't tried. Raises CapacityExceeded or UpstreamRefused: there is none."""
        model = delivery.prepared.model.upstream_model
        return self._keys.lease(model, delivery.upstreams, self._now(), delivery.tried)

    async def _try(self, delivery: Delivery, lease: Lease) -> Failure | None:
        """Pay for a try and make it. None: the caller has its answer; else why to try again.

        Raises BudgetExhausted and the like, with nothing sent.
        """
        upstream = lease.key.upstream
        reservation: Reservation | SharedReservation | None = None
        if self._purse is not None:
            caller, amount_nanousd = delivery.caller, self._bound_nanousd(delivery, upstream)
            reservation = self._purse.reserve_now(upstream, caller, amount_nanousd)
            if reservation is None:
                reservation = await self._purse.reserve(upstream, caller, amount_nanousd)
        unknown = delivery.unknown
        try:
            relay = Relay(
                delivery.reply,
                self._headers(delivery, lease),
                hides_usage=delivery.prepared.hides_usage,
            )
            delivery.begin(upstream, relay)
            try:
                answer = self._send_now(delivery, relay, lease)
                if answer is not None:
                    await answer
                else:
                    await self._send_later(delivery, relay, lease)
            except UpstreamError as error:
                error = _told_apart(error, delivery.connection)
                return self._interrupted(delivery, relay, lease, error)
            except BaseException:
                # The caller has gone, or its form is no good, or a bug: it may be billed all the
                # same, unless there was no connection yet.
                delivery.unknown += delivery.connection is not None and delivery.has_left
                raise
            finally:
                delivery.end()
            if not 200 <= relay.status < 300:
                return self._refused(delivery, relay, lease)
            self._keys.succeeded(lease, self._now(), failures.exhausted_for_s(relay.headers))
            delivery.unknown += delivery.usage is None
            return None
        finally:
            delivery.count_usage()
            if reservation is not None:
                self._settle(delivery, reservation, is_unknown=delivery.unknown > unknown)

    def _bound_nanousd(self, delivery: Delivery, upstream: str) -> int:
        """What a try costs at most. Raises BudgetBusy where that isn't known."""
        if upstream in self._upstreams.free:
            return 0
        nanousd = known_bound_nanousd(delivery.prepared)
        if nanousd is None:  # it waited while a reload brought caps
            raise BudgetBusy(whose="this instance's", retry_after_s=KEY_WAIT_S)
        return nanousd

    def _settle(
        self, delivery: Delivery, reservation: Reservation | SharedReservation, *, is_unknown: bool
    ) -> None:
        """What it cost in place of what was reserved; what nobody knows stays reserved for good."""
        cost_nanousd: int | None = None
        if not is_unknown:
            cost_nanousd = 0
            if delivery.usage is not None and reservation.amount_nanousd:
                cost_nanousd = cost_of(
                    delivery.prepared, delivery.prompt_tokens, delivery.completion_tokens
                )
        spent_nanousd = reservation.amount_nanousd if cost_nanousd is None else cost_nanousd
        delivery.cost_nanousd += spent_nanousd
        self._metrics.spent(delivery.upstream, spent_nanousd)
        over_nanousd = reservation.settle(cost_nanousd)
        if over_nanousd:
            self._journal.event(
                "cost_above_bound", upstream=delivery.upstream, nanousd=over_nanousd
            )

    def _headers(self, delivery: Delivery, lease: Lease) -> bytes:
        """Ours for the caller, who should know where another answers than was asked."""
        if self._upstreams.marks_local and lease.key.upstream == LOCAL:
            return delivery.headers + _SERVED_BY_LOCAL
        return delivery.headers

    def _interrupted(
        self, delivery: Delivery, relay: Relay, lease: Lease, error: UpstreamError
    ) -> Failure | None:
        """No complete answer: tell a caller who has some of it, or try again, or raise."""
        failure = _FAILURES[type(error)]
        self._report(delivery, lease, failure, None)
        if relay.started and relay.fail(error):
            delivery.cut_label = error.label
        delivery.unknown += failure.may_be_billed and delivery.has_left and delivery.usage is None
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
        delivery.unknown += failure.may_be_billed and delivery.has_left
        if failure.error is None:
            body = failures.caller_error_body(relay.status, relay.error_body)
            delivery.reply.send(relay.status, self._headers(delivery, lease) + JSON, body)
            return None
        if self._may_retry(delivery, lease, failure):
            return failure
        if failure.error in (CapacityExceeded, UpstreamRefused):
            wait_s = self._pool_wait_s(delivery)
        raise failure.error(retry_after_s=wait_s)

    def _pool_wait_s(self, delivery: Delivery) -> float:
        """When a new request may find a key: the last one's own wait says nothing of the others."""
        model = delivery.prepared.model.upstream_model
        try:
            self._keys.choose(model, delivery.upstreams, self._now())
        except (CapacityExceeded, UpstreamRefused) as none_left:
            return none_left.retry_after_s or KEY_WAIT_S
        return KEY_WAIT_S

    def _send_now(self, delivery: Delivery, relay: Relay, lease: Lease) -> Outcome | None:
        """Send over an idle connection, if there is one and what is sent is all there."""
        if delivery.form is not None or delivery.was_stale:  # a form can't be sent once more
            return None
        account: Account = lease.key.account
        connection = account.pool.take()
        if connection is None:
            return None
        return self._exchange(delivery, relay, account, connection)

    async def _send_later(self, delivery: Delivery, relay: Relay, lease: Lease) -> None:
        """Send over a new connection, and have the whole of the answer."""
        account: Account = lease.key.account
        connection = await self._loop.create_task(account.pool.connect())
        if delivery.reply.is_gone:
            connection.close()
            raise ClientGone
        form = delivery.form
        if form is None:
            await self._exchange(delivery, relay, account, connection)
            return
        delivery.connection = delivery.reply.source = connection
        head = account.head_for(delivery.prepared, form.content_type)
        await self._loop.create_task(form.exchange(head, connection, relay, delivery.final_s))

    def _exchange(
        self, delivery: Delivery, relay: Relay, account: Account, connection: UpstreamConnection
    ) -> Outcome:
        """Send what was prepared; the outcome is known when the whole of the answer is here."""
        delivery.connection = delivery.reply.source = connection
        prepared = delivery.prepared
        return connection.exchange(
            account.head_for(prepared), prepared.body, relay, delivery.final_s
        )

    def _may_retry(self, delivery: Delivery, lease: Lease, failure: Failure) -> bool:
        """Note what was tried; a stale connection says nothing of the key, and counts only once."""
        if failure is failures.STALE:
            is_first, delivery.was_stale = not delivery.was_stale, True
            return is_first
        delivery.tried += (lease.key,)
        return (
            failure.retry_is_safe
            and delivery.can_go_again
            and delivery.tries < TRIES_MAX
            and self._now() < delivery.final_s
        )

    def _report(
        self, delivery: Delivery, lease: Lease, failure: Failure, wait_s: float | None
    ) -> None:
        """Tell the pool and the journal of a failure."""
        self._keys.failed(lease, failure, self._now(), wait_s)
        if failure.verdict != "caller":
            self._metrics.upstream_failed(lease.key.upstream, failure.label)
            self._journal.event(
                "upstream_failure",
                upstream=lease.key.upstream,
                status=(delivery.relay and delivery.relay.status) or None,
                label=failure.label,
                tries=delivery.tries,
                wait_s=wait_s,
            )


def _told_apart(error: UpstreamError, connection: UpstreamConnection | None) -> UpstreamError:
    """The error, unless it is a kept-alive connection's that died before it brought a byte."""
    if (
        isinstance(error, UpstreamCut)
        and connection is not None
        and connection.reused
        and connection.answered_s is None
    ):
        return UpstreamStale()
    return error
