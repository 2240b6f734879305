"""The upstreams of a configuration: what one is, and how the file or the environment says so.

Plan: each ``[[upstream]]`` is one; without any, OPENAI_API_KEYS and OPENAI_BASE_URL make one named
``openai``; and without those there is none, so that the embedded model answers.

What this is not: no connection and no key pool: ``freeapi.upstreams`` builds those.

Invariants:
- A key or a proxy's password reaches no problem, warning, ``repr`` or output.
- No upstream is called ``local``: as a model's upstream, that is the embedded model.
- A proxy is used only where the file says so; the environment's (``HTTPS_PROXY``) never is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from freeapi.reading import Reader, quote
from freeapi.settings import UPSTREAM
from freeapi.spelling import PROXY_AUTH, Address, Secret, Url

#: The name of the upstream that OPENAI_API_KEYS and OPENAI_BASE_URL make.
OPENAI: Final = "openai"
#: The embedded model among a model's upstreams, always the last to be tried.
LOCAL: Final = "local"
#: Where the keys of ``openai`` may stand; the first that is set counts.
KEY_VARIABLES: Final = ("OPENAI_API_KEYS", "OPENAI_API_KEY", "OPENAI_API_KEYS_FILE")
_LOOPBACK: Final = re.compile(r"localhost|::1|127\.[\d.]+")

#: How a key is sent: ``Authorization: Bearer``, or in a header of its own, as Azure wants it.
Auth = Literal["bearer", "api-key"]


class Upstream(msgspec.Struct, frozen=True):
    """One organisation's account, or a local server. Without keys none is sent."""

    name: str
    scheme: str
    #: Lower case, an IPv6 address without its brackets.
    host: str
    port: int
    #: ``/v1``, or empty; never a slash at its end.
    base_path: str
    keys: tuple[Secret, ...] = ()
    daily_nanousd: int | None = None
    priority: int = 1
    share: int = 1
    free: bool = False
    auth: Auth = "bearer"
    #: The value of the query ``api-version`` behind every path; None: no query.
    api_version: str | None = None
    #: None: it is reached directly.
    proxy: Address | None = None
    #: ``user:password``.
    proxy_auth: Secret | None = None

    @property
    def is_openai(self) -> bool:
        """Whether it is OpenAI's own API; regional hosts such as eu.api.openai.com are, too."""
        return self.host == "api.openai.com" or self.host.endswith(".api.openai.com")

    @property
    def is_loopback(self) -> bool:
        """Whether its bytes stay on this machine."""
        return _is_loopback(self.host) and (self.proxy is None or _is_loopback(self.proxy.host))

    @property
    def authority(self) -> str:
        """The value of the ``Host`` header. Source: RFC 9112 section 3.2."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"
        )

    @property
    def base_url(self) -> str:
        """For people to read."""
        return f"{self.scheme}://{self.authority}{self.base_path}"


def read_upstreams(
    reader: Reader, document: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[Upstream, ...]:
    """The file's upstreams, else the environment's; none: the embedded model answers."""
    entries = reader.entries(document, "upstream")
    if not entries:
        return _environment_upstream(reader, values)
    upstreams: list[Upstream] = []
    for place, table in entries:
        taken = [upstream.name for upstream in upstreams]
        upstreams.append(_file_upstream(reader, place, table, taken, values))
    referred = any(table.get("keys_env") == KEY_VARIABLES[0] for _, table in entries)
    reader.warnings += [
        f"{name} isn't used, since {reader.toml_name} has upstreams that don't refer to it"
        for name in (*(() if referred else KEY_VARIABLES), "OPENAI_BASE_URL")
        if reader.variable(name)
    ]
    return tuple(upstreams)


def unencrypted(upstreams: Sequence[Upstream]) -> Iterator[str]:
    """Not problems, since many run a server in their own network; but they should know."""
    for one in upstreams:
        if one.scheme == "http" and one.keys and not one.is_loopback:
            yield f"upstream {one.name}: keys and texts go to {one.base_url} unencrypted"
        if one.proxy_auth is not None and one.proxy and not _is_loopback(one.proxy.host):
            yield f"upstream {one.name}: its proxy's password goes to {one.proxy} unencrypted"


def _is_loopback(host: str) -> bool:
    return _LOOPBACK.fullmatch(host) is not None


def _environment_upstream(reader: Reader, values: Mapping[str, Any]) -> tuple[Upstream, ...]:
    """One named ``openai`` if there are keys, or another server's address that wants none."""
    keys = _openai_keys(reader, values)
    upstream = _upstream(values["base_url"], name=OPENAI, keys=keys, free=not keys)
    return () if not keys and upstream.is_openai else (upstream,)


def _file_upstream(
    reader: Reader,
    place: str,
    table: Mapping[str, Any],
    taken: Sequence[str],
    values: Mapping[str, Any],
) -> Upstream:
    """One ``[[upstream]]``, with its keys and its proxy's password looked up."""
    before = len(reader.problems)
    row = reader.table(table, UPSTREAM, place)
    reader.require_own_name(place, table, row["name"], taken)
    if row["name"] == LOCAL:
        reader.problem(
            f"{place}: name", quote(LOCAL), "another name: that one is the embedded model's"
        )
    keys = _file_keys(reader, place, row.pop("keys_env"), row.pop("keys_file"), values)
    row["proxy"] = row.pop("proxy_address")
    row["proxy_auth"] = _proxy_auth(reader, place, table, row.pop("proxy_auth_env"))
    upstream = _upstream(row.pop("url"), keys=keys, **row)
    if not keys and len(reader.problems) == before:
        _require_keys(reader, place, upstream)
    return upstream


def _require_keys(reader: Reader, place: str, upstream: Upstream) -> None:
    """Refuse an upstream that can't answer without keys."""
    if upstream.is_openai:
        reader.problem(place, "no keys", "keys_env or keys_file, since OpenAI's API wants a key")
    elif upstream.auth == "api-key":
        reader.problem(place, "no keys", "keys_env or keys_file, since auth says how to send one")


def _file_keys(
    reader: Reader,
    place: str,
    variable: str | None,
    path: str | None,
    values: Mapping[str, Any],
) -> tuple[Secret, ...]:
    """The keys that keys_env or keys_file point to; none where neither is given."""
    if variable is not None and path is not None:
        reader.problem(place, "both keys_env and keys_file", "one of the two")
        return ()
    if path is not None:
        return reader.keys_of_file(path, f"{place}: keys_file")
    if variable is None:
        return ()
    if variable == KEY_VARIABLES[0] and any(map(reader.variable, KEY_VARIABLES)):
        return _openai_keys(reader, values)
    text = reader.variable(variable)
    if text is None:
        reader.problem(f"{place}: keys_env", f"{variable}, which isn't set", "a variable with keys")
        return ()
    return reader.keys(text[0], variable)


def _proxy_auth(
    reader: Reader, place: str, table: Mapping[str, Any], variable: str | None
) -> Secret | None:
    """What proxy_auth_env points to; None where it isn't given."""
    if variable is None:
        return None
    if "proxy" not in table:
        reader.problem(f"{place}: proxy_auth_env", "no proxy that it is for", "proxy beside it")
    text = reader.variable(variable)
    if text is None:
        reader.problem(
            f"{place}: proxy_auth_env", f"{variable}, which isn't set", "a variable with it"
        )
        return None
    found: Secret | None = reader.hidden(PROXY_AUTH, text[0], variable)
    return found


def _upstream(url: Url, **fields: Any) -> Upstream:
    return Upstream(
        scheme=url.scheme, host=url.host, port=url.port, base_path=url.base_path, **fields
    )


def _openai_keys(reader: Reader, values: Mapping[str, Any]) -> tuple[Secret, ...]:
    """The keys of the first of KEY_VARIABLES that is set; the others are warned about."""
    given = [name for name in KEY_VARIABLES if reader.variable(name)]
    reader.warnings += [f"{name} isn't used, since {given[0]} is set" for name in given[1:]]
    if given == ["OPENAI_API_KEYS_FILE"]:
        return reader.keys_of_file(values["keys_file"], given[0])
    return values["keys"] or values["key"] or ()
