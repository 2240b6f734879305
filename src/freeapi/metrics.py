"""The counters that requests move; ``measures`` has the closed list of what they count.

``Metrics`` is told of each request once, at its end: one look-up finds a ``_Cell``, which holds
the count of that outcome and the histograms of its endpoint and model. Gauges cost requests
nothing: they are functions, asked by ``collect``. What ``collect`` returns are plain values, so
that several processes can be added up (``measures.merge``).

What this is not: no library's registry, whose locks cost more than all of this, and no text.

Invariants:
- A label's value is from a set that was closed before the request came, or ``other``. Nothing of a
  caller's is one, so neither memory nor the number of series depends on what callers send.
- Counters only rise, also when the configuration changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from freeapi.errors import ClientGone, FreeApiError
from freeapi.measures import (
    DEFINITIONS,
    FIRST_TOKEN_S,
    QUEUE_S,
    REQUEST_S,
    TOKENS,
    Families,
    Labels,
    Reading,
    Sample,
    pack,
)

#: For values out of the closed sets.
OTHER: Final = "other"
#: The ``error_type`` of an answer that is none of ours, and its ``blame``.
OK: Final = "ok"
NOBODY: Final = "none"

#: Names that a life of the process may see, over all its configurations.
NAMES_MAX: Final = 256
#: Outcomes that are told apart, 200 bytes each. Callers can't reach it with a usual configuration.
CELLS_MAX: Final = 5_000


#: What OpenTelemetry calls an operation, where that isn't our endpoint's name.
_OPERATION_NAMES: Final = {"completions": "text_completion"}
_STATUSES: Final = frozenset({status.value for status in HTTPStatus} | {ClientGone.status})


class _Histogram:
    """The counts of its buckets (the last is the overflow), and the sum of all values."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds: Final = [float(bound) for bound in bounds]
        self._counts: Final = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count it in the first bucket whose bound it doesn't exceed.

        Compiled, this loop takes a third of what ``bisect_left`` does, which compares by calls.
        """
        place = 0
        for bound in self._bounds:
            if value <= bound:
                break
            place += 1
        counts = self._counts
        counts[place] = counts[place] + 1  # `+=` would be a call for mypyc
        self._sum += value

    def sample(self) -> list[float]:
        """As ``measures`` has it."""
        return [*self._counts, self._sum]

    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not any(self._counts)


class _Work:
    """What requests of one endpoint for one model took, and what came of them.

    ``ok``: of nearly all requests, so it is found without a look-up.
    """

    __slots__ = ("answer_bytes", "body_bytes", "completion", "duration", "first", "ok", "prompt")

    def __init__(self) -> None:
        self.ok: _Cell | None = None
        self.duration: Final = _Histogram(REQUEST_S)
        self.first: Final = _Histogram(FIRST_TOKEN_S)
        self.prompt: Final = _Histogram(TOKENS)
        self.completion: Final = _Histogram(TOKENS)
        self.body_bytes = 0
        self.answer_bytes = 0


class _Cell:
    """One outcome's count, and the work that it is part of."""

    __slots__ = ("count", "work")

    def __init__(self, work: _Work) -> None:
        self.count = 0
        self.work: Final = work


class _Upstream:
    """What one upstream was given to do."""

    __slots__ = ("cost_nanousd", "requests", "tries")

    def __init__(self) -> None:
        self.requests = 0
        self.tries = 0
        self.cost_nanousd = 0


class Metrics:
    """The counters of one process. Every recording method is O(1) and waits for nothing.

    All of a streamed request take under 2 us together (measured, of about 250 that it takes).
    """

    def __init__(self, endpoints: Iterable[str], labels: Iterable[str] = ()) -> None:
        """``labels``: of failures, besides those of the classes in ``errors``."""
        self._endpoints = frozenset(endpoints)
        self._blames = _blames() | dict.fromkeys(labels, "upstream")
        self._models: set[str] = set()
        self._upstreams: dict[str, _Upstream] = {}
        self._cells: dict[tuple[str, str, int, str], _Cell] = {}
        #: By endpoint and model.
        self._work: dict[str, dict[str, _Work]] = {}
        self._failures: dict[Labels, float] = {}
        self._reloads: dict[Labels, float] = {("ok",): 0, ("refused",): 0}
        self._queue = _Histogram(QUEUE_S)
        self._gauges: dict[str, Callable[[], Reading]] = {}
        self._ledger_failures = 0
        self._is_ledger_up = True
        self._is_config_current = True
        #: Requests under way, and those of them whose answer is a stream.
        self.active = 0
        self.streams = 0

    def allow(self, models: Iterable[str], upstreams: Iterable[str]) -> None:
        """Names that may be labels from now on; those before them stay, up to ``NAMES_MAX``."""
        for model in models:
            if len(self._models) < NAMES_MAX:
                self._models.add(model)
        for upstream in upstreams:
            if len(self._upstreams) < NAMES_MAX:
                self._upstreams.setdefault(upstream, _Upstream())

    def watch(self, name: str, read: Callable[[], Reading]) -> None:
        """``read`` is asked for this metric at each ``collect``. It must be quick."""
        assert name in DEFINITIONS, name
        self._gauges[name] = read

    # --- Recording ---

    def started(self) -> None:
        """A request of the API has come; ``finished`` must follow."""
        self.active += 1

    def streaming(self) -> None:
        """Its answer will be a stream: ``finished`` must follow with ``streamed``."""
        self.streams += 1

    def finished(
        self,
        *,
        endpoint: str,
        model: str,
        status: int,
        label: str,
        streamed: bool = False,
        upstream: str = "",
        tries: int = 0,
        duration_s: float = 0.0,
        first_byte_s: float | None = None,
        queued_s: float = 0.0,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        request_bytes: int = 0,
        response_bytes: int = 0,
    ) -> None:
        """A request that was ``started`` is over, whatever came of it.

        ``status``: 0 if nothing was sent. ``label``: ``ok`` or an error's. ``tries``: 0 if it never
        went upstream; then ``upstream`` and the times mean nothing. ``first_byte_s``: from the same
        moment as ``duration_s``. Tokens: None if they aren't known.
        """
        self.active -= 1
        if streamed:
            self.streams -= 1
        cell = self._cell(endpoint, model, status, label)
        cell.count += 1
        work = cell.work
        work.body_bytes += request_bytes
        work.answer_bytes += response_bytes
        if queued_s:
            self._queue.add(queued_s)
        if not tries:
            return
        work.duration.add(duration_s)
        if streamed and first_byte_s is not None and label == OK:
            work.first.add(first_byte_s)
        if prompt_tokens is not None:
            work.prompt.add(prompt_tokens)
        if completion_tokens is not None:
            work.completion.add(completion_tokens)
        used = self._upstreams.get(upstream)
        if used is not None:
            used.requests += 1
            used.tries += tries

    def answered(self, endpoint: str, status: int, label: str = OK) -> None:
        """A request that needs no upstream was answered: a page, a wrong path, bad HTTP."""
        self._find(endpoint, "", status, label).count += 1

    def upstream_failed(self, upstream: str, label: str) -> None:
        """A try failed, and not by the caller's own mistake."""
        labels = (self._known_upstream(upstream), self._known_label(label))
        self._failures[labels] = self._failures.get(labels, 0) + 1

    def spent(self, upstream: str, nanousd: int) -> None:
        """A try was settled: this is what counts as spent for it."""
        used = self._upstreams.get(upstream)
        if used is not None:
            used.cost_nanousd += nanousd

    def ledger_reported(self, label: str) -> None:
        """The ledger's state has changed: ``ok``, or what failed."""
        self._is_ledger_up = label == OK
        self._ledger_failures += not self._is_ledger_up

    def reloaded(self, *, is_ok: bool) -> None:
        """The configuration was read anew, and taken or refused."""
        self._is_config_current = is_ok
        self._reloads[("ok" if is_ok else "refused",)] += 1

    # --- Reading ---

    def collect(self) -> Families:
        """All metrics now, all of ``DEFINITIONS``; those without a value are empty.

        About 1 us for each series.
        """
        families: Families = {name: {} for name in DEFINITIONS}
        families["freeapi_requests_total"].update(self._outcomes())
        self._collect_work(families)
        for name, value in self._own_gauges().items():
            families[name] = {(): float(value)}
        families["freeapi_queue_wait_seconds"] = {(): self._queue.sample()}
        for name, of in _UPSTREAM_COUNTERS.items():
            families[name] = {(one,): of(used) for one, used in self._upstreams.items()}
        families["freeapi_upstream_failures_total"].update(self._failures)
        families["freeapi_reloads_total"].update(self._reloads)
        for name, read in self._gauges.items():
            reading = read()
            if isinstance(reading, Mapping):
                families[name] = {labels: float(value) for labels, value in reading.items()}
            elif reading is not None:
                families[name] = {(): float(reading)}
        return families

    def snapshot(self) -> bytes:
        """``collect`` for another process, whose ``measures.merge`` reads it."""
        return pack(self.collect())

    def _own_gauges(self) -> dict[str, float]:
        return {
            "http_server_active_requests": self.active,
            "freeapi_open_streams": self.streams,
            "freeapi_ledger_up": self._is_ledger_up,
            "freeapi_ledger_failures_total": self._ledger_failures,
            "freeapi_config_last_reload_successful": self._is_config_current,
        }

    def _outcomes(self) -> dict[Labels, Sample]:
        return {
            (endpoint, model, str(status), label, self._blames.get(label, "gateway")): cell.count
            for (endpoint, model, status, label), cell in self._cells.items()
        }

    def _collect_work(self, families: Families) -> None:
        counts: dict[str, int] = {}
        for (endpoint, *_), cell in self._cells.items():
            counts[endpoint] = counts.get(endpoint, 0) + cell.count
        bodies = {endpoint: [float(count), 0.0] for endpoint, count in counts.items()}
        answers = {endpoint: [float(count), 0.0] for endpoint, count in counts.items()}
        for endpoint, of_models in self._work.items():
            for model, work in of_models.items():
                bodies[endpoint][1] += work.body_bytes
                answers[endpoint][1] += work.answer_bytes
                operation = (_OPERATION_NAMES.get(endpoint, endpoint), model)
                _collect_operation(families, operation, work)
        families["http_server_request_body_size_bytes"] = {(k,): v for k, v in bodies.items()}
        families["http_server_response_body_size_bytes"] = {(k,): v for k, v in answers.items()}

    # --- Closed sets ---

    def _cell(self, endpoint: str, model: str, status: int, label: str) -> _Cell:
        """As ``_find``: what went well is looked up by two words of the four."""
        if status != 200 or label != OK:
            return self._find(endpoint, model, status, label)
        of_models = self._work.get(endpoint)
        work = None if of_models is None else of_models.get(model)
        ok = None if work is None else work.ok
        return self._find(endpoint, model, status, label) if ok is None else ok

    def _find(self, endpoint: str, model: str, status: int, label: str) -> _Cell:
        """The cell of these, once they are words of ours."""
        endpoint = endpoint if endpoint in self._endpoints else OTHER
        model = model if not model or model in self._models else OTHER
        status = status if status in _STATUSES else 0
        key = (endpoint, model, status, self._known_label(label))
        if key not in self._cells and len(self._cells) >= CELLS_MAX:
            key = (OTHER, OTHER, 0, OTHER)
        cell = self._cells.get(key)
        if cell is None:
            endpoint, model, status, label = key
            work = self._work.setdefault(endpoint, {}).setdefault(model, _Work())
            cell = self._cells[key] = _Cell(work)
            if status == 200 and label == OK:
                work.ok = cell
        return cell

    def _known_label(self, label: str) -> str:
        return label if label in self._blames else OTHER

    def _known_upstream(self, upstream: str) -> str:
        return upstream if upstream in self._upstreams else OTHER


def _collect_operation(families: Families, operation: Labels, work: _Work) -> None:
    """Histograms in which nothing is are left out: a refused model's would be 60 lines of 0."""
    for name, more, histogram in (
        ("gen_ai_server_request_duration_seconds", (), work.duration),
        ("gen_ai_server_time_to_first_token_seconds", (), work.first),
        ("gen_ai_client_token_usage", ("input",), work.prompt),
        ("gen_ai_client_token_usage", ("output",), work.completion),
    ):
        if not histogram.is_empty():
            families[name][operation + more] = histogram.sample()


_UPSTREAM_COUNTERS: Final[Mapping[str, Callable[[_Upstream], float]]] = {
    "freeapi_upstream_tries_total": lambda used: used.tries,
    "freeapi_upstream_retries_total": lambda used: used.tries - used.requests,
    "freeapi_cost_usd_total": lambda used: used.cost_nanousd / 1_000_000_000,
}


def _blames() -> dict[str, str]:
    """Each label and whose fault it is."""
    found = {OK: NOBODY, OTHER: "gateway"}
    waiting: list[type[FreeApiError]] = [FreeApiError]
    while waiting:
        kind = waiting.pop()
        found[kind.label] = kind.blame
        waiting += kind.__subclasses__()
    return found
