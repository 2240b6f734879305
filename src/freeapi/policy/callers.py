"""Who is asking, as an opaque tag: enough to be fair by, not enough to know anyone by.

``Callers`` turns a peer's address, the one that trusted proxies report, or an access token into
a ``CallerId``: BLAKE2b keyed with a secret that exists in memory only and is replaced when the UTC
day changes. A tag therefore can't be turned back, nor joined with yesterday's.

What this is not: no limits (``limits``), no table of addresses: a raw address goes no further than
``Callers.identify``, and whoever caches a tag must key it by the day too.

Plan: an address is cut to what one subscriber holds (IPv4 /32, IPv6 /64; IPv4-mapped IPv6 is IPv4)
and hashed; every Unix peer is the same one. Chance and the C library's parser of addresses are
passed in. Access tokens are kept as keyed hashes, so that neither what is in memory nor the time
that a look-up takes gives one away.

Invariants: nothing that a caller can write makes a new caller, where ``proxy_hops`` is right; and
what doesn't parse counts for the peer, never for nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final, NewType

from freeapi import errors
from freeapi.policy.limits import DAY_S, CallerLimits

CallerId = NewType("CallerId", bytes)
#: An address's 4 or 16 bytes; raises OSError or ValueError, as ``socket.inet_pton`` does.
ParseAddress = Callable[[str], bytes]

#: 64 bits: among a million callers two share a tag with a chance of 3e-8, and who doesn't know the
#: secret can't look for such a pair. Small, since a million are kept.
TAG_BYTES: Final = 8
#: What stands for an access token decides who may call: 128 bits, not to be hit by trying.
TOKEN_DIGEST_BYTES: Final = 16
#: What a provider gives to one subscriber at least (RFC 6177).
IPV6_PREFIX_BYTES: Final = 8
IPV4_MAPPED: Final = bytes(10) + b"\xff\xff"
#: Stands for all peers on a Unix socket; no address is as short.
UNIX_PEER: Final = b""

#: A forgotten proxy shows within the hour, and fewer requests than these are anybody's morning.
WATCH_S: Final = 3600.0
WATCH_REQUESTS_MIN: Final = 200

_COMMENT: Final = re.compile(r"(?:^|\s)#")
_TOKEN: Final = re.compile(rb"[!-~]+")
#: Up to 12 digits: past any use, and short of what would overflow a double's whole numbers.
_LIMIT: Final = re.compile(r"off|[1-9][0-9]{0,11}")
#: What proxies write around an address: ``[v6]``, ``[v6%zone]:port``, ``v4:port``, ``v6%zone``.
_DECORATED: Final = re.compile(
    r"\[(?P<bracketed>[^\]%]+)(?:%[^\]]*)?\](?::[0-9]*)?"
    r"|(?P<with_port>[^:%\[]+):[0-9]*"
    r"|(?P<with_zone>[^%\[]+)%.*"
)


class Callers:
    """The tags of one UTC day, and the secret behind them."""

    def __init__(
        self,
        new_secret: Callable[[], bytes],
        parse_address: ParseAddress,
        proxy_hops: int,
        tokens: TokenTable | None = None,
    ) -> None:
        """``new_secret`` gives 16 to 64 random bytes; it is called once a day."""
        self._new_secret: Final = new_secret
        self._parse_address: Final = parse_address
        self._day: int | None = None
        self._keyed = blake2b(digest_size=TAG_BYTES)
        self.reconfigure(proxy_hops, tokens)

    def reconfigure(self, proxy_hops: int, tokens: TokenTable | None) -> None:
        """Tell callers apart so from now on; the day's tags keep their meaning. O(tokens)."""
        assert proxy_hops >= 0
        self._proxy_hops = proxy_hops
        self._tokens = tokens
        self._tag_tokens()

    def identify(self, peer_address: str, forwarded_for: bytes | None, day: int) -> CallerId:
        """The tag of whoever is at this address, for this UTC day.

        ``forwarded_for`` is all lines of X-Forwarded-For joined by commas; it counts only as far as
        the operator's own proxies have written it. An empty peer is one on a Unix socket.
        O(length of the header).
        """
        if day != self._day:
            self._rotate(day)
        network = None
        if self._proxy_hops and forwarded_for is not None:
            network = self._forwarded(forwarded_for)
        if network is None:
            network = self._network(peer_address)
        return self._tag(UNIX_PEER if network is None else network)

    def identify_token(
        self, authorization: bytes | None, day: int
    ) -> tuple[CallerId, CallerLimits] | None:
        """Whose access token this is, and what it may do; None: no tokens are asked for here.

        Raises InvalidToken where tokens are asked for and this is none of them. O(1).
        """
        if self._tokens is None:
            return None
        if day != self._day:
            self._rotate(day)
        digest, limits = self._tokens.find(authorization)
        return self._token_ids[digest], limits

    def _rotate(self, day: int) -> None:
        """Forget the day's secret and with it what its tags meant. O(tokens)."""
        self._day = day
        self._keyed = blake2b(digest_size=TAG_BYTES, key=self._new_secret())
        self._tag_tokens()

    def _tag_tokens(self) -> None:
        digests = () if self._tokens is None else self._tokens.digests
        self._token_ids = {digest: self._tag(digest) for digest in digests}

    def _tag(self, subject: bytes) -> CallerId:
        """The keyed hash. Copying the keyed state saves 40 % over keying anew."""
        keyed = self._keyed.copy()
        keyed.update(subject)
        return CallerId(keyed.digest())

    def _forwarded(self, forwarded_for: bytes) -> bytes | None:
        """The network of the address that the outermost trusted proxy saw; None: there is none."""
        hops = self._proxy_hops
        # Counted from the right: anyone may have sent what stands left of the proxies' own words.
        addresses = forwarded_for.rsplit(b",", hops)
        if len(addresses) < hops:
            return None
        return self._network(addresses[-hops].strip(b" \t").decode("latin-1"))

    def _network(self, address: str) -> bytes | None:
        """What one subscriber holds of this address: 4 or 8 bytes; None: it is no address."""
        packed = self._packed(address)
        if packed is None:
            match = _DECORATED.fullmatch(address)
            packed = self._packed(match[match.lastgroup or 0]) if match else None
        if packed is None or len(packed) == 4:
            return packed
        if packed.startswith(IPV4_MAPPED):
            return packed[-4:]
        return packed[:IPV6_PREFIX_BYTES]

    def _packed(self, address: str) -> bytes | None:
        try:
            return self._parse_address(address)
        except (OSError, ValueError):
            return None


class TokenTable:
    """Access tokens by their keyed hash, each with its limits."""

    def __init__(self, secret: bytes, limits: Mapping[bytes, CallerLimits]) -> None:
        """Under one secret a token is the same caller in each table."""
        self._keyed: Final = blake2b(digest_size=TOKEN_DIGEST_BYTES, key=secret)
        self._limits: Final = {self._digest(token): own for token, own in limits.items()}

    @property
    def digests(self) -> tuple[bytes, ...]:
        """What the tokens are known by here."""
        return tuple(self._limits)

    def find(self, authorization: bytes | None) -> tuple[bytes, CallerLimits]:
        """The digest and limits of the token in this Authorization header.

        Raises InvalidToken. O(1), and how long it takes says nothing about the tokens: what is
        compared are hashes under a secret key.
        """
        scheme, _, token = (authorization or b"").partition(b" ")
        digest = self._digest(token.strip(b" "))
        limits = self._limits.get(digest)
        if limits is None or scheme.lower() != b"bearer":
            raise errors.InvalidToken
        return digest, limits

    def _digest(self, token: bytes) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(token)
        return keyed.digest()


class TokensInvalid(ValueError):
    """The access tokens file can't be used; ``problems`` says why, without quoting a token."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


def parse_tokens(text: str, defaults: CallerLimits, secret: bytes) -> TokenTable:
    """Read ``token [name] [rpm=… tpm=… rpd=… concurrency=…]`` lines; ``#`` begins a comment.

    What a line doesn't limit is as in `defaults`; ``off`` lifts a limit. Raises TokensInvalid with
    all problems at once.
    """
    limits: dict[bytes, CallerLimits] = {}
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = _COMMENT.split(line, maxsplit=1)[0].split()
        if not words:
            continue
        token = words[0].encode(errors="surrogatepass")
        own, found = _parse_limits(words[1:], defaults)
        if not _TOKEN.fullmatch(token):
            found.append("the token can't be sent: use visible ASCII")
        if token in limits:
            found.append("the token of an earlier line")
        problems += [f"line {number}: {problem}" for problem in found]
        limits[token] = own
    if not limits:
        problems.append("there is no token, so that nobody could call")
    if problems:
        raise TokensInvalid(tuple(problems))
    return TokenTable(secret, limits)


def _parse_limits(words: list[str], defaults: CallerLimits) -> tuple[CallerLimits, list[str]]:
    """The limits that follow a token, and what is wrong with them.

    Words are told by their place, never quoted: a mistaken one may be a token.
    """
    limits = {
        "rpm": defaults.rates.rpm,
        "tpm": defaults.rates.tpm,
        "rpd": defaults.rpd,
        "concurrency": defaults.concurrency,
    }
    problems = []
    seen = set()
    for place, word in enumerate(words, start=2):
        name, is_limit, value = word.partition("=")
        kind = name if is_limit else ""
        if is_limit and name not in limits:
            problems.append(f"word {place} is none of {', '.join(limits)}")
        elif kind in seen:
            problems.append(f"word {place} is a second {kind or 'name'}")
        elif is_limit and not _LIMIT.fullmatch(value):
            problems.append(f"{name} must be a whole number from 1, or off")
        elif is_limit:
            limits[name] = None if value == "off" else int(value)
        seen.add(kind)
    return CallerLimits(**limits), problems


class SharedTagWatch:
    """Notices that most requests come under one tag: then a proxy in front was forgotten, and
    strangers share one caller's limits.

    By the hour, with a majority vote, which needs no table: one tag is on trial; its own requests
    speak for it, any other's against it, and at a draw the next tag takes its place. Warns only if
    one tag has sent more than half of the hour's requests so far, and always finds one that has
    sent more than three quarters. O(1) in time and memory.
    Source: Boyer and Moore, MJRTY, 1981.
    """

    __slots__ = ("_ends_s", "_own", "_quiet_until_s", "_requests", "_suspect", "_votes")

    def __init__(self) -> None:
        self._quiet_until_s = 0.0
        self._ends_s = 0.0
        self._suspect: CallerId | None = None
        self._votes = self._own = self._requests = 0

    def saw(self, caller: CallerId, now_s: float) -> bool:
        """Count a request; True, at most once a day: warn now."""
        if now_s >= self._ends_s:
            self._ends_s = now_s + WATCH_S
            self._suspect = None
            self._votes = self._own = self._requests = 0
        self._requests += 1
        if caller == self._suspect:
            self._votes += 1
            self._own += 1
        elif self._votes:
            self._votes -= 1
        else:
            self._suspect, self._votes, self._own = caller, 1, 1
        is_majority = self._own * 2 > self._requests >= WATCH_REQUESTS_MIN
        if not is_majority or now_s < self._quiet_until_s:
            return False
        self._quiet_until_s = now_s + DAY_S
        return True
