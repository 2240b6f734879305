"""The Kubernetes manifests: valid, consistent with one another, closed, drained in time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.fronts import replaced
from tests.deploy.manifests import DEPLOY, documents, setting_problems, unpinned

FOLDER = DEPLOY / "kubernetes"
FILES = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("example/*.yaml")])
ALL = [document for file in FILES for document in documents(file)]
WORKLOADS = [one for one in ALL if one["kind"] in ("Deployment", "StatefulSet")]
NAMES = [one["metadata"]["name"] for one in WORKLOADS]


def validate(file: Path) -> int:
    """The exit code of a strict check by Kubernetes' own schemas."""
    command: list[str | Path] = [
        Path(sys.executable).with_name("kubernetes-validate"),
        "--strict",
        file,
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode


def the(kind: str, name: str) -> dict[str, Any]:
    """The one object of a kind and name."""
    (found,) = [one for one in ALL if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    """The pod that a workload makes."""
    template: dict[str, Any] = workload["spec"]["template"]
    return template


def container(workload: dict[str, Any]) -> dict[str, Any]:
    """Its only container."""
    (only,) = pod(workload)["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def selectors(node: object) -> Iterator[dict[str, str]]:
    """All that a document selects pods by."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("podSelector", "labelSelector") or (key == "selector" and value):
                yield value.get("matchLabels", value)
            elif key != "namespaceSelector":
                yield from selectors(value)
    elif isinstance(node, list):
        for one in node:
            yield from selectors(one)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_manifest_is_valid(file: Path) -> None:
    """Kubernetes' schemas take each object, strictly."""
    assert validate(file) == 0


def test_a_slip_is_found(tmp_path: Path) -> None:
    """A field that Kubernetes doesn't know is refused."""
    slip = tmp_path / "slip.yaml"
    text = (FOLDER / "valkey.yaml").read_text()
    slip.write_text(replaced(text, ("terminationGracePeriodSeconds", "gracePeriodSeconds")))
    assert validate(slip) != 0


def test_every_selector_meets_pods() -> None:
    """Whatever selects pods, by Service, policy or budget, selects those of one workload."""
    labels = [pod(one)["metadata"]["labels"] for one in WORKLOADS]
    found = [selector for one in ALL for selector in selectors(one.get("spec", {}))]
    assert len(found) > 8
    for selector in found:
        assert sum(selector.items() <= own.items() for own in labels) == 1, selector


@pytest.mark.parametrize("workload", WORKLOADS, ids=NAMES)
def test_ports_and_mounts_have_their_other_end(workload: dict[str, Any]) -> None:
    """Services and probes use ports that the container has; each mount has its volume."""
    own = container(workload)
    ports = {port["name"]: port["containerPort"] for port in own["ports"]}
    service = the("Service", workload["metadata"]["name"])
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        way = own[probe].get("httpGet") or own[probe]["tcpSocket"]
        assert way["port"] in ports
    volumes = [volume["name"] for volume in pod(workload)["spec"]["volumes"]]
    claims = workload["spec"].get("volumeClaimTemplates", [])
    volumes += [claim["metadata"]["name"] for claim in claims]
    assert {mount["name"] for mount in own["volumeMounts"]} == set(volumes)


@pytest.mark.parametrize("workload", WORKLOADS, ids=NAMES)
def test_pods_are_restricted(workload: dict[str, Any]) -> None:
    """Each pod fits the restricted profile, on a read-only root, with bounded memory."""
    spec, own = pod(workload)["spec"], container(workload)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert own["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert own["resources"]["limits"]["memory"]
    assert own["resources"]["requests"].keys() == {"cpu", "memory"}
    assert unpinned([own["image"]]) == []


def test_secret_has_what_is_asked_of_it() -> None:
    """The example Secret has each key that a volume or a variable takes from it, and no other."""
    asked = set()
    for workload in WORKLOADS:
        for volume in pod(workload)["spec"]["volumes"]:
            asked |= {item["key"] for item in volume.get("secret", {}).get("items", [])}
        for variable in container(workload).get("env", []):
            if "valueFrom" in variable:
                asked.add(variable["valueFrom"]["secretKeyRef"]["key"])
    assert asked == the("Secret", "freeapi")["stringData"].keys()


def test_settings_are_ours_and_the_drain_fits() -> None:
    """Each variable is a setting of ours; the pod lives for longer than sleep and drain."""
    gateway = the("Deployment", "freeapi")
    own = container(gateway)
    given = {one["name"]: one.get("value", "$SECRET") for one in own["env"]}
    assert setting_problems(given) == []
    sleep_s = own["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace_s = pod(gateway)["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > sleep_s + float(given["FREEAPI_DRAIN_S"])


def test_metrics_are_for_monitoring_only() -> None:
    """The admin port is behind no Service, and its rule names where Prometheus runs."""
    assert [port["targetPort"] for port in the("Service", "freeapi")["spec"]["ports"]] == ["http"]
    rules = the("NetworkPolicy", "freeapi")["spec"]["ingress"]
    (admin,) = [rule for rule in rules if {"port": "admin"} in rule["ports"]]
    assert admin["ports"] == [{"port": "admin"}]
    assert admin["from"]


def test_no_replica_count_fights_the_autoscaler() -> None:
    """The Deployment says no number: each `apply` would set it back."""
    assert "replicas" not in the("Deployment", "freeapi")["spec"]
    scaler = the("HorizontalPodAutoscaler", "freeapi")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "freeapi"
    assert scaler["minReplicas"] >= 2


def test_valkey_keeps_the_cap() -> None:
    """Its Valkey has the settings of the Compose file's, which is run in its own test."""
    inline = the("ConfigMap", "valkey")["data"]["valkey.conf"].splitlines()
    compose = (DEPLOY / "compose" / "valkey.conf").read_text().splitlines()
    assert inline[1:] == [line for line in compose if not line.startswith("#")]
