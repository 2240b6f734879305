"""Parts of a message's content: text passes, images only where they have a price bound.

The plan: each part is an object of raw fields; its type says which table of fields holds, and which
check its value needs. Images are counted in the draft, since what they cost doesn't follow from the
bytes that they take up.

What this is not: no look into an image, and no fetching: only ``data:`` URLs of the kinds of
pictures that OpenAI takes are let through. Another URL would have the upstream fetch what has no
bound, from wherever the caller says.

Invariants:
- A part of a type that isn't listed never passes, nor an image of a model without
  ``image_tokens_max``.
- Of a repeated ``type``, ``image_url`` or ``url`` the last one counts, and it alone is sent.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.draft import ITEMS_MAX, NULL, OBJECTS, OBJECTS_OR_NULL, STRING, Draft, decode
from freeapi.policy.fields import Fields, Rule, apply, kept
from freeapi.policy.tables import (
    IMAGE_PART_FIELDS,
    IMAGE_URL_FIELDS,
    PART_FIELDS,
    RESPONSE_IMAGE_FIELDS,
    RESPONSE_PART_FIELDS,
)

#: Parts of one message's content; each costs the event loop about 1 µs.
PARTS_MAX: Final = ITEMS_MAX
#: Images in a request: far more than fit in the usual body, so that a body of tiny ones can't
#: reserve without end. Anthropic's and Google's limits are of that order, OpenAI's is 1,500.
IMAGES_MAX: Final = 128

#: How an image may begin. Source: OpenAI, "Images and vision", supported types.
_DATA_URLS: Final = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "gif", "webp"))

#: Of what supports the buffer protocol; a third of what a memoryview takes.
first_byte: Final = struct.Struct("B").unpack_from
#: The first byte tells what a JSON value is: here a string.
QUOTE: Final = 0x22

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_RAW_LIST: Final[msgspec.json.Decoder[list[Raw] | None]] = msgspec.json.Decoder(list[Raw] | None)


class Kind(NamedTuple):
    """What a type of part may hold, and what has to be looked at besides the names."""

    table: Mapping[str, Rule]
    kept: frozenset[str]
    check: Callable[[Draft, Fields, str], None] | None


#: Type as it is spelt in JSON to what holds for it.
Kinds = Mapping[bytes, Kind]


def check_content(draft: Draft, holder: Fields, name: str, path: str, kinds: Kinds) -> bool:
    """Check a text or list of parts in that field, of which there may be none.

    Returns whether there is any. Raises InvalidValue, UnsupportedParameter.
    """
    given = holder.get(name, NULL)
    if first_byte(given)[0] == QUOTE:
        return True
    wanted = "a string or a list of parts (objects)"
    content = decode(OBJECTS_OR_NULL, given, f"{path}.{name}", wanted)
    if content is None:
        return False
    check_parts(draft, content, f"{path}.{name}", kinds)
    holder[name] = content
    return True


def decode_parts(given: Raw, param: str, wanted: str) -> list[Fields]:
    """A list of parts, unchecked. Raises InvalidValue."""
    parts: list[Fields] = decode(OBJECTS, given, param, wanted)
    return parts


def check_parts(draft: Draft, parts: list[Fields], path: str, kinds: Kinds) -> None:
    """Check each in place; about 1 µs each. Raises InvalidValue, UnsupportedParameter."""
    if len(parts) > PARTS_MAX:
        raise InvalidValue(param=path, problem=f"there can be at most {PARTS_MAX} parts")
    for index, part in enumerate(parts):
        kind = kinds.get(bytes(part.get("type", NULL)))
        if kind is None:
            raise UnsupportedParameter(param=f"{path}[{index}].type", problem=_others(kinds))
        if not kind.kept.issuperset(part):
            apply(kind.table, part, draft.changes, f"{path}[{index}].")
        if kind.check is not None:
            kind.check(draft, part, f"{path}[{index}]")


def _others(kinds: Kinds) -> str:
    names = ", ".join(word.decode().replace('"', "'") for word in kinds)
    return f"the types here are {names}, since the cost of others does not follow from their size"


# --- Images ---------------------------------------------------------------------------------------


def _check_image_part(draft: Draft, part: Fields, path: str) -> None:
    """Chat's and moderations' way: the URL is in an object."""
    _require_images(draft, path)
    image: Fields = decode(_OBJECT, part.get("image_url", NULL), f"{path}.image_url", "an object")
    apply(IMAGE_URL_FIELDS, image, draft.changes, f"{path}.image_url.")
    _count_image(draft, image.get("url", NULL), f"{path}.image_url.url")
    part["image_url"] = image


def _check_response_image(draft: Draft, part: Fields, path: str) -> None:
    """The Responses API's way: the URL is a string."""
    _require_images(draft, path)
    _count_image(draft, part.get("image_url", NULL), f"{path}.image_url")


def _require_images(draft: Draft, path: str) -> None:
    if not draft.model.image_tokens_max:
        raise UnsupportedParameter(
            param=f"{path}.type",
            problem="this model takes no images here, since their cost does not follow from their "
            "size",
        )


def _count_image(draft: Draft, given: Raw, param: str) -> None:
    """Raises InvalidValue, and UnsupportedParameter unless the image itself is there."""
    url = decode(STRING, given, param, "a data: URL")
    if not url.startswith(_DATA_URLS):
        raise UnsupportedParameter(
            param=param,
            problem="an image has to be in the request itself, as a data: URL of a png, jpeg, gif "
            "or webp in base64; what other URLs lead to has no bound",
        )
    draft.image_count += 1
    draft.image_bytes += len(bytes(given))
    if draft.image_count > IMAGES_MAX:
        raise InvalidValue(param=param, problem=f"there can be at most {IMAGES_MAX} images")


def _drop_annotations(draft: Draft, part: Fields, path: str) -> None:
    """Annotations point at files and pages of hosted tools, which aren't here; empty ones stay."""
    given = part.get("annotations", NULL)
    if decode(_RAW_LIST, given, f"{path}.annotations", "a list"):
        part["annotations"] = []
        draft.changes.note("annotations=dropped")


_TEXT: Final = Kind(PART_FIELDS, kept(PART_FIELDS), None)
_IMAGE: Final = Kind(IMAGE_PART_FIELDS, kept(IMAGE_PART_FIELDS), _check_image_part)
_RESPONSE_TEXT: Final = Kind(RESPONSE_PART_FIELDS, kept(RESPONSE_PART_FIELDS), _drop_annotations)
_RESPONSE_IMAGE: Final = Kind(
    RESPONSE_IMAGE_FIELDS, kept(RESPONSE_IMAGE_FIELDS), _check_response_image
)

CHAT_PARTS: Final[Kinds] = {b'"text"': _TEXT, b'"refusal"': _TEXT, b'"image_url"': _IMAGE}
MODERATION_PARTS: Final[Kinds] = {b'"text"': _TEXT, b'"image_url"': _IMAGE}
RESPONSE_PARTS: Final[Kinds] = {
    b'"input_text"': _RESPONSE_TEXT,
    b'"output_text"': _RESPONSE_TEXT,
    b'"refusal"': _RESPONSE_TEXT,
    b'"input_image"': _RESPONSE_IMAGE,
}
