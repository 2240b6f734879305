"""The tables of fields: each has reasons, and says something of every field that OpenAI has."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import pytest

from freeapi.policy import tables
from freeapi.policy.fields import Rule

ALL: dict[str, Mapping[str, Rule]] = {
    name: table for name, table in vars(tables).items() if name.endswith("_FIELDS")
}


@pytest.mark.parametrize("table", ALL)
def test_what_is_taken_out_has_a_reason(table: str) -> None:
    """Every field that is dropped or refused says why; names are such as a header may hold."""
    for name, rule in ALL[table].items():
        assert (rule.why != "") == (rule.action in {"drop", "refuse"}), name
        assert name.isascii()
        assert name.isidentifier()


@pytest.mark.parametrize(
    ("table", "module", "types"),
    [
        ("CHAT_FIELDS", "chat.completion_create_params", "CompletionCreateParamsBase"),
        ("COMPLETION_FIELDS", "completion_create_params", "CompletionCreateParamsBase"),
        ("EMBEDDING_FIELDS", "embedding_create_params", "EmbeddingCreateParams"),
        ("MODERATION_FIELDS", "moderation_create_params", "ModerationCreateParams"),
        ("RESPONSE_FIELDS", "responses.response_create_params", "ResponseCreateParamsBase"),
        ("IMAGE_FIELDS", "image_generate_params", "ImageGenerateParamsBase"),
        ("SPEECH_FIELDS", "audio.speech_create_params", "SpeechCreateParams"),
        (
            "TRANSCRIPTION_FIELDS",
            "audio.transcription_create_params",
            "TranscriptionCreateParamsBase",
        ),
        ("TRANSLATION_FIELDS", "audio.translation_create_params", "TranslationCreateParams"),
    ],
)
def test_every_field_of_openais_sdk_is_decided(table: str, module: str, types: str) -> None:
    """None of them is dropped as unknown: it passes, or there is a reason."""
    params = getattr(importlib.import_module(f"openai.types.{module}"), types)
    assert set(params.__annotations__) - {"file"} <= ALL[table].keys()
