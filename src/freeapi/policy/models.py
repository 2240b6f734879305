"""The models that callers may ask for: the allow-list and the answers of ``GET /v1/models``.

A ``Model`` says what a name means here: what is sent upstream in its place, how much may pass, and
what it costs. ``ModelTable`` finds one by name and holds the two ``/v1/models`` answers ready made.

What this is not: it never asks the upstream which models exist, it counts nothing (``limits`` and
``budget`` do), and it applies no default of the configuration: ``config`` builds the ``Model``.

Invariants:
- A name that isn't on the list never reaches an upstream, unless the operator listed ``*``.
- A name under ``*`` is 1 to 128 visible ASCII characters, whatever the caller sent.
- Nothing here is filled by callers: names under ``*`` are not remembered, so memory is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from freeapi.errors import ModelNotFound

Endpoint = Literal[
    "chat",
    "completions",
    "embeddings",
    "moderations",
    "responses",
    "images",
    "speech",
    "transcriptions",
    "translations",
]
#: Where each is found below a base URL, ours and the upstream's. Source: OpenAI API reference.
PATHS: Final[Mapping[Endpoint, str]] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "moderations": "/moderations",
    "responses": "/responses",
    "images": "/images/generations",
    "speech": "/audio/speech",
    "transcriptions": "/audio/transcriptions",
    "translations": "/audio/translations",
}
#: Whose cost tokens of text don't tell.
UNIT_ENDPOINTS: Final = frozenset[Endpoint](["images", "speech", "transcriptions", "translations"])
#: The field in which an upstream obeys a ceiling on output tokens; it may ignore the other one.
OutputField = Literal["max_tokens", "max_completion_tokens"]

#: The name that stands for every model; as ``upstream_model`` it stands for the name asked for.
ANY_MODEL: Final = "*"
#: Characters. OpenAI's longest names, those of fine-tuned models, stay under 100.
NAME_LENGTH_MAX: Final = 128
#: ``owned_by`` in listings: this software's name, since the models offered are this instance's.
OWNED_BY: Final = "freeapi"

_VISIBLE_ASCII: Final = re.compile(rf"[!-~]{{1,{NAME_LENGTH_MAX}}}")


class Model(msgspec.Struct, frozen=True):
    """One row of the allow-list. ``None`` for a limit is unlimited, for a price unknown."""

    name: str
    upstream_model: str
    rpm: int | None
    tpm: int | None
    max_output_tokens: int
    output_field: OutputField
    #: Names of the upstreams that serve it; empty: all.
    upstreams: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ("chat", "completions")
    image_tokens_max: int = 0
    input_nanousd_per_mtok: int | None = None
    output_nanousd_per_mtok: int | None = None
    #: The most that an image, a speech or an audio file may cost: tokens can't tell beforehand.
    unit_nanousd: int | None = None


class BuiltinModel(NamedTuple):
    """What the built-in table fixes of a ``Model``; the rest comes from the settings."""

    name: str
    upstream_model: str
    rpm: int
    tpm: int


#: Requests per minute of the whole instance, for each model of the built-in table.
_RPM: Final = 3_500

#: Served where no file lists models; the order is that of ``GET /v1/models``.
#: The first five are the project's promise. OpenAI shut them down, so the cheapest model that
#: still takes every field of theirs (``temperature`` above all) answers in their place. The rest
#: are the cheapest chat models of 2026-11. The two of generation 4 are shut down on 2027-01-14:
#: ``gpt-6-luna`` follows, which takes ``temperature`` and tools only with ``reasoning_effort``
#: ``none``. Source: OpenAI, "Deprecations" and the model pages; openai-python 3.54.0.
BUILTIN: Final[tuple[BuiltinModel, ...]] = (
    BuiltinModel("gpt-3.5-turbo", "gpt-4o-mini", _RPM, 90_000),
    BuiltinModel("gpt-3.5-turbo-0301", "gpt-4o-mini", _RPM, 90_000),
    BuiltinModel("gpt-3.5-turbo-0613", "gpt-4o-mini", _RPM, 90_000),
    BuiltinModel("gpt-3.5-turbo-16k", "gpt-4o-mini", _RPM, 180_000),
    BuiltinModel("gpt-3.5-turbo-16k-0613", "gpt-4o-mini", _RPM, 180_000),
    BuiltinModel("gpt-4o-mini", "gpt-4o-mini", _RPM, 180_000),
    BuiltinModel("gpt-4.1-mini", "gpt-4.1-mini", _RPM, 90_000),
    BuiltinModel("gpt-5.6-luna", "gpt-5.6-luna", _RPM, 90_000),
    BuiltinModel("gpt-6-luna", "gpt-6-luna", _RPM, 180_000),
)


def is_model_name(name: str) -> bool:
    """Whether the name may be sent upstream or shown: 1 to 128 visible ASCII characters."""
    return _VISIBLE_ASCII.fullmatch(name) is not None


class ModelTable:
    """The allow-list in order. Every method is O(1); ``created`` is in Unix seconds."""

    __slots__ = ("_any", "_created", "_entries", "_models", "_serving", "listing")

    def __init__(self, models: Iterable[Model], created: int) -> None:
        """Encode the listing once. Names are unique: ``config`` refuses a second one."""
        rows = tuple(models)
        by_name = {model.name: model for model in rows}
        assert len(by_name) == len(rows), "two models of one name"
        self._any = by_name.pop(ANY_MODEL, None)
        self._models = by_name
        self._created = created
        self._serving = {
            endpoint: tuple(model for model in rows if endpoint in model.endpoints)
            for endpoint in PATHS
        }
        self._entries = {name: self._encode_entry(name) for name in by_name}
        #: The body of ``GET /v1/models``. Source: OpenAI API reference, "List models".
        self.listing: bytes = b'{"object":"list","data":[%b]}' % b",".join(self._entries.values())

    def get(self, name: str) -> Model:
        """The model of that name.

        Raises ModelNotFound; a name that is no model's name at all isn't repeated in its message.
        """
        model = self._models.get(name)
        return self._get_any(name) if model is None else model

    def serving(self, endpoint: Endpoint) -> tuple[Model, ...]:
        """The rows that list the endpoint, in order, ``*`` among them; none: it is off."""
        return self._serving[endpoint]

    def is_listed(self, name: str) -> bool:
        """Whether the name is the operator's own, and so fit for a log; under ``*`` it isn't."""
        return name in self._entries

    def entry(self, name: str) -> bytes:
        """The body of ``GET /v1/models/{name}``. Raises ModelNotFound."""
        ready = self._entries.get(name)
        return self._encode_entry(self._get_any(name).name) if ready is None else ready

    def _get_any(self, name: str) -> Model:
        """``*`` under the name asked for: one small object, not kept."""
        shown = name if is_model_name(name) else "(not a model name)"
        if self._any is None or shown != name or name == ANY_MODEL:
            raise ModelNotFound(param="model", model=shown)
        upstream_model = self._any.upstream_model
        return msgspec.structs.replace(
            self._any,
            name=name,
            upstream_model=name if upstream_model == ANY_MODEL else upstream_model,
        )

    def _encode_entry(self, name: str) -> bytes:
        """Source: OpenAI API reference, "The model object"."""
        return msgspec.json.encode(
            {"id": name, "object": "model", "created": self._created, "owned_by": OWNED_BY}
        )
