"""Promise: the ``llm`` command line works with this instance by one entry in its own file."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.gateway import START_MAX_S, Gateway
from tests.scripted_upstream import ScriptedUpstream

#: As its documentation has it for "OpenAI-compatible models".
MODELS = """
- model_id: free
  model_name: talker
  api_base: {base_url}
- model_id: free-response
  model_name: talker
  api_base: {base_url}
  responses: true
- model_id: not-there
  model_name: canary-gpt
  api_base: {base_url}
"""


def own_directory(home: Path, gateway: Gateway) -> Path:
    """A new one, with the instance's models."""
    home.mkdir()
    text = MODELS.format(base_url=gateway.base_url)
    (home / "extra-openai-models.yaml").write_text(text)
    return home


async def llm(home: Path, *arguments: str) -> tuple[int | None, str]:
    """Run the real command in a directory of its own; returns its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llm", "prompt", "--no-log", *arguments),
        # Without plugins: the embedded model's weights come as one, whose runtime isn't here.
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
    async with asyncio.timeout(START_MAX_S):
        printed, _ = await process.communicate()
    return process.returncode, printed.decode()


async def test_command_line(upstream: ScriptedUpstream, endpoints: Gateway, tmp_path: Path) -> None:
    """``llm -m free Hi`` prints the answer as it comes, by chats and by responses.

    A model that isn't there is an error in our words. One test, since each run takes seconds.
    """
    (chat, response, absent) = await asyncio.gather(
        llm(own_directory(tmp_path / "1", endpoints), "-m", "free", "-s", "Be short.", "Hi"),
        llm(own_directory(tmp_path / "2", endpoints), "-m", "free-response", "Hi"),
        llm(own_directory(tmp_path / "3", endpoints), "-m", "not-there", "Hi"),
    )
    assert chat == response == (0, "Hi\n")
    code, printed = absent
    assert code == 1
    assert "canary-gpt` does not exist here" in printed
    seen = {one.target: one.json() for one in upstream.requests}
    assert set(seen) == {"/v1/chat/completions", "/v1/responses"}
    assert all(body["stream"] for body in seen.values())
    messages = seen["/v1/chat/completions"]["messages"]
    assert [one["content"] for one in messages] == ["Be short.", "Hi"]
    assert seen["/v1/responses"]["store"] is False
