"""One answer on its way from the upstream to the caller.

A ``Relay`` is the sink of one exchange. The status and the kind of body choose, once, how each
following read is treated:

- an event stream is passed on read by read, through ``EventStream``;
- JSON is kept until it is whole and then sent in one write, so that an upstream that dies half-way
  gives the caller a clean error and never half an object. A body over ``COLLECT_BYTES_MAX`` is
  passed on read by read after all, so memory stays bounded;
- sound is passed on read by read, and never looked at;
- anything but a 2xx is kept (bounded) for the proxy to judge; the caller sees none of it.

In events and JSON the counts of cached tokens are hidden (``usage.hide_cache_counts``), and errors
are told in our words (``sse.in_our_words``; not in JSON over the bound).

Nothing of the upstream's head goes down but the status, the content type and the length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from freeapi.errors import FreeApiError, ShuttingDown, UpstreamGarbage
from freeapi.http import wire
from freeapi.http.answers import Usage
from freeapi.http.reply import Reply
from freeapi.http.sse import EventStream, error_event, read_answer
from freeapi.http.usage import CacheCountHider, UsageEnds

#: JSON answers up to this are sent whole; a chat answer of 16,000 tokens is about 100 KB.
COLLECT_BYTES_MAX: Final = 1_048_576
#: A length of fewer digits needs no reading to be below it.
_LONG_DIGITS: Final = len(str(COLLECT_BYTES_MAX))
#: As much of an error's body is kept; OpenAI's are under 1 KiB.
ERROR_BYTES_MAX: Final = 65_536

#: Kinds of content that no text is looked for in.
_SOUND = (b"audio/", b"application/octet-stream")
#: Of a stream that we have to end before the upstream does.
_LAST_WORDS: Final = error_event(ShuttingDown())
_JSON: Final = b"application/json"
_STREAM_HEADERS: Final = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"


class Relay:
    """Takes one upstream answer. See ``freeapi.http.upstream.Sink``."""

    __slots__ = (
        "_collected_bytes",
        "_content_type",
        "_ends",
        "_events",
        "_headers",
        "_hider",
        "_hides_usage",
        "_is_json",
        "_pieces",
        "_reply",
        "_treat",
        "headers",
        "started",
        "status",
        "usage",
    )

    def __init__(self, reply: Reply, headers: bytes, *, hides_usage: bool) -> None:
        """``headers``: complete lines of ours for the caller's head of a 2xx."""
        self._reply = reply
        self._headers = headers
        self._hides_usage = hides_usage
        #: Of an event stream, which is treated by it.
        self._events: EventStream | None = None
        #: Of a JSON body that is passed on read by read; None: nothing in it is a count.
        self._hider: CacheCountHider | None = None
        self._ends: UsageEnds | None = None
        self._is_json = True
        self._content_type = _JSON
        self._pieces: list[bytes] = []
        self._collected_bytes = 0
        #: The upstream's, 0 until known.
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        #: Something of the answer is on its way to the caller, so it can't be taken back.
        self.started = False
        self.usage: Usage | None = None
        #: Not a bound method, which would be a cycle and keep the request until it is collected.
        self._treat: Callable[[Relay, bytes], None] = Relay._keep_error

    @property
    def error_body(self) -> bytes:
        """What the upstream said with a status other than 2xx; possibly cut at the bound."""
        return b"".join(self._pieces)

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Choose the treatment of the body.

        Raises UpstreamGarbage for a 2xx that can't be an answer of the API.
        """
        self.status = status
        self.headers = headers
        if not 200 <= status < 300:
            return
        if status != 200 and status not in wire.STATUS_LINES:
            raise UpstreamGarbage  # no answer of the API, and no status that we could pass on
        coding = headers.get(b"content-encoding")
        if coding is not None and coding.lower() != b"identity":
            raise UpstreamGarbage  # we asked for none, and couldn't see the usage through it
        self._content_type = content_type = headers.get(b"content-type", _JSON)
        kind = "json" if content_type == _JSON else _kind(content_type.lower())
        if kind == "page":
            raise UpstreamGarbage  # wrong base URL, captive portal
        self._is_json = kind == "json"
        if kind == "events":
            self._events = EventStream(hides_usage=self._hides_usage)
            self._start(_STREAM_HEADERS, None)
            self._reply.last_words = _LAST_WORDS
            return
        given = headers.get(b"content-length")
        if kind != "sound" and (given is None or len(given) < _LONG_DIGITS):
            self._treat = Relay._collect
            return
        length = None if given is None else int(given)
        if kind == "sound" or (length is not None and length > COLLECT_BYTES_MAX):
            self._start(b"", length)
            self._treat = Relay._pass
        else:
            self._treat = Relay._collect

    def on_data(self, data: bytes) -> None:
        """Treat one read of the body."""
        if self._events is None:
            self._treat(self, data)
            return
        whole = self._events.feed(data)
        if whole:
            self._reply.write(whole)

    def on_end(self, data: bytes) -> None:
        """Close the caller's answer as the upstream closed its own."""
        events = self._events
        if events is not None:
            whole = events.feed(data) if data else b""
            rest = events.rest()
            self.usage = events.usage
            self._reply.end(whole + rest if rest else whole)
            return
        if data:
            self._treat(self, data)
        if not 200 <= self.status < 300:
            return
        if self.started:
            self._end_of_pieces()
            return
        self.started = True
        body = b"".join(self._pieces)  # of one piece no copy is made
        if self._is_json:
            self.usage, body = read_answer(body)
        self._reply.send(self.status, self._own_headers(b""), body)

    def fail(self, error: FreeApiError) -> bool:
        """The upstream died after ``started``: tell the caller in the way its answer allows.

        False: the caller has all of it, as ``[DONE]`` had come already.
        """
        if self._events is None:
            self._reply.cut()
            return True
        self._reply.keep_alive = False
        is_cut = not self._events.is_done
        if is_cut:  # a usage so far, as some upstreams send with each event, isn't what they bill
            self._reply.write(error_event(error))
        else:
            self.usage = self._events.usage
        self._reply.end()
        return is_cut

    # --- treatments of a read, chosen by on_head --------------------------------------------------

    def _collect(self, data: bytes) -> None:
        self._pieces.append(data)
        self._collected_bytes += len(data)
        if self._collected_bytes > COLLECT_BYTES_MAX:
            self._start(b"", None)
            self._treat = Relay._pass
            collected, self._pieces = b"".join(self._pieces), []
            self._pass(collected)

    def _pass(self, data: bytes) -> None:
        if self._hider is not None and self._ends is not None:
            self._ends.feed(data)
            data = self._hider.feed(data)
        if data:
            self._reply.write(data)

    def _end_of_pieces(self) -> None:
        if self._hider is not None and self._ends is not None:
            self.usage = self._ends.usage()
            self._reply.end(self._hider.rest())
        else:
            self._reply.end()

    def _keep_error(self, data: bytes) -> None:
        self._collected_bytes += len(data)
        if self._collected_bytes <= ERROR_BYTES_MAX:
            self._pieces.append(data)
        elif self._collected_bytes > COLLECT_BYTES_MAX:
            raise UpstreamGarbage  # it may never end, and the caller waits

    # --- heads ------------------------------------------------------------------------------------

    def _own_headers(self, more: bytes) -> bytes:
        return b"content-type: %b\r\n%b%b" % (self._content_type, more, self._headers)

    def _start(self, more: bytes, length: int | None) -> None:
        self.started = True
        if self._is_json:
            self._hider, self._ends = CacheCountHider(), UsageEnds()
        self._reply.start(self.status, self._own_headers(more), length)


def _kind(content_type: bytes) -> str:
    """What is in a body of this type, in lower case: ``other`` is text that is no JSON."""
    if content_type.startswith(b"text/event-stream"):
        return "events"
    if content_type.startswith(b"text/html"):
        return "page"
    if b"json" in content_type:
        return "json"
    return "sound" if content_type.startswith(_SOUND) else "other"
