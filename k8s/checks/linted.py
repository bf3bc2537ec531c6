"""Runs checkov on pod templates and Dockerfiles, from its own environment: its requirements conflict with ours."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

from k8s.checks.rendered import GPU, Document

PODS = {
    "CKV_K8S_8": "KubeRay gives Ray's pods their liveness probes; jobs need none",
    "CKV_K8S_9": "KubeRay gives the head and, in one mode, the models' pods their readiness probes; jobs need none",
    "CKV_K8S_14": "the tag is the reader's: registry.example.com is a placeholder",
    "CKV_K8S_43": "the digest, too: kustomize edit set image diptych=...@sha256:...",
    "CKV_K8S_15": "what is pinned by its digest need not be pulled again",
    "CKV_K8S_22": "the NVIDIA runtime writes into GPU pods; all others are read-only, by `writable`",
    "CKV_K8S_35": "HF_TOKEN and passwords are read from the environment by what they are for",
}
HEADS = {
    "CKV_K8S_38": "Ray's autoscaler, where it is on, asks the API server for pods",
}
FILES = {
    "CKV_DOCKER_7": "the base comes as an argument, by its digest",
}


def pods(checkov: Path, pods: list[Document], policies: list[Document], folder: Path) -> Iterator[str]:
    """Yield the faults of pods under the network policies beside them. folder: for a file that checkov reads."""
    file = folder / "pods.yaml"
    file.write_text(yaml.safe_dump_all(pods + policies))
    for resource, check, description in _failed(checkov, "kubernetes", file, PODS):
        if not (check in HEADS and resource.endswith("-head")):
            yield f"{resource}: {check} {description}"


def writable(pods: list[Document]) -> Iterator[str]:
    """Yield the containers that may write into their image though no GPU's runtime has to."""
    for pod in pods:
        for container in pod["spec"]["containers"]:
            gpus = any(map(GPU.fullmatch, container["resources"]["limits"]))
            if not gpus and not container["securityContext"].get("readOnlyRootFilesystem"):
                yield f"{pod['metadata']['name']}: its root file system can be written"


def dockerfile(checkov: Path, file: Path) -> Iterator[str]:
    for resource, check, description in _failed(checkov, "dockerfile", file, FILES):
        yield f"{resource}: {check} {description}"


def _failed(checkov: Path, framework: str, file: Path, skipped: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield each failed check: (resource, id, description)."""
    command = [str(checkov), "--framework", framework, "--file", str(file), "--skip-check", ",".join(skipped)]
    command += ["--compact", "--quiet", "--skip-download", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    try:
        output = json.loads(done.stdout)
    except ValueError:
        yield str(file), "checkov did not run:", " ".join((done.stdout + done.stderr).split())[-300:]
        return
    for report in output if isinstance(output, list) else [output]:
        for failed in report.get("results", {}).get("failed_checks", []):
            yield failed["resource"], failed["check_id"], failed["check_name"]
