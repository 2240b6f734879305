"""Promise: before there is a key, OpenAI's SDK gets real vectors and real text, not only chats.

Against the embedded model itself: what it answers to completions and embeddings is the SDK's own
object, in each form that the SDK can ask for.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.gateway import Gateway

CONFIG = """
[[model]]
name = "tiny"
max_output_tokens = 20
endpoints = ["chat", "completions", "embeddings"]
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """The synchronous SDK in front of an embedded model that makes vectors too."""
    gateway = Gateway(tmp_path_factory.mktemp("vectors"), {}, CONFIG)
    with OpenAI(base_url=gateway.base_url, api_key="sk-free-api", max_retries=0) as client:
        yield client
    gateway.stop()


def likeness(one: list[float], other: list[float]) -> float:
    """The cosine of two vectors' angle."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_vectors_mean_something(client: OpenAI) -> None:
    """The same text has the same vector, another text another one; each is of length 1."""
    texts = ["a cat on a mat", "the price of oil", "a cat on a mat"]
    made = client.embeddings.create(model="tiny", input=texts)
    vectors = [row.embedding for row in made.data]
    assert [row.index for row in made.data] == [0, 1, 2]
    assert made.usage.prompt_tokens > 5
    assert likeness(vectors[0], vectors[0]) == pytest.approx(1, abs=0.01)
    assert likeness(vectors[0], vectors[2]) > 0.99 > likeness(vectors[0], vectors[1])


def test_base64_is_the_same_vector(client: OpenAI) -> None:
    """What the SDK asks for by itself (base64) and plain numbers are the same vector."""
    plain = client.embeddings.create(model="tiny", input="a cat", encoding_format="float")
    default = client.embeddings.create(model="tiny", input="a cat")
    assert default.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-4)
    raw = client.embeddings.with_raw_response.create(
        model="tiny", input="a cat", encoding_format="base64"
    )
    packed = base64.b64decode(raw.http_response.json()["data"][0]["embedding"])
    unpacked = struct.unpack(f"<{len(packed) // 4}f", packed)
    assert list(unpacked) == pytest.approx(plain.data[0].embedding, abs=1e-4)


def test_tokens_are_as_good_as_text(client: OpenAI) -> None:
    """A list of tokens, and a list of such lists, have vectors as texts do."""
    made = client.embeddings.create(model="tiny", input=[[100, 200, 300], [400]])
    assert [len(row.embedding) > 100 for row in made.data] == [True, True]
    assert client.embeddings.create(model="tiny", input=[100, 200, 300]).usage.prompt_tokens == 3


def test_completions_go_on_with_a_text(client: OpenAI) -> None:
    """A text is continued, plainly and in pieces, up to the ceiling and no further."""
    plain = client.completions.create(
        model="tiny", prompt="Once upon a time", max_tokens=900, temperature=0
    )
    assert plain.choices[0].text
    assert plain.usage is not None
    assert 0 < plain.usage.completion_tokens <= 20
    with client.completions.create(
        model="tiny", prompt="Once upon a time", max_tokens=20, temperature=0, stream=True
    ) as stream:
        pieces = [chunk.choices[0].text for chunk in stream]
    assert "".join(pieces) == plain.choices[0].text
    assert len(pieces) > 1


def test_what_it_cannot_do_is_off(client: OpenAI) -> None:
    """No pictures and no sound by itself: NotFoundError, not a poor imitation."""
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a cat")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="tiny", input="Hi")
