"""Promise: a form with a file goes up as it comes, whole or not at all, and only whole is paid for.

Whatever the order of its fields, with little memory, and with a clear answer where it isn't let
through. What the SDK makes of it is in ``test_sdk_endpoints``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
from pathlib import Path

import openai
import pytest

from tests.answers import answer, error, transcription_json
from tests.endpoints import FILE_NANOUSD, form_of, start_all
from tests.form_parts import END, FILE, FORM_TYPE, MODEL, file_part, head_of, part, post_form
from tests.gateway import Gateway
from tests.money import left_becomes, left_nanousd
from tests.raw_client import Caller, ask, caller, request
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream, close, happens, send
from tests.sdk_calls import MP3, async_client

#: A form for it needn't say its model before its file, since there is only one.
ONE_MODEL = "/v1/audio/translations"
MEGABYTE = 1_000_000
#: Larger than all that is kept of it anywhere on the way.
LARGE_BYTES = 20 * MEGABYTE
#: The gateway's own pieces, and what Python's allocator may take for them.
GROWTH_MAX_BYTES = 5 * MEGABYTE
#: Much less than what the kernel keeps of a connection between the caller and the upstream.
BEGUN_BYTES = 300_000
PROMPT = part("prompt", b"A holiday.")
ORDERS = {
    "model-first": (MODEL, PROMPT, file_part()),
    "file-first": (file_part(), MODEL, PROMPT),
    "file-between": (PROMPT, file_part(), MODEL),
}


@pytest.mark.parametrize("parts", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/audio/translations"])
async def test_order_of_fields_does_not_matter(
    upstream: ScriptedUpstream, endpoints: Gateway, path: str, parts: tuple[bytes, ...]
) -> None:
    """With one model for the endpoint and with two: the same fields and bytes are sent."""
    served = await ask(endpoints.port, post_form(*parts, path=path))
    assert served.json()["text"] == "Hi"
    (seen,) = upstream.requests
    form = form_of(seen)
    assert form.fields == [("model", "up-listener"), ("prompt", "A holiday.")]
    assert (form.file, form.file_name) == (FILE, "audio.mp3")
    assert b"canary" not in seen.body
    assert "canary" not in (seen.header("content-type") or "")


async def test_model_is_not_guessed(upstream: ScriptedUpstream, endpoints: Gateway) -> None:
    """A form that never names its model is refused, also where there is only one it could be."""
    for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        refused = await ask(endpoints.port, post_form(PROMPT, file_part(), path=path))
        assert refused.status == 400
        assert refused.error()["param"] == "model"
    assert upstream.requests == []


async def test_second_model_is_the_one_that_is_asked_for(
    upstream: ScriptedUpstream, endpoints: Gateway
) -> None:
    """Of two models for the endpoint, the form's name decides, even behind its file."""
    await ask(endpoints.port, post_form(file_part(), part("model", b"scribe")))
    assert form_of(upstream.requests[0]).fields == [("model", "up-scribe")]


# --- Size -----------------------------------------------------------------------------------------


async def test_large_file_passes_with_little_memory(
    upstream: ScriptedUpstream, endpoints: Gateway
) -> None:
    """Of 20 MB every byte arrives, in order, and the gateway hasn't grown by it meanwhile."""
    await ask(endpoints.port, post_form(file_part(bytes(MEGABYTE)), MODEL, path=ONE_MODEL))
    file = random.Random(7).randbytes(LARGE_BYTES)
    body = file_part(file) + MODEL + END
    before_bytes = most_bytes = endpoints.resident_bytes()
    async with caller(endpoints.port) as uploading:
        await uploading.send(head_of(len(body), ONE_MODEL))
        for start in range(0, len(body), MEGABYTE):
            await uploading.send(body[start : start + MEGABYTE])
            most_bytes = max(most_bytes, endpoints.resident_bytes())
        served = await uploading.answer()
    assert served.json()["text"] == "Hi"
    arrived = form_of(upstream.requests[1]).file
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(file).digest()
    assert most_bytes - before_bytes < GROWTH_MAX_BYTES


async def test_too_large_file_is_a_typed_error(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Over FREEAPI_MAX_UPLOAD_BYTES it is the SDK's APIStatusError 413, and free."""
    limit = {"FREEAPI_MAX_UPLOAD_BYTES": str(MEGABYTE)}
    gateway = await asyncio.to_thread(start_all, tmp_path, upstream.port, **limit)
    left = await left_nanousd(gateway)
    async with async_client(gateway) as client:
        for size_bytes in (MEGABYTE, LARGE_BYTES):
            with pytest.raises(openai.APIStatusError) as refused:
                await client.audio.transcriptions.create(
                    model="listener", file=("a.mp3", bytes(size_bytes))
                )
            assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")
    # One that doesn't say its length is found out on its way.
    async with caller(gateway.port) as uploading:
        await uploading.send(
            request("POST", ONE_MODEL, FORM_TYPE, ("transfer-encoding", "chunked"))
        )
        data = part("model", b"listener") + file_part(bytes(2 * MEGABYTE))
        await uploading.send(b"%x\r\n%b\r\n" % (len(data), data))
        assert (await uploading.answer()).status == 413
    assert upstream.requests == []
    assert await left_nanousd(gateway) == left
    await asyncio.to_thread(gateway.stop)


# --- What isn't let through, or doesn't end -------------------------------------------------------


async def begin(uploading: Caller, rest_bytes: int) -> None:
    """Send the head of a form, its model and the beginning of its file; ``rest_bytes`` follow."""
    begun = MODEL + file_part(bytes(BEGUN_BYTES))[:-2]
    await uploading.send(head_of(len(begun) + rest_bytes, ONE_MODEL) + begun)


async def test_wrong_field_behind_the_file_ends_it(
    upstream: ScriptedUpstream, endpoints: Gateway
) -> None:
    """What may not pass is a 400 even after the file; the upstream got no whole request."""
    left = await left_nanousd(endpoints)
    wrong = b"\r\n" + part("user", b"canary") + part("model", b"scribe") + END
    async with caller(endpoints.port) as uploading:
        await begin(uploading, len(wrong))
        await upstream.has_received(BEGUN_BYTES // 2)
        await uploading.send(wrong)
        refused = await uploading.answer()
    assert refused.status == 400
    assert refused.error()["param"] == "model"
    await happens((await upstream.connection()).gone)
    assert upstream.requests == []
    await left_becomes(endpoints, left)


async def test_caller_that_leaves_pays_nothing(
    upstream: ScriptedUpstream, endpoints: Gateway
) -> None:
    """In the middle of its file: the upstream's connection ends unfinished, nothing is charged."""
    left = await left_nanousd(endpoints)
    async with caller(endpoints.port) as uploading:
        await begin(uploading, LARGE_BYTES)
        await upstream.has_received(BEGUN_BYTES // 2)
        assert await left_nanousd(endpoints) == left - FILE_NANOUSD
        uploading.reset()
        await happens((await upstream.connection()).gone)
    assert upstream.requests == []
    await left_becomes(endpoints, left)


async def test_broken_form_is_a_clear_error(upstream: ScriptedUpstream, endpoints: Gateway) -> None:
    """A body that ends without the form's last boundary is a 400, and no request upstream."""
    left = await left_nanousd(endpoints)
    body = MODEL + file_part()
    refused = await ask(endpoints.port, head_of(len(body), ONE_MODEL) + body)
    assert refused.status == 400
    assert refused.error()["code"] == "invalid_form"
    assert upstream.requests == []
    await left_becomes(endpoints, left)


async def test_json_is_not_a_form(upstream: ScriptedUpstream, endpoints: Gateway) -> None:
    """Another kind of body is a 415 that says which header to send."""
    kind = ("content-type", "application/json")
    asked = request("POST", "/v1/audio/transcriptions", kind, body=b"{}")
    refused = await ask(endpoints.port, asked)
    assert refused.status == 415
    assert "multipart/form-data" in refused.error()["message"]


async def test_early_refusal_of_the_upstream_is_a_clear_error(
    upstream: ScriptedUpstream, fresh_endpoints: Gateway
) -> None:
    """A key that is refused while the file is under way: a 5xx of ours, and nothing is charged.

    What has left can't be sent again, so another key is for the next request.
    """
    left = await left_nanousd(fresh_endpoints)
    upstream.hears_out = False
    upstream.plays([send(error(401, "invalid_api_key", "canary of the account")), close()])
    async with async_client(fresh_endpoints) as client:
        with pytest.raises(openai.InternalServerError) as failed:
            await client.audio.transcriptions.create(
                model="listener", file=("a.mp3", bytes(LARGE_BYTES))
            )
        assert failed.value.code == "upstream_unavailable"
        assert "canary" not in str(failed.value)
        await left_becomes(fresh_endpoints, left)
        upstream.hears_out = True
        upstream.plays([send(answer(200, transcription_json("Hi")))])
        served = await client.audio.transcriptions.create(model="listener", file=MP3)
    assert served.text == "Hi"
    tails = [(one.header("authorization") or "")[-4:] for one in upstream.requests]
    assert len(tails) == 2
    assert tails[0] != tails[1]


async def test_rate_limit_of_the_upstream_is_not_waited_for(
    upstream: ScriptedUpstream, fresh_endpoints: Gateway
) -> None:
    """A 429 after the whole form is passed on as ours: the file isn't there any more to resend."""
    upstream.plays([send(error(429, "rate_limit_exceeded", "canary"))])
    refused = await ask(fresh_endpoints.port, post_form(MODEL, file_part()))
    assert (refused.status, refused.error()["code"]) == (429, "capacity_exceeded")
    assert refused.header("retry-after") is not None
    assert len(upstream.requests) == 1


async def test_callers_own_mistake_comes_back(
    upstream: ScriptedUpstream, endpoints: Gateway
) -> None:
    """What the upstream says of a bad file is told to its caller, and costs nothing."""
    left = await left_nanousd(endpoints)
    upstream.plays([send(error(400, None, "Invalid file format."))])
    refused = await ask(endpoints.port, post_form(MODEL, file_part()))
    assert refused.status == 400
    assert refused.error()["message"] == "Invalid file format."
    await left_becomes(endpoints, left)


async def test_duration_is_a_usage_too(upstream: ScriptedUpstream, endpoints: Gateway) -> None:
    """One that is billed by the second has its text, words and seconds, at the file's price."""
    left = await left_nanousd(endpoints)
    words = [{"word": "Hi", "start": 0.0, "end": 0.5}]
    told = {"task": "transcribe", "language": "english", "duration": 0.5, "text": "Hi"}
    usage = {"type": "duration", "seconds": 1}
    body = json.dumps({**told, "words": words, "segments": [], "usage": usage}).encode()
    upstream.plays([send(answer(200, body))])
    async with async_client(endpoints) as client:
        heard = await client.audio.transcriptions.create(
            model="listener",
            file=MP3,
            response_format="verbose_json",
            timestamp_granularities=["word"],
        )
    assert heard.words is not None
    assert (heard.text, heard.words[0].end, heard.duration) == ("Hi", 0.5, 0.5)
    assert form_of(upstream.requests[0]).fields[1:] == [
        ("response_format", "verbose_json"),
        ("timestamp_granularities[]", "word"),
    ]
    await left_becomes(endpoints, left - FILE_NANOUSD)


async def test_curl_sends_a_form(
    upstream: ScriptedUpstream, endpoints: Gateway, tmp_path: Path
) -> None:
    """``curl -F file=@…`` with the file first, as most examples have it."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is missing (apt-get install curl)")
    (tmp_path / "a.wav").write_bytes(FILE * 100_000)
    process = await asyncio.create_subprocess_exec(
        *(curl, "-sS", "--noproxy", "*", "-F", f"file=@{tmp_path}/a.wav", "-F", "model=listener"),
        f"{endpoints.base_url}/audio/transcriptions",
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        printed, _ = await process.communicate()
    assert json.loads(printed)["text"] == "Hi"
    form = form_of(upstream.requests[0])
    assert (form.file_name, form.file_type, len(form.file)) == (
        "audio.wav",
        "audio/wav",
        len(FILE) * 100_000,
    )
