"""Who counts as whom, what a tag gives away (nothing), and which tokens are let in."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest

from freeapi import errors
from freeapi.policy.callers import (
    WATCH_REQUESTS_MIN,
    WATCH_S,
    CallerId,
    Callers,
    SharedTagWatch,
    TokensInvalid,
    TokenTable,
    parse_tokens,
)
from freeapi.policy.limits import DAY_S, CallerLimits

DAY = 20_000
PEER = "192.0.2.9"
DEFAULTS = CallerLimits(rpm=20, tpm=40_000, rpd=1_000, concurrency=8)
ANN, BOB = CallerId(b"ann"), CallerId(b"bob")


def parse_address(text: str) -> bytes:
    """As the edge does it."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def secrets() -> Iterator[bytes]:
    """A new secret each time, but the same ones in each run."""
    return (number.to_bytes(32, "big") for number in itertools.count())


def make_callers(proxy_hops: int = 0, tokens: TokenTable | None = None) -> Callers:
    """Callers with made-up chance."""
    source = secrets()
    return Callers(lambda: next(source), parse_address, proxy_hops, tokens)


def same(one: str, other: str) -> bool:
    """Whether two peers are one caller."""
    callers = make_callers()
    return callers.identify(one, None, DAY) == callers.identify(other, None, DAY)


def limits_of(limits: CallerLimits) -> tuple[int | None, ...]:
    """The four of them."""
    return limits.rates.rpm, limits.rates.tpm, limits.rpd, limits.concurrency


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7", "::ffff:203.0.113.7"),
        ("203.0.113.7", "::FFFF:cb00:7107"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff"),
        ("2001:db8:0:1::1", "2001:0DB8:0000:0001::2"),
        ("fe80::1%eth0", "fe80::2"),
        ("fe80::1%eth0", "fe80::1%1"),
        ("", "/run/freeapi.sock"),
    ],
)
def test_what_one_subscriber_holds_is_one_caller(one: str, other: str) -> None:
    """One IPv4 address in any spelling, one IPv6 /64 with any zone, all Unix peers."""
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("203.0.113.7", "203.0.113.8"),
        ("2001:db8:0:1::1", "2001:db8:0:2::1"),
        ("::1", "127.0.0.1"),
        ("::ffff:203.0.113.7", "::ffff:203.0.113.8"),
        ("::203.0.113.7", "203.0.113.7"),
        ("", "127.0.0.1"),
        ("0.0.0.0", ""),
    ],
)
def test_neighbours_are_different_callers(one: str, other: str) -> None:
    """Other addresses, other /64 networks, and Unix peers are told apart."""
    assert not same(one, other)


def test_a_tag_is_opaque() -> None:
    """It has 8 bytes, none of them an address, and differs under another secret."""
    callers = make_callers()
    tag = callers.identify("65.66.67.68", None, DAY)
    assert len(tag) == 8
    assert not tag.count(b"ABCD")
    other = Callers(lambda: b"another secret!!", parse_address, 0)
    assert other.identify("65.66.67.68", None, DAY) != tag


def test_tags_change_with_the_day_and_cannot_be_asked_for_again() -> None:
    """Each change of the day takes a fresh secret, even back to a day that has been."""
    callers = make_callers()
    tags = [callers.identify(PEER, None, day) for day in (DAY, DAY, DAY + 1, DAY)]
    assert tags[0] == tags[1]
    assert len(set(tags)) == 3


@pytest.mark.parametrize(
    ("hops", "forwarded_for", "caller"),
    [
        (0, b"203.0.113.7", PEER),
        (1, None, PEER),
        (1, b"203.0.113.7", "203.0.113.7"),
        (1, b"198.51.100.1, 203.0.113.7", "203.0.113.7"),
        (2, b"198.51.100.1,203.0.113.7\t, 10.0.0.1", "203.0.113.7"),
        (2, b"203.0.113.7, 10.0.0.1", "203.0.113.7"),
        (2, b"203.0.113.7", PEER),
        (1, b"", PEER),
        (1, b"203.0.113.7,", PEER),
        (1, b"203.0.113.7, unknown", PEER),
        (1, b"203.0.113.256", PEER),
        (1, b"203.0.113.7:443", "203.0.113.7"),
        (1, b"203.0.113.7:", "203.0.113.7"),
        (1, b"[2001:db8::1]:443", "2001:db8::2"),
        (1, b"[2001:db8::1]", "2001:db8::2"),
        (1, b"[fe80::1%eth0]:443", "fe80::2"),
        (1, b"fe80::1%eth0", "fe80::2"),
        (1, b"::ffff:203.0.113.7", "203.0.113.7"),
        (1, b"[::ffff:203.0.113.7]:80", "203.0.113.7"),
        (1, b"203.0.113.7:443:80", PEER),
        (1, b"203.0.113.7:http", PEER),
        (1, b"[203.0.113.7", PEER),
        (1, b"host.example:443", PEER),
        (1, b"203.0.113.7\x00", PEER),
        (1, b"203.0.113.7\xe9", PEER),
        (1, b"\xff" * 16_000, PEER),
    ],
)
def test_the_address_that_trusted_proxies_saw_counts(
    hops: int, forwarded_for: bytes | None, caller: str
) -> None:
    """It is the N-th from the right; where that is missing or isn't an address, the peer counts."""
    callers = make_callers(hops)
    expected = make_callers().identify(caller, None, DAY)
    assert callers.identify(PEER, forwarded_for, DAY) == expected


def test_nobody_can_write_themselves_a_new_address() -> None:
    """Whatever a caller puts into the header stands left of what the trusted proxies append."""
    callers = make_callers(2)
    honest = callers.identify(PEER, b"203.0.113.7, 10.0.0.1", DAY)
    for forged in (b"198.51.100.1", b",,,", b"a, b, c", b'"', b"[::1", b"\xff", b"1.2.3.4:80"):
        appended = forged + b", 203.0.113.7, 10.0.0.1"
        assert callers.identify(PEER, appended, DAY) == honest


def test_fewer_than_no_proxies_is_a_mistake() -> None:
    """The number of hops can't be negative."""
    with pytest.raises(AssertionError):
        make_callers(-1)


def test_without_a_tokens_file_everyone_may_call() -> None:
    """Then a bearer says nothing about who somebody is."""
    assert make_callers().identify_token(b"Bearer sk-free-api", DAY) is None
    assert make_callers().identify_token(None, DAY) is None


def test_a_token_is_a_caller_with_limits_of_its_own() -> None:
    """Each has one tag for the day, and the defaults where its line is silent."""
    table = parse_tokens("tok-1 ann rpm=5\ntok-2\n", DEFAULTS, b"secret")
    callers = make_callers(tokens=table)
    first = callers.identify_token(b"Bearer tok-1", DAY)
    second = callers.identify_token(b"Bearer tok-2", DAY)
    assert first is not None
    assert second is not None
    assert first[0] != second[0]
    assert limits_of(first[1]) == (5, 40_000, 1_000, 8)
    assert limits_of(second[1]) == (20, 40_000, 1_000, 8)
    assert callers.identify_token(b"bEARER  tok-1 ", DAY) == first
    tomorrow = callers.identify_token(b"Bearer tok-1", DAY + 1)
    assert tomorrow is not None
    assert tomorrow[0] != first[0]


@pytest.mark.parametrize(
    "authorization",
    [None, b"", b"Bearer", b"Bearer ", b"Bearer tok-2", b"Basic tok-1", b"tok-1", b"Bearer tok-1x"],
)
def test_only_known_tokens_may_call(authorization: bytes | None) -> None:
    """Anything else is OpenAI's 401, which quotes nothing of what was sent."""
    callers = make_callers(tokens=parse_tokens("tok-1", DEFAULTS, b"secret"))
    with pytest.raises(errors.InvalidToken) as caught:
        callers.identify_token(authorization, DAY)
    refusal = caught.value
    assert (refusal.status, refusal.code) == (401, "invalid_api_key")
    assert refusal.type == "invalid_request_error"
    assert "tok" not in refusal.message.replace("token", "")


def test_a_reload_keeps_everybodys_tag() -> None:
    """Tags of the day mean the same after hops and tokens have changed; removed tokens are none."""
    callers = make_callers(tokens=parse_tokens("tok-1\ntok-2", DEFAULTS, b"secret"))
    address = callers.identify("192.0.2.1", None, DAY)
    token = callers.identify_token(b"Bearer tok-1", DAY)
    assert token is not None
    callers.reconfigure(1, parse_tokens("tok-3\ntok-1 rpm=5", DEFAULTS, b"secret"))
    again = callers.identify_token(b"Bearer tok-1", DAY)
    assert again is not None
    assert again[0] == token[0]
    assert limits_of(again[1]) == (5, 40_000, 1_000, 8)
    assert callers.identify("198.51.100.1", b"192.0.2.1", DAY) == address
    assert callers.identify_token(b"Bearer tok-3", DAY) is not None
    with pytest.raises(errors.InvalidToken):
        callers.identify_token(b"Bearer tok-2", DAY)
    callers.reconfigure(0, None)
    assert callers.identify_token(b"Bearer tok-2", DAY) is None
    assert callers.identify("192.0.2.1", b"198.51.100.1", DAY) == address


def test_a_table_holds_no_token() -> None:
    """Nothing that is reachable from it contains a token's text."""
    table = parse_tokens("tok-canary-1 ann", DEFAULTS, b"secret")
    assert b"tok-canary" not in b"".join(table.digests)
    assert "canary" not in repr(vars(table))


def test_a_tokens_file_may_be_commented() -> None:
    """Blank lines and comments are skipped, `off` lifts a limit, order doesn't matter."""
    text = """
    # the class of 2026
    sk-a=b#c== ann tpm=off concurrency=1  # until June
    \tsk-2 rpd=off rpm=off tpm=7 bob
    """
    table = parse_tokens(text, DEFAULTS, b"secret")
    assert limits_of(table.find(b"Bearer sk-a=b#c==")[1]) == (20, None, 1_000, 1)
    assert limits_of(table.find(b"Bearer sk-2")[1]) == (None, 7, None, 8)
    assert len(table.digests) == 2


def test_all_problems_of_a_tokens_file_are_listed() -> None:
    """Each with its line and place, and without a word of the file: it may be a token."""
    text = """good
bad1 rpm=0 tpm=-1 rpd=many concurrency=
bad2 one two
bad3 rpm=1 rpm=2
bad4 pages=3
töken
good
bad5 name=x
bad6 rpm=1000000000000
"""
    number = "must be a whole number from 1, or off"
    with pytest.raises(TokensInvalid) as caught:
        parse_tokens(text, DEFAULTS, b"secret")
    assert caught.value.problems == (
        f"line 2: rpm {number}",
        f"line 2: tpm {number}",
        f"line 2: rpd {number}",
        f"line 2: concurrency {number}",
        "line 3: word 3 is a second name",
        "line 4: word 3 is a second rpm",
        "line 5: word 2 is none of rpm, tpm, rpd, concurrency",
        "line 6: the token can't be sent: use visible ASCII",
        "line 7: the token of an earlier line",
        "line 8: word 2 is none of rpm, tpm, rpd, concurrency",
        f"line 9: rpm {number}",
    )


@pytest.mark.parametrize("text", ["", "\n\n", "# nobody yet\n"])
def test_a_tokens_file_without_tokens_is_a_problem(text: str) -> None:
    """It would lock everyone out."""
    with pytest.raises(TokensInvalid, match="nobody could call"):
        parse_tokens(text, DEFAULTS, b"secret")


def test_a_token_that_is_no_text_is_a_problem() -> None:
    """Bytes that weren't UTF-8, as the edge may hand them on, are told like other such tokens."""
    with pytest.raises(TokensInvalid, match="line 1: the token can't be sent"):
        parse_tokens("tok\udcff", DEFAULTS, b"secret")


def watched(watch: SharedTagWatch, callers: list[CallerId], now_s: float) -> int:
    """How often these requests make it warn."""
    return sum(watch.saw(caller, now_s) for caller in callers)


def test_one_tag_with_most_requests_is_noticed_once_a_day() -> None:
    """It takes 200 requests, then warns, and holds its peace until the next day."""
    watch = SharedTagWatch()
    assert watched(watch, [ANN] * (WATCH_REQUESTS_MIN - 1), 10.0) == 0
    assert watched(watch, [ANN], 10.0) == 1
    assert watched(watch, [ANN] * 1_000, 10.0) == 0
    assert watched(watch, [ANN] * 1_000, 10.0 + DAY_S - 1.0) == 0
    assert watched(watch, [ANN] * 1_000, 10.0 + DAY_S) == 1


def test_the_busy_tag_is_found_whenever_it_comes() -> None:
    """More than three quarters are always found, also if the others came first or in between."""
    orders = (
        [BOB] * 60 + [ANN] * 240,
        [ANN] * 240 + [BOB] * 60,
        [ANN, BOB, ANN, ANN, ANN] * 60,
        [CallerId(bytes([n])) for n in range(60)] + [ANN] * 240,
    )
    for callers in orders:
        assert watched(SharedTagWatch(), callers, 0.0) == 1


def test_traffic_of_many_is_not_noticed() -> None:
    """Half of the requests, in bursts or in turn, are no majority."""
    assert watched(SharedTagWatch(), [BOB, ANN, CallerId(b"eve")] * 1_000, 0.0) == 0
    assert watched(SharedTagWatch(), [BOB] * 100 + [ANN] * 100, 0.0) == 0
    many = [CallerId(bytes([n % 7])) for n in range(1_000)]
    assert watched(SharedTagWatch(), many, 0.0) == 0


def test_each_hour_is_judged_by_itself() -> None:
    """Few requests an hour never add up to a warning."""
    watch = SharedTagWatch()
    for hour in range(10):
        assert watched(watch, [ANN] * (WATCH_REQUESTS_MIN - 1), hour * WATCH_S) == 0
