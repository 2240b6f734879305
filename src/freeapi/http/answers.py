"""What is read of an upstream's JSON: the shapes, and the decoders that know them.

By itself, since this module isn't compiled: there msgspec would lose the options of its structs.

Pure. Source: OpenAI API reference, the usage objects and the events of each endpoint.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

#: No model takes or gives a thousandth of it: more, or less than none, is a mistake, and no usage.
TOKENS_MAX: Final = 1_000_000_000
Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class Usage(msgspec.Struct, frozen=True):
    """What the upstream says that it will bill."""

    prompt_tokens: int
    completion_tokens: int


class Counts(msgspec.Struct):
    """The same in all spellings; those of a file's duration and of characters have none of them."""

    prompt_tokens: Tokens | None = None  # chat, completions, embeddings
    completion_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    input_tokens: Tokens | None = None  # responses, images, audio
    output_tokens: Tokens | None = None


class Answer(msgspec.Struct):
    """A whole answer, or one end of it made whole."""

    usage: Counts | None = None


class Whole(Answer):
    """A whole answer, and whether it reports an error."""

    error: object = None


class ResponseEvent(msgspec.Struct):
    """An event about a response, or the end of one made whole."""

    response: Answer


class Event(msgspec.Struct):
    """The fields of an event, or of the response in it, that matter here."""

    type: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")
    response: msgspec.Raw = msgspec.Raw(b"null")
    usage: msgspec.Raw = msgspec.Raw(b"null")
    choices: msgspec.Raw = msgspec.Raw(b"null")


class Error(msgspec.Struct):
    """What of an error object may pass."""

    code: str = ""


# Each raises msgspec.DecodeError, and RecursionError where brackets have no end.
decode_counts: Final = msgspec.json.Decoder(Counts).decode
decode_answer: Final = msgspec.json.Decoder(Answer).decode
decode_whole: Final = msgspec.json.Decoder(Whole).decode
decode_response: Final = msgspec.json.Decoder(ResponseEvent).decode
decode_event: Final = msgspec.json.Decoder(Event).decode
decode_error: Final = msgspec.json.Decoder(Error).decode
