"""The channels through which something of a caller's, or of the account's, could get out.

``Channels`` makes the bytes of requests and replies, puts a canary wherever a text can be, and
remembers each with the places where it may turn up. Headers that identify people are the same in
all requests; what is said in the body or the path is each exchange's own, so that a mix-up of two
callers would be found, too.

What this is not: a client or a server. Nothing is sent here, and nothing is looked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from freeapi.commands.canaries import Canary, Place, address, word

UPSTREAM: Final = frozenset[Place]({"upstream"})
ANSWER: Final = frozenset[Place]({"answer"})
BOTH: Final = UPSTREAM | ANSWER
NOWHERE: Final = frozenset[Place]()

#: Headers that say who or what is calling: {} is where the canary goes.
_HEADERS: Final[tuple[tuple[str, str, str], ...]] = (
    ("user-agent", "{}/1.0", "user agent"),
    ("cookie", "session={}", "cookie"),
    ("referer", "https://{}.invalid/", "referer"),
    ("origin", "https://{}.invalid", "origin"),
    ("accept-language", "{}", "language"),
    ("accept", "application/json, text/{}", "accept header"),
    ("forwarded", 'for="{}"', "address (Forwarded)"),
    ("x-real-ip", "{}", "address (X-Real-IP)"),
    ("true-client-ip", "{}", "address (True-Client-IP)"),
    ("cf-connecting-ip", "{}", "address (CF-Connecting-IP)"),
    ("via", "1.1 {}", "proxy's name (Via)"),
    ("openai-organization", "org-{}", "organisation (OpenAI-Organization)"),
    ("openai-project", "proj_{}", "project (OpenAI-Project)"),
    ("openai-beta", "{}", "OpenAI-Beta"),
    ("x-stainless-lang", "{}", "SDK header (X-Stainless-Lang)"),
    ("x-stainless-os", "{}", "SDK header (X-Stainless-OS)"),
    ("x-stainless-arch", "{}", "SDK header (X-Stainless-Arch)"),
    ("x-stainless-runtime", "{}", "SDK header (X-Stainless-Runtime)"),
    ("x-stainless-package-version", "{}", "SDK header (X-Stainless-Package-Version)"),
    ("x-stainless-retry-count", "{}", "SDK header (X-Stainless-Retry-Count)"),
    ("x-stainless-read-timeout", "{}", "SDK header (X-Stainless-Read-Timeout)"),
    ("x-request-id", "{}", "request id"),
    ("idempotency-key", "{}", "idempotency key"),
    ("traceparent", "00-{}-00", "tracing header (traceparent)"),
    ("x-api-key", "{}", "key (X-Api-Key)"),
    ("x-{}", "1", "unknown header's name"),
    ("x-unknown", "{}", "unknown header"),
)


class Channels:
    """Makes the canaries and remembers all of them."""

    def __init__(
        self, model: str, tokens: Sequence[str], *, proxy_hops: int, any_model: bool
    ) -> None:
        """``tokens``: if there are any, each exchange uses up one."""
        self.canaries: list[Canary] = []
        self.exchange: str | None = None
        self.model = model
        self.any_model = any_model
        self._hops = max(1, proxy_hops)
        self._tokens = list(tokens)
        #: Before any exchange: what all of them carry.
        self._headers = [
            (name.format(text), value.format(text))
            for name, value, channel in _HEADERS
            for text in [self._common(channel)]
        ]
        self._host = self._common("host name")
        self.secrets = {
            kind: self.new(f"the upstream's {kind}", NOWHERE)
            for kind in ("organisation", "cookie", "request id", "rate limit", "key in an error")
        }
        #: A number, in a usage record: how much of the prompt was somebody's before.
        self.cached_tokens = 700_000_000 + int(word()[6:], 16) % 99_999_999
        self.add(str(self.cached_tokens), "how much of a prompt was cached", NOWHERE)

    def new(self, channel: str, allowed: frozenset[Place]) -> str:
        """A new word for this channel, of the exchange that is being made."""
        return self.add(word(), channel, allowed)

    def add(self, text: str, channel: str, allowed: frozenset[Place]) -> str:
        """Look for this text, too."""
        self.canaries.append(Canary(text, channel, allowed, self.exchange))
        return text

    def _common(self, channel: str) -> str:
        if channel.startswith("address"):
            return self.add(address("198.18."), channel, NOWHERE)
        return self.new(channel, NOWHERE)

    def headers(self) -> list[tuple[str, str]]:
        """All that say who is calling: a new token and new addresses, else the same ones."""
        token = self._tokens.pop() if self._tokens else f"sk-{word()}"
        self.add(token, "bearer token", NOWHERE)
        hops = [
            self.add(address("198.18."), "address (X-Forwarded-For)", NOWHERE)
            for _ in range(self._hops)
        ]
        return [
            ("host", f"{self._host}.invalid"),
            ("authorization", f"Bearer {token}"),
            ("x-forwarded-for", ", ".join(hops)),
            ("connection", "close"),
            *self._headers,
        ]

    # --- Requests ---

    def request(self, method: str, target: str, body: bytes = b"", kind: str = "") -> bytes:
        """The bytes of a request of a new caller."""
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.headers()]
        if body:
            lines += [f"content-type: {kind}", f"content-length: {len(body)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def chat(self, **fields: Any) -> bytes:
        """A chat with all that may be in one; ``fields`` come on top."""
        kind = f"application/json; note={self.new('content type', NOWHERE)}"
        query = self.new("query string", NOWHERE)
        body = json.dumps(self._body() | fields).encode()
        return self.request("POST", f"/v1/chat/completions?q={query}", body, kind)

    def _body(self) -> dict[str, Any]:
        prompt = self.new("prompt", BOTH)
        call = {"name": "look_up", "arguments": json.dumps({"q": self.new("tool call", BOTH)})}
        tool_calls = [{"id": "call_1", "type": "function", "function": call}]
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": self.new("system prompt", BOTH)},
                {"role": "user", "content": prompt, "name": self.new("name in a message", BOTH)},
                {"role": "assistant", "content": None, "tool_calls": tool_calls},
                {
                    "role": "tool",
                    "tool_call_id": "call_1",
                    "content": self.new("tool result", BOTH),
                },
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "look_up",
                        "description": self.new("tool definition", BOTH),
                        "parameters": {"type": "object", "properties": {}},
                    },
                }
            ],
            "user": self.new("field 'user'", NOWHERE),
            "safety_identifier": self.new("field 'safety_identifier'", NOWHERE),
            "prompt_cache_key": self.new("field 'prompt_cache_key'", NOWHERE),
            "metadata": {self.new("field 'metadata'", NOWHERE): "1"},
            "max_tokens": 16,
        }

    # --- Replies ---

    def head(self, status: int, kind: str, framing: str) -> bytes:
        """A reply's head with all by which OpenAI's give away the account."""
        secret = self.secrets
        return (
            f"HTTP/1.1 {status} Recorded\r\ncontent-type: {kind}\r\n{framing}\r\n"
            f"openai-organization: {secret['organisation']}\r\n"
            f"set-cookie: __cf_bm={secret['cookie']}; path=/\r\n"
            f"x-request-id: {secret['request id']}\r\n"
            f"x-ratelimit-limit-tokens: {secret['rate limit']}\r\n"
            "location: http://127.0.0.1:9/elsewhere\r\n\r\n"
        ).encode()

    def answer(self, status: int, document: object) -> bytes:
        """A whole JSON reply."""
        body = json.dumps(document).encode()
        return self.head(status, "application/json", f"content-length: {len(body)}") + body

    def completion(self) -> bytes:
        """A good reply, not streamed."""
        text = self.new("reply", ANSWER)
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        document = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
        return self.answer(200, document | {"choices": choices, "usage": self._usage()})

    def error(self, status: int, code: str | None) -> bytes:
        """A refusal in OpenAI's words, which quote keys and account names."""
        quoted = self.secrets["key in an error"]
        allowed = ANSWER if status == 400 else NOWHERE
        text = self.new(f"the upstream's error text ({status})", allowed)
        message = f"{text}: key sk-{quoted}, organization org-{quoted}, project proj_{quoted}"
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        return self.answer(status, {"error": error})

    def stream(self, count: int) -> list[bytes]:
        """The head and some events of a streamed reply, not its end."""
        head = self.head(200, "text/event-stream", "transfer-encoding: chunked")
        return [head, *(_chunk(self._event(self.new("reply", ANSWER))) for _ in range(count))]

    def stream_end(self) -> list[bytes]:
        """Usage, ``[DONE]`` and the last chunk."""
        usage = {"choices": [], "usage": self._usage()} | _KIND
        events = (f"data: {json.dumps(usage)}\n\n".encode(), b"data: [DONE]\n\n")
        return [*map(_chunk, events), b"0\r\n\r\n"]

    def _event(self, text: str) -> bytes:
        choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
        return f"data: {json.dumps(_KIND | {'choices': choices})}\n\n".encode()

    def _usage(self) -> dict[str, Any]:
        counts = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        return counts | {"prompt_tokens_details": {"cached_tokens": self.cached_tokens}}


_KIND: Final = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
