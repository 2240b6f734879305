"""One prepared request on its way to an answer, and what became of it so far.

What this is not: it decides and sends nothing; ``dispatch`` does, and writes here what happened.
"""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from freeapi.forms import Form
from freeapi.http.answers import Usage
from freeapi.http.relay import Relay
from freeapi.http.reply import Reply
from freeapi.http.upstream import UpstreamConnection
from freeapi.policy.keys import Key
from freeapi.policy.payload import Prepared


@mypyc_attr(free_list_len=1)  # one for each request: the last one's memory is the next one's
class Delivery:
    """One request and what became of it."""

    __slots__ = (
        "answered_s",
        "caller",
        "completion_tokens",
        "connection",
        "cost_nanousd",
        "cut_label",
        "final_s",
        "form",
        "headers",
        "prepared",
        "prompt_tokens",
        "relay",
        "reply",
        "tried",
        "tries",
        "unknown",
        "upstream",
        "upstreams",
        "was_stale",
    )

    def __init__(
        self,
        caller: bytes,
        prepared: Prepared,
        upstreams: tuple[str, ...],
        form: Form | None,
        reply: Reply,
        headers: bytes,
        final_s: float,
    ) -> None:
        """``upstreams``: the names of those that may serve it.

        ``form``: what is sent in place of a prepared body. ``headers`` are ours for the caller's
        answer; ``final_s`` is when all must be over.
        """
        self.caller = caller
        self.prepared = prepared
        self.form = form
        self.upstreams = upstreams
        self.reply = reply
        self.headers = headers
        self.final_s = final_s
        self.relay: Relay | None = None
        #: While a try is under way over it.
        self.connection: UpstreamConnection | None = None
        self.tries = 0
        self.tried: tuple[Key, ...] = ()
        #: How many of the tries the upstream may bill without our knowing how much.
        self.unknown = 0
        #: Those of ``usage`` when the last try was over; 0 where it is None.
        self.prompt_tokens = 0
        self.completion_tokens = 0
        #: What all tries have cost, as far as it was counted.
        self.cost_nanousd = 0
        #: A kept-alive connection died under it; it is sent once more, over a new one.
        self.was_stale = False
        #: The upstream of the last try.
        self.upstream = ""
        #: An answer that had begun and was cut short: by what, for the counts.
        self.cut_label = ""
        #: Loop time of its first byte.
        self.answered_s: float | None = None

    def begin(self, upstream: str, relay: Relay) -> None:
        """It is tried with this upstream, whose answer the relay takes."""
        self.tries += 1
        self.upstream = upstream
        self.relay = relay

    def end(self) -> None:
        """The exchange is over, well or not: its connection is another's by now, or closed."""
        connection = self.connection
        if connection is not None:
            self.answered_s = connection.answered_s
            self.connection = self.reply.source = None

    def abandon(self) -> bool:
        """The caller has gone: end the exchange under way; False: there is none."""
        if self.connection is None or self.relay is None:
            return False
        self.connection.abandon(self.relay)
        return True

    @property
    def usage(self) -> Usage | None:
        """What the upstream says that the last try used."""
        return None if self.relay is None else self.relay.usage

    def count_usage(self) -> None:
        """The try is over: note what it used, which is asked for several times from here on."""
        usage = self.usage
        self.prompt_tokens = 0 if usage is None else usage.prompt_tokens
        self.completion_tokens = 0 if usage is None else usage.completion_tokens

    @property
    def has_left(self) -> bool:
        """Whether a complete request has been sent by the last try, so that it may be billed."""
        return self.form is None or self.form.is_sent

    @property
    def can_go_again(self) -> bool:
        """Whether there still is all of it to send."""
        return self.form is None or not self.form.is_begun

    @property
    def is_answering(self) -> bool:
        """Whether the caller has got something of an answer."""
        return self.relay is not None and self.relay.started
