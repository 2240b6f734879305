"""The child process with the real model, run as the gateway runs it, asked over its Unix socket."""

from __future__ import annotations

import base64
import http.client
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from array import array
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
#: Far more than any answer asked for here takes, on however busy a machine.
ANSWER_MAX_S = 100.0
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
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


def test_completion_goes_on_where_the_prompt_ends(child: Child) -> None:
    """A plain completion, and one for each of several prompts in their order, text or tokens."""
    wanted = {"max_tokens": 4, "temperature": 0}
    status, one = child.ask("POST", COMPLETIONS, {"prompt": "The capital of France is", **wanted})
    assert (status, one["object"]) == (200, "text_completion")
    assert one["choices"][0]["text"].startswith(" Paris")
    assert one["usage"]["completion_tokens"] == 4
    for prompts in (["The capital of France is", "1 2 3 4"], [[504, 3575], [28]]):
        status, both = child.ask("POST", COMPLETIONS, {"prompt": prompts, **wanted})
        assert status == 200
        assert [choice["index"] for choice in both["choices"]] == [0, 1]


PAIRS = (
    ("The cat sits on the mat.", "A kitten is lying on the rug."),
    ("The stock market fell sharply today.", "Shares dropped on Wall Street this afternoon."),
    ("How do I sort a list in Python?", "What is the Python function that sorts lists?"),
    ("I love pizza with mushrooms.", "My favourite food is a mushroom pizza."),
)


def vectors(child: Child, texts: object, **more: object) -> list[Any]:
    """The embeddings of some texts, in their order."""
    status, answer = child.ask("POST", EMBEDDINGS, {"input": texts, **more})
    assert status == 200, answer
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    assert [row["index"] for row in answer["data"]] == list(range(len(answer["data"])))
    return [row["embedding"] for row in answer["data"]]


def test_what_means_the_same_is_nearest(child: Child) -> None:
    """Each text's nearest one is that which says the same in other words."""
    found = vectors(child, [text for pair in PAIRS for text in pair])
    for i, one in enumerate(found):
        likeness = [sum(a * b for a, b in zip(one, two, strict=True)) for two in found]
        assert likeness[i] == pytest.approx(1, abs=1e-3)
        likeness[i] = 0
        assert likeness.index(max(likeness)) == i ^ 1


def test_embedding_is_the_same_however_it_is_asked_for(child: Child) -> None:
    """Alone, twice, as base64: the same numbers; a text of more than one batch has some too."""
    [one] = vectors(child, PAIRS[0][0])
    assert vectors(child, PAIRS[0][0]) == [one]
    [packed] = vectors(child, PAIRS[0][0], encoding_format="base64")
    assert array("f", base64.b64decode(packed)).tolist() == pytest.approx(one, abs=1e-6)
    assert len(vectors(child, "word " * 140)[0]) == len(one)


@pytest.mark.parametrize("wrong", ["", [], [""], [99_999_999], "word " * SLOT_TOKENS, {"a": 1}])
def test_what_has_no_embedding_is_refused(child: Child, wrong: object) -> None:
    """Nothing, no such token, more than a slot takes: the caller's mistake, told at once."""
    status, answer = child.ask("POST", EMBEDDINGS, {"input": wrong})
    assert (status, answer["error"]["code"]) == (400, 400)


def test_embedding_leaves_chat_as_it_was(child: Child) -> None:
    """An answer is the same before and after, and while a long text is worked on."""
    body = chat("Tell a story.", max_tokens=8, temperature=0)
    before = child.ask("POST", CHAT, body)[1]["choices"]
    with ThreadPoolExecutor() as pool:
        long = pool.submit(vectors, child, "word " * 140)
        assert child.ask("POST", CHAT, body)[1]["choices"] == before
        assert len(long.result(ANSWER_MAX_S)) == 1


def test_responses_end_with_their_usage(child: Child) -> None:
    """A response, whole or as events of which the last says the usage; no state is kept."""
    body = {"input": "Say hi.", "max_output_tokens": 4, "store": False}
    status, answer = child.ask("POST", RESPONSES, body)
    assert (status, answer["object"], answer["status"]) == (200, "response", "completed")
    assert 0 < answer["usage"]["output_tokens"] <= 4
    with closing(child.connect()) as connection:
        connection.request("POST", RESPONSES, json.dumps({**body, "stream": True}))
        events = connection.getresponse().read().decode().strip().split("\n\n")
    name, data = events[-1].split("\n")
    assert name == "event: response.completed"
    assert json.loads(data.removeprefix("data: "))["response"]["usage"]["input_tokens"] > 0
    assert child.ask("POST", RESPONSES, {**body, "previous_response_id": answer["id"]})[0] == 400


def test_answers_by_schema_and_with_logprobs(child: Child) -> None:
    """A JSON schema binds the answer; likelihoods, stops, seeds and several choices work."""
    schema = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    status, answer = child.ask("POST", CHAT, chat("Yes?", response_format=form, max_tokens=40))
    assert status == 200
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["n"], bool)
    more = {"n": 2, "logprobs": True, "top_logprobs": 2, "seed": 7, "temperature": 1, "stop": ["."]}
    first, second = (child.ask("POST", CHAT, chat("Hi", max_tokens=5, **more)) for _ in range(2))
    assert first[0] == 200
    assert first[1]["choices"] == second[1]["choices"]
    assert [len(c["logprobs"]["content"][0]["top_logprobs"]) for c in first[1]["choices"]] == [2, 2]


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
    """With all slots in the middle of long answers whose clients go, the next one is served.

    That is, sooner than one of them would have been at its end, by how fast they came.
    """
    long = json.dumps(chat("Tell a story.", max_tokens=1_900, ignore_eos=True, stream=True))
    with ExitStack() as clients:
        connections = [clients.enter_context(closing(child.connect())) for _ in range(SLOTS)]
        for connection in connections:
            connection.request("POST", CHAT, long)
        answers = [clients.enter_context(closing(one.getresponse())) for one in connections]
        for answer in answers:
            assert answer.readline().startswith(b"data: ")
        begun_s = time.monotonic()
        for _ in range(2 * 50):  # an event and an empty line for each token
            assert answers[-1].readline()
        fifty_s = time.monotonic() - begun_s
    begun_s = time.monotonic()
    assert child.ask("POST", CHAT, chat("Hi", max_tokens=1))[0] == 200
    assert time.monotonic() - begun_s < 1_900 / 50 / 2 * fifty_s


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
