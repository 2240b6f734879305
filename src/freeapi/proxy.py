"""The life of one request, in order.

``answer`` starts a coroutine that reads from top to bottom: who is asking, what they ask, may they;
then it is delivered (``dispatch``), and at the end, whatever happened, settled. The decisions are
synchronous and each is a line here. What has to wait for more than the answer does so in a task.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Final

from mypy_extensions import mypyc_attr

from freeapi import dryrun
from freeapi.delivery import Delivery
from freeapi.dispatch import Dispatcher
from freeapi.errors import ClientGone, FreeApiError, InvalidValue, UnsupportedMediaType
from freeapi.forms import Form, Room
from freeapi.gate import Gate, Visitor
from freeapi.http.outcome import Run
from freeapi.http.reply import Reply
from freeapi.http.wire import Request
from freeapi.journal import Journal
from freeapi.metrics import OK, Metrics
from freeapi.policy.models import Endpoint, ModelTable
from freeapi.policy.payload import Prepared, Rules, prepare
from freeapi.routes import FORM_ENDPOINTS, JSON, Answer, refuse
from freeapi.scheduler import Grant, Scheduler
from freeapi.shared import SharedGrant, SharedScheduler

_FORM: Final = "multipart/form-data"
# Under names of this module, which compiled code needn't look up.
_FORM_ENDPOINTS: Final = FORM_ENDPOINTS
_DRY_RUN: Final = dryrun.HEADER


@mypyc_attr(free_list_len=1)  # one for each request: the last one's memory is the next one's
class Call:
    """One request under way: what is known of it so far."""

    __slots__ = (
        "delivery",
        "endpoint",
        "form",
        "grant",
        "prepared",
        "queued_s",
        "reply",
        "request",
        "run",
        "streamed",
        "visitor",
    )

    def __init__(self, endpoint: Endpoint, request: Request, reply: Reply) -> None:
        self.endpoint = endpoint
        self.request = request
        self.reply = reply
        #: What it is answered by.
        self.run: Run | None = None
        self.visitor: Visitor | None = None
        self.prepared: Prepared | None = None
        self.form: Form | None = None
        self.grant: Grant | SharedGrant | None = None
        self.delivery: Delivery | None = None
        #: How long it waited for its turn.
        self.queued_s = 0.0
        #: Its answer was counted as a stream.
        self.streamed = False

    def gone(self) -> None:
        """The caller has left: nothing is done for it any more."""
        if self.run is not None and (self.delivery is None or not self.delivery.abandon()):
            self.run.cancel()


class Proxy:
    """Answers the routes that need an upstream."""

    def __init__(
        self,
        *,
        gate: Gate,
        scheduler: Scheduler | SharedScheduler,
        models: ModelTable,
        rules: Rules,
        dispatcher: Dispatcher,
        total_s: float,
        journal: Journal,
        metrics: Metrics,
        request_log: bool,
    ) -> None:
        """``total_s`` bounds a request from its last byte to the last byte of its answer."""
        self._gate = gate
        self._scheduler = scheduler
        self._models = models
        self._rules = rules
        self._dispatcher = dispatcher
        self._total_s = total_s
        self._journal = journal
        self._metrics = metrics
        self._request_log = request_log
        self._room = Room()
        self._loop = asyncio.get_running_loop()
        self._now: Callable[[], float] = self._loop.time

    def reconfigure(
        self, *, models: ModelTable, rules: Rules, total_s: float, request_log: bool
    ) -> None:
        """Use these for the requests that come from now on."""
        self._models = models
        self._rules = rules
        self._total_s = total_s
        self._request_log = request_log

    def answer(self, endpoint: Endpoint) -> Answer:
        """What answers ``POST`` to the endpoint's path."""
        return functools.partial(self._start, endpoint)

    def _start(self, endpoint: Endpoint, request: Request, reply: Reply) -> None:
        call = Call(endpoint, request, reply)
        call.run = run = Run(self._answer(call))
        reply.on_gone = call.gone
        run.start()

    async def _answer(self, call: Call) -> None:
        """Whatever happens, the caller gets an answer and the request is settled."""
        request, label = call.request, OK
        self._metrics.started()
        try:
            # Who is asking.
            call.visitor = visitor = self._gate.identify(request)
            # What: the body checked, adjusted and written anew.
            if call.endpoint in _FORM_ENDPOINTS:
                prepared = await self._loop.create_task(self._open_form(call))
            else:
                _require_json(request)
                prepared = prepare(call.endpoint, request.body, self._models, self._rules)
            call.prepared = prepared
            if _DRY_RUN in request.headers and dryrun.is_wanted(request):
                await self._loop.create_task(self._rehearse(call.reply, visitor, prepared))
                return
            if prepared.stream:
                call.streamed = True
                self._metrics.streaming()
            # May they, and when: all that it needs at once, or in its turn.
            granted: Grant | SharedGrant | None = self._scheduler.grant_now(visitor, prepared)
            if granted is None:
                granted = await self._scheduler.grant(visitor, prepared)
            call.grant = grant = granted
            call.queued_s = grant.queued_s
            # Deliver: connections, tries, relay.
            headers = self._gate.headers(visitor)
            if prepared.adjusted:
                headers += _adjusted(prepared)
            call.delivery = delivery = Delivery(
                visitor.caller,
                prepared,
                grant.upstreams,
                call.form,
                call.reply,
                headers,
                request.received_s + self._total_s,
            )
            await self._dispatcher.deliver(delivery, grant.lease)
            label = delivery.cut_label or OK
        except FreeApiError as error:
            label = error.label
            self._refuse(call, error)
        except asyncio.CancelledError:
            label = ClientGone.label
            raise
        except Exception as error:  # the boundary of one request: a bug of ours ends only this one
            label = FreeApiError.label
            self._journal.crash("proxy", error)
            self._refuse(call, FreeApiError())
        finally:
            self._settle(call)
            self._count(call, label)
            if self._request_log:
                self._log(call, label)

    async def _open_form(self, call: Call) -> Prepared:
        """What is asked for, the form being read as far as it takes to tell."""
        request = call.request
        if request.upload is None:
            raise UnsupportedMediaType(kind="a form with a file", content_type=_FORM)
        if dryrun.is_wanted(request):
            problem = "a form can't be shown: it is sent on while it comes"
            raise InvalidValue(param=dryrun.HEADER.decode(), problem=problem)
        content_type = request.headers[b"content-type"]
        call.form = Form(
            call.endpoint, request.upload, content_type, self._models, self._rules, self._room
        )
        return await call.form.open()

    async def _rehearse(self, reply: Reply, visitor: Visitor, prepared: Prepared) -> None:
        """Answer with the request that would be sent; see ``dryrun``."""
        await self._gate.count(visitor)
        body = self._dispatcher.rehearse(prepared)
        reply.send(200, self._gate.headers(visitor) + _adjusted(prepared) + JSON, body)

    def _settle(self, call: Call) -> None:
        """Put what was used in place of what was reserved; what nobody knows stays reserved."""
        if call.form is not None:
            call.form.close()
        grant, delivery = call.grant, call.delivery
        if grant is None:
            return
        if delivery is None or not delivery.tries:  # no money for it: it has taken nothing
            grant.cancel()
            return
        grant.settle(
            prompt_tokens=delivery.prompt_tokens,
            completion_tokens=delivery.completion_tokens,
            unknown=delivery.unknown,
            cost_nanousd=delivery.cost_nanousd,
        )

    def _refuse(self, call: Call, error: FreeApiError) -> None:
        """Answer with the error, unless an answer is under way (then a bug of ours cut it)."""
        if call.delivery is not None and call.delivery.is_answering:
            call.reply.cut()
            return
        headers = b"" if call.visitor is None else self._gate.headers(call.visitor)
        refuse(call.reply, error, headers)

    def _count(self, call: Call, label: str) -> None:
        """For the metrics: once, whatever came of it."""
        prepared, delivery, request = call.prepared, call.delivery, call.request
        model = "" if prepared is None else prepared.model.name
        counted = None if delivery is None or delivery.usage is None else delivery
        answered_s = None if delivery is None else delivery.answered_s
        self._metrics.finished(
            endpoint=call.endpoint,
            model=model,
            status=call.reply.status,
            label=label,
            streamed=call.streamed,
            upstream="" if delivery is None else delivery.upstream,
            tries=0 if delivery is None else delivery.tries,
            duration_s=self._now() - request.received_s,
            first_byte_s=None if answered_s is None else answered_s - request.received_s,
            queued_s=call.queued_s,
            prompt_tokens=None if counted is None else counted.prompt_tokens,
            completion_tokens=None if counted is None else counted.completion_tokens,
            request_bytes=len(request.body),
            response_bytes=call.reply.body_bytes,
        )

    def _log(self, call: Call, label: str) -> None:
        """The request's one line, if the operator wants it: no content, no caller."""
        prepared, delivery, start_s = call.prepared, call.delivery, call.request.received_s
        usage = delivery.usage if delivery else None
        answered_s = delivery.answered_s if delivery else None
        model = prepared.model.name if prepared else ""
        self._journal.request(
            route=call.endpoint,
            model=model if self._models.is_listed(model) else None,
            status=call.reply.status or None,
            label=label,
            streamed=prepared.stream if prepared else None,
            duration_ms=_ms(self._now() - start_s),
            first_byte_ms=None if answered_s is None else _ms(answered_s - start_s),
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            upstream=delivery.upstream if delivery else None,
            tries=delivery.tries if delivery else 0,
        )


def _require_json(request: Request) -> None:
    """Raises UnsupportedMediaType; parameters such as a charset are fine."""
    content_type = request.headers.get(b"content-type")
    if content_type == b"application/json":
        return
    if (
        content_type is None
        or content_type.partition(b";")[0].strip().lower() != b"application/json"
    ):
        raise UnsupportedMediaType(kind="JSON", content_type="application/json")


def _adjusted(prepared: Prepared) -> bytes:
    """The header line that names what was clamped or dropped, if anything was."""
    return b"x-freeapi-adjusted: %b\r\n" % prepared.adjusted if prepared.adjusted else b""


def _ms(seconds: float) -> float:
    return round(seconds * 1_000, 3)
