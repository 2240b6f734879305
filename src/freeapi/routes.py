"""Which path is answered by what: the public port's map.

Everything that needs no upstream is answered here, in the same call. Every route of the API is
served with and without ``/v1``, since people set base URLs both ways. What OpenAI has and a shared
account can't offer (it would show one caller's data to another) is a 404 that says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from freeapi.errors import FreeApiError, MethodNotAllowed, ModelNotFound, RouteNotFound
from freeapi.http.reply import Reply
from freeapi.http.wire import Request
from freeapi.journal import Journal
from freeapi.metrics import Metrics
from freeapi.policy.limits import RETRY_WAIT_MAX_S
from freeapi.policy.models import PATHS, Endpoint, ModelTable

Answer = Callable[[Request, Reply], None]

JSON: Final = b"content-type: application/json\r\n"
#: On every answer, so that a web page may call us and read our headers. No credentials: a key is
#: not needed. Source: WHATWG Fetch, section 3.2 "CORS protocol".
COMMON_HEADERS: Final = b"access-control-allow-origin: *\r\naccess-control-expose-headers: *\r\n"
#: ``*`` doesn't cover Authorization (Fetch, section 4.8, "CORS-preflight fetch").
_PREFLIGHT: Final = (
    b"access-control-allow-methods: GET, HEAD, POST, OPTIONS\r\n"
    b"access-control-allow-headers: authorization, content-type, *\r\n"
    b"access-control-max-age: 86400\r\n"
)
_STATELESS: Final = (
    "This instance keeps nothing between requests: on an account shared by strangers it would show "
    "one caller's data to another."
)
#: OpenAI's stateful collections, for the hint in their 404.
_STATEFUL: Final = frozenset(
    [
        "assistants",
        "batches",
        "chat",
        "containers",
        "conversations",
        "evals",
        "files",
        "fine_tuning",
        "organization",
        "realtime",
        "responses",
        "skills",
        "threads",
        "uploads",
        "vector_stores",
        "videos",
    ]
)
#: Whose bodies are forms that may be longer than JSON, and are taken as they come.
FORM_ENDPOINTS: Final = frozenset[Endpoint](["transcriptions", "translations"])
_ENDPOINT_PATHS: Final = frozenset(path.encode() for path in PATHS.values())
_FORM_PATHS: Final = frozenset(
    prefix + PATHS[endpoint].encode() for endpoint in FORM_ENDPOINTS for prefix in (b"", b"/v1")
)
_OFF: Final = "No model of this instance serves it; GET /v1/models lists those that there are."
_PATH_SHOWN_MAX: Final = 100
#: openai-node ignores a ``retry-after`` over RETRY_WAIT_MAX_S and hammers, unless told to give up.
_GIVE_UP: Final = b"x-should-retry: false\r\n"
#: A wait is the difference of two times in a double: 0.3 s may come as 0.3000000000001.
_SLACK_MS: Final = 0.001


class Routes:
    """The application of the public port. O(1) per request."""

    def __init__(
        self,
        answers: Mapping[Endpoint, Answer],
        models: ModelTable,
        is_ready: Callable[[], bool],
        status: Callable[[], bytes],
        pages: Mapping[bytes, Answer],
        rates: Callable[[Request], bytes],
        metrics: Metrics,
        journal: Journal,
    ) -> None:
        """``answers`` to the endpoints, each on only if one of ``models`` serves it.

        ``status`` makes the body of ``GET /status``, ``rates`` a caller's ``x-ratelimit-*``;
        ``pages`` are for people.
        """
        self._metrics = metrics
        self._answers = answers
        self._rates = rates
        self._status = status
        self._is_ready = is_ready
        self._journal = journal
        self._site: dict[bytes, dict[bytes, Answer]] = {
            b"/healthz": {b"GET": self._health},
            b"/readyz": {b"GET": self._readiness},
            b"/status": {b"GET": self._show_status},
            **{path: {b"GET": answer} for path, answer in pages.items()},
        }
        self._names = {
            b"/v1/models": "models",
            b"/models": "models",
            b"/healthz": "health",
            b"/readyz": "health",
            b"/status": "status",
            **dict.fromkeys(pages, "page"),
        }
        self.reconfigure(models)

    def reconfigure(self, models: ModelTable) -> None:
        """Serve these from now on."""
        self._models = models
        api: dict[bytes, dict[bytes, Answer]] = {b"/models": {b"GET": self._list_models}}
        for endpoint, answer in self._answers.items():
            if models.serving(endpoint):
                api[PATHS[endpoint].encode()] = {b"POST": answer}
        self._served = ", ".join(
            f"{method.decode()} /v1{path.decode()}" for path, by in api.items() for method in by
        )
        # All paths, with and without their prefix; those of nearly all traffic by one look-up.
        self._paths = {
            **{prefix + path: by for path, by in api.items() for prefix in (b"", b"/v1")},
            **self._site,
        }
        self._posts = {path: by[b"POST"] for path, by in self._paths.items() if b"POST" in by}

    def is_upload(self, request: Request) -> bool:
        """Whether the request's body is a form that is taken as it comes."""
        return request.path in _FORM_PATHS and request.path in self._paths and _is_form(request)

    def __call__(self, request: Request, reply: Reply) -> None:
        """Answer, or hand over to what will. Never raises."""
        try:
            self._find(request)(request, reply)
        except FreeApiError as error:
            refuse(reply, error, self._rates(request) if request.method == b"POST" else b"")
            self._count(request, error.status, error.label)
        except Exception as error:  # the boundary of one request: a bug of ours ends only this one
            self._journal.crash("routes", error)
            refuse(reply, FreeApiError())
        else:
            if reply.status:  # what is answered later is counted by who does it
                self._count(request, reply.status, "ok")

    def _count(self, request: Request, status: int, label: str) -> None:
        self._metrics.answered(self._names.get(request.path, "other"), status, label)

    def _find(self, request: Request) -> Answer:
        if request.method == b"POST":
            answer = self._posts.get(request.path)
            if answer is not None:
                return answer
        methods = self._paths.get(request.path)
        answer = None if methods is None else methods.get(request.method)
        return self._find_rare(request, methods) if answer is None else answer

    def _find_rare(self, request: Request, methods: dict[bytes, Answer] | None) -> Answer:
        if request.method == b"OPTIONS":
            return self._preflight
        if methods is None and _in_api(request.path).startswith(b"/models/"):
            methods = {b"GET": self._show_model}
        method = b"GET" if request.method == b"HEAD" else request.method
        if methods is None or (method == b"GET" and _in_api(request.path) == b"/chat/completions"):
            raise self._not_found(request)
        if method not in methods:
            allow = ", ".join(name.decode() for name in (*methods, b"OPTIONS"))
            raise MethodNotAllowed(
                method=request.method.decode(), path=_shown(request.path), allow=allow
            )
        return methods[method]

    def _not_found(self, request: Request) -> RouteNotFound:
        path = _in_api(request.path)
        collection = path.split(b"/")[1:2]
        tidy = b"/" + b"/".join(filter(None, request.path.split(b"/")))
        if tidy != request.path and tidy in self._paths:
            hint = f"It is {_shown(tidy)}: mind the slashes where the base URL ends."
        elif request.method == b"POST" and path in _ENDPOINT_PATHS:
            hint = _OFF
        elif collection and collection[0].decode("latin-1") in _STATEFUL:
            hint = _STATELESS
        else:
            hint = f"This instance serves {self._served}."
        return RouteNotFound(method=request.method.decode(), path=_shown(request.path), hint=hint)

    def _list_models(self, request: Request, reply: Reply) -> None:
        reply.send(200, JSON, self._models.listing)

    def _show_model(self, request: Request, reply: Reply) -> None:
        name = unquote_to_bytes(_in_api(request.path)[len(b"/models/") :])
        try:
            body = self._models.entry(name.decode())
        except UnicodeDecodeError:
            raise ModelNotFound(param="model", model="(not a model name)") from None
        reply.send(200, JSON, body)

    def _health(self, request: Request, reply: Reply) -> None:
        reply.send(200, JSON, b'{"status":"ok"}')

    def _readiness(self, request: Request, reply: Reply) -> None:
        if self._is_ready():
            reply.send(200, JSON, b'{"status":"ready"}')
        else:
            reply.send(503, JSON, b'{"status":"not ready"}')

    def _show_status(self, request: Request, reply: Reply) -> None:
        reply.send(200, JSON, self._status())

    def _preflight(self, request: Request, reply: Reply) -> None:
        reply.send(204, _PREFLIGHT, b"")


def refuse(reply: Reply, error: FreeApiError, headers: bytes = b"") -> None:
    """Answer with an error in OpenAI's shape and the headers that its SDKs obey.

    ``retry-after`` in whole seconds is for everybody; ``retry-after-ms`` and ``x-should-retry`` are
    read by OpenAI's own SDKs. Both waits are rounded up: who obeys isn't too early.
    Source: openai-python, ``_base_client.py``.
    """
    headers += JSON
    if error.retry_after_s is not None:
        wait_ms = max(1, math.ceil(error.retry_after_s * 1_000 - _SLACK_MS))
        headers += b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (-(-wait_ms // 1_000), wait_ms)
    if error.should_retry is False or (error.retry_after_s or 0.0) > RETRY_WAIT_MAX_S:
        headers += _GIVE_UP
    if isinstance(error, MethodNotAllowed):
        headers += b"allow: %b\r\n" % str(error.facts["allow"]).encode()
    reply.send(error.status, headers, error.body())


def _in_api(path: bytes) -> bytes:
    """The path without ``/v1``."""
    return path[3:] if path.startswith(b"/v1/") else path


def _is_form(request: Request) -> bool:
    kind = request.headers.get(b"content-type", b"").partition(b";")[0]
    return request.method == b"POST" and kind.strip().lower() == b"multipart/form-data"


def _shown(path: bytes) -> str:
    """A path as it may stand in a message to the one who sent it."""
    return path[:_PATH_SHOWN_MAX].decode("ascii", "replace")
