"""The effective configuration for people and machines: ``freeapi config``.

Secrets are shown by their last characters at most; ``Secret`` sees to that by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from freeapi.config import Config

_SECTIONS: Final = ("environment", "policy", "page", "timeouts")


def redacted(config: Config) -> dict[str, Any]:
    """The effective configuration in JSON's types, each setting with its source; no secrets."""
    shown: dict[str, Any] = {section: {} for section in _SECTIONS}
    for origin in config.origins:
        shown[origin.section][origin.name] = {"value": origin.value, "source": origin.source}
    rest = {"upstream": config.upstreams, "model": config.models, "warnings": config.warnings}
    shown |= msgspec.json.decode(msgspec.json.encode(rest, enc_hook=str))
    for one, upstream in zip(shown["upstream"], config.upstreams, strict=True):
        one["proxy"] = upstream.proxy and str(upstream.proxy)
    return shown


def render(config: Config) -> str:
    """The same for people: one line a setting, an upstream or a model."""
    shown = redacted(config)
    lines: list[str] = []
    for section in _SECTIONS:
        lines += [f"[{section}]"]
        lines += [f"  {name:36} {_plain(**one)}" for name, one in shown[section].items()]
    for section in ("upstream", "model"):
        lines += [f"[[{section}]]"]
        lines += [f"  {one.pop('name'):36} {_pairs(one)}" for one in shown[section]]
    lines += [f"warning: {warning}" for warning in config.warnings]
    return "\n".join(lines) + "\n"


def _plain(value: str | None, source: str) -> str:
    return f"{'not set' if value is None else value}  ({source})"


def _pairs(fields: Mapping[str, Any]) -> str:
    """Without those that are None or empty: limits and prices that aren't there say nothing."""
    pairs = {
        name: "+".join(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }
    return " ".join(f"{name}={value}" for name, value in pairs.items() if value not in (None, ""))
