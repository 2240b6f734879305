"""One prepared request on its way to an answer, and what became of it so far.

What this is not: it decides and sends nothing; ``dispatch`` does, and writes here what happened.
"""

from __future__ import annotations

from freeapi.forms import Form
from freeapi.http.answers import Usage
from freeapi.http.relay import Relay
from freeapi.http.reply import Reply
from freeapi.policy.keys import Key
from freeapi.policy.payload import Prepared


class Delivery:
    """One request and what became of it."""

    __slots__ = (
        "answered_s",
        "caller",
        "cost_nanousd",
        "cut_label",
        "final_s",
        "form",
        "headers",
        "prepared",
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
        form: Form | None,
        reply: Reply,
        headers: bytes,
        final_s: float,
    ) -> None:
        """``form``: what is sent in place of a prepared body.

        ``headers`` are ours for the caller's answer; ``final_s`` is when all must be over.
        """
        self.caller = caller
        self.prepared = prepared
        self.form = form
        #: The names of the upstreams that may serve it.
        self.upstreams = prepared.model.upstreams
        self.reply = reply
        self.headers = headers
        self.final_s = final_s
        self.relay: Relay | None = None
        self.tries = 0
        self.tried: list[Key] = []
        #: How many of the tries the upstream may bill without our knowing how much.
        self.unknown = 0
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

    @property
    def usage(self) -> Usage | None:
        """What the upstream says that the last try used."""
        return None if self.relay is None else self.relay.usage

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
