"""scripts/sbom lists what the lock installs: each package with its version and its hashes."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: A package of the lock, and the lines of hashes that follow.
LOCKED = re.compile(r"^([\w.-]+)==(\S+).*((?:\n +--hash=sha256:\w+ ?\\?)+)", re.MULTILINE)


@pytest.mark.timeout(300)  # it fetches its tool
def test_bill_of_materials_is_the_lock(tmp_path: Path) -> None:
    """Every line of the lock is a component with its hashes, and there is no other."""
    done = subprocess.run([ROOT / "scripts" / "sbom"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    bill = json.loads(done.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "chatgpt-freeapi"
    text = (ROOT / "locks" / "runtime.txt").read_text()
    locked = {m[1]: (m[2], set(re.findall(r"sha256:(\w+)", m[3]))) for m in LOCKED.finditer(text)}
    assert len(locked) > 10
    listed = {
        one["name"]: (
            one["version"],
            {
                digest["content"]
                for place in one["externalReferences"]
                for digest in place.get("hashes", [])
            },
        )
        for one in bill["components"]
    }
    assert listed == locked
