"""A request while it is being checked, and the value that comes out of it.

The plan of every JSON endpoint: split the body into raw fields (no value is parsed that needn't
be), check those that cost money, hold state or say who the caller is, and encode the result.
``open_draft`` does the beginning, ``Draft.finish`` the end; between them are the checks of the
endpoint's module, of which those that several share are here.

What this is not: no table of fields (``tables``), no knowledge of messages, items or parts.

Invariants:
- What was checked is what is sent: the body is always re-encoded, so of a repeated field only the
  last is left, whichever one another parser would have taken.
- Below the levels that are checked, the caller's bytes are passed on as they are.
- A null means the same as no field.
- Errors repeat names of fields at most, never a value, and never an exception's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from freeapi.errors import InvalidJson, InvalidValue, UnsupportedParameter
from freeapi.policy.fields import Changes, Fields, Rule, apply
from freeapi.policy.models import ANY_MODEL, Endpoint, Model, ModelTable
from freeapi.policy.tables import STREAM_OPTION_FIELDS

#: Messages, items or inputs in a request. OpenAI's limit for inputs; it publishes none for
#: messages, each of which costs the event loop about 1 µs.
ITEMS_MAX: Final = 2_048
#: Tools and legacy functions in a request. Source: OpenAI API reference, ``tools``.
TOOLS_MAX: Final = 128
#: Tokens that a chat template adds around a message (3 to 5 at OpenAI) and around a tool.
TOKENS_PER_MESSAGE: Final = 16
TOKENS_PER_TOOL: Final = 64
#: The prompt's tokens as estimated for limits, in bytes of body each: OpenAI's rule of thumb for
#: English. What was used is put right later; money is bounded, not estimated.
BYTES_PER_TOKEN: Final = 4

#: What a model that exists isn't served for.
_JOBS: Final[Mapping[Endpoint, str]] = {
    "chat": "chat completions",
    "completions": "completions",
    "embeddings": "embeddings",
    "moderations": "moderations",
    "responses": "responses",
    "images": "the generation of images",
    "speech": "speech",
    "transcriptions": "transcriptions",
    "translations": "translations",
}
#: Where OpenAI's API lets the model be left out.
_HAS_DEFAULT_MODEL: Final = ("moderations", "images")

_T = TypeVar("_T")

# Decoders hold no state, so one of each serves all requests.
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
STRING: Final = msgspec.json.Decoder(str)
STRINGS: Final = msgspec.json.Decoder(list[str])
OBJECTS: Final = msgspec.json.Decoder(list[dict[str, Raw]])
STRING_OR_NULL: Final[msgspec.json.Decoder[str | None]] = msgspec.json.Decoder(str | None)
FLAG_OR_NULL: Final[msgspec.json.Decoder[bool | None]] = msgspec.json.Decoder(bool | None)
INTEGER_OR_NULL: Final[msgspec.json.Decoder[int | None]] = msgspec.json.Decoder(int | None)
NUMBER_OR_NULL: Final[msgspec.json.Decoder[float | None]] = msgspec.json.Decoder(float | None)
STRINGS_OR_NULL: Final[msgspec.json.Decoder[list[str] | None]] = msgspec.json.Decoder(
    list[str] | None
)
OBJECT_OR_NULL: Final[msgspec.json.Decoder[dict[str, Raw] | None]] = msgspec.json.Decoder(
    dict[str, Raw] | None
)
OBJECTS_OR_NULL: Final[msgspec.json.Decoder[list[dict[str, Raw]] | None]] = msgspec.json.Decoder(
    list[dict[str, Raw]] | None
)
_ENCODER: Final = msgspec.json.Encoder()

# Words are compared as bytes. JSON has longer spellings of strings (\u0074ext), which no client
# writes for these; they count as another word, which is the safe side.
NULL: Final = Raw(b"null")
#: Kinds of tools that the caller runs.
OWN_TOOLS: Final = (Raw(b'"function"'), Raw(b'"custom"'))
#: Tiers at or below the standard price. Not "auto": that is whatever the account is set to.
_CHEAP_TIERS: Final = (Raw(b'"default"'), Raw(b'"flex"'), NULL)
_USAGE_ONLY: Final = Raw(b'{"include_usage":true}')


class Rules(NamedTuple):
    """The operator's ``[policy]`` as far as it concerns what a request contains."""

    n_max: int
    unknown_fields: Literal["drop", "refuse"]


class Prepared:
    """A request that may be sent, and what the decisions after this one need to know of it."""

    __slots__ = (
        "adjusted",
        "body",
        "endpoint",
        "hides_usage",
        "model",
        "output_tokens",
        "prompt_tokens",
        "prompt_tokens_max",
        "stream",
        "units",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        body: bytes,
        model: Model,
        stream: bool,
        hides_usage: bool,
        prompt_tokens: int,
        output_tokens: int,
        prompt_tokens_max: int,
        units: int,
        adjusted: bytes,
    ) -> None:
        self.endpoint: Final = endpoint
        #: What is sent; empty for a form.
        self.body: Final = body
        self.model: Final = model
        self.stream: Final = stream
        #: We asked for the usage chunk and the caller didn't: it has to be held back.
        self.hides_usage: Final = hides_usage
        #: An estimate, for the limits.
        self.prompt_tokens: Final = prompt_tokens
        #: Choices times their ceiling; 0 where an endpoint has none.
        self.output_tokens: Final = output_tokens
        #: An upper bound, for the money.
        self.prompt_tokens_max: Final = prompt_tokens_max
        #: Images, speeches or audio files that are priced as such; 0 where tokens tell the price.
        self.units: Final = units
        #: Value of ``x-freeapi-adjusted``; empty: send no such header.
        self.adjusted: Final = adjusted

    def over(self, upstreams: tuple[str, ...]) -> Prepared:
        """The same request for these upstreams only."""
        model = msgspec.structs.replace(self.model, upstreams=upstreams)
        tokens = (self.prompt_tokens, self.output_tokens, self.prompt_tokens_max, self.units)
        flags = (self.stream, self.hides_usage)
        return Prepared(self.endpoint, self.body, model, *flags, *tokens, self.adjusted)


class Draft:
    """The fields as they are so far, and what was found in them."""

    __slots__ = ("changes", "endpoint", "fields", "image_bytes", "image_count", "model", "n_max")

    def __init__(
        self, endpoint: Endpoint, fields: Fields, changes: Changes, model: Model, n_max: int
    ) -> None:
        self.endpoint = endpoint
        self.fields = fields
        self.changes = changes
        self.model = model
        self.n_max = n_max
        self.image_count = 0
        #: What the images take up in the body.
        self.image_bytes = 0

    def finish(
        self,
        stream: bool = False,
        hides_usage: bool = False,
        output_tokens: int = 0,
        extra_tokens: int = 0,
        units: int = 0,
    ) -> Prepared:
        """Encode what is left; ``extra_tokens`` are those of the prompt that no byte stands for.

        A token of a byte-level BPE is one byte at least, and JSON is no shorter than what it says.
        """
        body = _ENCODER.encode(self.fields)
        text_bytes = len(body) - self.image_bytes
        image_tokens = self.image_count * self.model.image_tokens_max
        return Prepared(
            self.endpoint,
            body,
            self.model,
            stream,
            hides_usage,
            text_bytes // BYTES_PER_TOKEN + image_tokens,
            output_tokens,
            text_bytes + extra_tokens + image_tokens,
            units,
            self.changes.header(),
        )


def open_draft(endpoint: Endpoint, body: bytes, table: ModelTable, rules: Rules) -> Draft:
    """The fields of a body in UTF-8, the model put under its upstream's name.

    Raises InvalidJson, InvalidValue, ModelNotFound.
    """
    fields = _split(body)
    given = fields.get("model", NULL)
    if endpoint in _HAS_DEFAULT_MODEL and given == NULL:
        model = _default_model(endpoint, table)
    else:
        model = find_model(endpoint, decode(STRING, given, "model", "the name of a model"), table)
    fields["model"] = model.upstream_model
    return Draft(endpoint, fields, Changes(rules.unknown_fields == "refuse"), model, rules.n_max)


def _split(body: bytes) -> Fields:
    """The top level's raw fields. Raises InvalidJson."""
    try:
        return _OBJECT.decode(body)
    except msgspec.ValidationError:
        raise InvalidJson(problem="it is not an object") from None
    except msgspec.DecodeError:
        raise InvalidJson(problem=_why_not_json(body)) from None


def _why_not_json(body: bytes) -> str:
    if not body:
        return "it is empty"
    if body.startswith(b"\xef\xbb\xbf"):
        return "it starts with a byte order mark"
    return "it is not valid JSON"


def find_model(endpoint: Endpoint, name: str, table: ModelTable) -> Model:
    """The model of that name. Raises ModelNotFound, InvalidValue if it is for other endpoints."""
    if not name:
        raise InvalidValue(param="model", problem="it must be the name of a model")
    model = table.get(name)
    if endpoint not in model.endpoints:
        problem = f"this model is not served for {_JOBS[endpoint]}"
        raise InvalidValue(param="model", problem=problem)
    return model


def _default_model(endpoint: Endpoint, table: ModelTable) -> Model:
    """The first that the operator lists for the endpoint."""
    for model in table.serving(endpoint):
        if model.name != ANY_MODEL:
            return model
    raise InvalidValue(param="model", problem="it must be the name of a model")


def decode(decoder: msgspec.json.Decoder[_T], value: Raw, param: str, wanted: str) -> _T:
    """Raises InvalidValue, without msgspec's wording."""
    try:
        return decoder.decode(value)
    except msgspec.DecodeError:
        raise InvalidValue(param=param, problem=f"it must be {wanted}") from None


def check_text(fields: Fields, name: str, path: str = "") -> str:
    """A string that has to be there. Raises InvalidValue."""
    return decode(STRING, fields.get(name, NULL), f"{path}{name}", "a string")


# --- Counts and ceilings --------------------------------------------------------------------------


def take_count(fields: Fields, name: str) -> int | None:
    """Take the field out; its value if it has one. Raises InvalidValue unless it is at least 1."""
    if name not in fields:
        return None
    number = decode(INTEGER_OR_NULL, fields.pop(name), name, "a whole number")
    if number is not None and number < 1:
        raise InvalidValue(param=name, problem="it must be at least 1")
    return number


def take_choices(draft: Draft, name: str = "n") -> int:
    """How many answers are asked for, as far as the operator allows them. Raises InvalidValue."""
    choices = take_count(draft.fields, name)
    if choices is None:
        return 1
    if choices > draft.n_max:
        raise InvalidValue(param=name, problem=f"this instance allows at most {draft.n_max}")
    draft.fields[name] = choices
    return choices


def put_ceiling(draft: Draft, name: str, default: int) -> int:
    """Put the smaller of what was asked for and what the model allows in that field."""
    asked = take_count(draft.fields, name)
    ceiling = min(default, draft.model.max_output_tokens)
    if asked is not None:
        ceiling = lowered(draft, name, asked)
    draft.fields[name] = ceiling
    return ceiling


def lowered(draft: Draft, name: str, asked: int) -> int:
    """The number of output tokens, at most the model's; who asked for more is told."""
    ceiling = draft.model.max_output_tokens
    if asked <= ceiling:
        return asked
    draft.changes.note(f"{name}={ceiling}")
    return ceiling


# --- Streams --------------------------------------------------------------------------------------


def take_stream(draft: Draft) -> bool:
    """Whether it streams; without a stream the field is left out. Raises InvalidValue."""
    given = draft.fields.pop("stream", NULL)
    stream = bool(decode(FLAG_OR_NULL, given, "stream", "true or false"))
    if stream:
        draft.fields["stream"] = True
    return stream


def take_stream_options(draft: Draft, stream: bool, table: Mapping[str, Rule]) -> Fields | None:
    """The options, out of the draft. Raises InvalidValue if there are any without a stream."""
    if "stream_options" not in draft.fields:
        return None
    given = draft.fields.pop("stream_options")
    options: Fields | None = decode(OBJECT_OR_NULL, given, "stream_options", "an object")
    if options is None:
        return None
    if not stream:
        problem = "it is only allowed when 'stream' is true"
        raise InvalidValue(param="stream_options", problem=problem)
    apply(table, options, draft.changes, "stream_options.")
    return options


def ask_usage(draft: Draft) -> tuple[bool, bool]:
    """Whether it streams, and whether the usage chunk is for us alone. Raises InvalidValue."""
    fields = draft.fields
    if "stream" not in fields and "stream_options" not in fields:
        return False, False
    stream = take_stream(draft)
    options = take_stream_options(draft, stream, STREAM_OPTION_FIELDS)
    if not stream:
        return False, False
    if options is None:
        fields["stream_options"] = _USAGE_ONLY
        return True, True
    wanted = options.get("include_usage", NULL)
    shows = decode(FLAG_OR_NULL, wanted, "stream_options.include_usage", "true or false")
    options["include_usage"] = True
    fields["stream_options"] = options
    return True, not shows


# --- Tools and tiers ------------------------------------------------------------------------------


def check_tools(draft: Draft, name: str, table: Mapping[str, Rule]) -> int:
    """How many tools there are, all of them such as the caller runs."""
    if name not in draft.fields:
        return 0
    given = draft.fields.pop(name)
    tools: list[Fields] | None = decode(OBJECTS_OR_NULL, given, name, "a list of objects")
    if tools is None:
        return 0
    check_tool_count(len(tools), name)
    for index, tool in enumerate(tools):
        path = f"{name}[{index}]."
        require_own_tool(tool, path)
        apply(table, tool, draft.changes, path)
    draft.fields[name] = tools
    return len(tools)


def check_tool_count(count: int, name: str) -> None:
    """Raises InvalidValue."""
    if count > TOOLS_MAX:
        raise InvalidValue(param=name, problem=f"there can be at most {TOOLS_MAX} of them")


def require_own_tool(tool: Fields, path: str) -> None:
    """Raises UnsupportedParameter."""
    if tool.get("type") not in OWN_TOOLS:
        raise UnsupportedParameter(
            param=f"{path}type",
            problem="tools are of type 'function' or 'custom', since others are billed outside of "
            "tokens",
        )


def drop_dear_tier(draft: Draft) -> None:
    """No service tier that may cost more than the standard one."""
    if draft.fields.get("service_tier", NULL) not in _CHEAP_TIERS:
        del draft.fields["service_tier"]
        draft.changes.note("service_tier=dropped")
