"""What ``freeapi doctor`` says about a configuration that loads: money, models, keys, who may call.

Each check is a function of the ``Config`` (and of the day), so that nothing here waits or looks
outside but ``check_files``. What is wrong with a configuration that doesn't load, ``config`` says.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Final

from freeapi.commands.diagnosis import Finding, ok, problem, warning
from freeapi.config import Config
from freeapi.pages.admin import is_loopback
from freeapi.policy.models import Model
from freeapi.prices import TABLE_PATH
from freeapi.providers import Upstream
from freeapi.spelling import NANO
from freeapi.upstreams import caps, routed

#: When OpenAI stops to serve models that are in use. Source: OpenAI, "Deprecations", 2026-11.
RETIRED_ON: Final = {
    "gpt-4o-mini": date(2027, 1, 14),
    "gpt-4.1-mini": date(2027, 1, 14),
}
#: A price that changes is announced for weeks, and a release of ours takes some, too.
PRICES_DAYS_MAX: Final = 90
#: For the smallest request that anybody sends: a short sentence and its JSON.
_SMALL_PROMPT_BYTES: Final = 300
_DATED: Final = re.compile(r"(.+)-\d{4}-\d\d-\d\d")
_IN_FORCE: Final = re.compile(rb"in force on (\d{4}-\d\d-\d\d)")


def check_config(config: Config, now_s: float) -> Iterator[Finding]:
    """All that follows from the configuration alone; ``now_s`` is in seconds since 1970."""
    today = datetime.fromtimestamp(now_s, UTC).date()
    names = [one.name for one in config.upstreams] or ["the embedded model"]
    keys = sum(len(one.keys) for one in config.upstreams)
    yield ok("config", f"models: {len(config.models)}; keys: {keys}; asked: {', '.join(names)}")
    for text in config.warnings:
        yield warning("config", text, "")
    yield from _caps(config)
    yield from _small_shares(config)
    yield from _prices(config, today)
    yield from _retiring(config, today)
    yield from _shared_keys(config.upstreams)
    yield from _who_may_call(config)
    if config.request_log:
        yield ok("log", "one line for each request, without content or caller")


def notes(config: Config) -> Iterator[str]:
    """What the operator should do elsewhere, which no check can see."""
    if any(one.is_openai for one in config.upstreams):
        yield (
            "OpenAI's own backstops: give this instance a project of its own with a hard spend "
            "limit and only the models that it serves (its settings, Limits). "
            "They hold even if this machine is taken over."
        )
        yield (
            "Requests go up without a service tier, so the project's default tier answers: leave "
            "that at the standard one, as the prices here are the standard tier's."
        )


# --- Files ----------------------------------------------------------------------------------------


def check_files(paths: Iterable[str], config: Config) -> Iterator[Finding]:
    """Whether the files with keys and tokens are for their owner alone."""
    open_ones = [
        path for path in paths if _holds_secrets(path, config) and _is_world_readable(path)
    ]
    for path in open_ones:
        yield warning("secrets", f"every user of this machine can read {path}", f"chmod 600 {path}")


def _holds_secrets(path: str, config: Config) -> bool:
    """All but freeapi.toml, which can only point to keys, and the picture of the page."""
    return not path.endswith(".toml") and path != config.page.sponsor_image


def _is_world_readable(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:  # it isn't there
        return False


# --- Money ----------------------------------------------------------------------------------------


def _caps(config: Config) -> Iterator[Finding]:
    paid = [one.name for one in config.upstreams if not one.free]
    if not paid:
        yield ok("caps", "nothing is paid for, so nothing can be spent")
        return
    if config.daily_nanousd is None and config.monthly_nanousd is None:
        uncapped = [one.name for one in config.upstreams if not one.free and not one.daily_nanousd]
        if uncapped:
            yield warning(
                "caps",
                f"no cap on what is spent at {', '.join(uncapped)}",
                "set FREEAPI_DAILY_USD: one caller in a loop can else spend all that the key has",
            )
            return
    amounts = ((config.daily_nanousd, "a day"), (config.monthly_nanousd, "a month"))
    shown = [f"${amount / NANO:,.2f} {period}" for amount, period in amounts if amount is not None]
    yield ok("caps", f"at most {' and '.join(shown) or 'what each upstream may cost a day'}")
    daily, share = config.daily_nanousd, config.caller_daily_nanousd
    if daily is not None and (share is None or share >= daily):
        yield warning(
            "caps",
            "one caller alone can spend the whole day's budget",
            "set FREEAPI_CALLER_DAILY_USD to a share of it, such as 5%",
        )


def _small_shares(config: Config) -> Iterator[Finding]:
    """Caps under which a model can never be asked."""
    limits = caps(config)
    if limits is None:
        return
    shared = (limits.daily_nanousd, limits.monthly_nanousd, limits.caller_daily_nanousd)
    smallest = min((cap for cap in shared if cap is not None), default=None)
    refused = [] if smallest is None else [m for m in config.models if _least(m) > smallest]
    if smallest is not None and refused:
        most = max(map(_least, refused))
        yield problem(
            "caps",
            f"the smallest cap (${smallest / NANO:.6f}) is less than one short request may cost "
            f"for {_names(refused)} (up to ${most / NANO:.6f}): each is refused",
            "raise FREEAPI_CALLER_DAILY_USD or FREEAPI_DAILY_USD, or lower max_output_tokens",
        )


def _least(model: Model) -> int:
    """What is reserved for the smallest request, in nano-dollars."""
    if not {"chat", "completions", "responses"} & set(model.endpoints):
        return model.unit_nanousd or 0
    prompt = _SMALL_PROMPT_BYTES * (model.input_nanousd_per_mtok or 0)
    answer = model.max_output_tokens * (model.output_nanousd_per_mtok or 0)
    return math.ceil((prompt + answer) / 1_000_000)


def _prices(config: Config, today: date) -> Iterator[Finding]:
    """Prices are known, or the configuration didn't load; they may be old."""
    if caps(config) is None:
        return
    with TABLE_PATH.open("rb") as table:
        found = _IN_FORCE.search(table.read(1_000))
    assert found is not None, "scripts/prices writes it first"
    age = today - date.fromisoformat(found[1].decode())
    text = f"each paid model has a price; the built-in table is {max(age.days, 0)} days old"
    if age.days <= PRICES_DAYS_MAX:
        yield ok("prices", text)
    else:
        yield warning(
            "prices",
            text,
            "update freeapi, or give input_usd_per_mtok and output_usd_per_mtok by yourself: the "
            "caps are only as true as the prices",
        )


# --- Models and keys ------------------------------------------------------------------------------


def _retiring(config: Config, today: date) -> Iterator[Finding]:
    at_openai = {one.name for one in config.upstreams if one.is_openai}
    served = [model for model in routed(config) if at_openai & set(model.upstreams)]
    for name, day in RETIRED_ON.items():
        asked = [model for model in served if _undated(model.upstream_model) == name]
        if not asked:
            continue
        remedy = (
            "update freeapi, or set another upstream_model for them in freeapi.toml, such as "
            "gpt-6-luna"
        )
        if today >= day:
            yield problem("models", f"OpenAI retired {name} on {day}, for {_names(asked)}", remedy)
        else:
            yield warning("models", f"OpenAI retires {name} on {day}, for {_names(asked)}", remedy)


def _undated(name: str) -> str:
    """The family's name of a snapshot, such as ``gpt-4o-mini-2024-07-18``."""
    match = _DATED.fullmatch(name)
    return match[1] if match else name


def _names(models: Sequence[Model]) -> str:
    """As callers know them; a table may have hundreds."""
    shown = [model.name for model in models[:5]]
    more = len(models) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _shared_keys(upstreams: Sequence[Upstream]) -> Iterator[Finding]:
    """A key of two upstreams: each would take it for its own account."""
    for index, one in enumerate(upstreams):
        for other in upstreams[index + 1 :]:
            if both := set(one.keys) & set(other.keys):
                tails = ", ".join(sorted(map(repr, both)))
                yield warning(
                    "keys",
                    f"{one.name} and {other.name} share the key(s) {tails}",
                    "keep it at one of them: limits and daily_usd are counted for each by itself",
                )


# --- Callers --------------------------------------------------------------------------------------


def _who_may_call(config: Config) -> Iterator[Finding]:
    is_public = not is_loopback(config.host)
    if is_public and config.proxy_hops == 0:
        yield warning(
            "callers",
            f"listening on {config.host} with FREEAPI_PROXY_HOPS=0: behind a proxy or balancer all "
            "callers have its address, and share one caller's limits",
            "count the proxies in front and set FREEAPI_PROXY_HOPS (Cloud Run: 1); without any, "
            "this is right",
        )
    elif is_public:
        yield warning(
            "callers",
            f"FREEAPI_PROXY_HOPS={config.proxy_hops} on {config.host}: whoever reaches this port "
            "around the proxy can write any address into X-Forwarded-For, and so be a new caller "
            "each time",
            "let only the proxy reach it (a firewall, a private network, or HOST=127.0.0.1)",
        )
    else:
        way = f"{config.proxy_hops} proxies in front" if config.proxy_hops else "no proxy in front"
        yield ok("callers", f"only this machine reaches {config.host}; {way}")
    if config.admin is not None and not is_loopback(config.admin.host):
        yield warning(
            "admin",
            f"the admin port listens on {config.admin}: who reaches it sees keys' states and sums",
            "FREEAPI_ADMIN_ADDR=127.0.0.1:9464, or a firewall that lets only Prometheus in",
        )
