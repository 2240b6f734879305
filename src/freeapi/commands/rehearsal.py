"""The operator's configuration with everything that matters outside taken out of it.

Models, limits, caps and policy stay. The upstreams' addresses become the recorder's and their keys
become canaries, so that no real key is used and no byte leaves this machine; files and ports are
the rehearsal's own; the log is as loud as it can be.

What this is not: a reader of configurations (``config`` is); it writes one, from a ``Config``.

Invariant: the environment is an allow-list, so nothing of the operator's real one (keys above all)
reaches the process under audit but the settings that are named here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from freeapi.config import Config
from freeapi.policy.models import ANY_MODEL, Model
from freeapi.providers import LOCAL, OPENAI, Upstream
from freeapi.settings import ENVIRONMENT, MODEL, POLICY, TIMEOUTS, UPSTREAM, Setting
from freeapi.spelling import NANO

#: Each upstream's pool: the exchanges in which keys are refused use up three each.
KEYS_PER_UPSTREAM: Final = 24
#: So that the exchange with a silent upstream doesn't take two minutes.
FIRST_BYTE_S: Final = 1.0
_CONFIG_FILE: Final = "freeapi.toml"
_TOKENS_FILE: Final = "tokens"
#: Where Python and native libraries are found.
_KEPT: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TZ")
#: Settings that aren't the operator's here, besides those in ``_FIXED``.
_REPLACED: Final = frozenset(
    {
        "OPENAI_API_KEYS",
        "OPENAI_API_KEY",
        "OPENAI_API_KEYS_FILE",
        "OPENAI_BASE_URL",
        "FREEAPI_ACCESS_TOKENS_FILE",
        "FREEAPI_CONFIG",
    }
)
_FIXED: Final = {
    "HOST": "127.0.0.1",
    "PORT": "0",
    "FREEAPI_STATE": "memory",
    "FREEAPI_LOG": "debug",
    "FREEAPI_REQUEST_LOG": "on",
    "FREEAPI_DRAIN_S": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Rehearsal(msgspec.Struct, frozen=True):
    """What the process under audit is started with."""

    home: Path
    environ: Mapping[str, str]
    #: The pool's, all of them canaries.
    keys: Sequence[str]
    #: One caller each; empty: everyone may call.
    tokens: Sequence[str]
    #: What to ask for.
    model: str
    admin_port: int
    #: What is not as in real life, for people.
    notes: Sequence[str]


def prepare(
    config: Config,
    settings: Mapping[str, str],
    home: Path,
    *,
    upstream_port: int,
    admin_port: int,
    words: Iterable[str],
) -> Rehearsal:
    """Write the files into ``home``, a new directory, and say what else is needed.

    ``settings``: the environment and ``.env`` as one; ``words`` gives a new unique word at each
    step.
    """
    take = iter(words)
    pools = [
        [f"sk-{next(take)}" for _ in range(KEYS_PER_UPSTREAM)] for _ in config.upstreams or (None,)
    ]
    environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environ |= {
        row.name: settings[row.name]
        for row in ENVIRONMENT
        if row.name in settings and row.name not in _REPLACED
    }
    environ |= _FIXED | {
        "HOME": str(home),
        "FREEAPI_DATA_DIR": str(home / "data"),
        "FREEAPI_ADMIN_ADDR": f"127.0.0.1:{admin_port}",
        "FREEAPI_CONFIG": str(home / _CONFIG_FILE),
    }
    environ |= {f"AUDIT_KEYS_{index}": " ".join(pool) for index, pool in enumerate(pools)}
    tokens = [] if config.access_tokens is None else [next(take) for _ in range(100)]
    if tokens:
        (home / _TOKENS_FILE).write_text("\n".join(tokens), encoding="utf-8")
        environ["FREEAPI_ACCESS_TOKENS_FILE"] = str(home / _TOKENS_FILE)
    (home / _CONFIG_FILE).write_text(_toml(config, upstream_port), encoding="utf-8")
    return Rehearsal(
        home=home,
        environ=environ,
        keys=[key for pool in pools for key in pool],
        tokens=tokens,
        model=_busiest(config.models).name,
        admin_port=admin_port,
        notes=_notes(config),
    )


def _busiest(models: Sequence[Model]) -> Model:
    """The chat model that allows the most, so that the audit isn't refused."""
    chat = [model for model in models if "chat" in model.endpoints and model.name != ANY_MODEL]
    return max(chat or models, key=lambda model: (model.rpm or NANO, model.tpm or NANO))


def _notes(config: Config) -> list[str]:
    notes = [
        "The upstream is a recorder on this machine, and the keys are made up: no real key was "
        "used and nothing left this machine.",
        "The log was as loud as it can be (FREEAPI_LOG=debug, FREEAPI_REQUEST_LOG=on), and the "
        "kernel's io_uring was refused, through which a process could write unseen.",
        "A text that was compressed, encrypted or hashed with a salt can't be found by looking for "
        "it; so every file, connection and program is listed too.",
    ]
    if config.local:
        notes.append(
            "No key is configured, so the embedded model answers your callers. Here the recorder "
            "stood in for it; the model itself runs in a process of its own (freeapi.local)."
        )
    elif config.wants_local:
        notes.append("The embedded model, which goes on when the budget is spent, wasn't started.")
    if config.state is not None:
        notes.append(
            f"Your shared state ({config.state}) wasn't used; callers' tags and counts go there."
        )
    return notes


# --- freeapi.toml ---------------------------------------------------------------------------------


def _toml(config: Config, port: int) -> str:
    """The file that makes the same configuration but for the upstreams' addresses and keys."""
    stand_in = Upstream(
        name=OPENAI, scheme="http", host="", port=0, base_path="/v1", daily_nanousd=None, free=True
    )
    lines: list[str] = []
    for index, upstream in enumerate(config.upstreams or (stand_in,)):
        url = f"http://127.0.0.1:{port}{upstream.base_path}"
        own = {"base_url": url, "keys_env": f"AUDIT_KEYS_{index}"}
        lines += ["[[upstream]]", *_rows(UPSTREAM, upstream, own)]
    for model in config.models:
        lines += ["[[model]]", *_rows(MODEL, model, {"upstreams": _others(model)})]
    lines += ["[policy]", *_rows(POLICY, config.policy, {"when_exhausted": "refuse"})]
    lines += ["[timeouts]", *_rows(TIMEOUTS, config.timeouts, {"first_byte_s": FIRST_BYTE_S})]
    return "\n".join(lines) + "\n"


def _others(model: Model) -> tuple[str, ...]:
    """Who serves the model, but for the embedded one, for which the recorder stands in."""
    return tuple(name for name in model.upstreams if name != LOCAL)


def _rows(rows: Sequence[Setting], values: object, own: Mapping[str, Any]) -> list[str]:
    """One line for each setting that has a value; ``own`` wins."""
    given = {row.name: getattr(values, row.field, None) for row in rows}
    money = {row.name for row in rows if "nanousd" in row.field}
    texts: dict[str, Any] = {
        name: f"{value // NANO}.{value % NANO:09d}"
        if name in money and value is not None
        else value
        for name, value in given.items()
    }
    texts.update(own)
    # Of such values, JSON's spelling is TOML's.
    return [
        f"{name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in texts.items()
        if value is not None and value != ()
    ]
