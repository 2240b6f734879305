"""Who is asking, and may they: the edge around ``policy.callers`` and ``policy.limits``.

It brings what the decisions may not fetch themselves (the clocks, the system's parser of
addresses, random secrets), and the buckets of the configured models. All of it is synchronous.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from freeapi.errors import InvalidToken
from freeapi.http.wire import Request
from freeapi.journal import Journal
from freeapi.policy.callers import CallerId, Callers, SharedTagWatch, TokenTable
from freeapi.policy.fairness import token_cost
from freeapi.policy.limits import DAY_S, Admission, CallerLimits, Limits, ModelBucket
from freeapi.policy.models import ANY_MODEL, Model
from freeapi.policy.payload import Prepared
from freeapi.state.valkey_limits import SharedLimits
from freeapi.state.valkey_questions import Ask

_SECRET_BYTES: Final = 32


class Visitor(NamedTuple):
    """A caller's tag of the day, and what it may do."""

    caller: CallerId
    limits: CallerLimits


class _Known:
    """Who was found to be at the other end of a connection, for one UTC day."""

    __slots__ = ("begins_s", "visitor")

    def __init__(self, begins_s: float, visitor: Visitor) -> None:
        self.begins_s: Final = begins_s
        self.visitor: Final = visitor


class Gate:
    """Identifies and admits. O(1) per request."""

    def __init__(
        self,
        *,
        limits: CallerLimits,
        tokens: TokenTable | None,
        proxy_hops: int,
        models: Iterable[Model],
        now: Callable[[], float],
        journal: Journal,
        shared: SharedLimits | None = None,
        secret: Callable[[], bytes],
    ) -> None:
        """``limits`` are every anonymous caller's; ``now`` gives monotonic seconds.

        ``shared``: who counts, where several gateways do it together; ``secret`` is then theirs.
        """
        self._callers = Callers(secret, parse_address, proxy_hops, tokens)
        self._shared = shared
        self._limits = Limits()
        self._buckets: dict[str, ModelBucket] = {}
        #: Of models that are no longer there: for requests that wait, and for their return.
        self._old_buckets: dict[str, ModelBucket] = {}
        self._now = now
        self._utc: Callable[[], float] = time.time
        self._journal = journal
        self._watch: SharedTagWatch | None = None
        self.reconfigure(limits=limits, tokens=tokens, proxy_hops=proxy_hops, models=models)

    def reconfigure(
        self,
        *,
        limits: CallerLimits,
        tokens: TokenTable | None,
        proxy_hops: int,
        models: Iterable[Model],
    ) -> None:
        """Identify and limit so from now on; who was counted for what stays. O(models, tokens)."""
        self._defaults = limits
        self._callers.reconfigure(proxy_hops, tokens)
        known, self._buckets = self._old_buckets | self._buckets, {}
        for model in models:
            bucket = known.pop(model.name, None) or ModelBucket(None, None)
            bucket.reconfigure(model.rpm, model.tpm)
            self._buckets[model.name] = bucket
        self._old_buckets = known
        if self._shared is not None:
            self._shared.models = tuple(self._buckets)
        # Behind proxies that are known, or with tokens, one busy tag is one busy caller.
        if tokens is not None or proxy_hops:
            self._watch = None
        elif self._watch is None:
            self._watch = SharedTagWatch()

    def identify(self, request: Request) -> Visitor:
        """Whose request this is. Raises InvalidToken."""
        utc_s = self._utc()
        if self._watch is None:
            return self._identify(request, utc_s)
        # Then a connection is one caller's all day, while nobody changes its limits.
        known = request.peer.memo
        if (
            not isinstance(known, _Known)
            or not known.begins_s <= utc_s < known.begins_s + DAY_S
            or known.visitor.limits is not self._defaults
        ):
            begins_s = utc_s // DAY_S * DAY_S
            known = request.peer.memo = _Known(begins_s, self._identify(request, utc_s))
        if self._watch.saw(known.visitor.caller, request.received_s):
            self._journal.event("one_caller")
        return known.visitor

    def _identify(self, request: Request, utc_s: float) -> Visitor:
        headers = request.headers
        day = int(utc_s // DAY_S)
        by_token = self._callers.identify_token(headers.get(b"authorization"), day)
        if by_token is not None:
            return Visitor(*by_token)
        forwarded_for = headers.get(b"x-forwarded-for")
        caller = self._callers.identify(request.peer.address, forwarded_for, day)
        return Visitor(caller, self._defaults)

    def admit(self, visitor: Visitor, prepared: Prepared) -> Admission:
        """Reserve the request and its tokens, or raise and take nothing; see ``Limits.admit``."""
        model = prepared.model.name
        bucket = self._buckets.get(model)
        if bucket is None:
            bucket = self._rare_bucket(model)
        return self._limits.admit(
            visitor.caller,
            visitor.limits,
            bucket,
            tokens_of(prepared),
            self._now(),
            self._utc(),
        )

    def _rare_bucket(self, model: str) -> ModelBucket:
        """That of ``*``; or else the request was prepared before its model was removed."""
        for buckets in (self._buckets, self._old_buckets):
            bucket = buckets.get(model) or buckets.get(ANY_MODEL)
            if bucket is not None:
                return bucket
        raise AssertionError(f"a request for a model that never was: {model}")

    def ask(
        self,
        visitor: Visitor,
        prepared: Prepared,
        amount_nanousd: int,
        share_nanousd: int | None,
    ) -> Ask:
        """The same as a question to the shared store, where models have the operator's names."""
        name = prepared.model.name
        bucket = self._buckets.get(name)
        return Ask(
            visitor.caller,
            visitor.limits,
            ANY_MODEL if bucket is None else name,
            (bucket or self._rare_bucket(name)).rates,
            tokens_of(prepared),
            token_cost(prepared.prompt_tokens, prepared.output_tokens),
            amount_nanousd,
            share_nanousd,
        )

    async def count(self, visitor: Visitor) -> None:
        """Take one request without tokens, for no model: an answer that costs an upstream nothing.

        Raises RateLimitExceeded or ConcurrencyExceeded; then nothing is taken.
        """
        nothing = ModelBucket(None, None)
        if self._shared is not None:
            ask = Ask(visitor.caller, visitor.limits, "", nothing.rates, 0, 0)
            (await self._shared.admit(ask)).settle(0, 0, 0)
            return
        now_s = self._now()
        admission = self._limits.admit(
            visitor.caller, visitor.limits, nothing, 0, now_s, self._utc()
        )
        admission.settle(0, now_s)

    def capacity(self) -> dict[str, tuple[int | None, int | None]]:
        """What each model's own limits would let in at once: requests, tokens. O(models).

        Where gateways share, as of this one's last word with the store, half a second ago.
        """
        now_s = self._now()
        meters = None if self._shared is None else self._shared.meter
        return {
            name: bucket.rates.left(meters(name) if meters else bucket.meter, now_s)
            for name, bucket in self._buckets.items()
        }

    def headers_for(self, request: Request) -> bytes:
        """The same lines for a request that comes to nothing; none for who may not call."""
        try:
            return self.headers(self.identify(request))
        except InvalidToken:
            return b""

    def headers(self, visitor: Visitor) -> bytes:
        """The caller's ``x-ratelimit-*`` lines, as of now, or of its last question to the store."""
        if self._shared is not None:
            return self._shared.headers(visitor.caller, visitor.limits)
        return self._limits.headers(visitor.caller, visitor.limits, self._now())


def new_secret() -> bytes:
    """For the tags of a day, where a gateway is alone."""
    return secrets.token_bytes(_SECRET_BYTES)


def tokens_of(prepared: Prepared) -> int:
    """What a request reserves of its caller's and its model's TPM."""
    return prepared.prompt_tokens + prepared.output_tokens


def parse_address(text: str) -> bytes:
    """An address's bytes, as the system reads it. Raises OSError or ValueError."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
