"""What a chat message looks like that needs no second look.

By itself, since this module isn't compiled: there msgspec would lose the options of its structs.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw


class PlainMessage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Known fields, text for content, no audio."""

    role: str
    content: str | None = None
    name: Raw = Raw()
    refusal: Raw = Raw()
    tool_calls: Raw = Raw()
    tool_call_id: Raw = Raw()
    function_call: Raw = Raw()
    reasoning_content: Raw = Raw()


#: A list of them; raises msgspec.ValidationError if one is none.
decode_plain_messages: Final = msgspec.json.Decoder(list[PlainMessage]).decode
