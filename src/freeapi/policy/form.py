"""The text fields of an audio form: what passes, and what is decided before the file is sent.

A form's fields come one after another, and the file of 25 MB may come before ``model``. So a form
is checked twice where it has to be: as far as it is known before the file is sent, and as a whole
before its end is.

What this is not: no bytes of multipart, no look into the file: its name is ours, its kind is that
of the caller's file name.

Invariants:
- ``model`` is sent first and once, under the upstream's name, whatever the caller's order.
- A field that stands for one value is there once; all values together are at most FORM_BYTES_MAX.
- While fields may still come, the prompt's bound is that of a form as long as a form can be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.draft import BYTES_PER_TOKEN, TOKENS_PER_MESSAGE, Prepared, Rules, find_model
from freeapi.policy.fields import Changes, Rule
from freeapi.policy.models import Endpoint, ModelTable
from freeapi.policy.tables import TRANSCRIPTION_FIELDS, TRANSLATION_FIELDS

#: Of all values together. A prompt of 224 tokens is the most that Whisper looks at.
FORM_BYTES_MAX: Final = 16_384
#: Lists are fields of the same name, with ``[]`` behind it or not, one for each of their values.
FORM_FIELDS_MAX: Final = 128
#: Kind of file by the end of its name. Source: OpenAI API reference, "Create transcription", and
#: the registered media types.
FILE_TYPES: Final[Mapping[str, str]] = {
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "mp4": "audio/mp4",
    "mpeg": "audio/mpeg",
    "mpga": "audio/mpeg",
    "m4a": "audio/mp4",
    "ogg": "audio/ogg",
    "wav": "audio/wav",
    "webm": "audio/webm",
}

_TABLES: Final[Mapping[Endpoint, Mapping[str, Rule]]] = {
    "transcriptions": TRANSCRIPTION_FIELDS,
    "translations": TRANSLATION_FIELDS,
}
_LISTS: Final = frozenset(
    {
        "include",
        "keywords",
        "known_speaker_names",
        "known_speaker_references",
        "languages",
        "timestamp_granularities",
    }
)
#: How SDKs write the fields of an object.
_VAD: Final = re.compile(r"chunking_strategy\[[a-z_]{1,32}\]")


class Form(msgspec.Struct, frozen=True):
    """A form that may be sent."""

    prepared: Prepared
    #: Names and values in the order in which they are sent, ``model`` first.
    fields: tuple[tuple[str, bytes], ...]
    #: ``audio.`` and the kind of the caller's file.
    file_name: str
    #: Media type of that kind.
    file_type: str


class _Fields(msgspec.Struct):
    """The fields as they are gone through."""

    table: Mapping[str, Rule]
    changes: Changes
    names: set[str] = msgspec.field(default_factory=set)
    kept: list[tuple[str, bytes]] = []
    model: str = ""
    stream: bool = False


def check_form(
    endpoint: Endpoint,
    fields: Sequence[tuple[str, bytes]],
    table: ModelTable,
    rules: Rules,
    file_name: str,
    is_whole: bool = True,
) -> Form:
    """The fields as they may be sent, and the name under which the file is.

    While not ``is_whole`` more fields may follow: check again when all are there, and send those.
    Raises InvalidValue, UnsupportedParameter, ModelNotFound. O(bytes).
    """
    size = sum(len(value) for _, value in fields)
    if size > FORM_BYTES_MAX or len(fields) > FORM_FIELDS_MAX:
        problem = f"there can be at most {FORM_FIELDS_MAX} fields of {FORM_BYTES_MAX} bytes in all"
        raise InvalidValue(param="form", problem=problem)
    found = _Fields(_TABLES[endpoint], Changes(rules.unknown_fields == "refuse"))
    for name, value in fields:
        _take(found, name, value)
    model = find_model(endpoint, found.model, table)
    kind = _file_kind(file_name)
    text_bytes = size if is_whole else FORM_BYTES_MAX
    prepared = Prepared(
        endpoint=endpoint,
        body=b"",
        model=model,
        stream=found.stream,
        hides_usage=False,
        prompt_tokens=text_bytes // BYTES_PER_TOKEN,
        output_tokens=0,
        prompt_tokens_max=text_bytes + TOKENS_PER_MESSAGE,
        units=1,
        adjusted=found.changes.header(),
    )
    sent = (("model", model.upstream_model.encode()), *found.kept)
    return Form(prepared, sent, f"audio.{kind}", FILE_TYPES[kind])


def _take(found: _Fields, full_name: str, value: bytes) -> None:
    """One field: kept, dropped, or refused by its name; an empty value is no field."""
    if not value:
        return
    name = _bare(full_name)
    rule = found.table.get(name)
    if rule is None:
        found.changes.drop_unknown("", full_name)
    elif rule.action == "refuse":
        raise UnsupportedParameter(param=name, problem=rule.why)
    elif rule.action == "drop":
        found.changes.note(f"{name}=dropped")
    else:
        _keep(found, name, full_name, value)


def _bare(full_name: str) -> str:
    """The name in the table, of a field that may have brackets."""
    name, bracket, inner = full_name.partition("[")
    if bracket and ((name in _LISTS and inner == "]") or _VAD.fullmatch(full_name)):
        return name
    return full_name


def _keep(found: _Fields, name: str, full_name: str, value: bytes) -> None:
    """Raises InvalidValue where a field comes again that isn't a list."""
    text = _text(value, name)
    if name not in _LISTS:
        if full_name in found.names:
            raise InvalidValue(param=name, problem="it is there more than once")
        found.names.add(full_name)
    if name == "model":
        found.model = text
        return
    if name == "stream":
        found.stream = _flag(value)
    found.kept.append((full_name, value))


def _flag(value: bytes) -> bool:
    if value not in (b"true", b"false"):
        raise InvalidValue(param="stream", problem="it must be true or false")
    return value == b"true"


def _text(value: bytes, param: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidValue(param=param, problem="it must be text in UTF-8") from None


def _file_kind(file_name: str) -> str:
    """Raises InvalidValue unless it ends as OpenAI wants it."""
    _, dot, end = file_name.rpartition(".")
    kind = end.lower()
    if not dot or kind not in FILE_TYPES:
        problem = f"the file's name must end in one of {', '.join(FILE_TYPES)}"
        raise InvalidValue(param="file", problem=problem)
    return kind
