"""What a chat message looks like that needs no second look.

By itself, since this module isn't compiled: there msgspec would lose the options of its structs.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw


class PlainMessage(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Known fields and no audio; encoded, it has the fields that it came with, as they were.

    Still to be checked: whether role and content are text.
    """

    role: Raw
    content: Raw = Raw(b"null")
    name: Raw = Raw()
    refusal: Raw = Raw()
    tool_calls: Raw = Raw()
    tool_call_id: Raw = Raw()
    function_call: Raw = Raw()
    reasoning_content: Raw = Raw()


#: A list of them; raises msgspec.ValidationError if one is none.
decode_messages: Final = msgspec.json.Decoder(list[PlainMessage]).decode
