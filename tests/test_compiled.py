"""What runs is what the sources say, compiled or not.

The other tests of modules run the sources, those that start a gateway what is compiled.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import freeapi
from tests.conftest import StartGateway
from tests.raw_client import ask, chat
from tests.scripted_upstream import ScriptedUpstream

ROOT = Path(__file__).parents[1]
COMPILED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["freeapi"]["compiled"]
WHERE = "import freeapi.http.wire as one, freeapi.policy.meter as other; print(one.__file__)"
#: As ``freeapi serve``, but for the compiled modules.
FROM_SOURCES = (
    "-c",
    "import sys, freeapi; freeapi.take_sources(); from freeapi.cli import main; sys.exit(main())",
    "serve",
)
is_compiled = pytest.mark.skipif(
    not freeapi.COMPILED.exists() and os.environ.get("CI") != "true",
    reason="nothing is compiled: there is no C compiler",
)


def copied(folder: Path) -> Path:
    """The package once more, with what was compiled of it."""
    package = folder / "freeapi"
    shutil.copytree(ROOT / "src/freeapi", package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def loaded_from(package: Path) -> str:
    """The file that a module, listed as compiled, is loaded from."""
    environment = {"PYTHONPATH": str(package.parent), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-B", "-c", WHERE]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(str(package))
    return Path(run.stdout.strip()).name


@is_compiled
def test_what_was_compiled_is_loaded(tmp_path: Path) -> None:
    """While the sources are what they were, the compiled modules are taken, wherever they lie."""
    assert loaded_from(copied(tmp_path)).endswith(".so")


@is_compiled
@pytest.mark.parametrize("changed", ["http/wire.py", "proxy.py"])
def test_changed_source_is_loaded_itself(tmp_path: Path, changed: str) -> None:
    """Once any of their sources has changed none of the compiled modules is taken."""
    package = copied(tmp_path)
    with (package / changed).open("a") as source:
        source.write("# changed\n")
    assert loaded_from(package) == "wire.py"


@is_compiled
def test_lost_source_and_lost_manifest_are_no_crash(tmp_path: Path) -> None:
    """Without the list of what was compiled, or with a wrong one, the sources are taken."""
    package = copied(tmp_path)
    (package / "compiled.txt").write_text("0123\nno/such.py\n")
    assert loaded_from(package) == "wire.py"
    (package / "compiled.txt").unlink()
    assert loaded_from(package) == "wire.py"


async def test_sources_serve_as_well(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Where nothing could be compiled a gateway answers all the same."""
    gateway = await start_gateway(python=FROM_SOURCES)
    assert (await ask(gateway.port, chat())).text() == "Hi"


def test_compiled_modules_hold_no_structs() -> None:
    """mypyc drops the options of a msgspec.Struct, ``forbid_unknown_fields`` among them."""
    assert COMPILED
    for module in COMPILED:
        path = ROOT / f"src/freeapi/{module}.py"
        for node in ast.walk(ast.parse(path.read_text())):
            bases = node.bases if isinstance(node, ast.ClassDef) else []
            assert "msgspec.Struct" not in map(ast.unparse, bases), path


def test_missing_compiler_is_said_and_no_harm(tmp_path: Path) -> None:
    """Without a compiler nothing is compiled, and a line says what is missing."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/compile", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "src").mkdir()
    package = copied(tmp_path / "src")
    (package / "compiled.txt").unlink(missing_ok=True)
    run = subprocess.run(
        [sys.executable, tmp_path / "scripts/compile", "--is-due"],
        env={"CC": "no-such-compiler", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert "no C compiler (no-such-compiler)" in run.stdout
