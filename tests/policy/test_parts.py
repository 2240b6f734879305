"""Parts of content: text passes, images only as data and where the model has a bound for them."""

from __future__ import annotations

from typing import Any

import pytest

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.models import Endpoint
from freeapi.policy.parts import IMAGES_MAX, PARTS_MAX
from tests.bodies import IMAGE_TOKENS, PIXEL, prepare_fields, refusal, sent

Part = dict[str, Any]


def chat_image(url: object = PIXEL, **more: Any) -> Part:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def response_image(url: object = PIXEL, **more: Any) -> Part:
    return {"type": "input_image", "image_url": url, **more}


def holding(endpoint: Endpoint, parts: list[Part]) -> dict[str, Any]:
    """The fields of a request that has these parts."""
    message = [{"role": "user", "content": parts}]
    fields = {"chat": {"messages": message}, "responses": {"input": message}}
    return fields.get(endpoint, {"input": parts})


IMAGES = [("chat", chat_image), ("moderations", chat_image), ("responses", response_image)]
with_images = pytest.mark.parametrize(("endpoint", "image"), IMAGES)


@with_images
def test_an_image_counts_as_the_operator_says(endpoint: Endpoint, image: Any) -> None:
    """It is sent as it is, and its bytes are replaced by its tokens in estimate and bound."""
    one, two = (
        prepare_fields(endpoint, model="seer", **holding(endpoint, [image(url)]))
        for url in (PIXEL, PIXEL + "A" * 4_000)
    )
    assert sent(two).items() >= holding(endpoint, [image(PIXEL + "A" * 4_000)]).items()
    assert one.prompt_tokens == two.prompt_tokens
    assert one.prompt_tokens_max == two.prompt_tokens_max
    assert one.prompt_tokens > IMAGE_TOKENS
    assert one.prompt_tokens_max > IMAGE_TOKENS + len(one.body) - len(PIXEL) - 3


@with_images
def test_without_a_bound_there_are_no_images(endpoint: Endpoint, image: Any) -> None:
    """A model without ``image_tokens_max`` takes none, and the error says so."""
    error = refusal(UnsupportedParameter, endpoint, model="all", **holding(endpoint, [image()]))
    assert "no images" in error.message


@with_images
@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/cat.png",
        "http://169.254.169.254/",
        "data:image/svg+xml;base64,AA==",
        "data:image/png,AA",
        "DATA:image/png;base64,AA==",
        " data:image/png;base64,AA==",
        "",
    ],
)
def test_only_the_image_itself_is_taken(endpoint: Endpoint, image: Any, url: str) -> None:
    """No URL that has to be fetched, and no kind that isn't a picture of OpenAI's."""
    fields = holding(endpoint, [image(url)])
    error = refusal(UnsupportedParameter, endpoint, model="seer", **fields)
    assert "data: URL" in error.message
    assert "example" not in error.message


@with_images
@pytest.mark.parametrize("url", [None, 3, {}, []])
def test_an_images_url_is_a_string(endpoint: Endpoint, image: Any, url: object) -> None:
    """Anything else is refused."""
    refusal(InvalidValue, endpoint, model="seer", **holding(endpoint, [image(url)]))


@with_images
def test_the_number_of_images_is_bounded(endpoint: Endpoint, image: Any) -> None:
    """As many as the bound pass, one more doesn't."""
    prepare_fields(endpoint, model="seer", **holding(endpoint, [image()] * IMAGES_MAX))
    over = holding(endpoint, [image()] * (IMAGES_MAX + 1))
    assert "images" in refusal(InvalidValue, endpoint, model="seer", **over).message


@with_images
def test_the_number_of_parts_is_bounded(endpoint: Endpoint, image: Any) -> None:
    """As many parts as the bound pass, one more doesn't."""
    text = {"type": "input_text" if endpoint == "responses" else "text", "text": "hi"}
    prepare_fields(endpoint, **holding(endpoint, [text] * PARTS_MAX))
    refusal(InvalidValue, endpoint, **holding(endpoint, [text] * (PARTS_MAX + 1)))


def test_detail_passes_and_the_unknown_does_not() -> None:
    """Within an image only what is known is sent; a text part has no image beside its text."""
    parts = [chat_image(detail="low", odd=1), {"type": "text", "text": "a", "image_url": {}}]
    prepared = prepare_fields("chat", model="seer", **holding("chat", parts))
    content = sent(prepared)["messages"][0]["content"]
    assert content == [chat_image(detail="low"), {"type": "text", "text": "a"}]
    assert prepared.adjusted == b"+2"


def test_files_of_the_account_are_refused() -> None:
    """An image by file id would be one of the instance's own account."""
    fields = holding("responses", [{"type": "input_image", "file_id": "file-1"}])
    error = refusal(UnsupportedParameter, "responses", model="seer", **fields)
    assert error.param == "input[0].content[0].file_id"


@pytest.mark.parametrize("annotations", [[{"type": "file_path", "file_id": "file-1"}], [], None])
def test_annotations_of_hosted_tools_are_dropped(annotations: object) -> None:
    """Empty ones, which SDKs send back, stay."""
    part = {"type": "output_text", "text": "hi", "annotations": annotations}
    prepared = prepare_fields("responses", **holding("responses", [part]))
    assert b"file-1" not in prepared.body
    assert prepared.adjusted == (b"annotations=dropped" if annotations else b"")
