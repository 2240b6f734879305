"""What can go wrong, as one family of exceptions.

A class says everything that follows from the *kind* of trouble: the HTTP status, OpenAI's
``type`` and ``code``, whose fault it is, the label under which it is counted, and the wording.
An instance adds facts only (a parameter's name, a wait in seconds). Whether trying again is safe is
for ``policy.failures`` to say.

What this is not: it holds no exception text of libraries and nothing an upstream said, so neither
can reach a caller by accident. Foreign exceptions are translated once, at the edge that meets them.

Source of the body's shape: OpenAI API reference, "Error codes"; all four keys are always present.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

Blame = Literal["client", "gateway", "upstream"]


class FreeApiError(Exception):
    """Anything that ends a request other than with the upstream's own answer."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    blame: ClassVar[Blame] = "gateway"
    #: Low-cardinality name for counters and the journal.
    label: ClassVar[str] = "internal"
    wording: ClassVar[str] = "The proxy failed to process the request."

    def __init__(
        self,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        **facts: object,
    ) -> None:
        """``retry_after_s`` and ``should_retry`` become the headers that the SDKs obey."""
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.facts = facts
        super().__init__(self.label)

    @property
    def message(self) -> str:
        """The sentence that the caller reads: the class's wording with this case's facts."""
        return self.wording.format(param=self.param, **self.facts)

    def body(self) -> bytes:
        """The JSON body in OpenAI's shape."""
        return error_body(self.message, self.type, self.param, self.code)


def error_body(message: str, type_: str, param: str | None, code: str | None) -> bytes:
    """``{"error": {message, type, param, code}}`` as JSON bytes."""
    error = {"message": message, "type": type_, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


# --- The caller's request is at fault -------------------------------------------------------------


class ClientError(FreeApiError):
    """The caller has to change something."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    blame = "client"
    label = "bad_request"


class BadHttp(ClientError):
    """The bytes are not the HTTP/1.1 that we accept; the connection is closed after the answer."""

    code = "invalid_request"
    label = "bad_http"
    wording = "The HTTP request could not be accepted: {problem}."


class HeadTooLarge(BadHttp):
    """Source: RFC 6585 section 5."""

    status = 431
    code = "request_too_large"
    label = "head_too_large"


class TargetTooLong(BadHttp):
    """Source: RFC 9110 section 15.5.15."""

    status = 414
    code = "request_too_large"
    label = "target_too_long"


class ExpectationFailed(BadHttp):
    """Source: RFC 9110 section 10.1.1."""

    status = 417
    label = "expectation_failed"


class RequestTimeout(BadHttp):
    """The request's head or body didn't come in time. Source: RFC 9110 section 15.5.9."""

    status = 408
    code = "request_timeout"
    label = "request_timeout"


class NotImplementedHttp(BadHttp):
    """A method or transfer coding that no HTTP server here knows. Source: RFC 9110 15.6.2."""

    status = 501
    label = "not_implemented"


class HttpVersionNotSupported(BadHttp):
    """Source: RFC 9110 section 15.6.6."""

    status = 505
    label = "http_version"


class BodyTooLarge(ClientError):
    """More bytes than the route takes."""

    status = 413
    code = "request_too_large"
    label = "body_too_large"
    wording = "The request's body is larger than {limit} bytes, which is the most accepted here."


class UnsupportedMediaType(ClientError):
    """The route takes another kind of body."""

    status = 415
    code = "unsupported_media_type"
    label = "unsupported_media_type"
    wording = "The body must be {kind}: send the header 'Content-Type: {content_type}'."


class InvalidJson(ClientError):
    """The body isn't JSON, or not an object."""

    code = "invalid_json"
    label = "invalid_json"
    wording = "We could not parse the JSON body of your request: {problem}."


class InvalidForm(ClientError):
    """The body isn't a multipart form, or not one as simple as those accepted here."""

    code = "invalid_form"
    label = "invalid_form"
    wording = "We could not read the form in the body of your request: {problem}."


class InvalidValue(ClientError):
    """A field is missing, of the wrong type, or out of range."""

    code = "invalid_value"
    label = "invalid_value"
    wording = "Invalid value for '{param}': {problem}."


class UnsupportedParameter(ClientError):
    """A field or kind of content that this instance doesn't let through, and why."""

    code = "unsupported_parameter"
    label = "unsupported_parameter"
    wording = "'{param}' is not supported here: {problem}."


class ModelNotFound(ClientError):
    """The model isn't on the instance's list."""

    status = 404
    code = "model_not_found"
    label = "model_not_found"
    wording = (
        "The model `{model}` does not exist here. GET /v1/models lists those that this instance "
        "serves."
    )


class RouteNotFound(ClientError):
    """No such path, or one that is off on purpose."""

    status = 404
    code = "not_found"
    label = "route_not_found"
    wording = "Unknown request URL: {method} {path}. {hint}"


class MethodNotAllowed(ClientError):
    """The path exists, the method doesn't; the answer carries ``Allow``."""

    status = 405
    code = "method_not_allowed"
    label = "method_not_allowed"
    wording = "Not allowed to {method} on {path}; it takes {allow}."


class ClientGone(FreeApiError):
    """The caller closed the connection: nobody's fault and nothing to answer.

    499 is nginx's number for it (ngx_http_request.h); it is only ever counted, never sent.
    """

    status = 499
    code = "client_gone"
    blame = "client"
    label = "client_gone"
    wording = "The client closed the connection."


# --- The upstream is at fault ---------------------------------------------------------------------


class UpstreamError(FreeApiError):
    """The upstream didn't give an answer that can be passed on."""

    status = 502
    type = "server_error"
    code = "upstream_unavailable"
    blame = "upstream"
    label = "upstream"
    wording = "The upstream could not answer this request."


class UpstreamUnreachable(UpstreamError):
    """DNS, TCP or TLS failed: nothing of the request was sent, so another try is safe."""

    label = "upstream_unreachable"
    wording = "The upstream could not be reached."


class UpstreamCut(UpstreamError):
    """The connection ended before the answer did; whether it was billed is unknown."""

    label = "upstream_cut"
    wording = "The upstream closed the connection before its answer was complete."


class UpstreamStale(UpstreamCut):
    """A reused idle connection died without one byte of an answer: it may be sent once more."""

    label = "upstream_stale"


class UpstreamGarbage(UpstreamError):
    """What came back isn't the HTTP that was asked for."""

    label = "upstream_garbage"
    wording = "The upstream's answer could not be understood."


class UpstreamFailed(UpstreamError):
    """A complete 5xx (or an unexpected status) from the upstream; its body is not passed on."""

    label = "upstream_failed"
    wording = "The upstream failed to answer this request."


class UpstreamRefused(UpstreamError):
    """No usable key is left: the upstream refuses those we have."""

    status = 503
    label = "upstream_refused"
    wording = "The upstream refuses this instance's credentials at the moment."


class UpstreamTimeout(UpstreamError):
    """One of the time-outs of ``[timeouts]`` ran out while waiting for the upstream."""

    status = 504
    code = "upstream_timeout"
    label = "upstream_timeout"
    wording = "The upstream took too long to answer."


class ConnectTimeout(UpstreamTimeout):
    """Connecting took too long: nothing was sent."""

    label = "connect_timeout"


class CapacityExceeded(FreeApiError):
    """Shared capacity (the model's, the keys') is used up for the moment."""

    status = 429
    type = "requests"
    code = "capacity_exceeded"
    blame: ClassVar[Blame] = "upstream"
    label = "capacity_exceeded"
    wording = "This instance is at its capacity at the moment. Please try again later."


class InvalidToken(ClientError):
    """The operator lets in only those with an access token, and this isn't one."""

    status = 401
    code = "invalid_api_key"
    label = "invalid_token"
    wording = (
        "Incorrect API key provided. This instance answers only to the access tokens that its "
        "operator has given out: send one as 'Authorization: Bearer <token>'."
    )


class RateLimitExceeded(ClientError):
    """The caller's own limit is used up for the moment."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    label = "rate_limit_exceeded"
    wording = (
        "Rate limit reached on {limit_name}: limit {limit}, requested {requested}. "
        "Please try again in {wait}."
    )


class TokenRateExceeded(RateLimitExceeded):
    """The same, for tokens."""

    type = "tokens"


class RequestAboveTokenLimit(TokenRateExceeded):
    """One request alone asks for more tokens than a minute has: trying again can't help."""

    wording = (
        "Request too large on {limit_name}: limit {limit}, requested {requested}. "
        "Shorten the input or lower max_tokens."
    )


class ConcurrencyExceeded(ClientError):
    """The caller has as many requests in flight as one caller may."""

    status = 429
    type = "requests"
    code = "concurrency_exceeded"
    label = "concurrency_exceeded"
    wording = "Too many requests at the same time: {limit} may be in flight. Wait for one to end."


class ShuttingDown(FreeApiError):
    """The process was told to stop and takes no further request."""

    status = 503
    code = "shutting_down"
    label = "shutting_down"
    wording = "This instance is restarting. Please try again."


# --- The money is spent ---------------------------------------------------------------------------


class BudgetExhausted(FreeApiError):
    """A cap has less left than the request may cost; ``retry_after_s`` is until it starts anew."""

    status = 429
    type = "insufficient_quota"
    code = "budget_exhausted"
    label = "budget_exhausted"
    wording = (
        "This request may cost up to ${cost}, and {whose} budget has less than that left. It "
        "starts anew at {resets_at}."
    )


class BudgetBusy(CapacityExceeded):
    """What is left of a cap is reserved by requests under way, most of which will cost less."""

    blame = "gateway"
    label = "budget_busy"
    wording = (
        "What is left of {whose} budget is reserved by requests under way. Please try again later."
    )


class LedgerUnavailable(FreeApiError):
    """Spending can't be written down at the moment, so nothing more may be spent."""

    status = 503
    code = "upstream_unavailable"
    label = "ledger_unavailable"
    wording = "This instance can't account for its spending at the moment. Please try again later."
