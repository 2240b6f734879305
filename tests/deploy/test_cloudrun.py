"""The Cloud Run service: its fields are known ones, in their ranges, and its settings are ours.

No schema of Cloud Run's is published as a package. ``KNOWN`` is what the service uses of the
fields in "Cloud Run YAML Reference" (as read in November 2026): a slip in a name isn't in it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.deploy.fronts import replaced
from tests.deploy.manifests import DEPLOY, ROOT, schema_problems, setting_problems

FILE = DEPLOY / "cloudrun" / "service.yaml"
TEXT = FILE.read_text()
SERVICE: dict[str, Any] = yaml.safe_load(TEXT)
TEMPLATE = SERVICE["spec"]["template"]
POD = TEMPLATE["spec"]
(CONTAINER,) = POD["containers"]
GUIDE = (ROOT / "docs" / "deployment" / "cloud-run.md").read_text()
#: Paths of fields; ``*`` stands for any annotation, label or limit, which ``ANNOTATIONS`` names.
KNOWN = """
    apiVersion kind metadata.name metadata.labels.* metadata.annotations.*
    spec.template.metadata.annotations.* spec.template.spec.serviceAccountName
    spec.template.spec.containerConcurrency spec.template.spec.timeoutSeconds
    spec.template.spec.containers.name spec.template.spec.containers.image
    spec.template.spec.containers.ports.name spec.template.spec.containers.ports.containerPort
    spec.template.spec.containers.env.name spec.template.spec.containers.env.value
    spec.template.spec.containers.env.valueFrom.secretKeyRef.name
    spec.template.spec.containers.env.valueFrom.secretKeyRef.key
    spec.template.spec.containers.resources.limits.*
    spec.template.spec.containers.volumeMounts.name
    spec.template.spec.containers.volumeMounts.mountPath
    spec.template.spec.containers.startupProbe.httpGet.path
    spec.template.spec.containers.startupProbe.httpGet.port
    spec.template.spec.containers.startupProbe.periodSeconds
    spec.template.spec.containers.startupProbe.timeoutSeconds
    spec.template.spec.containers.startupProbe.failureThreshold
    spec.template.spec.containers.livenessProbe.httpGet.path
    spec.template.spec.containers.livenessProbe.httpGet.port
    spec.template.spec.containers.livenessProbe.periodSeconds
    spec.template.spec.containers.livenessProbe.timeoutSeconds
    spec.template.spec.volumes.name spec.template.spec.volumes.secret.secretName
    spec.template.spec.volumes.secret.items.key spec.template.spec.volumes.secret.items.path
    spec.traffic.latestRevision spec.traffic.percent
"""
ANNOTATIONS = {
    "autoscaling.knative.dev/maxScale",
    "autoscaling.knative.dev/minScale",
    "run.googleapis.com/cpu-throttling",
    "run.googleapis.com/execution-environment",
    "run.googleapis.com/ingress",
    "run.googleapis.com/invoker-iam-disabled",
    "run.googleapis.com/network-interfaces",
    "run.googleapis.com/startup-cpu-boost",
    "run.googleapis.com/vpc-access-egress",
}


def fields(node: object, path: str = "") -> set[str]:
    """The paths of all values."""
    if isinstance(node, list):
        return set().union(*(fields(one, path) for one in node))
    if not isinstance(node, dict):
        return {path}
    if path.endswith(("annotations", "labels", "limits")):
        return {f"{path}.*"}
    return set().union(*(fields(node[key], f"{path}.{key}".lstrip(".")) for key in node))


def test_fields_are_known() -> None:
    """Each field and annotation is one that Cloud Run knows; a slip is found."""
    known = set(KNOWN.split())
    assert fields(SERVICE) <= known
    assert fields({**SERVICE, "spec": {"templates": 1}}) - known == {"spec.templates"}
    given = {**SERVICE["metadata"]["annotations"], **TEMPLATE["metadata"]["annotations"]}
    assert given.keys() == ANNOTATIONS
    assert all(isinstance(value, str) for value in given.values())  # Knative takes no other


def test_build_is_valid(tmp_path: Path) -> None:
    """Cloud Build's schema takes our build, and refuses one with a slip in it."""
    build = DEPLOY / "cloudrun" / "cloudbuild.yaml"
    assert schema_problems("vendor.cloudbuild", build) == ""
    slip = tmp_path / "cloudbuild.yaml"
    slip.write_text(replaced(build.read_text(), ("args:", "arguments:")))
    assert schema_problems("vendor.cloudbuild", slip) != ""


def test_numbers_are_in_cloud_runs_ranges() -> None:
    """Concurrency, time-outs and probes are within what Cloud Run allows."""
    assert 1 <= POD["containerConcurrency"] <= 1_000
    assert 600 < POD["timeoutSeconds"] <= 3_600  # above our own total_s
    for probe in (CONTAINER["startupProbe"], CONTAINER["livenessProbe"]):
        assert probe["timeoutSeconds"] <= probe["periodSeconds"] <= 240
    assert CONTAINER["startupProbe"]["httpGet"]["port"] == CONTAINER["ports"][0]["containerPort"]
    scale = TEMPLATE["metadata"]["annotations"]
    assert int(scale["autoscaling.knative.dev/minScale"]) >= 1
    assert scale["run.googleapis.com/cpu-throttling"] == "false"
    assert json.loads(scale["run.googleapis.com/network-interfaces"])[0].keys() == {
        "network",
        "subnetwork",
    }


def test_settings_are_ours() -> None:
    """Each variable is a setting of ours; PORT is left to Cloud Run; the drain fits in its 10 s."""
    given = {one["name"]: one.get("value", "$SECRET") for one in CONTAINER["env"]}
    assert setting_problems(given) == []
    assert "PORT" not in given
    assert float(given["FREEAPI_DRAIN_S"]) < 10
    assert given["FREEAPI_STATE"] == "$SECRET"  # a cap that a restart forgets would be none


def test_keys_come_from_secret_manager() -> None:
    """The keys' file is the one that the mounted secret makes."""
    (volume,) = POD["volumes"]
    (mount,) = CONTAINER["volumeMounts"]
    (item,) = volume["secret"]["items"]
    (keys,) = [one for one in CONTAINER["env"] if one["name"] == "OPENAI_API_KEYS_FILE"]
    assert mount["name"] == volume["name"]
    assert keys["value"] == f"{mount['mountPath']}/{item['path']}"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\$\{(\w+)\}", TEXT))))
def test_guide_sets_each_variable(name: str) -> None:
    """What envsubst fills in is exported by the guide before."""
    assert re.search(rf"^export (?:.* )?{name}=", GUIDE, re.MULTILINE)


def test_guide_makes_each_secret() -> None:
    """Each secret and the service account of the service are made by the guide's commands."""
    for secret in ("freeapi-openai-keys", "freeapi-state"):
        assert secret in TEXT
        assert f"gcloud secrets create {secret}" in GUIDE
    assert POD["serviceAccountName"].startswith("freeapi@")
    assert "gcloud iam service-accounts create freeapi" in GUIDE
