"""Images and speech: what is counted by the piece, and what would make a piece cost more."""

from __future__ import annotations

from typing import Any

import pytest

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.media import SPEECH_CHARACTERS_MAX
from tests.bodies import prepare_fields, refusal, sent

IMAGE = {
    "background": "opaque",
    "complexity": "low",
    "moderation": "low",
    "n": 2,
    "output_compression": 50,
    "output_format": "webp",
    "partial_images": 3,
    "quality": "low",
    "response_format": "b64_json",
    "size": "1024x1024",
    "stream": True,
    "style": "vivid",
}
SPEECH = {
    "instructions": "slowly",
    "response_format": "wav",
    "speed": 1.5,
    "stream_format": "sse",
    "voice": "alloy",
}


def test_images_pass_and_are_counted() -> None:
    """Every field that an image may have is sent as it came; each image is a unit."""
    prepared = prepare_fields("images", **IMAGE)
    assert sent(prepared).items() >= IMAGE.items()
    assert (prepared.units, prepared.output_tokens, prepared.stream) == (2, 0, True)
    assert prepare_fields("images").units == 1
    assert "at most 4" in refusal(InvalidValue, "images", n=5).message


@pytest.mark.parametrize("name", sorted(IMAGE.keys() - {"stream", "n"}))
def test_fields_of_images_are_of_their_types(name: str) -> None:
    """A null is no field, an object is refused."""
    prepare_fields("images", **{name: None})
    assert refusal(InvalidValue, "images", **{name: {}}).param == name


@pytest.mark.parametrize("prompt", [..., None, 1, ["a cat"]])
def test_an_image_has_a_prompt(prompt: object) -> None:
    """A text, and nothing else."""
    assert refusal(InvalidValue, "images", prompt=prompt).param == "prompt"


@pytest.mark.parametrize("count", [-1, 4])
def test_partial_images_are_bounded(count: int) -> None:
    """Each is billed too."""
    assert refusal(InvalidValue, "images", partial_images=count).param == "partial_images"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_format", "gif"),
        ("output_format", "svg"),
        ("svg", {"model": "x"}),
        ("frame_count", 16),
        ("frame_duration_ms", 100),
    ],
)
def test_what_is_more_than_an_image_is_refused(name: str, value: object) -> None:
    """Animations, and drawings by a second model."""
    assert refusal(UnsupportedParameter, "images", **{name: value}).param == name


def test_a_speech_is_one_unit() -> None:
    """Every field of a speech is sent; it streams where events are asked for."""
    prepared = prepare_fields("speech", **SPEECH)
    assert sent(prepared).items() >= SPEECH.items()
    assert (prepared.units, prepared.stream) == (1, True)
    for stream_format in ("audio", None, ...):
        assert not prepare_fields("speech", stream_format=stream_format).stream


@pytest.mark.parametrize("text", ["x" * SPEECH_CHARACTERS_MAX, "語" * SPEECH_CHARACTERS_MAX])
def test_a_speech_is_as_long_as_openais(text: str) -> None:
    """The bound is on characters, whatever they take in bytes."""
    assert sent(prepare_fields("speech", input=text))["input"] == text
    assert refusal(InvalidValue, "speech", input=text + "x").param == "input"


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""},
        {"input": None},
        {"input": ["hi"]},
        {"voice": ...},
        {"voice": 1},
        {"instructions": {}},
        {"response_format": 1},
        {"speed": "fast"},
        {"stream_format": "ws"},
    ],
)
def test_fields_of_a_speech_are_of_their_types(fields: dict[str, Any]) -> None:
    """The error points at the field."""
    assert refusal(InvalidValue, "speech", **fields).param == next(iter(fields))


def test_voices_of_the_account_are_refused() -> None:
    """A voice by its id is one that somebody made of the instance's account."""
    assert refusal(UnsupportedParameter, "speech", voice={"id": "voice_1"}).param == "voice"
