"""Metrics for Prometheus: the text in both formats, and what the gauges read."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from freeapi import __version__
from freeapi.measures import DEFINITIONS, Labels, Sample
from freeapi.metrics import Metrics
from freeapi.pages.exposition import OPENMETRICS, TEXT, negotiate, render
from freeapi.pages.gauges import KEY_STATES, watch_money, watch_process
from freeapi.policy import failures
from freeapi.policy.budget import Caps, Status
from freeapi.policy.keys import KeyPool
from tests.pages.instruments import Instruments, busy, get, tool
from tests.raw_client import ask, request

OPENMETRICS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


# --- The text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "parse"), [(TEXT, parse_text), (OPENMETRICS, parse_openmetrics)]
)
def test_text_is_read_back_the_same(
    content_type: bytes, parse: Callable[[str], Iterator[Any]]
) -> None:
    """Prometheus' own parser finds each metric with its type, help, labels and values."""
    families = busy().metrics.collect()
    found = {family.name: family for family in parse(render(families, content_type).decode())}
    # Its parser for 0.0.4 names counters without their ending, too.
    assert found.keys() == {name.removesuffix("_total") for name in DEFINITIONS}
    for name, definition in DEFINITIONS.items():
        family = found[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (definition.kind, definition.meaning)
        for labels, sample in families[name].items():
            shown = dict(zip(definition.labels, labels, strict=True))
            values = {
                (one.name, one.labels.get("le")): one.value
                for one in family.samples
                if {k: v for k, v in one.labels.items() if k != "le"} == shown
            }
            if isinstance(sample, list):
                assert values[name + "_sum", None] == sample[-1]
                assert values[name + "_count", None] == sum(sample[:-1])
            else:
                assert values == {(name, None): pytest.approx(sample)}


def test_buckets_are_cumulative() -> None:
    """Each bucket counts all that is at most as large; the last is everything."""
    instruments = Instruments()
    for _ in range(3):
        instruments.answer()
    text = render(instruments.metrics.collect(), TEXT).decode()
    line = r'^gen_ai_server_request_duration_seconds_bucket\{.*le="([^"]+)"\} (\d+)$'
    buckets = dict(re.findall(line, text, re.MULTILINE))
    assert (buckets["1.28"], buckets["2.56"], buckets["+Inf"]) == ("0", "3", "3")


def test_names_of_models_are_escaped() -> None:
    """A configured name may hold quotes and backslashes, and is read back as it is."""
    metrics = Metrics(["chat"])
    name = 'org/"a"\\b'
    metrics.allow([name], [])
    metrics.started()
    metrics.finished(endpoint="chat", model=name, status=200, label="ok")
    for content_type, parse in ((TEXT, parse_text), (OPENMETRICS, parse_openmetrics)):
        for family in parse(render(metrics.collect(), content_type).decode()):
            if family.name == "freeapi_requests":
                assert family.samples[0].labels["model"] == name


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml", TEXT),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", TEXT),
        (OPENMETRICS_ACCEPT, OPENMETRICS),
        ("Application/OpenMetrics-Text", OPENMETRICS),
        ("text/plain, application/openmetrics-text; q=0.2", OPENMETRICS),
        ("application/openmetrics-text; q=0, text/plain", TEXT),
        ("application/openmetrics-texts", TEXT),
    ],
)
def test_format_is_negotiated(accept: str, expected: bytes) -> None:
    """Who takes OpenMetrics gets it, everybody else the older text."""
    assert negotiate(accept.encode()) == expected


async def test_scrape_gets_what_it_asks_for() -> None:
    """``GET /metrics`` answers in the format, and with the content type, that was asked for."""
    async with busy().served() as port:
        old = await get(port, "/metrics")
        new = await get(port, "/metrics", accept=OPENMETRICS_ACCEPT)
        bare = await ask(port, request("GET", "/metrics").replace(b"test.invalid", b"127.0.0.1"))
    assert old.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    assert new.header(
        "content-type",
    ) == ("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert new.body.endswith(b"# EOF\n")
    assert b"# EOF" not in old.body + bare.body
    assert bare.status == 200


def test_promtool_finds_no_fault() -> None:
    """Prometheus' linter for metrics accepts names, types and help."""
    command = [tool("promtool"), "check", "metrics"]
    text = render(busy().metrics.collect(), TEXT)
    done = subprocess.run(command, input=text, capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


# --- What gauges read -----------------------------------------------------------------------------


def test_keys_are_counted_by_state() -> None:
    """Each key is in one state of its upstream; a failing upstream's keys are all paused."""
    instruments = Instruments()
    keys: KeyPool = instruments.keys

    def states() -> dict[str, float]:
        counted = instruments.metrics.collect()["freeapi_keys"]
        assert {upstream for upstream, _ in counted} == {"openai"}
        return {state: n for (_, state), n in counted.items() if n and not isinstance(n, list)}

    assert states() == {"ok": 2}
    with keys.lease("gpt-a", (), 0.0) as lease:
        keys.failed(lease, failures.RATE_LIMITED, 0.0, 9.0)
    assert states() == {"ok": 1, "cooling": 1}
    with keys.lease("gpt-b", (), 0.0) as lease:
        keys.failed(lease, failures.KEY_DEAD, 0.0, None)
    with keys.lease("gpt-b", (), 0.0) as lease:
        keys.failed(lease, failures.OUT_OF_QUOTA, 0.0, None)
    assert states() == {"dead": 1, "out of quota": 1}
    assert set(states()) < set(KEY_STATES)


def test_failing_upstream_pauses_its_keys() -> None:
    """Failures in a row that are the upstream's show as its keys being paused."""
    instruments = Instruments()
    for _ in range(5):
        with instruments.keys.lease("gpt-a", (), 0.0) as lease:
            instruments.keys.failed(lease, failures.SERVER_ERROR, 0.0, None)
    counted = instruments.metrics.collect()["freeapi_keys"]
    assert (counted["openai", "paused"], counted["openai", "ok"]) == (2, 0)


@pytest.mark.parametrize(
    ("status", "caps", "left", "cap"),
    [
        (None, None, {}, {}),
        (Status(None, 0, {}), Caps(), {}, {}),
        (Status(5 * 10**8, 0, {}), Caps(monthly_nanousd=10**9), {("all",): 0.5}, {("all",): 1.0}),
        (
            Status(5 * 10**8, 0, {}),
            Caps(daily_nanousd=2 * 10**9, monthly_nanousd=10**9),
            {("all",): 0.5},
            {("all",): 2.0},
        ),
    ],
)
def test_money_is_left_out_where_nothing_is_capped(
    status: Status | None, caps: Caps | None, left: dict[Labels, Sample], cap: dict[Labels, Sample]
) -> None:
    """Without a cap there is no gauge; the month's cap stands in where the day has none."""
    metrics = Metrics([])
    watch_money(metrics, lambda: status, lambda: caps)
    families = metrics.collect()
    assert families["freeapi_budget_left_usd"] == left
    assert families["freeapi_budget_cap_usd"] == cap


def test_process_is_told() -> None:
    """Memory, descriptors, processor time and start are those of this process."""
    metrics = Metrics([])
    watch_process(metrics)
    families = metrics.collect()
    values = {name: sample[()] for name, sample in families.items() if name.startswith("process_")}
    assert all(isinstance(value, float) and value > 0 for value in values.values())
    assert len(values) == 5
    status = Path("/proc/self/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) * 1024
    assert values["process_resident_memory_bytes"] == pytest.approx(resident, rel=0.1)
    began_s = Path("/proc/self").stat().st_ctime
    assert values["process_start_time_seconds"] == pytest.approx(began_s, abs=120)
    assert next(iter(families["freeapi_build_info"]))[0] == __version__
