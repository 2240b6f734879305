"""docs/configuration.md, docs/api.md and the READMEs' tables say what the code does.

The parts that ``scripts/reference`` writes are compared with what it would write today; what is
written by hand is held against the code: each setting, route, field and built-in model is described
and no other.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from freeapi import reload
from freeapi.journal import Journal
from freeapi.metrics import Metrics
from freeapi.pages import admin
from freeapi.pages.site import Site
from freeapi.policy.models import BUILTIN, PATHS, Model, ModelTable
from freeapi.routes import Answer, Routes
from freeapi.settings import ENVIRONMENT, MODEL, PAGE, POLICY, TIMEOUTS, UPSTREAM, Setting
from freeapi.spelling import Unfit
from tests.conftest import StartGateway
from tests.documents import ROOT, blocks, code, document, section, table_rows
from tests.gateway import Gateway
from tests.raw_client import ask, chat, request

#: What scripts/reference defines; it is a program without ``.py`` at its end.
REFERENCE: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "reference"))
TABLES = {
    "environment": ENVIRONMENT,
    "upstream": UPSTREAM,
    "model": MODEL,
    "policy": POLICY,
    "timeouts": TIMEOUTS,
    "page": PAGE,
}


def served_routes() -> set[str]:
    """The public port's routes where every endpoint is on: method and path, as documented."""

    def nothing(*_: object) -> Any:
        raise AssertionError("nobody calls")

    model = Model("m", "m", None, None, 1, "max_tokens", endpoints=tuple(PATHS))
    answers: dict[Any, Answer] = dict.fromkeys(PATHS, nothing)
    routes = Routes(
        answers,
        ModelTable([model], 0),
        nothing,
        nothing,
        dict.fromkeys(Site.PATHS, nothing),
        nothing,
        Metrics(PATHS),
        Journal(sys.stderr, "error", time.time),
    )
    return {
        f"{method.decode()} {path.decode()}"
        for path, methods in routes._paths.items()
        for method in methods
        if b"/v1" + path not in routes._paths
    }


def documented_routes(text: str) -> set[str]:
    """Those of the part on routes; ``/x`` alone is a page."""
    return {
        span if " " in span else f"GET {span}"
        for span in code(section(text, "## Routes"))
        if re.match(r"(?:[A-Z]+ )?/(?!live|course)", span)
    }


def test_the_reference_is_up_to_date() -> None:
    """What scripts/reference makes of the code is what stands in docs/; if not: make reference."""
    assert REFERENCE["main"](["--check"]) == 0


@pytest.mark.parametrize("title", TABLES)
def test_every_setting_is_in_the_reference(title: str) -> None:
    """docs/configuration.md has each setting under its table's title, with its default."""
    text = document("docs/configuration.md")
    part = text.partition(f"<!-- begin: {title} ")[2].partition("<!-- end:")[0]
    rows = {row[0]: row[1] for row in table_rows(part)}
    for row in TABLES[title]:
        assert rows[f"`{row.name}`"] == ("-" if row.default is None else f"`{row.default}`")


def test_a_changed_table_is_found_and_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A document whose table differs from the code is named, and written anew when asked to."""
    path = tmp_path / "configuration.md"
    good = document("docs/configuration.md")
    path.write_text(good.replace("| `8080` |", "| `8081` |"), encoding="utf-8")
    assert REFERENCE["main"](["--check", str(path)]) == 1
    assert "not up to date" in capsys.readouterr().out
    assert REFERENCE["main"]([str(path)]) == 0
    assert path.read_text(encoding="utf-8") == good


def test_examples_and_notes_are_complete_and_needed() -> None:
    """A missing or needless name stops scripts/reference, and so does a wrong example."""
    out_of_step = REFERENCE["OutOfStep"]
    for wanted, given in (({"a"}, set()), (set(), {"a"})):
        with pytest.raises(out_of_step):
            REFERENCE["require_same"]("names", wanted, given)
    port = next(row for row in ENVIRONMENT if row.name == "PORT")
    wrong = Setting("FREEAPI_LOG", "log", None, port.kind, "Its example is a word")
    with pytest.raises(Unfit):
        REFERENCE["example"]("environment", wrong)


def test_what_needs_a_restart_is_said() -> None:
    """docs/configuration.md names exactly what a reload can't change."""
    part = section(document("docs/configuration.md"), "## Reload")
    named = {span for span in code(part) if span.isupper()}
    assert named == set(reload._FIXED.values())


def test_every_route_is_described_and_no_other() -> None:
    """docs/api.md has each route of the public port, and those that are made up as one goes."""
    text = document("docs/api.md").partition("\nOn the admin port")[0]
    by_pattern = {"GET /v1/models/{id}", "OPTIONS *"}
    documented = documented_routes(text) | {span for span in code(text) if span == "OPTIONS *"}
    assert documented == served_routes() | by_pattern


def test_every_route_of_the_admin_port_is_described() -> None:
    """docs/api.md has those that the admin port names itself."""
    text = "\n## Routes\n" + document("docs/api.md").partition("\nOn the admin port")[2]
    assert documented_routes(text) == set(re.findall(r"GET /\w*", admin._HINT))


def test_built_in_models_are_described() -> None:
    """docs/api.md and both READMEs have each built-in model with its limits."""
    text = document("docs/api.md")
    rows = [row for row in table_rows(section(text, "## Models")) if row[0].startswith("`")]
    assert rows == [
        [f"`{one.name}`", f"`{one.upstream_model}`", f"{one.rpm:,}", f"{one.tpm:,}"]
        for one in BUILTIN
    ]
    for name in ("README.md", "README.zh-CN.md"):
        limits = {
            model: (rpm, tpm)
            for models, rpm, tpm in (row for row in table_rows(document(name)) if len(row) == 3)
            for model in models.replace("`", "").split(", ")
        }
        for one in BUILTIN:
            assert limits[one.name] == (f"{one.rpm:,}", f"{one.tpm:,}")


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_defaults_in_the_readme_are_the_settings(name: str) -> None:
    """Each default that a README's tables state is that of the setting beside it."""
    units = {"1 MiB": "1048576", "5 %": "5%", "$5": "5", "5 美元": "5", "不限": "off"}
    stated = {
        row[2].strip("`"): units.get(row[1], row[1].replace(",", ""))
        for row in table_rows(document(name))
        if len(row) == 3 and re.fullmatch(r"`FREEAPI_\w+`", row[2])
    }
    defaults = {row.name: row.default for row in ENVIRONMENT}
    assert len(stated) >= 9
    assert stated == {name: defaults[name] for name in stated}


async def test_status_is_described(gateway: Gateway) -> None:
    """docs/api.md shows ``GET /status`` with the names that it has."""
    (shown,) = [block for block in blocks(document("docs/api.md")) if block.kind == "json"]
    example, real = (
        json.loads(shown.text),
        (await ask(gateway.port, request("GET", "/status"))).json(),
    )
    assert example.keys() == real.keys()
    assert example["models"][0].keys() == real["models"][0].keys()


async def test_headers_of_answers_are_described(start_gateway: StartGateway) -> None:
    """docs/api.md has each header of ours that a good answer and a refusal carry."""
    gateway = await start_gateway(FREEAPI_CALLER_RPM="6", FREEAPI_CALLER_TPM="1000000")
    good = await ask(gateway.port, chat(user="me"))
    refused = await ask(gateway.port, chat())
    assert (good.status, refused.status) == (200, 429)
    sent = {name for answer in (good, refused) for name, _ in answer.headers}
    described = code(section(document("docs/api.md"), "## Headers"))
    ours = {name for name in sent if name.startswith(("x-", "retry-", "access-control-allow"))}
    assert len(ours) >= 10
    assert described.issuperset(ours)


@pytest.mark.parametrize("endpoint", PATHS)
def test_every_field_is_described(endpoint: str) -> None:
    """docs/api.md says of each field of each endpoint what becomes of it."""
    described = code(section(document("docs/api.md"), f"### {endpoint}"))
    assert described.issuperset(REFERENCE["FIELDS"][endpoint])


def test_undescribed_route_would_be_found() -> None:
    """Routes are read from code spans, with and without a method."""
    text = "\n## Routes\n| `POST /v1/a` | `/b`, `c` |\n## More\n`GET /d`\n"
    assert documented_routes(text) == {"POST /v1/a", "GET /b"}
