"""What a chat request looks like that can be sent as it is, but for its model, ceiling and stream.

Most requests do; msgspec checks them while it scans them, in one go. By itself, since this module
isn't compiled: there msgspec would lose the options of its structs.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw

from freeapi.policy.draft import ITEMS_MAX, TOOLS_MAX
from freeapi.policy.parts import PARTS_MAX

#: Names that the tables don't let through aren't there. Encoded, an object has the fields that it
#: came with, as they were, and once each; where a type has None, a null is left out.
_Count = Annotated[int, Meta(ge=1)]


class PlainMessage(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Still to be checked: whether the content is text, or a list of ``PlainParts``."""

    role: str
    content: Raw = Raw(b"null")
    name: Raw = Raw()
    refusal: Raw = Raw()
    tool_calls: Raw = Raw()
    tool_call_id: Raw = Raw()
    reasoning_content: Raw = Raw()


class PlainPart(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Still to be checked: whether its type is one of text."""

    type: Raw
    text: Raw = Raw()
    refusal: Raw = Raw()


PlainParts = Annotated[list[PlainPart], Meta(max_length=PARTS_MAX)]


class PlainTool(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Still to be checked: whether its type is one that the caller runs."""

    type: Raw
    function: Raw = Raw()
    custom: Raw = Raw()


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Nothing is left to be checked."""

    include_usage: bool | None = None
    include_obfuscation: Raw = Raw()


class PlainRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Not all fields that pass, but those that many send: each costs all requests a little.

    Still to be checked: whether the ceiling is low enough, and whether the options have a stream.
    """

    model: str
    messages: Annotated[list[PlainMessage], Meta(min_length=1, max_length=ITEMS_MAX)]
    temperature: Raw = Raw()
    top_p: Raw = Raw()
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1, None] = None
    stop: Raw = Raw()
    presence_penalty: Raw = Raw()
    frequency_penalty: Raw = Raw()
    seed: Raw = Raw()
    response_format: Raw = Raw()
    reasoning_effort: Raw = Raw()
    tools: Annotated[list[PlainTool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Raw = Raw()
    parallel_tool_calls: Raw = Raw()


#: For who streams and didn't ask for the usage; not to be changed.
USAGE_ONLY: Final = StreamOptions(include_usage=True)
