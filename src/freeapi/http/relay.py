"""One answer on its way from the upstream to the caller.

A ``Relay`` is the sink of one exchange. The status and the kind of body choose, once, how each
following read is treated:

- an event stream is passed on read by read, through ``EventStream``;
- JSON is kept until it is whole and then sent in one write, so that an upstream that dies half-way
  gives the caller a clean error and never half an object. A body over ``COLLECT_BYTES_MAX`` is
  passed on read by read after all, so memory stays bounded;
- anything but a 2xx is kept (bounded) for the proxy to judge; the caller sees none of it.

Nothing of the upstream's head goes down but the status, the content type and the length.
"""

from __future__ import annotations

from freeapi.errors import FreeApiError, UpstreamGarbage
from freeapi.http.reply import Reply
from freeapi.http.sse import USAGE_TAIL_BYTES, EventStream, Usage, error_event, find_usage

#: JSON answers up to this are sent whole; a chat answer of 16,000 tokens is about 100 KB.
COLLECT_BYTES_MAX = 1_048_576
#: As much of an error's body is kept; OpenAI's are under 1 KiB.
ERROR_BYTES_MAX = 65_536

_STREAM_HEADERS = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"


class Relay:
    """Takes one upstream answer. See ``freeapi.http.upstream.Sink``."""

    __slots__ = (
        "_collected_bytes",
        "_content_type",
        "_events",
        "_headers",
        "_hides_usage",
        "_pieces",
        "_reply",
        "headers",
        "on_data",
        "started",
        "status",
        "usage",
    )

    def __init__(self, reply: Reply, headers: bytes, *, hides_usage: bool) -> None:
        """``headers``: complete lines of ours for the caller's head of a 2xx."""
        self._reply = reply
        self._headers = headers
        self._hides_usage = hides_usage
        self._events: EventStream | None = None
        self._content_type = b"application/json"
        self._pieces: list[bytes] = []
        self._collected_bytes = 0
        #: The upstream's, 0 until known.
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        #: Something of the answer is on its way to the caller, so it can't be taken back.
        self.started = False
        self.usage: Usage | None = None
        self.on_data = self._keep_error

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
        content_type = headers.get(b"content-type", self._content_type)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UpstreamGarbage  # we asked for none, and couldn't see the usage through it
        kind = content_type.lower()
        if kind.startswith(b"text/html"):
            raise UpstreamGarbage  # a web page: wrong base URL, captive portal
        self._content_type = content_type
        if kind.startswith(b"text/event-stream"):
            self._events = EventStream(hides_usage=self._hides_usage)
            self._start(_STREAM_HEADERS, None)
            self.on_data = self._pass_events
        else:
            length = headers.get(b"content-length")
            if length is not None and int(length) > COLLECT_BYTES_MAX:
                self._start(b"", int(length))
                self.on_data = self._pass
            else:
                self.on_data = self._collect

    def on_end(self) -> None:
        """Close the caller's answer as the upstream closed its own."""
        if not 200 <= self.status < 300:
            return
        if self._events is not None:
            rest = self._events.rest()
            if rest:
                self._reply.write(rest)
            self.usage = self._events.usage
            self._reply.end()
            return
        body = b"".join(self._pieces)
        self.usage = find_usage(body)
        if self.started:
            self._reply.end()
        else:
            self.started = True
            self._reply.send(self.status, self._own_headers(b""), body)

    def fail(self, error: FreeApiError) -> None:
        """The upstream died after ``started``: tell the caller in the way its answer allows."""
        if self._events is None:
            self._reply.cut()
            return
        self.usage = self._events.usage
        self._reply.keep_alive = False
        if not self._events.is_done:
            self._reply.write(error_event(error))
        self._reply.end()

    # --- treatments of a read, chosen by on_head --------------------------------------------------

    def _pass_events(self, data: bytes) -> None:
        assert self._events is not None
        whole = self._events.feed(data)
        if whole:
            self._reply.write(whole)

    def _collect(self, data: bytes) -> None:
        self._pieces.append(data)
        self._collected_bytes += len(data)
        if self._collected_bytes > COLLECT_BYTES_MAX:
            self._start(b"", None)
            self.on_data = self._pass
            collected, self._pieces = b"".join(self._pieces), []
            self._pass(collected)

    def _pass(self, data: bytes) -> None:
        self._reply.write(data)
        tail = b"".join(self._pieces) + data[-USAGE_TAIL_BYTES:]
        self._pieces = [tail[-USAGE_TAIL_BYTES:]]

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
        self._reply.start(self.status, self._own_headers(more), length)
