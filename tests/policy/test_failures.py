"""What each upstream failure means, how waits are read, and what of an error a caller may see."""

from __future__ import annotations

import doctest
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeapi import errors
from freeapi.policy import failures
from freeapi.policy.failures import (
    BODY_MAX_BYTES,
    CALLER_STATUSES,
    CALLERS_OWN,
    HEADERS_READ,
    KEY_DEAD,
    MESSAGE_MAX_BYTES,
    MODEL_DENIED,
    OUT_OF_QUOTA,
    RATE_LIMITED,
    SERVER_ERROR,
    UNEXPECTED,
    WAIT_MAX_S,
    Failure,
    caller_error_body,
    classify,
    exhausted_for_s,
    parse_wait,
    read_error,
    scrub,
)

#: 2026-11-23 15:00:00 UTC, a Monday.
UTC_S = 1_795_446_000.0

#: A busy machine isn't a failure; 60 cases keep this file under a second and a half.
EXAMPLES = settings(deadline=None, max_examples=60)


@pytest.mark.parametrize(
    ("status", "code", "type_", "failure"),
    [
        (400, None, None, CALLERS_OWN),
        (400, "insufficient_quota", "insufficient_quota", CALLERS_OWN),
        (400, "billing_hard_limit_reached", "invalid_request_error", CALLERS_OWN),
        (404, "model_not_found", "invalid_request_error", CALLERS_OWN),
        (409, None, None, CALLERS_OWN),
        (413, "invalid_api_key", None, CALLERS_OWN),
        (422, None, None, CALLERS_OWN),
        (401, "invalid_api_key", "invalid_request_error", KEY_DEAD),
        (401, None, None, KEY_DEAD),
        (401, "account_deactivated", None, KEY_DEAD),
        (403, None, None, KEY_DEAD),
        (403, "unsupported_country_region_territory", "request_forbidden", KEY_DEAD),
        (403, "model_not_found", "invalid_request_error", MODEL_DENIED),
        (403, "403", None, MODEL_DENIED),
        (402, "402", None, OUT_OF_QUOTA),
        (429, "insufficient_quota", "insufficient_quota", OUT_OF_QUOTA),
        (429, "a_code_of_tomorrow", "insufficient_quota", OUT_OF_QUOTA),
        (429, None, "insufficient_quota", OUT_OF_QUOTA),
        (429, "credit_balance_exhausted", None, OUT_OF_QUOTA),
        (429, "organization_spend_limit_exceeded", None, OUT_OF_QUOTA),
        (429, "project_spend_limit_exceeded", None, OUT_OF_QUOTA),
        (429, "organization_usage_limit_exceeded", None, OUT_OF_QUOTA),
        (429, "billing_not_active", "billing_not_active", OUT_OF_QUOTA),
        (429, "rate_limit_exceeded", "tokens", RATE_LIMITED),
        (429, "slow_down", "requests", RATE_LIMITED),
        (429, None, None, RATE_LIMITED),
        (503, "slow_down", None, RATE_LIMITED),
        (503, "server_is_overloaded", "server_error", failures.OVERLOADED),
        (500, "server_error", "insufficient_quota", SERVER_ERROR),
        (503, None, None, SERVER_ERROR),
        (529, None, "overloaded_error", SERVER_ERROR),
        (302, None, None, UNEXPECTED),
        (204, None, None, UNEXPECTED),
        (408, None, None, UNEXPECTED),
        (418, "insufficient_quota", None, UNEXPECTED),
    ],
)
def test_status_and_code_decide(
    status: int, code: str | None, type_: str | None, failure: Failure
) -> None:
    """Status and ``error.code`` (and one type) alone say what a failure means."""
    assert classify(status, code, type_) is failure


def test_a_success_cannot_be_classified() -> None:
    """Asking what a 200 failed of is our own mistake."""
    with pytest.raises(AssertionError, match="not a failure"):
        classify(200, None, None)


@EXAMPLES
@given(status=st.sampled_from(sorted(CALLER_STATUSES)), code=st.text(), type_=st.text())
def test_a_callers_status_is_the_callers_whatever_it_says(
    status: int, code: str, type_: str
) -> None:
    """No code or type in a 400, 404, 409, 413 or 422 can put the blame on a key."""
    assert classify(status, code, type_).verdict == "caller"


def _all_failures() -> list[Failure]:
    return [value for value in vars(failures).values() if isinstance(value, Failure)]


def test_only_a_known_fate_is_safe_to_retry_and_only_a_refusal_is_free() -> None:
    """The table of what may be sent again, and what then stays reserved, is DESIGN's."""
    table = {f.label: (f.retry_is_safe, f.may_be_billed) for f in _all_failures()}
    assert table == {
        "callers_own": (False, False),
        "key_dead": (True, False),
        "out_of_quota": (True, False),
        "rate_limited": (True, False),
        "model_denied": (True, False),
        "overloaded": (True, False),
        "server_error": (True, True),
        "unexpected_status": (False, True),
        "unreachable": (True, False),
        "connect_timeout": (True, False),
        "cut": (False, True),
        "garbage": (False, True),
        "timed_out": (False, True),
        "stale_connection": (True, True),
    }


def test_every_failure_but_the_callers_has_an_error_of_ours() -> None:
    """Callers are told what our classes say, except for an answer about their own request."""
    without = [f.label for f in _all_failures() if f.error is None]
    assert without == ["callers_own"]
    assert (KEY_DEAD.error, RATE_LIMITED.error) == (errors.UpstreamRefused, errors.CapacityExceeded)
    for failure in _all_failures():
        if failure.error is not None:
            assert failure.error().message
            assert failure.error.blame == "upstream"


# --- Waits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "oops", "retry-after": "9"}, 9.0),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "9" * 5_000}, None),
        ({"retry-after": "999999999"}, WAIT_MAX_S),
        ({"retry-after": "Mon, 23 Nov 2026 15:00:30 GMT"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 14:59:59 GMT"}, None),
        ({"retry-after": "Mon, 23 Nov 2036 15:00:00 GMT"}, WAIT_MAX_S),
        ({"retry-after": "Tue, 31 Feb 2027 15:00:00 GMT"}, None),
        ({"retry-after": "Tue, 01 Foo 2027 15:00:00 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 0000 00:00:00 GMT"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"x-ratelimit-reset-requests": "12ms"}, 0.012),
        ({"x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "1h2m3s"}, 3_723.0),
        ({"x-ratelimit-reset-tokens": "1d2h"}, WAIT_MAX_S),
        ({"x-ratelimit-reset-tokens": "2m59.56s"}, 179.56),
        ({"x-ratelimit-reset-tokens": "7"}, 7.0),
        ({"x-ratelimit-reset-tokens": "0s"}, None),
        ({"x-ratelimit-reset-tokens": ""}, None),
        ({"x-ratelimit-reset-tokens": "m3s"}, None),
        ({"x-ratelimit-reset-tokens": "1s1m"}, None),
        ({"x-ratelimit-reset-tokens": "1 s"}, None),
        ({"retry-after": "0", "x-ratelimit-reset-tokens": "4s"}, 4.0),
        # Without counts either limit may be the one that was hit: the later reset.
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "4s"}, 4.0),
    ],
)
def test_waits_are_read_from_any_header(headers: dict[str, str], wait_s: float | None) -> None:
    """Every documented form of a wait is read; zero, the past and garbage are no wait."""
    assert parse_wait(_bytes(headers), UTC_S) == (
        None if wait_s is None else pytest.approx(wait_s, abs=1e-6)
    )


@pytest.mark.parametrize(
    ("requests_left", "tokens_left", "wait_s"),
    [("0", "500", 3_600.0), ("7", "0", 8.0), ("0", "0", 3_600.0), ("7", "500", 8.0)],
)
def test_the_limit_that_was_hit_sets_the_wait(
    requests_left: str, tokens_left: str, wait_s: float
) -> None:
    """A daily limit's reset doesn't count while that limit has something left."""
    headers = {
        "x-ratelimit-remaining-requests": requests_left,
        "x-ratelimit-reset-requests": "1h0m0s",
        "x-ratelimit-remaining-tokens": tokens_left,
        "x-ratelimit-reset-tokens": "8s",
    }
    assert parse_wait(_bytes(headers), UTC_S) == wait_s


@EXAMPLES
@given(
    headers=st.dictionaries(
        st.sampled_from(sorted(HEADERS_READ)),
        st.one_of(
            st.binary(max_size=40),
            st.from_regex(r"[0-9.]{0,8}[dhms]{0,2}[0-9]{0,3}(ms)?", fullmatch=True).map(str.encode),
        ),
    )
)
def test_any_headers_give_a_bounded_wait_or_none(headers: dict[bytes, bytes]) -> None:
    """No bytes in a header can raise, or make a wait that is zero, negative or over a day."""
    for wait_s in (parse_wait(headers, UTC_S), exhausted_for_s(headers)):
        assert wait_s is None or 0 < wait_s <= WAIT_MAX_S


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "9s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9s"}, 9.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "99h"}, WAIT_MAX_S),
        ({"x-ratelimit-remaining-tokens": "0"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}, None),
    ],
)
def test_a_count_of_zero_says_for_how_long(headers: dict[str, str], wait_s: float | None) -> None:
    """An answer with nothing remaining tells until when; one with capacity left tells nothing."""
    assert exhausted_for_s(_bytes(headers)) == wait_s


def _bytes(headers: dict[str, str]) -> dict[bytes, bytes]:
    assert {name.encode() for name in headers} <= HEADERS_READ
    return {name.encode(): value.encode() for name, value in headers.items()}


# --- Bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"error":{"code":"slow_down","type":"tokens"}}', ("slow_down", "tokens")),
        ('{"error":{"code":400,"type":"llama_error"}}', ("400", "llama_error")),
        ('{"error":{"code":"429","message":"Azure"}}', ("429", None)),
        ('{"type":"error","error":{"type":"rate_limit_error"}}', (None, "rate_limit_error")),
        ('[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}]', ("429", None)),
        ('{"object":"error","type":"BadRequestError","code":400}', ("400", "BadRequestError")),
        ('{"error":"model not found"}', (None, None)),
        ('{"error":{"code":true,"type":5}}', (None, None)),
        ('{"error":{"code":123456,"type":null}}', (None, None)),
        ('{"error":{"code":-1}}', (None, None)),
        ('{"error":{"code":["insufficient_quota"]}}', (None, None)),
        ('{"error":null}', (None, None)),
        ('{"error":7}', (None, None)),
        ("[]", (None, None)),
        ("[1]", (None, None)),
        ("null", (None, None)),
        ("", (None, None)),
        ("<html>insufficient_quota</html>", (None, None)),
        ('{"error":{"code":"insufficient_quota"', (None, None)),
        ("[" * 60_000, (None, None)),
        ("1" * 6_000, (None, None)),
        ('{"error":{"code":"x"}}' + " " * BODY_MAX_BYTES, (None, None)),
    ],
)  # fmt: skip
def test_codes_are_read_from_any_upstreams_body(
    body: str, expected: tuple[str | None, str | None]
) -> None:
    """Each dialect's code and type are found; what isn't there, or isn't JSON, is None."""
    assert read_error(body.encode()) == expected


@EXAMPLES
@given(body=st.one_of(st.binary(max_size=200), st.builds(json.dumps, st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["error", "code", "type", "message", "param"]), inner),
)).map(str.encode)))  # fmt: skip
def test_any_bytes_can_be_read_as_an_error(body: bytes) -> None:
    """No body raises, and every caller's error comes out whole, in OpenAI's shape."""
    code, type_ = read_error(body)
    assert code is None or isinstance(code, str)
    assert type_ is None or isinstance(type_, str)
    _check_shape(json.loads(caller_error_body(400, body)))


def _check_shape(decoded: dict[str, Any]) -> None:
    assert decoded.keys() == {"error"}
    error = decoded["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["type"]
    assert all(error[name] is None or isinstance(error[name], str) for name in ("param", "code"))


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Incorrect API key: sk-abc***wxyz. See", "Incorrect API key: [removed] See"),
        ("key 'sk-proj-aB3_x-9'!", "key '[removed]'!"),
        ("sk_live_123 and SK-UPPER1", "[removed] and [removed]"),
        ("in organization org-AbC123 on requests", "in organization [removed] on requests"),
        ("Project `proj_2VxSR` does not", "Project `[removed]` does not"),
        ("Authorization: Bearer eyJhb.x-y failed", "Authorization: [removed] failed"),
        ("bearer: t0ken", "[removed]"),
        ('{\\"key\\":\\"sk-abc***wxyz\\"}', '{\\"key\\":\\"[removed]"}'),
        ("url?key=%20sk-abc", "url?key=%20[removed]"),
        ("line\\nsk-abcdefghijklmnop", "line\\n[removed]"),
        ("gsk_abcdefghijklmnopqrst", "g[removed]"),
        ("“sk-abc”", "“[removed]”"),
        ("sk-\u00e9\u00e9 x", "[removed] x"),
        ("a risk-free task-list on the disk-2", "a risk-free task-list on the disk-2"),
        ("the bearer", "the bearer"),
        ("sk- org- proj_", "sk- org- proj_"),
        ("", ""),
    ],
)  # fmt: skip
def test_credentials_are_removed_up_to_white_space_or_a_quote(text: str, scrubbed: str) -> None:
    """Keys, organisations and projects go, masked ones too; ordinary words stay."""
    assert scrub(text) == scrubbed


@EXAMPLES
@given(
    before=st.text(alphabet=" .,:'\"`=/(\n%é0", max_size=5),
    prefix=st.sampled_from(["sk-", "sk_", "org-", "proj_", "sk-proj-"]),
    secret=st.from_regex(r"CANARY[A-Za-z0-9_*.-]{0,60}", fullmatch=True),
    after=st.text(alphabet=" \"'\n`", min_size=1, max_size=3),
)
def test_no_credential_survives_between_any_neighbours(
    before: str, prefix: str, secret: str, after: str
) -> None:
    """Whatever stands around a credential, no part of it is left, in any of a body's fields."""
    text = before + prefix + secret + after
    assert "CANARY" not in scrub(text)
    error = {"message": text, "type": text, "param": text, "code": text}
    assert b"CANARY" not in caller_error_body(400, json.dumps({"error": error}).encode())


@pytest.mark.parametrize("status", sorted(CALLER_STATUSES))
def test_a_callers_own_error_is_passed_on_in_openais_shape(status: int) -> None:
    """Message, type, param and code of the upstream reach the caller; nothing else does."""
    error = {"message": "Bad 'n'", "type": "t", "param": "n", "code": "c", "inner": "CANARY"}
    body = caller_error_body(status, json.dumps({"error": error, "x": "CANARY"}).encode())
    assert json.loads(body) == {
        "error": {"message": "Bad 'n'", "type": "t", "param": "n", "code": "c"}
    }


@pytest.mark.parametrize("body", [b"<html>CANARY", b"", b'{"error":{"message":["CANARY"]}}'])
def test_a_body_without_a_message_becomes_a_fixed_sentence(body: bytes) -> None:
    """What isn't an error's text is never passed on."""
    assert json.loads(caller_error_body(404, body))["error"] == {
        "message": "The upstream rejected this request with status 404.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_number_codes_and_plain_messages_become_openais() -> None:
    """llama.cpp's number isn't a code to OpenAI's SDKs, and Ollama's bare text is a message."""
    assert json.loads(caller_error_body(400, b'{"error":{"code":400,"message":"m"}}')) == {
        "error": {"message": "m", "type": "invalid_request_error", "param": None, "code": None}
    }
    error = json.loads(caller_error_body(404, b'{"error":"no such model"}'))["error"]
    assert error["message"] == "no such model"


def test_a_message_is_cut_between_characters() -> None:
    """A long message is cut at the bound, never inside a multi-byte character."""
    body = json.dumps({"error": {"message": "x" + "é" * 4_000, "param": "é" * 4_000}}).encode()
    error = json.loads(caller_error_body(400, body))["error"]
    assert error["message"] == "x" + "é" * ((MESSAGE_MAX_BYTES - 1) // 2)
    assert 0 < len(error["param"].encode()) < MESSAGE_MAX_BYTES


@pytest.mark.parametrize("status", [200, 401, 403, 429, 500])
def test_bodies_about_our_account_are_never_reshaped(status: int) -> None:
    """Asking for a caller's version of a 401, 403, 429 or 5xx is our own mistake."""
    with pytest.raises(AssertionError):
        caller_error_body(status, b"{}")


def test_examples_in_the_docstrings_hold() -> None:
    """The doctests of the module run."""
    results = doctest.testmod(failures)
    assert results.failed == 0
    assert results.attempted > 0
