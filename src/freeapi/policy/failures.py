"""Everything known about the ways in which an upstream fails, each with its source.

Given a status, an error code and a few headers this says whose fault a failure is, whether sending
the request with another key is safe, whether it may have been billed, and how long to wait. It also
makes the one kind of upstream error that a caller may read (their own mistake) fit to be read.

What this is not: it keeps no state (``policy/keys`` does) and it decides on no words: a message is
free text that a caller can influence ("key disabled because a message *contained* 'credit'"), so
only status, ``error.code`` and the one type ``insufficient_quota`` count.

Invariants: a failure whose fate is unknown is never safe to retry; a complete 5xx is, but keeps its
reservation; what leaves here for a caller holds no credential and at most ``MESSAGE_MAX_BYTES``.

Header names are lower-case bytes, as the HTTP parser gives them. Sources: [O] OpenAI's guide "Error
codes" and API reference "Rate limits"; [R] OpenRouter's "Errors and debugging"; [F] shared facts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec

from freeapi import errors

#: ``caller``: their request is wrong. ``dead``, ``out of quota``: this key, for every model.
#: ``cooling``: this key, for this model. ``upstream``: all its keys. ``unknown``: nobody's.
Verdict = Literal["caller", "dead", "out of quota", "cooling", "upstream", "unknown"]


class Failure(NamedTuple):
    """One kind of upstream failure and all that follows from it."""

    verdict: Verdict
    #: May the request be sent again with another key, nothing having been passed on yet?
    retry_is_safe: bool
    #: Then its reservation stays spent: the cap is a promise, an estimate is not.
    may_be_billed: bool
    #: Low-cardinality name for counters and the journal.
    label: str
    #: What the caller gets when no try is left; None: ``caller_error_body`` of the answer itself.
    error: type[errors.FreeApiError] | None


CALLERS_OWN: Final = Failure("caller", False, False, "callers_own", None)
KEY_DEAD: Final = Failure("dead", True, False, "key_dead", errors.UpstreamRefused)
OUT_OF_QUOTA: Final = Failure("out of quota", True, False, "out_of_quota", errors.UpstreamRefused)
RATE_LIMITED: Final = Failure("cooling", True, False, "rate_limited", errors.CapacityExceeded)
MODEL_DENIED: Final = Failure("cooling", True, False, "model_denied", errors.UpstreamRefused)
OVERLOADED: Final = Failure("upstream", True, False, "overloaded", errors.UpstreamFailed)
SERVER_ERROR: Final = Failure("upstream", True, True, "server_error", errors.UpstreamFailed)
UNEXPECTED: Final = Failure("unknown", False, True, "unexpected_status", errors.UpstreamFailed)

# Failures without a complete answer: the edge knows which of them it met.
#: DNS, TCP or TLS: not a byte of the request was sent.
UNREACHABLE: Final = Failure("upstream", True, False, "unreachable", errors.UpstreamUnreachable)
#: The same by time-out: a kind of its own, as its caller is told 504 where no other key is left.
UNCONNECTED: Final = Failure("upstream", True, False, "connect_timeout", errors.ConnectTimeout)
#: The request was sent and the answer cut: it may be running, and billed, all the same.
CUT: Final = Failure("upstream", False, True, "cut", errors.UpstreamCut)
GARBAGE: Final = Failure("upstream", False, True, "garbage", errors.UpstreamGarbage)
TIMED_OUT: Final = Failure("upstream", False, True, "timed_out", errors.UpstreamTimeout)
#: A reused idle connection died without one byte of answer: the peer's keep-alive time-out met our
#: request half-way. Safe once, and then both reservations count (RFC 9112 section 9.3.1).
STALE: Final = Failure("unknown", True, True, "stale_connection", errors.UpstreamCut)

#: Answers about the request itself: passed on, and never held against a key. [O]
CALLER_STATUSES: Final = frozenset({400, 404, 409, 413, 422})

#: 429s that no wait will cure on this key; all have the type ``insufficient_quota`` but the last,
#: which an unpaid account answers under a type of its own. [O] [F]
_QUOTA_CODES: Final = (
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_hard_limit_reached",
    "billing_not_active",
)

_BY_CODE: Final[Mapping[tuple[int, str], Failure]] = {
    **{(429, code): OUT_OF_QUOTA for code in _QUOTA_CODES},
    # "Project `proj_…` does not have access to model": other models go on, and with `name = "*"` a
    # caller could else kill every key by asking for a model that the project may not use. [O]
    (403, "model_not_found"): MODEL_DENIED,
    # The status repeated as a number. At OpenRouter: "your input was flagged", which a caller does
    # at will; at Google's endpoint: a key without permission. Cooling one model fits both. [R]
    (403, "403"): MODEL_DENIED,
    (503, "server_is_overloaded"): OVERLOADED,  # [O]
    (503, "slow_down"): RATE_LIMITED,  # what is a 429 today was a 503 before. [O]
}

_BY_STATUS: Final[Mapping[int, Failure]] = {
    **dict.fromkeys(CALLER_STATUSES, CALLERS_OWN),
    401: KEY_DEAD,  # invalid_api_key, account_deactivated, ip_not_authorized, … [O]
    402: OUT_OF_QUOTA,  # "insufficient credits", everywhere but at OpenAI. [R]
    403: KEY_DEAD,  # unsupported_country_region_territory, a restricted key. [O]
    429: RATE_LIMITED,  # rate_limit_exceeded, slow_down, and all that we don't know. [O]
}


def classify(status: int, error_code: str | None, error_type: str | None) -> Failure:
    """Say what an upstream's complete answer that isn't a success means.

    ``error_code`` and ``error_type`` are ``read_error``'s. O(1).
    """
    assert status != 200, "a success is not a failure"
    if status == 429 and error_type == "insufficient_quota":
        return OUT_OF_QUOTA
    by_code = _BY_CODE.get((status, error_code)) if error_code is not None else None
    if by_code is not None:
        return by_code
    return _BY_STATUS.get(status, SERVER_ERROR if status >= 500 else UNEXPECTED)


# --- Waits ----------------------------------------------------------------------------------------

#: The longest wait that is believed. OpenAI's longest window is a day (RPD); more is a mistake.
WAIT_MAX_S: Final = 86_400.0

_DIMENSIONS: Final = tuple(
    (b"x-ratelimit-remaining-" + unit, b"x-ratelimit-reset-" + unit)
    for unit in (b"requests", b"tokens")
)
_REMAINING: Final = tuple(remaining for remaining, _ in _DIMENSIONS)
#: The header names that are read here: the edge need keep no others of an answer.
HEADERS_READ: Final = frozenset(
    {b"retry-after", b"retry-after-ms", *(name for pair in _DIMENSIONS for name in pair)}
)

_NUMBER: Final = re.compile(rb"\d{1,12}(?:\.\d{1,9})?")
#: Go's notation, which OpenAI uses: 12ms, 1s, 6m0s, 1h2m3s; some upstreams send bare seconds.
_DURATION: Final = re.compile(
    rb"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?"
    rb"(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?"
)
_DURATION_UNITS_S: Final = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
#: The one date format that a server may send (RFC 9110 section 5.6.7, IMF-fixdate).
_HTTP_DATE: Final = re.compile(
    rb"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT"
)
_MONTHS: Final = (
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
)  # fmt: skip


def parse_wait(headers: Mapping[bytes, bytes], utc_s: float) -> float | None:
    """Read how long an upstream wants us to wait, in seconds, at most ``WAIT_MAX_S``.

    None: it said nothing that can be used; zero, the past and garbage count as that, so that one
    header can't make us hammer. ``utc_s`` is the wall clock (Unix time), for dates only.
    Source: retry-after-ms and retry-after as OpenAI's SDKs read them; RFC 9110 section 10.2.3.
    """
    after = headers.get(b"retry-after", b"").strip()
    for wait_s in (
        _number(headers.get(b"retry-after-ms", b"").strip()) / 1_000,
        _number(after),
        _http_date_s(after) - utc_s,
        _reset_s(headers),
    ):
        if wait_s > 0:
            return min(wait_s, WAIT_MAX_S)
    return None


def exhausted_for_s(headers: dict[bytes, bytes]) -> float | None:
    """Read for how long a key has no capacity left for the model, if an answer says so.

    None: there is some left, or nothing is known. O(1), 0.2 µs: it runs once per answer.
    Source: x-ratelimit-remaining-* and x-ratelimit-reset-* ("the time until the limit resets to its
    initial state"). [O]
    """
    if headers.get(_REMAINING[0]) != b"0" and headers.get(_REMAINING[1]) != b"0":
        return None
    waits_s = [
        _duration_s(headers.get(reset, b""))
        for remaining, reset in _DIMENSIONS
        if headers.get(remaining) == b"0"
    ]
    wait_s = max(waits_s, default=0.0)
    return min(wait_s, WAIT_MAX_S) if wait_s > 0 else None


def _reset_s(headers: Mapping[bytes, bytes]) -> float:
    """When the limit that was hit resets: of those with nothing left the latest, else the soonest.

    A refusal names no limit. One with something left may still have been hit (by tokens: the
    request was larger than the rest), but then the other one's reset, maybe a day, says nothing.
    """
    spent_s: list[float] = []
    others_s: list[float] = []
    for remaining, reset in _DIMENSIONS:
        has_some_left = _number(headers.get(remaining, b"0").strip()) > 0
        (others_s if has_some_left else spent_s).append(_duration_s(headers.get(reset, b"")))
    known_s = [wait_s for wait_s in others_s if wait_s > 0]
    return max(spent_s, default=0.0) or min(known_s, default=0.0)


def _number(text: bytes) -> float:
    """The plain decimal number, or 0.0 for anything else."""
    return float(text) if _NUMBER.fullmatch(text) else 0.0


def _duration_s(text: bytes) -> float:
    """Seconds of ``6m0s`` and the like, or 0.0 for anything else.

    >>> _duration_s(b"1h2m3s"), _duration_s(b"12ms"), _duration_s(b"7.5"), _duration_s(b"soon")
    (3723.0, 0.012, 7.5, 0.0)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        return _number(text.strip())
    pairs = zip(match.groups(default=b"0"), _DURATION_UNITS_S, strict=True)
    return sum(float(count) * unit_s for count, unit_s in pairs)


def _http_date_s(text: bytes) -> float:
    """Unix time of an HTTP date, or 0.0 (long ago) for anything else."""
    match = _HTTP_DATE.fullmatch(text)
    if match is None or match[2] not in _MONTHS:
        return 0.0
    day, year, hour, minute, second = (int(match[group]) for group in (1, 3, 4, 5, 6))
    try:
        moment = datetime(year, _MONTHS.index(match[2]) + 1, day, hour, minute, second, tzinfo=UTC)
    except ValueError:  # 31 February
        return 0.0
    return moment.timestamp()


# --- Bodies ---------------------------------------------------------------------------------------

#: Larger error bodies aren't looked at: OpenAI's are under 1 KiB, and this one is kept in memory.
BODY_MAX_BYTES: Final = 65_536
#: A message for a person; llama.cpp's longest (a JSON schema's problem) stays under 2 KiB.
MESSAGE_MAX_BYTES: Final = 4_096
#: ``type``, ``param`` and ``code`` are names; the longest seen is ``param`` as a path, 60 bytes.
_NAME_MAX_BYTES: Final = 256
assert _NAME_MAX_BYTES < MESSAGE_MAX_BYTES < BODY_MAX_BYTES

_REMOVED: Final = "[removed]"
#: What names an account or opens one, up to the next white space or quote, since upstreams mask
#: keys in ways of their own (``sk-abc***wxyz``). After a letter (``risk-free``, or ``\nsk-`` in
#: JSON inside JSON) the prefix counts only if 12 more characters of a key follow.
_CREDENTIAL: Final = re.compile(
    r"""(?:(?<![a-z])(?:sk[-_]|org-|proj_)|(?:sk[-_]|org-|proj_)(?=[\w*.-]{12})|bearer[\s:=]+)"""
    r"""[^\s"'`‘’“”«»]+""",  # noqa: RUF001 - typographic quotes are quotes too
    re.IGNORECASE,
)


def read_error(body: bytes) -> tuple[str | None, str | None]:
    """Read ``error.code`` and ``error.type`` of any upstream's JSON; None for what isn't there.

    Number codes (llama.cpp, OpenRouter) become their digits. Never raises.
    """
    error = _error_object(body)
    code, type_ = error.get("code"), error.get("type")
    if type(code) is int and 0 <= code <= 999:
        code = str(code)
    return code if isinstance(code, str) else None, type_ if isinstance(type_, str) else None


def scrub(text: str) -> str:
    """Remove whatever looks like a key, an organisation's or a project's name.

    >>> scrub("Incorrect API key provided: sk-abc***wxyz. See 'org-123'")
    "Incorrect API key provided: [removed] See '[removed]'"
    """
    return _CREDENTIAL.sub(_REMOVED, text)


def caller_error_body(status: int, body: bytes) -> bytes:
    """Re-shape an upstream's answer about the caller's own mistake into OpenAI's error body.

    All four keys are there, each a string or null, scrubbed and bounded. Only for
    ``CALLER_STATUSES``: other bodies are about our account and are never passed on.
    """
    assert status in CALLER_STATUSES, status
    error = _error_object(body)
    message = _text(error.get("message"), MESSAGE_MAX_BYTES)
    type_ = _text(error.get("type"), _NAME_MAX_BYTES) or "invalid_request_error"
    code = _text(error.get("code"), _NAME_MAX_BYTES)
    if type_ == "exceed_context_size_error":  # llama.cpp's word for what SDK users look for
        type_, code = "invalid_request_error", "context_length_exceeded"
    return errors.error_body(
        message or f"The upstream rejected this request with status {status}.",
        type_,
        _text(error.get("param"), _NAME_MAX_BYTES),
        code,
    )


def _text(value: object, bytes_max: int) -> str | None:
    """The scrubbed string, cut at ``bytes_max`` of UTF-8; None for an empty one or a non-string."""
    if not isinstance(value, str) or not value:
        return None
    return scrub(value).encode()[:bytes_max].decode(errors="ignore")


def _error_object(body: bytes) -> dict[str, Any]:
    """The object that holds code, type and message, wherever this upstream puts it; else {}.

    ``{"error": {…}}``: OpenAI, Azure, Anthropic, llama.cpp; the same in a list: Google;
    ``{"error": "…"}``: Ollama; ``{"object": "error", "message": …}``: vLLM.
    """
    if len(body) > BODY_MAX_BYTES:
        return {}
    try:
        decoded = msgspec.json.decode(body)
    except (ValueError, RecursionError):  # RecursionError: nested deeper than the decoder goes
        return {}
    if isinstance(decoded, list):
        decoded = decoded[0] if decoded else None
    if not isinstance(decoded, dict):
        return {}
    error = decoded.get("error", decoded)
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}
