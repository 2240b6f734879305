"""Promise: the ``llm`` command line works with this instance by one entry in its own file."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.gateway import Gateway
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream

#: As its documentation has it for "OpenAI-compatible models".
MODELS = """
- model_id: free
  model_name: talker
  api_base: {base_url}
- model_id: free-text
  model_name: talker
  api_base: {base_url}
  completion: true
- model_id: free-response
  model_name: talker
  api_base: {base_url}
  responses: true
- model_id: not-there
  model_name: canary-gpt
  api_base: {base_url}
"""


@pytest.fixture
def home(tmp_path: Path, endpoints: Gateway) -> Path:
    """The command's own directory, with the instance's models."""
    text = MODELS.format(base_url=endpoints.base_url)
    (tmp_path / "extra-openai-models.yaml").write_text(text)
    return tmp_path


async def llm(home: Path, *arguments: str) -> tuple[int | None, str]:
    """Run the real command; returns its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llm", *arguments),
        # Without plugins: the package with the embedded model's weights is one, without its runtime.
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LLM_USER_PATH": str(home),
            "LLM_LOAD_PLUGINS": "",
            "OPENAI_API_KEY": "sk-free-api",
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(3 * PATIENCE_S):
        printed, _ = await process.communicate()
    return process.returncode, printed.decode()


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "plain"])
async def test_chat(upstream: ScriptedUpstream, home: Path, streams: bool) -> None:
    """``llm -m free Hi`` prints the answer, as it comes or at once."""
    options = [] if streams else ["--no-stream"]
    code, printed = await llm(home, "-m", "free", *options, "-s", "Be short.", "Hi")
    assert (code, printed) == (0, "Hi\n")
    (seen,) = upstream.requests
    assert seen.target == "/v1/chat/completions"
    assert seen.json().get("stream", False) is streams
    assert [one["content"] for one in seen.json()["messages"]] == ["Be short.", "Hi"]


@pytest.mark.parametrize(
    ("name", "target"), [("free-text", "/v1/completions"), ("free-response", "/v1/responses")]
)
async def test_other_endpoints(
    upstream: ScriptedUpstream, home: Path, name: str, target: str
) -> None:
    """The kinds of models that it knows besides chats stream their answers too."""
    code, printed = await llm(home, "-m", name, "Once")
    assert (code, printed) == (0, "Hi\n")
    assert [one.target for one in upstream.requests] == [target]


async def test_error_is_told(upstream: ScriptedUpstream, home: Path) -> None:
    """A model that isn't there is an error with our words."""
    code, printed = await llm(home, "-m", "not-there", "Hi")
    assert code == 1
    assert "canary-gpt" in printed
    assert "does not exist here" in printed
    assert upstream.requests == []
