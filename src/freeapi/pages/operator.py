"""The operator's view: a page that shows the metrics live, and the metrics for Prometheus.

``GET /`` is the page; it asks for ``/live`` once a second and for ``/course`` once a minute, and
works out rates and percentiles itself, so that no view costs the server anything between the two.
``GET /metrics`` is for Prometheus. The keys are ``AdminPages``' own (``GET /keys``).

What this is not: it counts nothing and changes nothing. It is for the admin port only, which
``AdminPages`` guards.

Invariants: every answer is made of metrics, so it names no caller; the page loads nothing from
elsewhere and runs no script but its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from freeapi.http.reply import Reply
from freeapi.http.wire import Request
from freeapi.measures import DEFINITIONS, Families
from freeapi.pages.course import Course, Totals, several, single
from freeapi.pages.exposition import negotiate, render
from freeapi.routes import JSON

Page = Callable[[Request, Reply], None]

#: On every answer of the admin port. Source: MDN, "Content-Security-Policy"; OWASP, "HTTP Headers".
GUARDS: Final = (
    b"content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; "
    b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'\r\n"
    b"x-content-type-options: nosniff\r\n"
    b"referrer-policy: no-referrer\r\n"
    b"cross-origin-opener-policy: same-origin\r\n"
    b"cross-origin-resource-policy: same-origin\r\n"
    b"cache-control: no-store\r\n"
)
_FILES: Final = {
    b"/": ("operator.html", b"text/html; charset=utf-8"),
    b"/operator.css": ("operator.css", b"text/css; charset=utf-8"),
    b"/operator.js": ("operator.js", b"text/javascript; charset=utf-8"),
}
_TIMES: Final = {
    "duration": "gen_ai_server_request_duration_seconds",
    "first_token": "gen_ai_server_time_to_first_token_seconds",
    "queue_wait": "freeapi_queue_wait_seconds",
}


class OperatorPages:
    """What the admin port shows of the metrics: paths and their answers, in ``pages``."""

    def __init__(
        self, collect: Callable[[], Families], course: Course, clock: Callable[[], float]
    ) -> None:
        """``collect``: of this process or of all workers; ``clock``: seconds since 1970."""
        self._collect = collect
        self._course = course
        self._clock = clock
        self.pages: dict[bytes, Page] = {
            b"/metrics": self._metrics,
            b"/live": self._live,
            b"/course": self._show_course,
            **{path: _static(*file) for path, file in _FILES.items()},
        }

    def _metrics(self, request: Request, reply: Reply) -> None:
        content_type = negotiate(request.headers.get(b"accept", b""))
        reply.send(200, GUARDS + content_type, render(self._collect(), content_type))

    def _live(self, request: Request, reply: Reply) -> None:
        now = live(self._collect())
        reply.send(200, GUARDS + JSON, msgspec.json.encode({"now_s": self._clock(), **now}))

    def _show_course(self, request: Request, reply: Reply) -> None:
        reply.send(200, GUARDS + JSON, self._course.body())


def live(families: Families) -> dict[str, Any]:
    """What the page shows, as sums since the start; the page takes the differences."""

    def value(name: str) -> float | None:
        sample = families[name].get(())
        return None if sample is None else single(sample)

    return {
        "totals": Totals.of(families),
        "active": value("http_server_active_requests"),
        "streams": value("freeapi_open_streams"),
        "waiting": value("freeapi_queue_waiting_requests"),
        "connections": _by_label(families, "freeapi_connections"),
        "lag_s": value("freeapi_event_loop_lag_seconds"),
        "ledger_up": value("freeapi_ledger_up"),
        "config_current": value("freeapi_config_last_reload_successful"),
        "resident_bytes": value("process_resident_memory_bytes"),
        "cpu_s": value("process_cpu_seconds_total"),
        "start_s": value("process_start_time_seconds"),
        "version": next((labels[0] for labels in families["freeapi_build_info"]), None),
        "left_usd": _by_label(families, "freeapi_budget_left_usd"),
        "cap_usd": _by_label(families, "freeapi_budget_cap_usd"),
        "times": {name: _histogram(families, family) for name, family in _TIMES.items()},
        "upstreams": _upstreams(families),
    }


def _upstreams(families: Families) -> dict[str, dict[str, Any]]:
    """Of each: tries, retries, failures by reason, cost, keys by state."""
    tries = _by_label(families, "freeapi_upstream_tries_total")
    retries = _by_label(families, "freeapi_upstream_retries_total")
    cost_usd = _by_label(families, "freeapi_cost_usd_total")
    return {
        name: {
            "tries": tries[name],
            "retries": retries[name],
            "cost_usd": cost_usd[name],
            "failures": _of(families, "freeapi_upstream_failures_total", name),
            "keys": _of(families, "freeapi_keys", name),
        }
        for name in tries
    }


def _by_label(families: Families, name: str) -> dict[str, float]:
    """The values of a metric with one label."""
    return {labels[0]: single(sample) for labels, sample in families[name].items()}


def _of(families: Families, name: str, upstream: str) -> Mapping[str, float]:
    """One upstream's values of a metric with another label."""
    return {
        labels[1]: single(sample)
        for labels, sample in families[name].items()
        if labels[0] == upstream
    }


def _histogram(families: Families, name: str) -> dict[str, Any]:
    """Over all endpoints and models."""
    bounds = DEFINITIONS[name].bounds
    rows = [several(sample)[:-1] for sample in families[name].values()]
    counts = [sum(column) for column in zip(*rows, strict=True)] or [0] * (len(bounds) + 1)
    return {"bounds": bounds, "counts": counts}


def _static(name: str, content_type: bytes) -> Page:
    """A file of the package, read once."""
    body = (Path(__file__).parent / "static" / name).read_bytes()
    headers = GUARDS + b"content-type: %b\r\n" % content_type

    def show(request: Request, reply: Reply) -> None:
        reply.send(200, headers, body)

    return show
