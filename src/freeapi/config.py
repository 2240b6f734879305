"""The configuration: environment, ``.env`` and ``freeapi.toml`` become one frozen value.

``load`` is a function of what it is given: mappings and texts in, a ``Config`` out, or a
``ConfigError`` that lists every problem at once. ``showing`` shows the result.

What this is not: it opens nothing, listens to nothing and builds nothing; the edge resolves
directories, the open-files limit and the list of access tokens.

Plan: a ``Reader`` reads each table of ``settings`` and notes what is wrong; the values are joined
into upstreams (``providers``) and models; if anything was wrong, that is all that comes of it.

Invariants:
- A wrong value, an unknown key or an unknown ``FREEAPI_*`` variable stops the start.
- A key reaches no problem, warning, ``repr`` or output; only ``Secret.reveal`` gives it.
- An empty variable counts as not set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from freeapi.policy.callers import TokensInvalid, parse_tokens
from freeapi.policy.limits import CallerLimits
from freeapi.policy.models import BUILTIN, Endpoint, Model, OutputField
from freeapi.providers import LOCAL, read_upstreams, unencrypted
from freeapi.providers import OPENAI as OPENAI  # part of what a Config is, for those who take one
from freeapi.providers import Upstream as Upstream
from freeapi.reading import Origin, Problem, Reader, quote
from freeapi.settings import MODEL, PAGE, POLICY, TIMEOUTS
from freeapi.spelling import PPM, Address, Secret, Share, StateUrl

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
TOKENS_FILE: Final = "FREEAPI_ACCESS_TOKENS_FILE"
UNLIMITED_CALLER: Final = CallerLimits(rpm=None, tpm=None, rpd=None, concurrency=None)
#: What the embedded model's server answers.
LOCAL_ENDPOINTS: Final[frozenset[Endpoint]] = frozenset({"chat", "completions", "embeddings"})


class Policy(msgspec.Struct, frozen=True):
    """``[policy]``: what a request may contain, and what happens when the money is gone."""

    n_max: int
    when_exhausted: Literal["refuse", "local"]
    unknown_fields: Literal["drop", "refuse"]


class Page(msgspec.Struct, frozen=True):
    """``[page]``: what the operator says on the instance's page."""

    title: str
    contact: str | None
    sponsor_text: str | None
    sponsor_url: str | None
    #: The picture's path, and what is in it, which the edge reads.
    sponsor_image: str | None
    image: bytes = b""


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
    page: Page
    timeouts: Timeouts
    warnings: tuple[str, ...]
    origins: tuple[Origin, ...]

    @property
    def local(self) -> bool:
        """Whether the embedded model is the only upstream."""
        return not self.upstreams

    @property
    def wants_local(self) -> bool:
        """Whether the embedded model may be asked for anything, and so has to run."""
        listed = any(LOCAL in model.upstreams for model in self.models)
        return self.local or listed or self.policy.when_exhausted == "local"

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
    page = Page(**reader.section(document, "page", PAGE))
    if not page.sponsor_text and (page.sponsor_url or page.sponsor_image):
        reader.problem(f"{toml_name}: [page]", "a sponsor without sponsor_text", "a text for it")
    timeouts = Timeouts(**reader.section(document, "timeouts", TIMEOUTS))
    upstreams = read_upstreams(reader, document, values)
    models = _read_models(reader, document, upstreams, values["max_output_tokens"])
    values["access_tokens"] = _read_tokens(reader, values["access_tokens"])
    reader.refuse_unknown_variables()
    reader.warnings += [*unencrypted(upstreams), *([] if upstreams else _unanswered(models))]
    if reader.problems:
        raise ConfigError(reader.problems)
    values["caller_daily_nanousd"] = _resolve(values["caller_daily"], values["daily_nanousd"])
    return Config(
        **{name: values[name] for name in Config.__struct_fields__ if name in values},
        upstreams=upstreams,
        models=models,
        policy=policy,
        page=page,
        timeouts=timeouts,
        warnings=tuple(dict.fromkeys(reader.warnings)),
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
    wanted = row["upstreams"] or ()
    _check_upstreams(reader, f"{place}: upstreams", wanted, upstreams)
    if LOCAL in wanted:
        _check_local(reader, f"{place}: upstreams", row["endpoints"] or ())
    serving = [one for one in upstreams if not wanted or one.name in wanted]
    row["upstreams"] = (
        *(one.name for one in serving if wanted),
        *(name for name in wanted if name == LOCAL),
    )
    row["upstream_model"] = row["upstream_model"] or row["name"]
    row["max_output_tokens"] = min(row["max_output_tokens"] or ceiling_tokens, ceiling_tokens)
    row["output_field"] = row["output_field"] or _output_field(serving)
    if row["endpoints"] is None:
        del row["endpoints"]
    return Model(**row)


def _check_upstreams(
    reader: Reader, place: str, wanted: Sequence[str], upstreams: Sequence[Upstream]
) -> None:
    """Refuse names that no upstream has."""
    # Without any upstream, "openai" is still the name of the one that a key would make.
    known = [upstream.name for upstream in upstreams] or [OPENAI]
    # If an upstream's own name is wrong, that is the one to mend.
    for name in wanted if all(known) else ():
        if name not in (*known, LOCAL):
            reader.problem(place, quote(name), f"some of {', '.join((*known, LOCAL))}")


def _check_local(reader: Reader, place: str, endpoints: Sequence[Endpoint]) -> None:
    """Refuse the embedded model where it has no answer."""
    if beyond := _beyond_local(endpoints):
        found = f"{quote(LOCAL)} for {', '.join(beyond)}"
        reader.problem(place, found, f"it for {', '.join(sorted(LOCAL_ENDPOINTS))}")


def _unanswered(models: Sequence[Model]) -> list[str]:
    """No problems, since a key may come later: what nobody answers until then."""
    return [
        f"model {model.name}: without an upstream there is no answer to {', '.join(beyond)}"
        for model in models
        if (beyond := _beyond_local(model.endpoints))
    ]


def _beyond_local(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    return [endpoint for endpoint in endpoints if endpoint not in LOCAL_ENDPOINTS]


def _output_field(upstreams: Sequence[Upstream]) -> OutputField:
    """The field that all of these enforce: others than OpenAI may ignore the newer one."""
    at_openai = bool(upstreams) and all(upstream.is_openai for upstream in upstreams)
    return "max_completion_tokens" if at_openai else "max_tokens"
