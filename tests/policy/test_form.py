"""Audio forms: which fields pass, under which name the file goes, and what is reserved."""

from __future__ import annotations

import pytest

from freeapi.errors import ClientError, InvalidValue, ModelNotFound, UnsupportedParameter
from freeapi.policy.draft import Rules
from freeapi.policy.form import FILE_TYPES, FORM_BYTES_MAX, FORM_FIELDS_MAX, Form, check_form
from freeapi.policy.models import Endpoint
from tests.bodies import CANARY, DROP, REFUSE, TABLE

Field = tuple[str, bytes]
MODEL: Field = ("model", b"all")


def check(
    *fields: Field,
    endpoint: Endpoint = "transcriptions",
    file_name: str = "a.wav",
    rules: Rules = DROP,
    is_whole: bool = True,
) -> Form:
    return check_form(endpoint, fields, TABLE, rules, file_name, is_whole)


def param_of(error: type[ClientError], *fields: Field, rules: Rules = DROP) -> str | None:
    """The field over which such a form is refused."""
    with pytest.raises(error) as caught:
        check(*fields, rules=rules)
    assert CANARY not in caught.value.message
    return caught.value.param


PASSING: list[Field] = [
    ("language", b"de"),
    ("prompt", "grüß".encode()),
    ("response_format", b"verbose_json"),
    ("temperature", b"0.2"),
    ("stream", b"true"),
    ("include[]", b"logprobs"),
    ("timestamp_granularities[]", b"word"),
    ("timestamp_granularities[]", b"segment"),
    ("keywords", b"a"),
    ("keywords", b"b"),
    ("languages[]", b"de"),
    ("chunking_strategy[type]", b"server_vad"),
    ("chunking_strategy[threshold]", b"0.5"),
]


def test_known_fields_pass_in_their_order() -> None:
    """The model goes first, under the upstream's name; lists keep all of their values."""
    form = check(*PASSING, MODEL)
    assert form.fields == (("model", b"small"), *PASSING)
    prepared = form.prepared
    assert (prepared.body, prepared.units, prepared.stream) == (b"", 1, True)
    assert (prepared.endpoint, prepared.model.name) == ("transcriptions", "all")
    size = sum(len(value) for _, value in [*PASSING, MODEL])
    assert (prepared.prompt_tokens, prepared.prompt_tokens_max) == (size // 4, size + 16)
    assert prepared.adjusted == b""


def test_a_translation_has_fewer_fields() -> None:
    """What only transcriptions have is unknown to translations."""
    fields = [("prompt", b"x"), ("temperature", b"0"), ("response_format", b"srt")]
    form = check(MODEL, *fields, ("language", b"de"), endpoint="translations")
    assert form.fields == (("model", b"small"), *fields)
    assert form.prepared.adjusted == b"+1"


def test_while_fields_may_follow_the_longest_form_is_reserved() -> None:
    """A prompt that comes after the file was reserved before it."""
    prepared = check(MODEL, is_whole=False).prepared
    assert prepared.prompt_tokens_max == FORM_BYTES_MAX + 16
    assert prepared.prompt_tokens == FORM_BYTES_MAX // 4


@pytest.mark.parametrize("name", ["user", "metadata"])
def test_who_is_calling_is_dropped(name: str) -> None:
    """And named, as in JSON."""
    form = check(MODEL, (name, CANARY.encode()))
    assert form.fields == (("model", b"small"),)
    assert form.prepared.adjusted == f"{name}=dropped".encode()


@pytest.mark.parametrize(
    "name", ["odd", "stream[]", "model[]", "include[x]", "chunking_strategy[]", "prompt[a]"]
)
def test_unknown_fields_go_or_are_refused(name: str) -> None:
    """Brackets are for lists and for the one object there is."""
    form = check(MODEL, (name, b"1"))
    assert form.fields == (("model", b"small"),)
    assert form.prepared.adjusted == b"+1"
    assert param_of(UnsupportedParameter, MODEL, (name, b"1"), rules=REFUSE) == name


@pytest.mark.parametrize("end", ["", "[]"])
@pytest.mark.parametrize("name", ["known_speaker_names", "known_speaker_references"])
def test_voices_are_refused(name: str, end: str) -> None:
    """Samples of voices cost beyond the file."""
    assert param_of(UnsupportedParameter, MODEL, (name + end, CANARY.encode())) == name


@pytest.mark.parametrize("name", ["model", "prompt", "stream", "chunking_strategy[type]"])
def test_a_single_field_is_there_once(name: str) -> None:
    """Which one would count is anybody's guess."""
    value = b"all" if name == "model" else b"true"
    fields = [(name, value), (name, value), MODEL][: 3 if name != "model" else 2]
    assert param_of(InvalidValue, *fields) == name.partition("[")[0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([], "model"),
        ([("model", b"")], "model"),
        ([("model", b"\xff")], "model"),
        ([("model", b"local")], "model"),
        ([MODEL, ("prompt", b"\xff")], "prompt"),
        ([MODEL, ("stream", b"1")], "stream"),
        ([MODEL, ("prompt", b"x" * FORM_BYTES_MAX)], "form"),
        ([MODEL, *[("keywords", b"x")] * FORM_FIELDS_MAX], "form"),
    ],
)
def test_values_are_text_and_bounded(fields: list[Field], param: str) -> None:
    """The error points at the field, or at the form."""
    assert param_of(InvalidValue, *fields) == param


def test_an_empty_field_is_none() -> None:
    """As a null in JSON."""
    assert check(MODEL, ("prompt", b""), ("odd", b"")).fields == (("model", b"small"),)
    assert not check(MODEL, ("stream", b"false")).prepared.stream


def test_an_unlisted_model_is_not_found() -> None:
    """The same list as for JSON."""
    assert param_of(ModelNotFound, ("model", b"gpt-9")) == "model"


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_the_file_keeps_nothing_of_its_name_but_its_kind(kind: str) -> None:
    """Whatever the caller calls it, the upstream sees one name for all."""
    form = check(MODEL, file_name=f"{CANARY}/../me.{kind.upper()}")
    assert (form.file_name, form.file_type) == (f"audio.{kind}", FILE_TYPES[kind])


@pytest.mark.parametrize("file_name", ["", "wav", "a.txt", "a.wav ", f"a.{CANARY}", "a."])
def test_a_file_of_no_known_kind_is_refused(file_name: str) -> None:
    """Kinds are OpenAI's."""
    with pytest.raises(InvalidValue) as caught:
        check(MODEL, file_name=file_name)
    assert caught.value.param == "file"
    assert CANARY not in caught.value.message
