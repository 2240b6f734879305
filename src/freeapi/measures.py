"""The closed list of metrics, and their values of one moment as plain data.

``DEFINITIONS`` names each metric, its unit and its labels; docs/metrics.md, the alert rules and the
dashboard are tested against it. ``Families`` are all their values at once: ``pack`` makes bytes of
them for another process, ``merge`` adds up what several processes packed.

What this is not: it counts nothing (``metrics`` does) and writes no text (``pages/exposition``).

Invariants: counters and histograms are added; how gauges become one is each one's definition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Final, Literal, NamedTuple

import msgspec

Kind = Literal["counter", "gauge", "histogram", "summary"]
#: How the values of several processes become one; counters and histograms are added.
Joined = Literal["sum", "max", "min"]
#: A histogram is the counts of its buckets (the last is the overflow) and the sum; a summary is
#: the count and the sum.
Sample = float | list[float]
Labels = tuple[str, ...]
#: All metrics at one moment: by name, then by the values of the labels.
Families = dict[str, dict[Labels, Sample]]
#: What a gauge says when it is asked: one number, one for each labels, or nothing now.
Reading = float | Mapping[Labels, float] | None

#: Source of these three: OpenTelemetry, "Semantic conventions for generative AI metrics".
REQUEST_S: Final = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKEN_S: Final = (
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
)  # fmt: skip
TOKENS: Final = tuple(4**power for power in range(14))
#: The longest wait is FREEAPI_QUEUE_S, 10 s unless it is set.
QUEUE_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Definition(NamedTuple):
    """One metric. ``unit`` is the end of its name (before ``_total``); empty: a plain number."""

    kind: Kind
    meaning: str
    labels: Labels = ()
    unit: str = ""
    joined: Joined = "sum"
    bounds: tuple[float, ...] = ()


_COUNTED: Final = partial(Definition, "counter")
_GAUGE: Final = partial(Definition, "gauge")
_OPERATION: Final = ("gen_ai_operation_name", "gen_ai_request_model")
_BUDGET: Final = ("scope",)

#: The closed list, in the order of the exposition. Names that OpenTelemetry or Prometheus has are
#: theirs, the others begin with ``freeapi_``.
DEFINITIONS: Final[Mapping[str, Definition]] = {
    "freeapi_requests_total": _COUNTED(
        "Answered requests, by what came of them.",
        ("endpoint", "model", "status", "error_type", "blame"),
    ),
    "gen_ai_server_request_duration_seconds": Definition(
        "histogram",
        "From a request's last byte to its answer's last, of requests that were sent upstream.",
        _OPERATION,
        "seconds",
        bounds=REQUEST_S,
    ),
    "gen_ai_server_time_to_first_token_seconds": Definition(
        "histogram",
        "From a request's last byte to the first byte of its answer, of streams that went well.",
        _OPERATION,
        "seconds",
        bounds=FIRST_TOKEN_S,
    ),
    "gen_ai_client_token_usage": Definition(
        "histogram",
        "Tokens of a request by the upstream's own count.",
        (*_OPERATION, "gen_ai_token_type"),
        bounds=TOKENS,
    ),
    "http_server_request_body_size_bytes": Definition(
        "summary", "Bodies of requests, as received.", ("endpoint",), "bytes"
    ),
    "http_server_response_body_size_bytes": Definition(
        "summary", "Bodies of answers, as sent.", ("endpoint",), "bytes"
    ),
    "http_server_active_requests": _GAUGE("Requests under way, waiting ones included."),
    "freeapi_open_streams": _GAUGE("Answers under way that are streamed."),
    "freeapi_connections": _GAUGE("Open connections.", ("side",)),
    "freeapi_queue_waiting_requests": _GAUGE("Requests that wait for their turn."),
    "freeapi_queue_wait_seconds": Definition(
        "histogram",
        "Waits in the fair queue, of those that waited.",
        (),
        "seconds",
        "sum",
        QUEUE_S,
    ),
    "freeapi_upstream_tries_total": _COUNTED("Requests sent, retries included.", ("upstream",)),
    "freeapi_upstream_retries_total": _COUNTED("Requests sent again.", ("upstream",)),
    "freeapi_upstream_failures_total": _COUNTED(
        "Tries that failed for another reason than the caller's.", ("upstream", "error_type")
    ),
    "freeapi_cost_usd_total": _COUNTED(
        "Spent, what counts as spent since nobody knows included.", ("upstream",), "usd"
    ),
    "freeapi_budget_left_usd": _GAUGE(
        "What may still be spent, reservations counted as spent.", _BUDGET, "usd", "min"
    ),
    "freeapi_budget_cap_usd": _GAUGE("Caps of a day.", _BUDGET, "usd", "max"),
    "freeapi_keys": _GAUGE("Keys by state.", ("upstream", "state"), "", "max"),
    "freeapi_ledger_up": _GAUGE("1 if spending can be written down, else 0.", (), "", "min"),
    "freeapi_ledger_failures_total": _COUNTED("How often the ledger has become unwritable."),
    "freeapi_reloads_total": _COUNTED("Configurations read anew.", ("result",)),
    "freeapi_config_last_reload_successful": _GAUGE(
        "1 if the configuration in use is the one on disk, as far as is known.", (), "", "min"
    ),
    "freeapi_event_loop_lag_seconds": _GAUGE(
        "The longest delay of the event loop in the last minute.", (), "seconds", "max"
    ),
    "freeapi_build_info": _GAUGE("1; its labels say what runs.", ("version", "python"), "", "max"),
    "process_cpu_seconds_total": _COUNTED("Processor time, user and system.", (), "seconds"),
    "process_resident_memory_bytes": _GAUGE("Resident memory.", (), "bytes"),
    "process_open_fds": _GAUGE("Open file descriptors."),
    "process_max_fds": _GAUGE("The limit of open file descriptors.", (), "", "min"),
    "process_start_time_seconds": _GAUGE(
        "Start of the process, in seconds since 1970.", (), "seconds", "min"
    ),
}


def pack(families: Families) -> bytes:
    """For another process, which ``merge`` reads."""
    return msgspec.msgpack.encode({name: list(of.items()) for name, of in families.items()})


def merge(snapshots: Collection[bytes]) -> Families:
    """What several processes counted, as if it were one. O(all their series)."""
    merged: Families = {name: {} for name in DEFINITIONS}
    for snapshot in snapshots:
        for name, samples in _DECODER.decode(snapshot).items():
            if name in merged:
                _join(merged[name], samples, DEFINITIONS[name].joined)
    return merged


_DECODER: Final = msgspec.msgpack.Decoder(dict[str, list[tuple[Labels, Sample]]])


def _join(
    into: dict[Labels, Sample], samples: Iterable[tuple[Labels, Sample]], joined: Joined
) -> None:
    for labels, sample in samples:
        there = into.get(labels)
        if there is None:
            into[labels] = sample
        elif isinstance(there, list) and isinstance(sample, list):
            into[labels] = [a + b for a, b in zip(there, sample, strict=True)]
        elif isinstance(there, float | int) and isinstance(sample, float | int):
            into[labels] = _JOINS[joined](there, sample)


_JOINS: Final[Mapping[Joined, Callable[[float, float], float]]] = {
    "sum": lambda a, b: a + b,
    "max": max,
    "min": min,
}
