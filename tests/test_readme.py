"""What the README shows is run as it stands there, and the Chinese README says the same.

A clone is imitated: a directory in which everything is the repository's own, but for the files that
an operator writes. In it an instance is started by the README's own command; its other commands and
samples then run word by word, with nothing replaced but the address. A block that can't be run says
why in a comment above it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.conftest import NODE_PACKAGES
from tests.documents import ROOT, Block, blocks, code, headings, links, table_rows
from tests.free_ports import free_port
from tests.gateway import ADDRESS

ENGLISH: Final = (ROOT / "README.md").read_text("utf-8")
CHINESE: Final = (ROOT / "README.zh-CN.md").read_text("utf-8")
#: What an operator writes, or a tool leaves behind: not part of a clone.
NOT_CLONED: Final = {".env", "freeapi.toml", ".git", ".hypothesis", ".fuzz"}
PUBLIC, ADMIN = "127.0.0.1:8080", "127.0.0.1:9464"
#: Libraries take seconds to import on a busy machine.
COMMAND_MAX_S: Final = 90.0

START, *RUN = [block for block in blocks(ENGLISH) if block.reason is None and block.kind != "toml"]


class Instance(NamedTuple):
    """A running instance, and how to talk to it."""

    home: Path
    environ: Mapping[str, str]

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run to the end, with the README's address replaced by its own; returns what it prints."""
        done = subprocess.run(
            [self.at_home(word) for word in command],
            cwd=cwd or self.home,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=COMMAND_MAX_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def at_home(self, text: str) -> str:
        """The text with the instance's own addresses."""
        public = f"127.0.0.1:{self.environ['PORT']}"
        return text.replace(PUBLIC, public).replace(ADMIN, self.environ["FREEAPI_ADMIN_ADDR"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, by symbolic links."""
    home = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in NOT_CLONED and not path.name.endswith("_cache"):
            (home / path.name).symlink_to(path)
    return home


@pytest.fixture(scope="module")
def instance(home: Path) -> Iterator[Instance]:
    """An instance, started by the first command of the README."""
    # Else `make run` would set up the clone, whose .venv is a link to the real one.
    subprocess.run(["make", ".venv/.runtime"], cwd=ROOT, check=True, capture_output=True)
    public, admin = free_port(), free_port()
    environ = {
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "PORT": str(public),
        "FREEAPI_ADMIN_ADDR": f"127.0.0.1:{admin}",
        "FREEAPI_DATA_DIR": str(home / "data"),
        # So that the samples may follow one another at once, and are answered briefly.
        "FREEAPI_CALLER_RPM": "off",
        "FREEAPI_MAX_OUTPUT_TOKENS": "24",
        "LLM_USER_PATH": str(home / "llm"),
        # The weights' package is a plugin of llm, whose runtime isn't installed here.
        "LLM_LOAD_PLUGINS": "",
    }
    with (home / "stderr").open("w+") as stderr:
        process = subprocess.Popen(
            ["sh", "-c", START.text],
            cwd=home,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            banner = next((line for line in process.stdout if ADDRESS.search(line)), None)
            assert banner is not None, (home / "stderr").read_text()
            yield Instance(home, environ)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.stdout.read()  # ends with the last process that holds it
            process.stdout.close()
            process.wait()


def names(some: list[Block]) -> list[str]:
    """What pytest calls them."""
    return [f"{number}-{block.kind}" for number, block in enumerate(some, 1)]


def test_the_first_command_starts_it() -> None:
    """The first block is what the others are run against."""
    assert (START.kind, START.text) == ("sh", "make run\n")


@pytest.fixture(scope="module")
def printed(instance: Instance) -> Iterator[Mapping[Block, Future[str]]]:
    """What each block prints. They run at the same time: most of it is importing libraries."""
    with ThreadPoolExecutor() as pool:
        yield {block: pool.submit(run, block, instance) for block in RUN}


def run(block: Block, instance: Instance) -> str:
    """Run a block as a person would."""
    if block.kind == "sh":
        return instance.run("sh", "-eu", "-c", block.text)
    if block.kind == "python":
        return instance.run(sys.executable, "-c", block.text)
    assert block.kind == "js"
    script = ("--input-type=module", "--eval", block.text)
    return instance.run("node", *script, cwd=NODE_PACKAGES.parent)


@pytest.mark.parametrize("block", RUN, ids=names(RUN))
def test_blocks_work_word_by_word(
    block: Block, printed: Mapping[Block, Future[str]], request: pytest.FixtureRequest
) -> None:
    """Each command and sample ends well, and is answered without an error."""
    if block.kind == "js":
        request.getfixturevalue("node")
    text = printed[block].result()
    assert '"error"' not in text
    assert text.strip() or block.text.startswith("cp ")


def test_dry_run_shows_what_would_be_sent(printed: Mapping[Block, Future[str]]) -> None:
    """The README's look at what leaves shows that the user's name doesn't."""
    (block,) = (block for block in RUN if "dry-run" in block.text)
    assert r"\"messages\"" in printed[block].result()
    assert r"\"me\"" not in printed[block].result()


def test_programs_of_the_samples_are_there() -> None:
    """No sample is left out because its program is missing."""
    assert shutil.which("curl")
    assert (ROOT / ".venv" / "bin" / "llm").exists()


def test_what_is_not_run_says_why() -> None:
    """All that isn't run is configuration, which test_docs loads, or has its reason."""
    rest = [block for block in blocks(ENGLISH) if block not in (START, *RUN)]
    assert all(block.reason or block.kind == "toml" for block in rest)
    assert sum(block.reason is not None for block in rest) <= 1


def test_both_languages_have_the_same_parts() -> None:
    """Headings, blocks and rows of tables are as many, in the same order and of the same kind."""
    assert headings(CHINESE) == headings(ENGLISH)
    assert blocks(CHINESE) == blocks(ENGLISH)
    shapes = [[len(row) for row in table_rows(text)] for text in (CHINESE, ENGLISH)]
    assert shapes[0] == shapes[1]


def test_both_languages_name_the_same_things() -> None:
    """Commands, settings, routes and links are the same."""
    assert code(CHINESE) == code(ENGLISH)
    other = {"README.md", "README.zh-CN.md"}
    assert sorted({*links(CHINESE)} - other) == sorted({*links(ENGLISH)} - other)


def test_it_says_how_privately_in_five_sentences() -> None:
    """The part on privacy begins with five sentences, the first four with the test of each."""
    part = ENGLISH.partition("\n## Privacy\n")[2].strip().partition("\n\n")[0]
    sentences = part.replace("\n", " ").removesuffix(".").split(". ")
    assert [len(links(sentence)) for sentence in sentences] == [1, 1, 1, 1, 0]
