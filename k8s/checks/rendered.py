"""Overlays as kustomize renders them, and their parts."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1]
Document = dict[str, Any]
GPU = re.compile(r"nvidia\.com/(gpu|mig-.+)")
"""The resources of a container that KubeRay counts as GPUs."""


class Broken(Exception):
    """An overlay that kustomize could not render, with its reason."""


def overlays(folder: Path = FOLDER) -> list[Path]:
    """Return all folders to apply: the overlays, the load test and the batches."""
    return [*sorted((folder / "overlays").iterdir()), *(folder / name for name in ("loadtest", "batch", "ray-batch"))]


def able() -> bool:
    return shutil.which("kubectl") is not None


def rendered(overlay: Path) -> list[Document]:
    """Render an overlay to its documents. Raises Broken."""
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Broken(" ".join(done.stderr.split()))
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def groups(service: Document) -> Iterator[tuple[str, Document]]:
    """Yield the head and the worker groups of a RayService or a RayJob, with their names."""
    spec = service["spec"]
    cluster = spec["rayClusterSpec" if service["kind"] == "RayJob" else "rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group


def environment(group: Document) -> dict[str, str | None]:
    """Return the variables of a group's first container; None for a value that comes from elsewhere."""
    variables = group["template"]["spec"]["containers"][0].get("env", [])
    return {variable["name"]: variable.get("value") for variable in variables}


def pods(documents: list[Document]) -> list[Document]:
    """Return every pod template as a Pod of its own, for checks that know no RayService."""
    pods = []
    for document in documents:
        name, namespace = document["metadata"]["name"], document["metadata"].get("namespace", "default")
        templates = {}
        if document["kind"] in ("RayService", "RayJob"):
            templates = {f"{name}-{group}": spec["template"] for group, spec in groups(document)}
            if (submitter := document["spec"].get("submitterPodTemplate")) is not None:
                templates[f"{name}-submitter"] = submitter
        elif document["kind"] in ("Job", "StatefulSet", "Deployment"):
            templates = {name: document["spec"]["template"]}
        for pod, template in templates.items():
            metadata = {**template.get("metadata", {}), "name": pod, "namespace": namespace}
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    return pods
