"""How values are spelled: from what was written to a typed value, or to what was allowed.

A ``Kind`` is a parser with the words for what it takes. Each one accepts the text of an environment
variable and the value of a TOML key alike, so that there is one spelling to learn and to document.

What this is not: it reads no environment and no file, and knows no setting by name; ``settings``
lists those, and ``config`` reads them.

Invariants:
- ``Unfit`` never quotes the value: it might be a key pasted into the wrong place.
- A ``Secret`` shows at most its last four characters, however it is printed.
- Money is exact: decimal text to whole nano-dollars, never through binary fractions.
- A key that passes can stand in a header as it is: no white space, quote or control character.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from freeapi.policy.models import is_model_name

NANO: Final = 1_000_000_000
#: A share of something in parts per million: fine enough for "0.05%", and exact.
PPM: Final = 1_000_000
#: Shorter secrets show nothing of themselves: four of eight characters would be half of it.
TAIL_SECRET_CHARS_MIN: Final = 12

#: What fits a header as it is, less the quotes that a shell or Docker left behind. 4,096: a JWT.
_KEY: Final = re.compile(r"[!#-&(-_a-~]{1,4096}")
_HOST: Final = r"\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?"
_BARE_HOST: Final = re.compile(rf"{_HOST}|[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*")
_ADDRESS: Final = re.compile(rf"({_HOST}):([0-9]{{1,5}})")
#: Stricter than RFC 3986: no user name, query or fragment can match.
_URL: Final = re.compile(
    rf"(https?)://({_HOST})(?::([0-9]{{1,5}}))?((?:/[A-Za-z0-9._~!$&()*+,;=:@%-]*)*)", re.IGNORECASE
)
_PROXY: Final = re.compile(rf"http://({_HOST}):([0-9]{{1,5}})/?", re.IGNORECASE)
_STATE: Final = re.compile(r"(?:(?:valkey|rediss?)://[!-~]+|unix:///[!-~]+)")
_DECIMAL: Final = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?")


class Unfit(Exception):
    """The value isn't one of its kind; the text adds what ``Kind.allowed`` can't say."""


class Secret:
    """A text that must not be shown: only ``reveal`` gives it, ``repr`` and ``str`` its tail."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that sends it."""
        return self._text

    @property
    def tail(self) -> str:
        """The last four characters; nothing of a secret under 12 characters."""
        return self._text[-4:] if len(self._text) >= TAIL_SECRET_CHARS_MIN else ""

    def __repr__(self) -> str:
        return f"…{self.tail}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> str:
        """Refuse to be pickled or copied into another process by accident."""
        raise TypeError("a Secret is not to be serialised")


class Password(Secret):
    """A secret that shows nothing: four characters may be most of what a person chose."""

    __slots__ = ()

    @property
    def tail(self) -> str:
        """None of it."""
        return ""


class StateUrl(msgspec.Struct, frozen=True):
    """Where the shared counters live; the URL may hold a password, so only its scheme is shown."""

    scheme: str
    url: Secret

    def __str__(self) -> str:
        return f"{self.scheme}://…"


class Address(msgspec.Struct, frozen=True):
    """A host without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Url(msgspec.Struct, frozen=True):
    """A base URL taken apart; ``base_path`` has no slash at its end."""

    scheme: str
    host: str
    port: int
    base_path: str


class Share(msgspec.Struct, frozen=True):
    """A part of another setting's amount."""

    ppm: int


class Kind(msgspec.Struct, frozen=True):
    """What a setting takes, in words and as a function that raises Unfit."""

    allowed: str
    parse: Callable[[object], Any]
    #: Neither a wrong value nor a right one is ever shown.
    secret: bool = False


# --- Kinds ----------------------------------------------------------------------------------------


def whole(low: int, high: int) -> Kind:
    """A whole number within bounds, both included."""

    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
            value = int(value)
        # ``True`` is an int to Python, not to anyone who writes a limit.
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Unfit
        return value

    return Kind(f"a whole number from {low} to {high}", parse)


def seconds(low: float, high: float) -> Kind:
    """A time in seconds within bounds, both included."""

    def parse(value: object) -> float:
        number = _nano(value) / NANO
        if not low <= number <= high:
            raise Unfit
        return number

    return Kind(f"seconds from {low:g} to {high:g}", parse)


def choice(*words: str) -> Kind:
    """One of a few words, in any case."""

    def parse(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise Unfit
        return value.lower()

    return Kind(f"{', '.join(words[:-1])} or {words[-1]}", parse)


def matching(pattern: str, allowed: str, *, secret: bool = False) -> Kind:
    """A text that matches as a whole."""
    form = re.compile(pattern)

    def parse(value: object) -> str:
        if not isinstance(value, str) or not form.fullmatch(value):
            raise Unfit
        return value

    return Kind(allowed, parse, secret)


def off(kind: Kind) -> Kind:
    """The same kind, or ``off``, which is None."""

    def parse(value: object) -> Any:
        return None if isinstance(value, str) and value.lower() == "off" else kind.parse(value)

    return Kind(f"{kind.allowed}, or off", parse, kind.secret)


def several(words: tuple[str, ...] | None, allowed: str) -> Kind:
    """A TOML list of distinct texts, of given words if any are given; never empty."""

    def parse(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise Unfit
        if not all(isinstance(word, str) and (words is None or word in words) for word in value):
            raise Unfit
        return tuple(dict.fromkeys(value))

    return Kind(allowed, parse)


def _nano(value: object) -> int:
    """Billionths of a decimal number, exactly: a float that nine decimals can't spell is unfit."""
    text = f"{value:.9f}" if isinstance(value, float) else str(value)
    match = _DECIMAL.fullmatch(text)
    if match is None or (isinstance(value, float) and float(text) != value):
        raise Unfit
    return int(match[1]) * NANO + int((match[2] or "").ljust(9, "0"))


def _share_or_nanousd(value: object) -> Share | int:
    if not (isinstance(value, str) and value.endswith("%")):
        return _nano(value)
    ppm = _nano(value[:-1].rstrip()) * PPM // (100 * NANO)
    if ppm > PPM:
        raise Unfit("more than 100%")
    return Share(ppm)


def _switch(value: object) -> bool:
    """TOML says true and false, people say on and off: both are taken from both."""
    word = str(value).lower()
    if word not in ("on", "off", "true", "false"):
        raise Unfit
    return word in ("on", "true")


def _keys(value: object) -> tuple[Secret, ...]:
    """Distinct keys in the order given; Unfit names the bad one by its place only."""
    words = value.replace(",", " ").split() if isinstance(value, str) else []
    if not words:
        raise Unfit("no key in it")
    for place, word in enumerate(words, 1):
        if not _KEY.fullmatch(word):
            raise Unfit(f"key {place} of {len(words)} has a character that no key has")
    return tuple(Secret(word) for word in dict.fromkeys(words))


def _host(value: object) -> str:
    if not isinstance(value, str) or not _BARE_HOST.fullmatch(value):
        raise Unfit
    return value.strip("[]")


def _address(value: object) -> Address:
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[2]) > 65_535:
        raise Unfit
    return Address(match[1].strip("[]"), int(match[2]))


def _url(value: object) -> Url:
    match = _URL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise Unfit
    scheme, host = match[1].lower(), match[2].strip("[]").lower()
    port = int(match[3] or (443 if scheme == "https" else 80))
    if not 1 <= port <= 65_535:
        raise Unfit("the port is not one from 1 to 65535")
    return Url(scheme, host, port, match[4].rstrip("/"))


def _proxy(value: object) -> Address:
    match = _PROXY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise Unfit
    if not 1 <= int(match[2]) <= 65_535:
        raise Unfit("the port is not one from 1 to 65535")
    return Address(match[1].strip("[]").lower(), int(match[2]))


def _proxy_auth(value: object) -> Password:
    """Source: RFC 7617 section 2: a colon ends the user, and there are no control characters."""
    if not isinstance(value, str) or ":" not in value:
        raise Unfit("no colon in it")
    if not value.isprintable():
        raise Unfit("a character in it that can't be printed")
    return Password(value)


def _state(value: object) -> StateUrl | None:
    if isinstance(value, str) and value.lower() == "memory":
        return None
    if not isinstance(value, str) or not _STATE.fullmatch(value):
        raise Unfit
    return StateUrl(value.partition(":")[0], Secret(value))


def _model_name(value: object) -> str:
    if not isinstance(value, str) or not is_model_name(value):
        raise Unfit
    return value


#: A billion a minute is beyond any upstream; a larger number is a slip of the hand.
COUNT: Final = whole(1, 1_000_000_000)
#: 1 KiB holds a real request; 1 GiB is more than a body that is read into memory should have.
BODY_BYTES: Final = whole(1_024, 1_073_741_824)
USD: Final = Kind("dollars such as 5 or 0.25, with at most nine decimals", _nano)
SHARE_OR_USD: Final = Kind("a percentage up to 100%, or dollars such as 0.25", _share_or_nanousd)
SWITCH: Final = Kind("on or off", _switch)
FLAG: Final = Kind("true or false", _switch)
PATH: Final = matching(r"[^\0]+", "a path")
#: Whoever mixes up KEYS and KEYS_FILE puts a key here.
SECRET_PATH: Final = matching(r"[^\0]+", "the path of a readable text file", secret=True)
#: Capitals only: a key pasted here instead of a name has lower-case letters, and isn't shown.
VARIABLE: Final = matching(
    r"[A-Z_][A-Z0-9_]{0,127}", "the name of an environment variable, in capitals", secret=True
)
NAME: Final = matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", "1 to 32 letters, digits, '.', '_', '-'")
MODEL_NAME: Final = Kind("1 to 128 visible ASCII characters, or *", _model_name)
HOST: Final = Kind("an IP address or a host name", _host)
ADDRESS: Final = Kind("host:port", _address)
BASE_URL: Final = Kind(
    "http:// or https://, a host, and if need be a port and a path; no user, query or fragment",
    _url,
)
#: Its port is asked for, since programs differ in what they take for the default.
PROXY: Final = Kind(
    "http://host:port, without a path; its user and password through proxy_auth_env", _proxy
)
PROXY_AUTH: Final = Kind("user:password", _proxy_auth, True)
#: What Azure and its like have, and nothing that could end a query or a request's line.
API_VERSION: Final = matching(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", 'a version in quotes, such as "2024-10-21"'
)
LINE: Final = matching(r"[^\x00-\x1f\x7f]{1,200}", "one line of at most 200 characters")
WEB_PAGE: Final = matching(r"https?://[!-~]{1,2000}", "an address that starts with http(s)://")
CONTACT: Final = matching(
    r"(?:https?://|mailto:)?[!-~]{3,2000}", "an address of mail, or one that starts with http(s)://"
)
STATE: Final = Kind(
    "memory, or a URL that starts with valkey://, redis://, rediss:// or unix:///", _state, True
)
KEYS: Final = Kind(
    "keys separated by commas or white space, in visible ASCII and without quotes", _keys, True
)
