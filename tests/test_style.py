"""The rules of the house that no linter knows: who may import whom, purity, mirror, sizes.

Each rule is a function from a file's name and syntax tree to a list of problems. It is run over the
whole repository, and over a bad sample too: a guard that never fires is worth nothing. An exception
to a rule is a line in a table below, with its reason; a line that has become needless is a problem.

What this is not: formatting, naming and common mistakes are ruff's, types are mypy's.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Rule = Callable[[str, ast.Module], list[str]]

ROOT = Path(__file__).parents[1]
PACKAGE = "src/freeapi/"

CONFIG = {"config", "providers", "reading", "settings", "spelling"}
MIDDLE = {
    "__init__",
    "errors",
    "policy",
    "journal",
    "measures",
    "metrics",
    "http",
    "state",
} | CONFIG
ROOT_PARTS = MIDDLE | {"local", "pages", "routes", "gate", "scheduler", "dispatch", "proxy"}
#: What each part (folder or module of the package) may import of the others, besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "policy": {"errors"},
    "http": {"errors"},  # knows nothing of money, limits or models
    "journal": {"errors"},
    "measures": set(),
    "metrics": {"errors", "measures"},
    "state": {"errors", "policy", "journal", "metrics"},
    "spelling": {"errors", "policy"},
    "settings": {"errors", "policy", "spelling"},
    "reading": {"errors", "policy", "spelling", "settings"},
    "providers": {"errors", "policy", "reading", "settings", "spelling"},
    "config": {"errors", "policy"} | CONFIG,
    "local": {"errors", "journal", "http", "hardening"},
    "pages": MIDDLE | {"routes"},
    "routes": MIDDLE,
    # Only root imports it.
    "proxy": MIDDLE
    | {"routes", "gate", "scheduler", "shared", "delivery", "dispatch", "dryrun", "forms"},
    "showing": CONFIG,
    "gate": MIDDLE,
    "prices": CONFIG | {"errors", "policy"},
    "account": MIDDLE,
    "upstreams": MIDDLE | {"account"},
    "scheduler": MIDDLE | {"gate"},
    "dryrun": MIDDLE | {"account"},
    "hardening": set(),
    "forms": MIDDLE,
    "listening": set(),
    "ports": MIDDLE | {"listening"},
    "live_line": {"measures"},
    "shared": MIDDLE | {"gate", "scheduler"},
    "delivery": MIDDLE | {"forms"},
    "reload": MIDDLE | {"local"},
    "embedded": MIDDLE | {"local"},
    "workers": ROOT_PARTS
    | {"banner", "gateway", "reload", "embedded", "live_line", "ports", "serve", "upstreams"},
    "dispatch": MIDDLE | {"routes", "account", "upstreams", "dryrun", "delivery"},
    "banner": MIDDLE | {"local", "upstreams"},
    "gateway": ROOT_PARTS | {"upstreams", "reload", "embedded", "ports", "shared", "workers"},
    "serve": ROOT_PARTS
    | {"banner", "gateway", "reload", "embedded", "live_line", "ports", "shared", "upstreams"}
    | {"workers"},
    "commands": ROOT_PARTS | {"hardening", "listening", "prices", "upstreams"},
    "cli": ROOT_PARTS
    | {"commands", "serve", "hardening", "showing", "prices", "upstreams", "reload", "live_line"}
    | {"workers"},
    "__main__": {"cli"},
}
#: Decisions and parsers: the same bytes, numbers and times give the same answer, anywhere.
PURE = (
    PACKAGE + "policy/",
    PACKAGE + "http/heads.py",
    PACKAGE + "http/wire.py",
    PACKAGE + "http/sse.py",
    PACKAGE + "http/usage.py",
)
IMPURE_MODULES = re.compile(
    r"(asyncio|concurrent|ctypes|http\.client|http\.server|io|logging|multiprocessing|os|pathlib"
    r"|random|secrets|select|selectors|shutil|signal|socket|sqlite3|ssl|subprocess|sys|tempfile"
    r"|threading|time|urllib\.request|uuid)(\.|$)"
)
IMPURE_CALLS = {"open", "print", "input", "now", "today", "utcnow"}
MIRRORED = ("policy", "http", "state")

FUNCTION_LINES_MAX, FILE_LINES_MAX = 70, 400
#: "path" or "path:function" -> why it is better long.
LONG: dict[str, str] = {
    "src/freeapi/http/connection.py": "one state machine, whose invariants hold over all of it",
    "tests/policy/test_budget.py": "one test per rule about money; it alone covers its module",
    "src/freeapi/policy/keys.py": "one pool: its choice, its leases, its reports",
    "src/freeapi/http/upstream.py": "one state machine, as connection.py",
    "tests/policy/test_chat.py": "one case per field of the API; it alone covers its module",
}


@functools.cache
def parse(name: str, text: str) -> ast.Module:
    """The file's syntax tree, made once for all rules."""
    return ast.parse(text, name)


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Each import below `tree`, as the dotted name of the module (or of the name taken from it)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Each function and method below `tree`."""
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def part_of(dotted: str) -> str:
    """The part of the package that ``freeapi.a.b`` belongs to."""
    name = dotted.split(".")[1] if "." in dotted else "__init__"
    return "__init__" if name == "__version__" else name


def layer_problems(name: str, tree: ast.Module) -> list[str]:
    """Imports against the direction of dependency."""
    part = name.removeprefix(PACKAGE).split("/")[0].removesuffix(".py")
    if part not in MAY_IMPORT:
        return [f"{name}: a new part; say in MAY_IMPORT what it may import"]
    used = {part_of(module) for _, module in imports(tree) if module.split(".")[0] == "freeapi"}
    return [f"{name}: {part} may not import {p}" for p in used - MAY_IMPORT[part] - {part}]


def local_import_problems(name: str, tree: ast.Module) -> list[str]:
    """Imports inside functions: a cycle of modules, made permanent."""
    return [
        f"{name}:{node.lineno}: import inside {function.name}()"
        for function in functions(tree)
        for node, _ in imports(function)
    ]


def logging_problems(name: str, tree: ast.Module) -> list[str]:
    """A second way for a word of a caller's to reach a log."""
    used = any(module.split(".")[0] == "logging" for _, module in imports(tree))
    return [f"{name}: only journal logs"] if used and name != PACKAGE + "journal.py" else []


def purity_problems(name: str, tree: ast.Module) -> list[str]:
    """Waiting, clocks, chance, files and sockets where only values may decide."""
    if not name.startswith(PURE):
        return []
    for_types = {node for branch in tree.body if is_for_types(branch) for node in ast.walk(branch)}
    problems = [
        f"{name}:{node.lineno}: imports {module}"
        for node, module in imports(tree)
        if node not in for_types and impure(module)
    ]
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    for node in ast.walk(tree):
        called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
        if isinstance(node, waits) or called in IMPURE_CALLS:
            problems.append(f"{name}: {ast.unparse(node)[:60]}")
    return problems


def is_for_types(node: ast.stmt) -> bool:
    """Whether this is ``if TYPE_CHECKING:``, whose imports don't happen when it runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def impure(dotted: str) -> bool:
    """Whether the import is one of IMPURE_MODULES, or of a third party but msgspec and mypyc."""
    package = dotted.split(".")[0]
    known = package in sys.stdlib_module_names or package in {
        "freeapi",
        "msgspec",
        "mypy_extensions",
    }
    return not known or IMPURE_MODULES.match(dotted) is not None


def long_things(name: str, tree: ast.Module, lines: int) -> set[str]:
    """The file, or those of its functions, that are longer than they should be."""
    long = {
        f"{name}:{function.name}"
        for function in functions(tree)
        if (function.end_lineno or 0) - function.lineno >= FUNCTION_LINES_MAX
    }
    return long | {name} if lines > FILE_LINES_MAX else long


def docstring_problems(name: str, tree: ast.Module) -> list[str]:
    """Tests that don't say what they promise."""
    tests = (f for f in functions(tree) if f.name.startswith("test_"))
    return [
        f"{name}: {test.name} has no docstring" for test in tests if not ast.get_docstring(test)
    ]


def missing_mirrors(modules: set[str], tests: set[str]) -> set[str]:
    """The test files that modules of the mirrored folders ought to have, and haven't."""
    paths = (Path(module.removeprefix(PACKAGE)) for module in modules)
    wanted = {
        f"tests/{path.parent}/test_{path.name}"
        for path in paths
        if str(path.parent) in MIRRORED and path.name != "__init__.py"
    }
    return wanted - tests


def source_of(folder: str) -> dict[str, str]:
    """Each Python file below `folder`, by its path from the root of the repository."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return {p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for p in paths}


def problems_in(files: dict[str, str], rule: Rule) -> list[str]:
    """What the rule finds in all of these."""
    return [p for name, text in files.items() for p in rule(name, parse(name, text))]


SOURCE, TESTS = source_of("src/freeapi"), source_of("tests")
SOURCE_RULES: list[Rule] = [
    layer_problems,
    local_import_problems,
    logging_problems,
    purity_problems,
]


@pytest.mark.parametrize("rule", SOURCE_RULES)
def test_source_keeps_the_rule(rule: Rule) -> None:
    """No module of the package breaks the rule."""
    assert SOURCE
    assert problems_in(SOURCE, rule) == []


def test_every_test_says_what_it_promises() -> None:
    """Every test function has a docstring."""
    assert problems_in(TESTS, docstring_problems) == []


def test_modules_have_their_own_tests() -> None:
    """Each module of policy, http and state has a test file of the same name."""
    assert missing_mirrors(set(SOURCE), set(TESTS)) == set()


def test_what_is_long_is_listed_with_its_reason() -> None:
    """Long functions and files are exactly those in LONG: none is new, none became short."""
    files = SOURCE | TESTS
    long = {
        thing
        for name, text in files.items()
        for thing in long_things(name, parse(name, text), text.count("\n"))
    }
    assert long == set(LONG)
    assert all(LONG.values())


@pytest.mark.parametrize(
    ("rule", "name", "bad"),
    [
        (layer_problems, "policy/limits.py", "from freeapi.config import Config"),
        (layer_problems, "policy/limits.py", "import freeapi.http.wire"),
        (layer_problems, "http/server.py", "from freeapi import policy"),
        (layer_problems, "http/server.py", "from freeapi import __version__"),
        (layer_problems, "local/model.py", "from freeapi.policy.models import Model"),
        (layer_problems, "pages/status.py", "import freeapi.proxy"),
        (layer_problems, "utils.py", ""),
        (local_import_problems, "cli.py", "def f():\n    if 1:\n        import json"),
        (logging_problems, "cli.py", "import logging"),
        (logging_problems, "http/server.py", "from logging import getLogger"),
        (purity_problems, "policy/limits.py", "import time"),
        (purity_problems, "policy/limits.py", "from os import path"),
        (purity_problems, "policy/limits.py", "from urllib.request import urlopen"),
        (purity_problems, "policy/limits.py", "import httptools"),
        (purity_problems, "policy/limits.py", "async def f(): pass"),
        (purity_problems, "policy/limits.py", "if TYPE_CHECKING:\n    pass\nimport random"),
        (purity_problems, "policy/limits.py", "day = datetime.now(UTC)"),
        (purity_problems, "http/wire.py", "text = open('x').read()"),
        (purity_problems, "http/sse.py", "import asyncio"),
        (docstring_problems, "tests/test_x.py", "class A:\n    async def test_a(self): pass"),
    ],
)
def test_rule_fires(rule: Rule, name: str, bad: str) -> None:
    """Each rule finds the fault in a sample that has it."""
    assert len(rule(PACKAGE + name, ast.parse(bad))) == 1


def test_rules_let_good_code_pass() -> None:
    """Pure imports, imports for types only and the journal's logging are not reported."""
    good = (
        "import msgspec\nfrom freeapi.errors import A\nif TYPE_CHECKING:\n    from random import R"
    )
    problems = [p for rule in SOURCE_RULES for p in rule(PACKAGE + "policy/a.py", ast.parse(good))]
    assert problems + logging_problems(PACKAGE + "journal.py", ast.parse("import logging")) == []


def test_long_things_are_found() -> None:
    """A function of 71 lines and a file of 401 are long, those of 70 and 400 are not."""
    over = ast.parse("def f():\n" + "    x\n" * FUNCTION_LINES_MAX)
    fits = ast.parse("def f():\n" + "    x\n" * (FUNCTION_LINES_MAX - 1))
    assert long_things("a.py", over, FILE_LINES_MAX + 1) == {"a.py", "a.py:f"}
    assert long_things("a.py", fits, FILE_LINES_MAX) == set()


def test_missing_mirror_is_found() -> None:
    """A module of a mirrored folder without its test file is named; others need none."""
    modules = {f"{PACKAGE}{path}" for path in ("policy/a.py", "policy/__init__.py", "cli.py")}
    assert missing_mirrors(modules, set()) == {"tests/policy/test_a.py"}
    assert missing_mirrors(modules, {"tests/policy/test_a.py"}) == set()
