"""What the tests of several manifests ask of them: settings that exist, tools that judge.

Not a schema: those come with check-jsonschema and kubernetes-validate.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # its stubs are a package of their own

from freeapi.config import ConfigError, load
from freeapi.settings import ENVIRONMENT

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SETTINGS = {row.name: row for row in ENVIRONMENT}
#: An image with a version; anything else may be another one tomorrow.
PINNED = re.compile(r"[\w./-]+:(?!latest$)[\w.-]+")


def documents(path: Path) -> list[dict[str, Any]]:
    """All YAML documents of a file."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def schema_problems(schema: str, path: Path) -> str:
    """What check-jsonschema says of a file by a schema that it brings along; "" for a good one."""
    program = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [program, "--builtin-schema", schema, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def setting_problems(given: dict[str, str]) -> list[str]:
    """The names that are no settings of ours, and the values that freeapi itself would refuse.

    A value with ``$`` in it is filled in elsewhere.
    """
    unknown = [f"{name}: no such setting" for name in given if name not in SETTINGS]
    fixed = {k: v for k, v in given.items() if k in SETTINGS and "$" not in v}
    try:
        load(fixed, None, "freeapi.toml", read_file=lambda _: "sk-test-key\n", dotenv={}, flags={})
    except ConfigError as error:
        return [*unknown, str(error)]
    return unknown


def seconds(text: str) -> float:
    """A duration such as ``35s``.

    >>> seconds("35s")
    35.0
    """
    return float(text.removesuffix("s"))


def unpinned(images: Iterable[str]) -> list[str]:
    """Those without a version.

    >>> unpinned(["caddy:2.11", "caddy", "caddy:latest"])
    ['caddy', 'caddy:latest']
    """
    return [image for image in images if not PINNED.fullmatch(image)]
