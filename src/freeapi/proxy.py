"""The life of one request, in order.

``chat`` starts a task that reads from top to bottom: who is asking, what they ask, may they; then
it is delivered (``dispatch``), and at the end, whatever happened, settled. The decisions are
synchronous and each is a line here.
"""

from __future__ import annotations

import asyncio

from freeapi import dryrun
from freeapi.dispatch import Delivery, Dispatcher
from freeapi.errors import ClientGone, FreeApiError, UnsupportedMediaType
from freeapi.gate import Gate, Visitor
from freeapi.http.reply import Reply
from freeapi.http.wire import Request
from freeapi.journal import Journal
from freeapi.policy.models import ModelTable
from freeapi.policy.payload import Prepared, Rules, prepare_chat
from freeapi.routes import JSON, refuse
from freeapi.scheduler import Grant, Scheduler


class Call:
    """One request under way: what is known of it so far."""

    __slots__ = ("delivery", "grant", "prepared", "reply", "request", "visitor")

    def __init__(self, request: Request, reply: Reply) -> None:
        self.request = request
        self.reply = reply
        self.visitor: Visitor | None = None
        self.prepared: Prepared | None = None
        self.grant: Grant | None = None
        self.delivery: Delivery | None = None


class Proxy:
    """Answers the routes that need an upstream."""

    def __init__(
        self,
        *,
        gate: Gate,
        scheduler: Scheduler,
        models: ModelTable,
        rules: Rules,
        dispatcher: Dispatcher,
        total_s: float,
        journal: Journal,
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
        self._request_log = request_log
        self._loop = asyncio.get_running_loop()

    def chat(self, request: Request, reply: Reply) -> None:
        """``POST /v1/chat/completions``."""
        task = self._loop.create_task(self._answer(Call(request, reply)))
        reply.on_gone = task.cancel

    async def _answer(self, call: Call) -> None:
        """Whatever happens, the caller gets an answer and the request is settled."""
        label = "ok"
        try:
            await self._serve(call)
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
            if self._request_log:
                self._log(call, label)

    async def _serve(self, call: Call) -> None:
        """Raises FreeApiError if the caller gets no answer of the upstream's."""
        request = call.request
        # Who is asking.
        call.visitor = visitor = self._gate.identify(request)
        # What: the body checked, adjusted and written anew.
        _require_json(request)
        call.prepared = prepared = prepare_chat(request.body, self._models, self._rules)
        if dryrun.is_wanted(request):
            self._rehearse(call.reply, visitor, prepared)
            return
        # May they, and when: all that it needs at once, or in its turn.
        call.grant = grant = await self._scheduler.grant(visitor, prepared)
        # Deliver: connections, tries, relay.
        headers = self._gate.headers(visitor) + _adjusted(prepared)
        final_s = request.received_s + self._total_s
        call.delivery = Delivery(visitor.caller, prepared, call.reply, headers, final_s)
        await self._dispatcher.deliver(call.delivery, grant.lease)

    def _rehearse(self, reply: Reply, visitor: Visitor, prepared: Prepared) -> None:
        """Answer with the request that would be sent; see ``dryrun``."""
        self._gate.count(visitor)
        body = self._dispatcher.rehearse(prepared)
        reply.send(200, self._gate.headers(visitor) + _adjusted(prepared) + JSON, body)

    def _settle(self, call: Call) -> None:
        """Put what was used in place of what was reserved; what nobody knows stays reserved."""
        grant, delivery = call.grant, call.delivery
        if grant is None:
            return
        if delivery is None or not delivery.tries:  # no money for it: it has taken nothing
            grant.cancel()
            return
        usage = delivery.usage
        grant.settle(
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            unknown=delivery.unknown,
        )

    def _refuse(self, call: Call, error: FreeApiError) -> None:
        """Answer with the error, unless an answer is under way (then a bug of ours cut it)."""
        if call.delivery is not None and call.delivery.is_answering:
            call.reply.cut()
            return
        headers = b"" if call.visitor is None else self._gate.headers(call.visitor)
        refuse(call.reply, error, headers)

    def _log(self, call: Call, label: str) -> None:
        """The request's one line, if the operator wants it: no content, no caller."""
        prepared, delivery, start_s = call.prepared, call.delivery, call.request.received_s
        usage = delivery.usage if delivery else None
        answered_s = delivery.answered_s if delivery else None
        model = prepared.model.name if prepared else ""
        self._journal.request(
            route="chat",
            model=model if self._models.is_listed(model) else None,
            status=call.reply.status or None,
            label=label,
            streamed=prepared.stream if prepared else None,
            duration_ms=_ms(self._loop.time() - start_s),
            first_byte_ms=None if answered_s is None else _ms(answered_s - start_s),
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            upstream=delivery.upstream if delivery else None,
            tries=delivery.tries if delivery else 0,
        )


def _require_json(request: Request) -> None:
    """Raises UnsupportedMediaType; parameters such as a charset are fine."""
    content_type = request.headers.get(b"content-type", b"")
    if content_type.partition(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedMediaType


def _adjusted(prepared: Prepared) -> bytes:
    """The header line that names what was clamped or dropped, if anything was."""
    return b"x-freeapi-adjusted: %b\r\n" % prepared.adjusted if prepared.adjusted else b""


def _ms(seconds: float) -> float:
    return round(seconds * 1_000, 3)
