"""The GitHub workflows: valid, with least rights, and with actions of a stated version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.deploy.fronts import replaced
from tests.deploy.manifests import ROOT, schema_problems

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
#: What a job may be allowed beyond reading, by workflow and job, and what for.
RIGHTS = {
    ("image", "image"): {"packages", "id-token", "attestations"},  # to push and to sign
    ("release", "publish"): {"id-token"},  # to say who publishes
    ("release", "notes"): {"contents"},  # to make the release
}


def jobs(file: Path) -> dict[str, dict[str, Any]]:
    """The jobs of a workflow."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text())["jobs"]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_workflow_is_valid(file: Path, tmp_path: Path) -> None:
    """GitHub's schema takes the workflow, and refuses one with a slip in it."""
    assert schema_problems("vendor.github-workflows", file) == ""
    slip = tmp_path / file.name
    slip.write_text(replaced(file.read_text(), ("runs-on", "run-on")))
    assert schema_problems("vendor.github-workflows", slip) != ""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_rights_are_the_least(file: Path) -> None:
    """By default a workflow may only read; what a job may write is listed here; each has an end."""
    assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}
    for name, job in jobs(file).items():
        written = {right for right, level in job.get("permissions", {}).items() if level == "write"}
        assert written == RIGHTS.get((file.stem, name), set())
        assert job["timeout-minutes"] <= 60


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_actions_have_versions(file: Path) -> None:
    """Each action is pinned to a major version, and no checkout leaves its token behind."""
    for job in jobs(file).values():
        for step in job["steps"]:
            action = step.get("uses", "a/b@v1")
            assert re.fullmatch(r"[\w-]+/[\w-]+@(?:v\d+|release/v\d+)", action), action
            if action.startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_script_takes_text_from_outside(file: Path) -> None:
    """No shell line has an expression in it: a branch's or a tag's name could be a command."""
    for job in jobs(file).values():
        assert [s["run"] for s in job["steps"] if "${{" in s.get("run", "")] == []


def test_every_supported_python_is_tested() -> None:
    """The matrix has the Pythons of the classifiers."""
    (job,) = jobs(ROOT / ".github" / "workflows" / "test.yml").values()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = {c.split()[-1] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert stated <= set(job["strategy"]["matrix"]["python"])
