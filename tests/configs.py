"""Loading configurations in tests: no file exists unless given, and complaints come as sentences.

What this is not: a stand-in for ``config``; it only calls ``load`` and keeps what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from freeapi.config import Config, ConfigError, load

KEY = "sk-canary-0123456789-WXYZ"
OTHER_KEY = "sk-canary-9876543210-ABCD"
TWO_UPSTREAMS = """
[[upstream]]
name = "lab"
keys_env = "LAB_KEYS"
daily_usd = 3.0
priority = 2

[[upstream]]
name = "gpu"
base_url = "http://gpu.lan/v1"
share = 3
free = true
"""


def read_none(path: str) -> str:
    """No file exists."""
    raise FileNotFoundError(2, "No such file or directory", path)


def read(environ: Mapping[str, str] | None = None, toml: str | None = None, **rest: Any) -> Config:
    """Load, with no files unless given."""
    return load(environ or {}, toml, **{"read_file": read_none, **rest})


def problems(
    environ: Mapping[str, str] | None = None, toml: str | None = None, **rest: Any
) -> list[str]:
    """What load complains about, one sentence each."""
    with pytest.raises(ConfigError) as caught:
        read(environ, toml, **rest)
    assert all(str(problem) in str(caught.value) for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]
