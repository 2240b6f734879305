"""What ``freeapi serve`` prints when it is ready: what it serves, where, within which limits."""

from __future__ import annotations

from freeapi import __version__
from freeapi.config import Config
from freeapi.local import MODEL_NAME
from freeapi.policy.budget import NANO
from freeapi.providers import Upstream
from freeapi.upstreams import caps

_SAMPLE_MODEL = "gpt-3.5-turbo-16k-0613"
_NAMES_SHOWN = 5


def banner(config: Config, host: str, port: int) -> str:
    """A few lines for a person, the last of them a command to try."""
    base_url = f"http://{_reachable(host)}:{port}/v1"
    rows = [
        ("serving", base_url),
        ("upstream", _upstreams(config)),
        ("models", _models(config)),
        ("callers", _caller_limits(config)),
        ("spending", _caps(config)),
    ]
    lines = [f"chatgpt-freeapi {__version__}", *(f"  {name:<9} {value}" for name, value in rows)]
    lines += [f"  {'warning':<9} {warning}" for warning in config.warnings]
    return "\n".join([*lines, "", "Try it:", _curl(config, base_url), ""])


def _reachable(host: str) -> str:
    """An address that works in a URL on this machine."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _upstreams(config: Config) -> str:
    if config.local:
        return f"embedded model {MODEL_NAME} (free; set OPENAI_API_KEYS to forward to OpenAI)"
    shown = [f"{one.name} at {one.base_url} ({_access(one)})" for one in config.upstreams]
    reserve = [f"embedded model {MODEL_NAME} (in reserve)"] if config.wants_local else []
    return ", ".join(shown + reserve)


def _access(upstream: Upstream) -> str:
    """With how many keys, in which header if it isn't the usual one, and through which proxy."""
    header = f" in {upstream.auth}" if upstream.auth != "bearer" else ""
    version = f", version {upstream.api_version}" if upstream.api_version else ""
    proxy = f", through proxy {upstream.proxy}" if upstream.proxy else ""
    return f"{_count(len(upstream.keys), 'key')}{header}{version}{proxy}"


def _models(config: Config) -> str:
    names = [model.name for model in config.models]
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _caps(config: Config) -> str:
    """The caps on money, or why there are none."""
    limits = caps(config)
    if limits is None:
        return "nothing is paid for" if not _is_paid(config) else "no cap"
    amounts = (
        (limits.daily_nanousd, "a day"),
        (limits.monthly_nanousd, "a month"),
        (limits.caller_daily_nanousd, "a day for one caller"),
        *((cap, f"a day at {name}") for name, cap in limits.upstream_daily_nanousd.items()),
    )
    return "at most " + ", ".join(
        f"${amount / NANO:,.2f} {period}" for amount, period in amounts if amount is not None
    )


def _is_paid(config: Config) -> bool:
    return any(not upstream.free for upstream in config.upstreams)


def _caller_limits(config: Config) -> str:
    """What one caller may do; ``off`` isn't mentioned."""
    limits = (
        (config.caller_rpm, "requests/min"),
        (config.caller_tpm, "tokens/min"),
        (config.caller_rpd, "requests/day"),
        (config.caller_concurrency, "at once"),
    )
    each = [f"{limit:,} {unit}" for limit, unit in limits if limit is not None]
    return f"each {', '.join(each)}" if each else "unlimited"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _curl(config: Config, base_url: str) -> str:
    names = [model.name for model in config.models]
    model = _SAMPLE_MODEL if _SAMPLE_MODEL in names else names[0]
    return (
        f"  curl {base_url}/chat/completions \\\n"
        "    -H 'Content-Type: application/json' -H 'Authorization: Bearer sk-free-api' \\\n"
        f'    -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "你好?"}}]}}\''
    )
