"""The pages on deployment: complete, with commands that a shell takes and names that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from tests.deploy.fronts import tool
from tests.deploy.manifests import ROOT, SETTINGS

FOLDER = ROOT / "docs" / "deployment"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name != "README.md")
ALL = [*PAGES, FOLDER / "README.md"]
NAMES = [page.stem for page in PAGES]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks in a language."""
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def shell_problems(text: str) -> str:
    """What the shell says of commands that it doesn't run; "" for good ones."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    return done.stderr


def broken_links(page: Path, text: str) -> list[str]:
    """The links to files that aren't there, or to headings that they haven't."""
    broken = []
    for path, anchor in LINK.findall(text):
        target = (page.parent / path).resolve() if path else page
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
        if not target.exists() or (anchor and anchor not in slugs):
            broken.append(path + anchor)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_page_says_what_an_operator_needs(page: Path) -> None:
    """Each page says how to check that it works, how to update it, how to back up and roll back."""
    headings = re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
    assert {"Check", "Update", "Back up, roll back"} <= set(headings)
    assert "](" + page.name + ")" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_can_be_copied(page: Path) -> None:
    """Each shell block is one that a shell takes."""
    given = blocks(page, "sh")
    assert given
    assert [problem for one in given if (problem := shell_problems(one))] == []
    assert shell_problems("for x in 1; do") != ""


@pytest.mark.parametrize("page", ALL, ids=[*NAMES, "README"])
def test_names_exist(page: Path) -> None:
    """Each setting that a page names is one of ours, and each link leads somewhere."""
    text = page.read_text()
    assert set(re.findall(r"\b(?:FREEAPI|OPENAI)_[A-Z_]+\b", text)) - {"SITE"} <= set(SETTINGS)
    assert broken_links(page, text) == []
    assert broken_links(page, "[a](nothing.md) [b](README.md#nothing)") == [
        "nothing.md",
        "README.mdnothing",
    ]


def test_caddy_takes_the_pages_configuration() -> None:
    """The Caddyfile that a page shows is one."""
    (text,) = blocks(FOLDER / "behind-a-proxy.md", "caddyfile")
    command = [tool("caddy", "caddy"), "validate", "--adapter", "caddyfile", "--config", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tunnel_configuration_parses() -> None:
    """The tunnel's last rule catches all, as cloudflared demands."""
    (text,) = blocks(FOLDER / "behind-a-proxy.md", "yaml")
    assert yaml.safe_load(text)["ingress"][-1] == {"service": "http_status:404"}
