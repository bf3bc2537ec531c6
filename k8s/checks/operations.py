"""Checks what schemas cannot see: how manifests are scheduled, drained, changed for the next release, and watched."""

import re
from collections.abc import Iterator
from typing import Any

from k8s.checks.rendered import Document, environment, groups, of_kind, pods

OWNED = re.compile(r"app\.kubernetes\.io/(name|created-by)|ray\.io/.*")
"""Labels that KubeRay gives its pods, and by which its services find them."""
STAYS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
LOADING = "DIPTYCH_LOADING"


def operations(documents: list[Document]) -> Iterator[str]:
    """Yield the faults of an overlay as sentences. A Job is one only beside a RayService, which is upgraded."""
    services = of_kind(documents, "RayService")
    for service in services:
        if "ray.io/initializing-timeout" in service["metadata"].get("annotations", {}):
            yield "ray.io/initializing-timeout: KubeRay gives the service up for good where GPUs come later than that"
        for name, group in groups(service):
            yield from _pod(name, group)
            yield from _claims(name, group, service, documents)
    for pod in pods(documents):
        name, spec = pod["metadata"]["name"], pod["spec"]
        if not spec.get("imagePullSecrets"):
            yield f"{name} has no imagePullSecrets: a private registry refuses it"
        if "nvidia.com/gpu.present" in spec.get("nodeSelector", {}):
            yield f"{name}: nvidia.com/gpu.present is a label of GPU feature discovery; asking for GPUs is enough"
    for job in of_kind(documents, "Job") if services else []:
        yield f"Job {job['metadata']['name']}: a Job cannot be changed, so `apply` of the next image would be refused"
    for claim in of_kind(documents, "PersistentVolumeClaim"):
        if "ReadWriteMany" in claim["spec"]["accessModes"] and not claim["spec"].get("storageClassName"):
            yield f"{claim['metadata']['name']}: the usual default class cannot do ReadWriteMany: name a class"
    for budget in of_kind(documents, "PodDisruptionBudget"):
        yield from _budget(budget, documents)
    for watched in documents:
        by_operator = watched["apiVersion"].startswith("monitoring.coreos.com/")
        if by_operator and "release" not in watched["metadata"].get("labels", {}):
            yield f"{watched['kind']} {watched['metadata']['name']}: Prometheus selects by the label release"


def _pod(name: str, group: Document) -> Iterator[str]:
    template = group["template"]
    metadata, spec = template["metadata"], template["spec"]
    for label in metadata["labels"]:
        if OWNED.fullmatch(label):
            yield f"{name}: the label {label} is KubeRay's: its services would not find these pods"
    for spread in spec.get("topologySpreadConstraints", []):
        if "ray.io/cluster" not in spread.get("matchLabelKeys", []):
            yield f"{name}: the pods of both clusters of an upgrade count as one: matchLabelKeys: [ray.io/cluster]"
        if spread.get("nodeTaintsPolicy") != "Honor":
            yield f"{name}: nodes that these pods cannot go to count as empty: nodeTaintsPolicy: Honor"
    component = metadata["labels"].get("app.kubernetes.io/component")
    if component in ("head", "models") and not STAYS.items() <= metadata.get("annotations", {}).items():
        yield f"{name}: autoscalers of nodes may move it: it wants the annotations {', '.join(STAYS)}"
    probe = spec["containers"][0].get("readinessProbe")
    if component == "models" and probe is not None:
        command = " ".join(probe.get("exec", {}).get("command", []))
        if f"${LOADING}" not in command or not environment(group).get(LOADING):
            yield f"{name}: its probe does not look into {LOADING}: it would be ready before its models are loaded"


def _claims(name: str, group: Document, service: Document, documents: list[Document]) -> Iterator[str]:
    """Find claims that one node alone can mount, where several pods have to."""
    modes = {
        claim["metadata"]["name"]: claim["spec"]["accessModes"] for claim in of_kind(documents, "PersistentVolumeClaim")
    }
    for volume in group["template"]["spec"]["volumes"]:
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim in modes and "ReadWriteMany" not in modes[claim]:
            mounting = sum(
                other["maxReplicas"]
                for _, other in list(groups(service))[1:]
                if volume in other["template"]["spec"]["volumes"]
            )
            if mounting > 1:
                yield f"{name}: {claim} can be mounted on one node, and up to {mounting} pods want it"


def _fewest(service: Document, group: Document) -> int:
    """Return how many pods of a group are always there; in an incremental upgrade, of both clusters together."""
    spec = service["spec"]
    incremental = spec.get("upgradeStrategy", {}).get("type") == "NewClusterWithIncrementalUpgrade"
    scaled = spec["rayClusterConfig"].get("enableInTreeAutoscaling", False) and not incremental
    return int(group.get("minReplicas" if scaled else "replicas", 1))


def _budget(budget: Document, documents: list[Document]) -> Iterator[str]:
    """Find a budget that holds nothing: of no pods, or of pods whose readiness is not their own; one that lets no pod
    go, as any but an integer minAvailable does where a RayCluster owns the pods; and one that lets more than one go.
    """
    wanted: dict[str, Any] = budget["spec"]["selector"]["matchLabels"]
    name, fewest = budget["metadata"]["name"], budget["spec"].get("minAvailable")
    chosen_groups = [
        (service, group)
        for service in of_kind(documents, "RayService")
        for _, group in groups(service)
        if wanted.items() <= group["template"]["metadata"]["labels"].items()
    ]
    number = sum(_fewest(service, group) for service, group in chosen_groups)
    if chosen_groups and not isinstance(fewest, int):
        yield f"{name}: a RayCluster has no scale, so that no pod could be evicted: minAvailable, as an integer"
    elif chosen_groups and fewest != max(number - 1, 0):
        yield f"{name}: minAvailable {fewest} of {number} pods: a drain takes one at a time with {max(number - 1, 0)}"
    chosen = [pod for pod in pods(documents) if wanted.items() <= pod["metadata"].get("labels", {}).items()]
    if not chosen:
        yield f"{name} selects no pods"
    for pod in chosen:
        if "readinessProbe" not in pod["spec"]["containers"][0]:
            yield f"{name}: {pod['metadata']['name']} has no readiness probe of its own: its budget holds nothing"
