"""The configuration: environment, ``.env`` and ``freeapi.toml`` become one frozen value.

``load`` is a function of what it is given: mappings and texts in, a ``Config`` out, or a
``ConfigError`` that lists every problem at once. ``showing`` shows the result.

What this is not: it opens nothing, listens to nothing and builds nothing; the edge resolves
directories, the open-files limit and the list of access tokens.

Plan: a ``Reader`` reads each table of ``settings`` and notes what is wrong; the values are joined
into upstreams and models; if anything was wrong, that is all that comes of it.

Invariants:
- A wrong value, an unknown key or an unknown ``FREEAPI_*`` variable stops the start.
- A key reaches no problem, warning, ``repr`` or output; only ``Secret.reveal`` gives it.
- An empty variable counts as not set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from freeapi.policy.callers import TokensInvalid, parse_tokens
from freeapi.policy.limits import CallerLimits
from freeapi.policy.models import BUILTIN, Model, OutputField
from freeapi.reading import Origin, Problem, Reader, quote
from freeapi.settings import MODEL, POLICY, TIMEOUTS, UPSTREAM
from freeapi.spelling import PPM, Address, Secret, Share, StateUrl, Url

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
#: The name of the upstream that OPENAI_API_KEYS and OPENAI_BASE_URL make.
OPENAI: Final = "openai"
TOKENS_FILE: Final = "FREEAPI_ACCESS_TOKENS_FILE"
UNLIMITED_CALLER: Final = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=None)
#: Where its keys may stand; the first that is set counts.
KEY_VARIABLES: Final = ("OPENAI_API_KEYS", "OPENAI_API_KEY", "OPENAI_API_KEYS_FILE")


class Upstream(msgspec.Struct, frozen=True):
    """One organisation's account, or a local server. Without keys no Authorization is sent."""

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

    @property
    def is_openai(self) -> bool:
        """Whether it is OpenAI's own API; regional hosts such as eu.api.openai.com are, too."""
        return self.host == "api.openai.com" or self.host.endswith(".api.openai.com")

    @property
    def is_loopback(self) -> bool:
        """Whether its bytes stay on this machine."""
        return self.host in ("localhost", "::1") or re.match(r"127\.[\d.]+$", self.host) is not None

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


class Policy(msgspec.Struct, frozen=True):
    """``[policy]``: what a request may contain, and what happens when the money is gone."""

    n_max: int
    when_exhausted: Literal["refuse", "local"]
    unknown_fields: Literal["drop", "refuse"]


class Timeouts(msgspec.Struct, frozen=True):
    """``[timeouts]``: for each phase of a request to an upstream."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the operator can decide; ``None`` for a limit or a cap is unlimited."""

    host: str
    #: 0: any free one.
    port: int
    #: None: the counters live in this process.
    state: StateUrl | None
    #: None: the user's state directory, which the edge resolves.
    data_dir: str | None
    daily_nanousd: int | None
    monthly_nanousd: int | None
    caller_rpm: int | None
    caller_tpm: int | None
    caller_rpd: int | None
    caller_concurrency: int | None
    caller_daily_nanousd: int | None
    max_output_tokens: int
    max_body_bytes: int
    max_upload_bytes: int
    #: None: from the open-files limit, which the edge knows.
    max_connections: int | None
    max_connections_per_address: int
    queue_s: float
    proxy_hops: int
    #: None: no admin port.
    admin: Address | None
    #: The text of the access tokens' file; None: everyone may call.
    access_tokens: Secret | None
    log: Literal["debug", "info", "warning", "error"]
    request_log: bool
    drain_s: float
    #: Empty: the embedded model answers.
    upstreams: tuple[Upstream, ...]
    models: tuple[Model, ...]
    policy: Policy
    timeouts: Timeouts
    warnings: tuple[str, ...]
    origins: tuple[Origin, ...]

    @property
    def local(self) -> bool:
        """Whether the embedded model is the upstream."""
        return not self.upstreams

    def is_set(self, name: str) -> bool:
        """Whether the operator chose this setting's value, if only by writing down the default."""
        return any(origin.name == name and origin.source != "default" for origin in self.origins)

    @property
    def caller_limits(self) -> CallerLimits:
        """What an anonymous caller may do, and one whose token says nothing else."""
        return CallerLimits(
            rpm=self.caller_rpm,
            tpm=self.caller_tpm,
            rpd=self.caller_rpd,
            concurrency=self.caller_concurrency,
        )


class ConfigError(Exception):
    """The configuration can't be used; ``problems`` holds all that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        lines = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"The configuration can't be used. To mend:{lines}")


def load(
    environ: Mapping[str, str],
    toml_text: str | None,
    toml_name: str = "freeapi.toml",
    *,
    read_file: Callable[[str], str],
    dotenv: Mapping[str, str | None] = NOTHING,
    flags: Mapping[str, str] = NOTHING,
) -> Config:
    """The configuration that these texts make, or all that is wrong with them.

    ``flags`` (the command line's, under the variables' names) win over ``environ``, and that over
    ``dotenv``. ``read_file`` gives the text of a file of keys or tokens, or raises OSError or
    UnicodeDecodeError.
    Raises ConfigError: print it and stop; at a reload, print it and keep the old configuration.
    """
    layers: dict[str, Mapping[str, str | None]]
    layers = {"command line": flags, "environment": environ, ".env": dotenv}
    reader = Reader(layers, toml_name, read_file)
    values = reader.environment()
    document = reader.document(toml_text)
    policy = Policy(**reader.section(document, "policy", POLICY))
    timeouts = Timeouts(**reader.section(document, "timeouts", TIMEOUTS))
    upstreams = _read_upstreams(reader, document, values)
    models = _read_models(reader, document, upstreams, values["max_output_tokens"])
    values["access_tokens"] = _read_tokens(reader, values["access_tokens"])
    reader.refuse_unknown_variables()
    if reader.problems:
        raise ConfigError(reader.problems)
    values["caller_daily_nanousd"] = _resolve(values["caller_daily"], values["daily_nanousd"])
    return Config(
        **{name: values[name] for name in Config.__struct_fields__ if name in values},
        upstreams=upstreams,
        models=models,
        policy=policy,
        timeouts=timeouts,
        warnings=tuple(dict.fromkeys((*reader.warnings, *_unencrypted(upstreams)))),
        origins=tuple(reader.origins),
    )


def _read_tokens(reader: Reader, path: str | None) -> Secret | None:
    """The access tokens' text, after a trial: their hashes want a secret, which the edge makes."""
    if path is None:
        return None
    before = len(reader.problems)
    text = reader.text(path, TOKENS_FILE)
    if len(reader.problems) == before:
        try:
            parse_tokens(text, UNLIMITED_CALLER, b"trial")
        except TokensInvalid as error:
            for problem in error.problems:
                reader.problem(TOKENS_FILE, problem, "lines of: token [name] [rpm=…] [tpm=…] …")
    return Secret(text)


def config_path(
    environ: Mapping[str, str], dotenv: Mapping[str, str | None] = NOTHING
) -> str | None:
    """Where FREEAPI_CONFIG says the file is, which the edge reads before it calls ``load``."""
    texts = ((layer.get("FREEAPI_CONFIG") or "").strip() for layer in (environ, dotenv))
    return next(filter(None, texts), None)


def _resolve(cap: Share | int | None, daily_nanousd: int | None) -> int | None:
    """One caller's cap in nano-dollars: a share of a daily cap that is off is nothing."""
    if not isinstance(cap, Share):
        return cap
    return None if daily_nanousd is None else daily_nanousd * cap.ppm // PPM


def _unencrypted(upstreams: Sequence[Upstream]) -> list[str]:
    """Not a problem, since many run a server in their own network; but they should know."""
    return [
        f"upstream {upstream.name}: keys and texts go to {upstream.base_url} unencrypted"
        for upstream in upstreams
        if upstream.scheme == "http" and upstream.keys and not upstream.is_loopback
    ]


# --- Upstreams ------------------------------------------------------------------------------------


def _read_upstreams(
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
    """One ``[[upstream]]``, with its keys looked up."""
    before = len(reader.problems)
    row = reader.table(table, UPSTREAM, place)
    reader.require_own_name(place, table, row["name"], taken)
    keys = _file_keys(reader, place, row.pop("keys_env"), row.pop("keys_file"), values)
    upstream = _upstream(row.pop("url"), keys=keys, **row)
    if upstream.is_openai and not keys and len(reader.problems) == before:
        reader.problem(place, "no keys", "keys_env or keys_file, since OpenAI's API wants a key")
    return upstream


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


# --- Models ---------------------------------------------------------------------------------------


def _read_models(
    reader: Reader,
    document: Mapping[str, Any],
    upstreams: tuple[Upstream, ...],
    ceiling_tokens: int,
) -> tuple[Model, ...]:
    """The file's models in its order, else the built-in table."""
    entries = reader.entries(document, "model")
    if not entries:
        field = _output_field(upstreams)
        return tuple(
            Model(**row._asdict(), max_output_tokens=ceiling_tokens, output_field=field)
            for row in BUILTIN
        )
    models: list[Model] = []
    for place, table in entries:
        taken = [model.name for model in models]
        models.append(_file_model(reader, place, table, taken, upstreams, ceiling_tokens))
    return tuple(models)


def _file_model(
    reader: Reader,
    place: str,
    table: Mapping[str, Any],
    taken: Sequence[str],
    upstreams: tuple[Upstream, ...],
    ceiling_tokens: int,
) -> Model:
    """One ``[[model]]``, with what it leaves open filled in."""
    row = reader.table(table, MODEL, place)
    reader.require_own_name(place, table, row["name"], taken)
    # Without any upstream, "openai" is still the name of the one that a key would make.
    known = [upstream.name for upstream in upstreams] or [OPENAI]
    wanted = row["upstreams"] or tuple(known)
    for name in wanted:
        # If an upstream's own name is wrong, that is the one to mend.
        if name not in known and all(known):
            reader.problem(f"{place}: upstreams", quote(name), f"some of {', '.join(known)}")
    serving = [upstream for upstream in upstreams if upstream.name in wanted]
    row["upstreams"] = tuple(upstream.name for upstream in serving) if row["upstreams"] else ()
    row["upstream_model"] = row["upstream_model"] or row["name"]
    row["max_output_tokens"] = min(row["max_output_tokens"] or ceiling_tokens, ceiling_tokens)
    row["output_field"] = row["output_field"] or _output_field(serving)
    if row["endpoints"] is None:
        del row["endpoints"]
    return Model(**row)


def _output_field(upstreams: Sequence[Upstream]) -> OutputField:
    """The field that all of these enforce: others than OpenAI may ignore the newer one."""
    at_openai = bool(upstreams) and all(upstream.is_openai for upstream in upstreams)
    return "max_completion_tokens" if at_openai else "max_tokens"
