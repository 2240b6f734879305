"""The child process with the real model, run as the gateway runs it, asked over its Unix socket."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from freeapi.local import MODEL_NAME, SLOT_TOKENS, SLOTS
from freeapi.local.model import environment, find_model
from freeapi.local.server import accepts, watch
from freeapi.local.shape import READY

START_MAX_S = 60.0
#: Far more than any answer asked for here takes, far less than a slot that is kept busy.
ANSWER_MAX_S = 20.0
CHAT = "/v1/chat/completions"
CANARY = "canary-7c1f0b"


class Child:
    """A running ``python -m freeapi.local``; ``home`` is all that it could write to."""

    def __init__(self, home: Path) -> None:
        (home / "socket").mkdir(exist_ok=True)
        self.home = home
        self.socket_path = str(home / "socket" / "model.sock")
        with (home / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "freeapi.local", self.socket_path, find_model()],
                cwd=home,
                env=environment() | {"HOME": str(home), "TMPDIR": str(home)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        assert self.stdout.readline() == READY, (home / "stderr").read_text()

    def connect(self) -> UnixConnection:
        """A new HTTP connection to it."""
        return UnixConnection(self.socket_path)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One request on a connection of its own; returns the status and the JSON answer."""
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        with closing(self.connect()) as connection:
            connection.request(method, path, data, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def end(self) -> None:
        """End it, whatever state it is in."""
        self.stdin.close()
        self.process.kill()
        self.process.wait()
        self.stdout.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        """Called by the first request."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_MAX_S)
        self.sock.connect(self.path)


def chat(text: str, **fields: object) -> dict[str, object]:
    """A chat completion's body. Its system message is shorter, so faster, than the model's own."""
    messages = [{"role": "system", "content": "Hi"}, {"role": "user", "content": text}]
    return {"model": MODEL_NAME, "messages": messages, **fields}


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A child that all tests share; those that end one start their own."""
    child = Child(tmp_path_factory.mktemp("child"))
    yield child
    child.end()


def test_answer_counts_its_tokens(child: Child) -> None:
    """An answer is OpenAI's object, spells the model as we do, and its usage adds up."""
    status, answer = child.ask("POST", CHAT, chat("Count to nine.", max_tokens=5, ignore_eos=True))
    assert status == 200
    assert (answer["object"], answer["model"]) == ("chat.completion", MODEL_NAME)
    assert answer["choices"][0]["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    assert usage["prompt_tokens"] > 5


def test_stream_ends_with_usage(child: Child) -> None:
    """A stream gives text piece by piece, then usage without choices, then [DONE]."""
    wanted = {"stream": True, "stream_options": {"include_usage": True}}
    with closing(child.connect()) as connection:
        connection.request("POST", CHAT, json.dumps(chat("Say hi.", max_tokens=4, **wanted)))
        response = connection.getresponse()
        assert response.headers["content-type"].startswith("text/event-stream")
        *events, done, rest = response.read().decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    *chunks, last = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert last["choices"] == []
    assert 0 < last["usage"]["completion_tokens"] <= 4


def test_chinese_is_understood_as_text(child: Child) -> None:
    """The README's prompt, which isn't ASCII, gets a real answer."""
    status, answer = child.ask("POST", CHAT, chat("你好?", max_tokens=12))
    assert status == 200
    assert answer["choices"][0]["message"]["content"].strip()


def test_prompts_are_not_cached(child: Child) -> None:
    """The same prompt again isn't faster: that would tell callers what others have asked."""
    body = chat("The quick brown fox jumps over the lazy dog.", max_tokens=1)
    answers = [child.ask("POST", CHAT, body)[1] for _ in range(SLOTS + 1)]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached == [0] * (SLOTS + 1)


def test_slot_takes_what_it_promises(child: Child) -> None:
    """One token more than a slot's is refused, as the caller's mistake and at once."""
    status, answer = child.ask("POST", CHAT, chat("word " * SLOT_TOKENS, max_tokens=1))
    assert status == 400
    assert answer["error"]["type"] == "exceed_context_size_error"
    assert answer["error"]["n_ctx"] == SLOT_TOKENS


@pytest.mark.parametrize("path", ["/slots", "/metrics", "/", "/tools"])
def test_what_shows_others_is_off(child: Child, path: str) -> None:
    """Nothing tells a client of the socket about other requests; there is no page, no tool."""
    assert child.ask("GET", path)[0] in {403, 404, 501}


def test_more_requests_than_slots_wait(child: Child) -> None:
    """Twice as many requests as slots are all answered."""
    with ThreadPoolExecutor(2 * SLOTS) as pool:
        bodies = [chat(f"Hi {number}", max_tokens=2) for number in range(2 * SLOTS)]
        statuses = list(pool.map(lambda body: child.ask("POST", CHAT, body)[0], bodies))
    assert statuses == [200] * (2 * SLOTS)


def test_abandoned_stream_frees_its_slot(child: Child) -> None:
    """With all slots in the middle of long answers whose clients go, the next one is served."""
    long = json.dumps(chat("Tell a story.", max_tokens=1_900, ignore_eos=True, stream=True))
    with ExitStack() as clients:
        connections = [clients.enter_context(closing(child.connect())) for _ in range(SLOTS)]
        for connection in connections:
            connection.request("POST", CHAT, long)
        for connection in connections:
            response = clients.enter_context(closing(connection.getresponse()))
            assert response.readline().startswith(b"data: ")
    # To its end, the first of them would have taken more than ANSWER_MAX_S.
    assert child.ask("POST", CHAT, chat("Hi", max_tokens=1))[0] == 200


def test_no_word_of_a_prompt_is_written(child: Child) -> None:
    """Good, refused and malformed requests leave nothing in stdout, stderr or any file."""
    child.ask("POST", CHAT, chat(CANARY, max_tokens=2))
    child.ask("POST", CHAT, chat(CANARY, max_tokens=2, seed=CANARY))
    child.ask("POST", CHAT, chat(f"{CANARY} " * SLOT_TOKENS))
    child.ask("POST", CHAT, {"messages": CANARY})
    assert select.select([child.stdout], [], [], ANSWER_MAX_S)[0], "stdout is still open"
    assert child.stdout.read() == b""
    files = {p.name: p.read_bytes() for p in child.home.rglob("*") if p.is_file()}
    assert files["stderr"] == b""
    assert [name for name, text in files.items() if CANARY.encode() in text] == []


def test_child_is_hardened_as_the_gateway_is(child: Child) -> None:
    """A crash would leave no image of its memory (``hardening`` has the rest of the proof)."""
    process = Path(f"/proc/{child.process.pid}")
    lines = (process / "limits").read_text().splitlines()
    line = next(line for line in lines if line.startswith("Max core file size"))
    assert line.split()[4:6] == ["0", "0"]
    assert "NoNewPrivs:\t1\n" in (process / "status").read_text()


def test_stale_socket_is_replaced_and_lost_one_noticed(tmp_path: Path) -> None:
    """A predecessor's socket is in nobody's way; a child that lost its own exits with code 1."""
    (tmp_path / "socket").mkdir()
    socket_path = tmp_path / "socket" / "model.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(socket_path))
    child = Child(tmp_path)
    try:
        assert child.ask("GET", "/health") == (200, {"status": "ok"})
        socket_path.unlink()
        assert child.process.wait(ANSWER_MAX_S) == 1
        assert socket_path.parent.is_dir()
    finally:
        child.end()


def test_end_of_stdin_ends_the_child(tmp_path: Path) -> None:
    """Without the gateway's end of the pipe it exits with code 0 and takes its directory along."""
    child = Child(tmp_path)
    try:
        child.stdin.close()
        assert child.process.wait(ANSWER_MAX_S) == 0
        assert not (tmp_path / "socket").exists()
    finally:
        child.end()


def test_watch_goes_on_while_the_server_accepts(tmp_path: Path) -> None:
    """A server that accepts is left alone, look after look, until stdin ends."""
    path = str(tmp_path / "s")
    read_end, write_end = os.pipe()
    results: list[bool] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        watcher = threading.Thread(target=lambda: results.append(watch(read_end, path, 0.001)))
        watcher.start()
        for _ in range(3):
            listener.accept()[0].close()
        os.close(write_end)
        watcher.join(ANSWER_MAX_S)
    os.close(read_end)
    assert results == [False]


def test_busy_server_still_accepts(tmp_path: Path) -> None:
    """A server whose queue of connections is full isn't taken for a dead one."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            assert accepts(path)
    assert not accepts(path)
    assert not accepts(str(tmp_path / "never"))
