"""A Dockerfile's steps, done without a container engine.

What this is not: a builder. There is no root directory of the image's own: its paths are put below
a folder, in arguments and in variables, and its ``python`` is the one that runs the tests. Steps of
a shell (system packages) are left out, by name, for a test to look at.

Plan: parse the file into instructions; do them one after the other below ``root``; at the next
FROM put what is there aside for ``COPY --from``, so that paths stay valid in what is copied; then
``command`` says how to start a program as the image would.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

#: What the image has of its own; all else that starts with a slash is the system's.
_OWN_PATHS = ("/build", "/data", "/etc/freeapi", "/opt")
_IS_PIPS = re.compile(r"HOME$|PIP_|https?_proxy$|REQUESTS_CA_BUNDLE$|SSL_CERT_", re.IGNORECASE)
_FLAG = re.compile(r"--([a-z-]+)=(\S+)\s+")


class Instruction(NamedTuple):
    """One line of a Dockerfile: ``COPY --from=build /a /b``."""

    name: str
    flags: dict[str, str]
    text: str

    def words(self) -> list[str]:
        """The exec form's words; none of the shell form."""
        text = self.text.removeprefix("CMD ") if self.name == "HEALTHCHECK" else self.text
        return list(json.loads(text)) if text.startswith("[") else []


def parse(text: str) -> list[Instruction]:
    """The instructions, with comments and line ends taken away."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        flags = {}
        while match := _FLAG.match(rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        found.append(Instruction(name, flags, rest.strip()))
    return found


def is_ignored(path: str, patterns: Sequence[str]) -> bool:
    """Whether .dockerignore keeps a path (relative, with slashes) out: its last match counts."""
    parts = path.split("/")
    starts = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    ignored = False
    for line in patterns:
        pattern = line.removeprefix("!")
        deep = pattern.startswith("**/") and any(
            fnmatch.fnmatchcase(part, pattern.removeprefix("**/")) for part in parts
        )
        if deep or any(_matches(start, pattern) for start in starts):
            ignored = not line.startswith("!")
    return ignored


def _matches(path: str, pattern: str) -> bool:
    """As Go's filepath.Match: a star doesn't cross a slash."""
    same_depth = path.count("/") == pattern.count("/")
    return same_depth and fnmatch.fnmatchcase(path, pattern)


class Image:
    """What a Dockerfile makes of a source tree, below ``root``."""

    def __init__(self, source: Path, root: Path) -> None:
        """Do all steps; raises AssertionError where one fails."""
        self.source = source
        self.root = root
        self.settings: dict[str, str] = {}
        self.entrypoint: list[str] = []
        self.arguments: list[str] = []
        self.healthcheck: list[str] = []
        self.user = ""
        self.left_out: list[str] = []
        self._workdir = "/"
        self._stages: dict[str, Path] = {}
        self._stage = ""
        lines = (source / ".dockerignore").read_text().splitlines()
        self._ignore = [line for line in lines if line and not line.startswith("#")]
        for instruction in parse((source / "Dockerfile").read_text()):
            self._do(instruction)

    def path(self, inside: str) -> str:
        """Where a path of the image is here."""
        own = any(inside == one or inside.startswith(one + "/") for one in _OWN_PATHS)
        return f"{self.root}{inside}" if own else inside

    def command(self, words: Sequence[str]) -> list[str]:
        """How to start a program of the image: without capabilities, and never with more rights."""
        local = [self.path(word) for word in words]
        if os.getuid() != 0:
            return ["setpriv", "--no-new-privs", *local]
        # Not as another user, who may be unable to read this machine's Python; but without what
        # makes root more than the owner of its files.
        drop = [f"--{name}=-all" for name in ("bounding-set", "inh-caps", "ambient-caps")]
        return ["setpriv", "--no-new-privs", *drop, *local]

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """The variables of the image's process; it has no home, its user being in no list."""
        own = {name: self.path(value) for name, value in self.settings.items()}
        return {"PATH": os.environ["PATH"], "HOME": "/", **own, **more}

    @property
    def workdir(self) -> Path:
        """Where its process starts."""
        return Path(self.path(self._workdir))

    def files(self) -> dict[str, tuple[int, int]]:
        """Each path but those of /data, with its size and the time of its last change."""
        found = {}
        data = self.root / "data"
        for path in self.root.rglob("*"):
            if not path.is_relative_to(data):
                facts = path.lstat()
                found[str(path)] = (facts.st_size, facts.st_mtime_ns)
        return found

    def _do(self, step: Instruction) -> None:
        match step.name:
            case "FROM":
                self._begin(step.text)
            case "RUN":
                self._run(step)
            case "COPY":
                self._copy(step)
            case "WORKDIR":
                self._workdir = step.text
                Path(self.path(step.text)).mkdir(parents=True, exist_ok=True)
            case "ENV":
                self.settings |= dict(word.split("=", 1) for word in shlex.split(step.text))
            case "USER":
                self.user = step.text
            case "ENTRYPOINT":
                self.entrypoint = step.words()
            case "CMD":
                self.arguments = step.words()
            case "HEALTHCHECK":
                self.healthcheck = step.words()
            case "LABEL" | "VOLUME" | "EXPOSE" | "STOPSIGNAL":
                pass
            case _:
                raise AssertionError(f"{step.name}: this replay doesn't know it")

    def _begin(self, text: str) -> None:
        if self.root.exists():
            aside = self.root.with_name(f"{self.root.name}-{self._stage}")
            self._stages[self._stage] = self.root.rename(aside)
        self._stage = text.partition(" AS ")[2] or "final"
        self.root.mkdir()
        self._workdir = "/"
        self.settings = {}

    def _run(self, step: Instruction) -> None:
        words = step.words()
        if not words:
            self.left_out.append(step.text)
            return
        me = {"65532": str(os.getuid())}  # only root can give files away
        for name, value in me.items():
            words = [word.replace(f"={name}", f"={value}") for word in words]
        program = sys.executable if words[0] == "python" else self.path(words[0])
        # Where packages come from, on this machine, is said by its home or by variables of pip's.
        here = {name: value for name, value in os.environ.items() if _IS_PIPS.match(name)}
        done = subprocess.run(
            [program, *map(self.path, words[1:])],
            cwd=self.workdir,
            env=self.environment(here),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{step.text}:\n{done.stdout}{done.stderr}"

    def _copy(self, step: Instruction) -> None:
        *sources, target = step.text.split()
        base = Path(self.path(target) if target.startswith("/") else self.workdir / target)
        for name in sources:
            if stage := step.flags.get("from"):
                shutil.copytree(f"{self._stages[stage]}{name}", base, symlinks=True)
            else:
                self._copy_from_context(name, base, is_folder=target.endswith("/"))

    def _copy_from_context(self, name: str, base: Path, *, is_folder: bool) -> None:
        for file in self._context(name):
            if (self.source / name).is_dir():
                there = base / file.relative_to(self.source / name)
            else:
                there = base / file.name if is_folder else base
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, there)

    def _context(self, name: str) -> Iterator[Path]:
        """The files of the build context below a path; there must be some."""
        path = self.source / name
        files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
        taken = [
            one
            for one in files
            if not is_ignored(one.relative_to(self.source).as_posix(), self._ignore)
        ]
        assert taken, f"COPY {name}: .dockerignore leaves nothing of it"
        yield from taken
