"""The counters: what a request moves, that names of callers' choice move nothing new, and sums."""

from __future__ import annotations

import random
import re
import string

import pytest

from freeapi import errors
from freeapi.measures import DEFINITIONS, Families, Labels, Sample, merge, pack
from freeapi.metrics import CELLS_MAX, NAMES_MAX, OTHER, Metrics

DURATION = "gen_ai_server_request_duration_seconds"
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"
TOKENS = "gen_ai_client_token_usage"
REQUESTS = "freeapi_requests_total"


def new(**gauges: float) -> Metrics:
    """Counters that know one model and one upstream."""
    metrics = Metrics(["chat", "completions", "models"], ["server_error"])
    metrics.allow(["gpt-a"], ["openai"])
    for name, value in gauges.items():
        metrics.watch(name, lambda value=value: value)  # type: ignore[misc]
    return metrics


def stream(metrics: Metrics, *, model: str = "gpt-a", tokens: int = 20) -> None:
    """Record a streamed answer that was tried twice."""
    metrics.started()
    metrics.streaming()
    metrics.finished(
        endpoint="completions",
        model=model,
        status=200,
        label="ok",
        streamed=True,
        upstream="openai",
        tries=2,
        duration_s=1.5,
        first_byte_s=0.3,
        queued_s=0.2,
        prompt_tokens=tokens,
        completion_tokens=tokens * 2,
        request_bytes=400,
        response_bytes=9_000,
    )


def refusal(metrics: Metrics, *, model: str = "", label: str = "rate_limit_exceeded") -> None:
    """Record a request that never went upstream."""
    metrics.started()
    metrics.finished(endpoint="chat", model=model, status=429, label=label)


def filled(sample: Sample) -> dict[int, float]:
    """The buckets in which something is, and the sum (-1)."""
    assert isinstance(sample, list)
    size = len(sample)
    return {i if i < size - 1 else -1: value for i, value in enumerate(sample) if value}


def count_of(families: Families, name: str = REQUESTS) -> float:
    """The sum over all series of a counter."""
    return sum(value for value in families[name].values() if not isinstance(value, list))


def test_streamed_answer_moves_everything() -> None:
    """One answer is in its outcome, its histograms, its bytes and its upstream's counts, once."""
    metrics = new()
    stream(metrics)
    metrics.spent("openai", 2_500_000)
    families = metrics.collect()
    operation = ("text_completion", "gpt-a")
    assert families[REQUESTS] == {("completions", "gpt-a", "200", "ok", "none"): 1}
    assert filled(families[DURATION][operation]) == {8: 1, -1: 1.5}  # 1.28 < 1.5 <= 2.56
    assert filled(families[FIRST_TOKEN][operation]) == {9: 1, -1: 0.3}  # 0.25 < 0.3 <= 0.5
    assert filled(families[TOKENS][*operation, "input"]) == {3: 1, -1: 20}
    assert filled(families[TOKENS][*operation, "output"]) == {3: 1, -1: 40}
    assert filled(families["freeapi_queue_wait_seconds"][()]) == {3: 1, -1: 0.2}
    assert families["http_server_request_body_size_bytes"] == {("completions",): [1, 400]}
    assert families["http_server_response_body_size_bytes"] == {("completions",): [1, 9_000]}
    assert families["freeapi_upstream_tries_total"] == {("openai",): 2}
    assert families["freeapi_upstream_retries_total"] == {("openai",): 1}
    assert families["freeapi_cost_usd_total"] == {("openai",): 0.0025}


def test_values_at_a_bound_are_below_it() -> None:
    """A bucket includes its own bound, as Prometheus' ``le`` says."""
    metrics = new()
    stream(metrics, tokens=16)
    tokens = metrics.collect()[TOKENS]
    assert filled(tokens["text_completion", "gpt-a", "input"]) == {2: 1, -1: 16}


def test_values_beyond_all_bounds_are_counted() -> None:
    """They are in the overflow, the last of the counts, and in the sum."""
    metrics = new()
    stream(metrics, tokens=4**14)
    sample = metrics.collect()[TOKENS]["text_completion", "gpt-a", "input"]
    assert filled(sample) == {14: 1, -1: 4**14}


def test_each_model_and_outcome_is_counted_by_itself() -> None:
    """What goes well and what doesn't, of a model, of another, and of one called ``other``."""
    metrics = new()
    metrics.allow(["gpt-b"], [])
    for model in ("gpt-a", "gpt-a", "gpt-b", OTHER, "made up"):
        for label in ("ok", "upstream_cut"):
            metrics.started()
            metrics.finished(endpoint="chat", model=model, status=200, label=label)
    metrics.answered("chat", 200)  # without a model
    counts = metrics.collect()[REQUESTS]
    assert {labels[1]: count for labels, count in counts.items() if labels[3] == "ok"} == {
        "gpt-a": 2,
        "gpt-b": 1,
        OTHER: 2,
        "": 1,
    }
    assert sum(count for labels, count in counts.items() if labels[3] != "ok") == 5  # type: ignore[misc]


def test_refusal_is_counted_and_no_more() -> None:
    """What never went upstream has an outcome, with whose fault it is, and no duration."""
    metrics = new()
    refusal(metrics, model="gpt-a")
    families = metrics.collect()
    labels = ("chat", "gpt-a", "429", "rate_limit_exceeded", "client")
    assert families[REQUESTS] == {labels: 1}
    assert families[DURATION] == families[FIRST_TOKEN] == families[TOKENS] == {}
    assert families["freeapi_upstream_tries_total"] == {("openai",): 0}


def test_failed_stream_has_no_first_token_time() -> None:
    """The time to the first token is of answers that went well."""
    metrics = new()
    for label, streamed in (("upstream_cut", True), ("ok", False)):
        metrics.started()
        if streamed:
            metrics.streaming()
        metrics.finished(
            endpoint="chat",
            model="gpt-a",
            status=200,
            label=label,
            streamed=streamed,
            upstream="openai",
            tries=1,
            duration_s=1.0,
            first_byte_s=0.5,
        )
    families = metrics.collect()
    assert families[FIRST_TOKEN] == {}
    assert filled(families[DURATION]["chat", "gpt-a"]) == {7: 2, -1: 2.0}


def test_open_requests_and_streams_are_known() -> None:
    """Both gauges rise with what begins and fall with what ends, refused or not."""
    metrics = new()
    metrics.started()
    metrics.started()
    metrics.streaming()
    before = metrics.collect()
    metrics.finished(endpoint="chat", model="gpt-a", status=0, label="client_gone", streamed=True)
    metrics.finished(endpoint="chat", model="", status=400, label="invalid_json")
    after = metrics.collect()
    for name, open_ in (("http_server_active_requests", 2), ("freeapi_open_streams", 1)):
        assert (before[name], after[name]) == ({(): open_}, {(): 0})


def test_pages_and_wrong_paths_are_counted() -> None:
    """What needs no upstream is an outcome without a model, and was never under way."""
    metrics = new()
    metrics.answered("models", 200)
    metrics.answered("/wp-login.php", 404, "route_not_found")
    families = metrics.collect()
    assert families[REQUESTS] == {
        ("models", "", "200", "ok", "none"): 1,
        (OTHER, "", "404", "route_not_found", "client"): 1,
    }
    assert families["http_server_active_requests"] == {(): 0}


def test_every_error_has_a_label_with_its_blame() -> None:
    """Each class of errors is a known label; those given for upstreams are the upstream's."""
    metrics = new()
    for kind in (errors.BodyTooLarge, errors.UpstreamCut, errors.LedgerUnavailable):
        refusal(metrics, label=kind.label)
    refusal(metrics, label="server_error")
    refusal(metrics, label="made up")
    blames = {labels[3]: labels[4] for labels in metrics.collect()[REQUESTS]}
    assert blames == {
        "body_too_large": "client",
        "upstream_cut": "upstream",
        "ledger_unavailable": "gateway",
        "server_error": "upstream",
        OTHER: "gateway",
    }


def test_storm_of_made_up_names_makes_no_series() -> None:
    """After 5,000 requests with random words everywhere the series are a few, and all are ours."""
    chance = random.Random(8)
    metrics = new()

    def word() -> str:
        return "canary" + "".join(chance.choices(string.printable, k=12))

    for _ in range(5_000):
        metrics.started()
        metrics.finished(
            endpoint=chance.choice(["chat", word()]),
            model=chance.choice(["gpt-a", word()]),
            status=chance.choice([200, 429, chance.randrange(-5, 5_000)]),
            label=chance.choice(["ok", word()]),
            upstream=chance.choice(["openai", word()]),
            tries=chance.randrange(4),
        )
        metrics.upstream_failed(word(), chance.choice(["server_error", word()]))
        metrics.spent(word(), 1)
    snapshot = metrics.snapshot()
    families = metrics.collect()
    assert b"canary" not in snapshot
    assert sum(map(len, families.values())) < 600
    assert count_of(families) == 5_000
    assert count_of(families, "freeapi_upstream_failures_total") == 5_000
    assert families["http_server_active_requests"] == {(): 0}


def test_outcomes_are_bounded_even_if_all_are_ours() -> None:
    """Beyond ``CELLS_MAX`` outcomes the rest count as one: none is lost, memory is bounded."""
    endpoints = [f"e{i}" for i in range(50)]
    models = [f"m{i}" for i in range(150)]
    metrics = Metrics(endpoints)
    metrics.allow(models, [])
    for endpoint in endpoints:
        for model in models:
            metrics.started()
            metrics.finished(endpoint=endpoint, model=model, status=200, label="ok")
    families = metrics.collect()
    assert len(families[REQUESTS]) == CELLS_MAX + 1
    assert families[REQUESTS][OTHER, OTHER, "0", OTHER, "gateway"] == 50 * 150 - CELLS_MAX
    assert count_of(families) == 50 * 150


def test_names_over_all_configurations_are_bounded() -> None:
    """However often the configuration changes, at most ``NAMES_MAX`` models and upstreams count."""
    metrics = Metrics(["chat"])
    for i in range(NAMES_MAX + 20):
        metrics.allow([f"m{i}"], [f"u{i}"])
    for i in (0, NAMES_MAX - 1, NAMES_MAX):
        refusal(metrics, model=f"m{i}")
        metrics.upstream_failed(f"u{i}", "ok")
    families = metrics.collect()
    assert {labels[1] for labels in families[REQUESTS]} == {"m0", f"m{NAMES_MAX - 1}", OTHER}
    assert len(families["freeapi_upstream_tries_total"]) == NAMES_MAX
    assert (OTHER, "ok") in families["freeapi_upstream_failures_total"]


def test_counters_outlive_their_names() -> None:
    """A model and an upstream that are configured no more, and then again, go on from there."""
    metrics = new()
    stream(metrics)
    before = metrics.collect()
    metrics.allow(["gpt-b"], ["lab"])
    metrics.allow(["gpt-a"], ["openai"])
    after = metrics.collect()
    assert after[REQUESTS] == before[REQUESTS]
    assert after["freeapi_upstream_tries_total"] == {("openai",): 2, ("lab",): 0}


def test_ledger_and_reloads_are_told() -> None:
    """The ledger's state and the last reload's are gauges, what went wrong is counted."""
    metrics = new()
    metrics.ledger_reported("SQLITE_FULL")
    metrics.reloaded(is_ok=False)
    bad = metrics.collect()
    metrics.ledger_reported("ok")
    metrics.reloaded(is_ok=True)
    good = metrics.collect()
    for name in ("freeapi_ledger_up", "freeapi_config_last_reload_successful"):
        assert (bad[name][()], good[name][()]) == (0, 1)
    for families in (bad, good):
        assert families["freeapi_ledger_failures_total"] == {(): 1}
    assert good["freeapi_reloads_total"] == {("ok",): 1, ("refused",): 1}


def test_gauges_are_asked_when_metrics_are_read() -> None:
    """A number, numbers by labels, or nothing where there is none now."""
    metrics = new()
    values = [1.0, 2.0]
    by_state: dict[Labels, float] = {("openai", "ok"): 3}
    metrics.watch("freeapi_queue_waiting_requests", lambda: values.pop())
    metrics.watch("freeapi_keys", lambda: by_state)
    metrics.watch("freeapi_budget_left_usd", lambda: None)
    first, second = metrics.collect(), metrics.collect()
    name = "freeapi_queue_waiting_requests"
    assert (first[name], second[name]) == ({(): 2.0}, {(): 1.0})
    assert first["freeapi_keys"] == by_state
    assert first["freeapi_budget_left_usd"] == {}
    assert list(first) == list(DEFINITIONS)


def test_unknown_gauge_is_our_mistake() -> None:
    """The list of metrics is closed."""
    with pytest.raises(AssertionError, match="freeapi_made_up"):
        new().watch("freeapi_made_up", lambda: 1)


def test_workers_add_up() -> None:
    """Merged snapshots are what one process would have counted, whoever counted what."""
    workers, alone = [new(), new(), new()], new()
    chance = random.Random(5)
    for _ in range(200):
        for metrics in (chance.choice(workers), alone):
            stream(metrics, tokens=7)
            refusal(metrics)
            metrics.answered("models", 200)
            metrics.upstream_failed("openai", "server_error")
            metrics.spent("openai", 1_000_000_000)
    merged = merge([metrics.snapshot() for metrics in workers])
    own = alone.collect()
    for name in DEFINITIONS:
        assert merged[name].keys() == own[name].keys(), name
        for labels, sample in own[name].items():
            assert merged[name][labels] == pytest.approx(sample), name


def test_gauges_join_as_their_definition_says() -> None:
    """Waiting requests are added, of what is left the least counts, of lags the longest."""
    gauges = (
        ("freeapi_queue_waiting_requests", 9.0),
        ("freeapi_budget_left_usd", 4.0),
        ("freeapi_event_loop_lag_seconds", 5.0),
    )
    one = new(**{name: 4.0 for name, _ in gauges})
    other = new(**{name: 5.0 for name, _ in gauges})
    merged = merge([one.snapshot(), other.snapshot()])
    assert {name: merged[name][()] for name, _ in gauges} == dict(gauges)


def test_snapshots_of_another_version_can_be_merged() -> None:
    """While workers are replaced, a metric that this version doesn't know is left out."""
    foreign: Families = {"freeapi_new_total": {(): 3}, REQUESTS: {("a", "b", "c", "d", "e"): 1}}
    merged = merge([pack(foreign), new().snapshot()])
    assert "freeapi_new_total" not in merged
    assert count_of(merged) == 1
    assert list(merge([])) == list(DEFINITIONS)


def test_snapshot_loses_nothing() -> None:
    """What one process packed is read back the same."""
    metrics = new()
    stream(metrics)
    assert merge([metrics.snapshot()]) == metrics.collect()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definitions_keep_the_conventions(name: str) -> None:
    """Counters end in ``_total``, names in their unit, labels are words, bounds rise."""
    definition = DEFINITIONS[name]
    stem = name.removesuffix("_total")
    assert (stem != name) == (definition.kind == "counter")
    assert not definition.unit or stem.endswith("_" + definition.unit)
    assert all(re.fullmatch(r"[a-z][a-z_]+", word) for word in (name, *definition.labels))
    assert "caller" not in definition.labels
    assert definition.meaning.endswith(".")
    assert bool(definition.bounds) == (definition.kind == "histogram")
    assert list(definition.bounds) == sorted(set(definition.bounds))
    assert definition.kind == "gauge" or definition.joined == "sum"
