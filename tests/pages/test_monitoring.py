"""What is made of the metrics: their document, alerts and dashboard, and a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from freeapi.measures import DEFINITIONS
from tests.free_ports import free_port
from tests.pages.instruments import busy, tool
from tests.raw_client import ask, request
from tests.scripted_upstream import PATIENCE_S

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
#: A metric's name in an expression: a word of ours, or one that follows a convention.
METRIC_NAME = re.compile(r"\b(?:freeapi|gen_ai|http_server|process)_\w+(?=[\s{\[)]|$)")
LABELS_OF_ALL = {"job", "instance", "le"}


# --- Documents, alerts, dashboard -----------------------------------------------------------------


def described() -> dict[str, tuple[str, ...]]:
    """Each row of the table of metrics in docs/metrics.md, by name."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+_\w+)` \| (\w+) \| (.+?) \| (.+?) \| (.+?) \| (.+) \|$", text, re.M
    )
    return {name: tuple(rest) for name, *rest in rows}


def test_documents_are_complete_and_right() -> None:
    """docs/metrics.md has each metric in order, with its type, labels, way of joining, meaning."""
    joined = {"sum": "added", "max": "the largest", "min": "the smallest"}
    rows = described()
    assert list(rows) == list(DEFINITIONS)
    for name, definition in DEFINITIONS.items():
        kind, unit, labels, workers, meaning = rows[name]
        assert (kind, meaning) == (definition.kind, definition.meaning)
        assert tuple(re.findall(r"`(\w+)`", labels)) == definition.labels
        assert workers == joined[definition.joined]
        if definition.unit:
            assert unit == {"usd": "US dollars"}.get(definition.unit, definition.unit)


def test_every_label_is_explained() -> None:
    """Each label stands in the table of labels, and no other."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = text.partition("## Labels")[2].partition("\n## ")[0]
    explained = {
        word
        for row in re.findall(r"^\| (`.+?`) \|", table, re.M)
        for word in re.findall(r"\w+", row)
    }
    assert explained == {label for one in DEFINITIONS.values() for label in one.labels}


def unknown_in(expression: str) -> list[str]:
    """Names of metrics and labels in it that we don't have."""
    series = set()
    for name, definition in DEFINITIONS.items():
        ends = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
        series |= {name + end for end in ends.get(definition.kind, ("",))}
    labels = LABELS_OF_ALL.union(*(one.labels for one in DEFINITIONS.values()))
    groups = re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", expression)
    matched = re.findall(r"[{,]\s*(\w+)\s*(?:=|!)", expression)
    words = [word.strip() for group in groups for word in group.split(",")]
    return [
        name
        for name in METRIC_NAME.findall(expression)
        if name not in series and name not in labels
    ] + [label for label in [*words, *matched] if label not in labels]


def dashboard_expressions() -> list[str]:
    """All that the dashboard asks Prometheus for."""
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    targets = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    asked = [variable["query"] for variable in board["templating"]["list"][1:]]
    return targets + asked + [one["expr"] for one in board["annotations"]["list"]]


def alerts() -> dict[str, str]:
    """Each alert's rule, by name."""
    text = (MONITORING / "alerts.yml").read_text()
    return {
        rule.split("\n")[0].strip(): rule.partition("expr:")[2]
        for rule in text.split("- alert:")[1:]
    }


def test_dashboard_asks_for_what_there_is() -> None:
    """Each expression names metrics and labels of ours, and each metric is on the dashboard."""
    expressions = dashboard_expressions()
    assert len(expressions) > 30
    assert {one: unknown_in(one) for one in expressions if unknown_in(one)} == {}
    text = " ".join(expressions)
    unseen = {name for name in DEFINITIONS if name not in text}
    assert unseen == {"freeapi_config_last_reload_successful"}  # it is an alert


def test_alerts_ask_for_what_there_is() -> None:
    """Each rule names metrics and labels of ours."""
    rules = {name: rule.partition("for:")[0] for name, rule in alerts().items()}
    assert len(rules) > 15
    assert {name: unknown_in(rule) for name, rule in rules.items() if unknown_in(rule)} == {}


def test_unknown_names_are_found() -> None:
    """The check sees a metric and labels that don't exist, wherever they stand."""
    bad = 'sum by (caller) (rate(freeapi_requests[5m])) / freeapi_keys{tail="x"}'
    assert unknown_in(bad) == ["freeapi_requests", "caller", "tail"]
    assert unknown_in('sum by (le) (rate(freeapi_queue_wait_seconds_bucket{job="a"}[5m]))') == []


def test_every_alert_has_its_runbook_and_its_trial() -> None:
    """docs/metrics.md says what to do about each alert, and a unit test raises each."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    trials = (MONITORING / "alerts.test.yml").read_text()
    names = list(alerts())
    assert re.findall(r"^### (\w+)$", text, re.M) == names
    assert re.findall(r"^  - name: (Freeapi\w+)$", trials, re.M) == names
    for name, rule in alerts().items():
        assert f"runbook: docs/metrics.md#{name.lower()}\n" in rule + "\n"


@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")],
    ids=["check", "test"],
)
def test_promtool_accepts_the_alerts(arguments: tuple[str, ...]) -> None:
    """The rules are well-formed, fire on the figures that should raise them, and else don't."""
    command = [tool("promtool"), *arguments]
    done = subprocess.run(
        command, cwd=MONITORING, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- A real Prometheus ----------------------------------------------------------------------------


@asynccontextmanager
async def prometheus(folder: Path, target: int) -> AsyncIterator[int]:
    """The port of a Prometheus that scrapes this one as the example says, but more often."""
    config = (MONITORING / "prometheus.yml").read_text()
    config = config.replace("15s", "200ms").replace("9464", str(target))
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(MONITORING / "alerts.yml", folder)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        tool("prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.kill()
        await process.wait()


async def query(port: int, expression: str) -> dict[tuple[str, ...], float]:
    """What Prometheus says to this, by the values of its labels; empty while it isn't up."""
    target = f"/api/v1/query?query={quote(expression)}"
    try:
        shown = await ask(port, request("GET", target))
    except ConnectionError:
        return {}
    if shown.status != 200:
        return {}
    return {
        tuple(
            v for k, v in sorted(one["metric"].items()) if k not in {"__name__", "instance", "job"}
        ): float(one["value"][1])
        for one in shown.json()["data"]["result"]
    }


async def answer_of(port: int, expression: str) -> dict[tuple[str, ...], float]:
    """The same, as soon as it has any."""
    again = asyncio.Event()
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await query(port, expression)):
            asyncio.get_running_loop().call_later(0.05, again.set)
            await again.wait()
            again.clear()
    return found


async def test_prometheus_scrapes_and_answers(tmp_path: Path) -> None:
    """A real Prometheus, set up as in the example, finds the instance up and its figures right."""
    async with busy().served() as target, prometheus(tmp_path, target) as port:
        assert await answer_of(port, 'up{job="freeapi"} == 1')
        requests = await answer_of(port, "sum by (error_type) (freeapi_requests_total)")
        assert requests == {("ok",): 1, ("rate_limit_exceeded",): 1}
        median = "histogram_quantile(0.5, gen_ai_server_request_duration_seconds_bucket)"
        ((_, seconds),) = (await answer_of(port, median)).items()
        assert 1.28 < seconds < 2.56
        assert await answer_of(port, "freeapi_budget_left_usd") == {("all",): 3, ("openai",): 1}
        firing = await query(port, 'ALERTS{alertstate="firing"}')
        assert firing == {}
