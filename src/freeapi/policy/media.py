"""Images and speech: what is priced by the piece, and how many pieces a request may ask for.

What this is not: no table of sizes, qualities or voices. What the dearest image or the longest
speech may cost is the operator's ``unit_nanousd``; the upstream checks the rest.

Invariants:
- Each piece is counted; what would make a piece cost more without limit (animations, a second
  model) is refused.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.draft import (
    INTEGER_OR_NULL,
    NULL,
    NUMBER_OR_NULL,
    STRING_OR_NULL,
    Draft,
    Prepared,
    check_text,
    decode,
    take_choices,
    take_stream,
)
from freeapi.policy.fields import apply
from freeapi.policy.tables import IMAGE_FIELDS, SPEECH_FIELDS

#: Source: OpenAI API reference, ``partial_images``; each costs about 100 output tokens more.
_PARTIAL_IMAGES_MAX: Final = 3
#: Characters. Source: OpenAI API reference, "Create speech".
SPEECH_CHARACTERS_MAX: Final = 4_096

_IMAGE_WORDS: Final = (
    "background",
    "complexity",
    "moderation",
    "quality",
    "response_format",
    "size",
    "style",
)
#: A gif has up to 16 frames, an svg is drawn by a second model.
_STILL_FORMATS: Final = (None, "png", "jpeg", "webp")
_SPEECH_FORMATS: Final = (None, "audio", "sse")
_VOICE: Final[msgspec.json.Decoder[str | dict[str, Raw]]] = msgspec.json.Decoder(
    str | dict[str, Raw]
)


def prepare_images(draft: Draft) -> Prepared:
    """The body of ``POST /v1/images/generations`` as it may be sent."""
    apply(IMAGE_FIELDS, draft.fields, draft.changes, "")
    check_text(draft.fields, "prompt")
    for name in _IMAGE_WORDS:
        _word(draft, name)
    if _word(draft, "output_format") not in _STILL_FORMATS:
        problem = "the formats here are png, jpeg and webp, since others cost more than one image"
        raise UnsupportedParameter(param="output_format", problem=problem)
    _integer(draft, "output_compression")
    partial_images = _integer(draft, "partial_images")
    if partial_images is not None and not 0 <= partial_images <= _PARTIAL_IMAGES_MAX:
        problem = f"it must be 0 to {_PARTIAL_IMAGES_MAX}"
        raise InvalidValue(param="partial_images", problem=problem)
    return draft.finish(take_stream(draft), units=take_choices(draft))


def prepare_speech(draft: Draft) -> Prepared:
    """The body of ``POST /v1/audio/speech`` as it may be sent; a stream only as server-sent events.

    Without events the sound itself is sent as it is made, which needs no other treatment.
    """
    apply(SPEECH_FIELDS, draft.fields, draft.changes, "")
    text = check_text(draft.fields, "input")
    if not 1 <= len(text) <= SPEECH_CHARACTERS_MAX:
        problem = f"it must be 1 to {SPEECH_CHARACTERS_MAX} characters"
        raise InvalidValue(param="input", problem=problem)
    _check_voice(draft)
    _word(draft, "instructions")
    _word(draft, "response_format")
    decode(NUMBER_OR_NULL, draft.fields.get("speed", NULL), "speed", "a number")
    stream_format = _word(draft, "stream_format")
    if stream_format not in _SPEECH_FORMATS:
        raise InvalidValue(param="stream_format", problem="it must be 'audio' or 'sse'")
    return draft.finish(stream_format == "sse", units=1)


def _check_voice(draft: Draft) -> None:
    given = draft.fields.get("voice", NULL)
    if isinstance(decode(_VOICE, given, "voice", "a string"), dict):
        problem = "voices of one's own belong to the instance's account"
        raise UnsupportedParameter(param="voice", problem=problem)


def _word(draft: Draft, name: str) -> str | None:
    return decode(STRING_OR_NULL, draft.fields.get(name, NULL), name, "a string")


def _integer(draft: Draft, name: str) -> int | None:
    return decode(INTEGER_OR_NULL, draft.fields.get(name, NULL), name, "a whole number")
