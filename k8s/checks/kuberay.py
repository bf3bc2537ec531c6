"""Rules of KubeRay 1.7's operator that its CRDs cannot express, and the order of its times and ours.

After ray-operator/controllers/ray/utils/validation.go of v1.7.0, as far as these manifests use its subjects.
"""

import re
from collections.abc import Iterator

from deployments.config import ConfigError, parse_config
from k8s.checks.rendered import Document, environment, groups
from serve.limits import MAX_DEADLINE_S

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def kuberay(service: Document) -> Iterator[str]:
    """Yield every fault of a RayService as a sentence."""
    spec = service["spec"]
    cluster = spec["rayClusterConfig"]
    name = service["metadata"]["name"]
    if len(name) > 47 or not NAME.fullmatch(name):
        yield f"the name {name!r} is no DNS-1035 label of at most 47 characters"
    autoscaled = cluster.get("enableInTreeAutoscaling", False)
    version = tuple(int(part) for part in cluster.get("rayVersion", "0").split("."))
    if cluster.get("authOptions", {}).get("mode") == "token" and version < (2, 52, 0):
        yield "authOptions.mode token needs rayVersion 2.52.0 or later"
    yield from _fault_tolerance(service, cluster)
    for group_name, group in groups(service):
        yield from _group(group_name, group, autoscaled)
    if spec.get("rayClusterDeletionDelaySeconds", 60) < MAX_DEADLINE_S:
        least = f"less than a request may take ({MAX_DEADLINE_S} s)"
        yield f"rayClusterDeletionDelaySeconds is {least}: upgrades would cut it"
    strategy = spec.get("upgradeStrategy", {})
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        yield from _incremental_upgrade(strategy.get("clusterUpgradeOptions"), autoscaled)
    yield from _service(spec, cluster)
    yield from _times(service)


def ray_job(job: Document) -> Iterator[str]:
    """Yield every fault of a RayJob as a sentence."""
    spec = job["spec"]
    if len(job["metadata"]["name"]) > 47 or not NAME.fullmatch(job["metadata"]["name"]):
        yield f"the name {job['metadata']['name']!r} is no DNS-1035 label of at most 47 characters"
    for name, group in groups(job):
        yield from _group(name, group, spec["rayClusterSpec"].get("enableInTreeAutoscaling", False))
    submitter = spec.get("submitterPodTemplate")
    if spec.get("submissionMode", "K8sJobMode") == "SidecarMode" and submitter is not None:
        yield "SidecarMode has no submitterPodTemplate"
    if submitter is not None and submitter["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        yield "the submitter's restartPolicy must be Never or OnFailure: it is a Job's pod"
    if spec.get("backoffLimit", 0) < 0 or spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "backoffLimit and ttlSecondsAfterFinished must not be negative"


def _group(name: str, group: Document, autoscaled: bool) -> Iterator[str]:
    start, pod = group["rayStartParams"], group["template"]["spec"]
    if name != "head":
        fewest, most = group.get("minReplicas"), group.get("maxReplicas")
        if not autoscaled and (fewest is None or most is None):
            yield f"{name} must have minReplicas and maxReplicas where nothing scales it"
        if fewest is not None and most is not None and not 0 <= fewest <= group.get("replicas", fewest) <= most:
            yield f"{name}: minReplicas {fewest}, replicas {group.get('replicas')}, maxReplicas {most} are out of order"
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & start.keys():
        yield f"{name} has resources both in rayStartParams and beside them"
    if autoscaled and pod.get("restartPolicy", "Never") != "Never":
        yield f"{name}: restartPolicy must be Never with the second autoscaler"


def _fault_tolerance(service: Document, cluster: Document) -> Iterator[str]:
    head = cluster["headGroupSpec"]
    names = environment(head).keys()
    if "redis-username" in head["rayStartParams"] or "REDIS_USERNAME" in names:
        yield "Redis' user belongs into gcsFaultToleranceOptions"
    if "gcsFaultToleranceOptions" not in cluster:
        if "RAY_REDIS_ADDRESS" in names:
            yield "RAY_REDIS_ADDRESS is set without gcsFaultToleranceOptions"
        return
    if "redis-password" in head["rayStartParams"] or names & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"}:
        yield "Redis' address and password belong into gcsFaultToleranceOptions alone"
    annotations = service["metadata"].get("annotations", {})
    if {"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & annotations.keys():
        yield "an annotation about fault tolerance contradicts gcsFaultToleranceOptions"


def _incremental_upgrade(options: Document | None, autoscaled: bool) -> Iterator[str]:
    if not autoscaled:
        yield "an incremental upgrade needs enableInTreeAutoscaling"
    if options is None:
        yield "an incremental upgrade needs clusterUpgradeOptions"
        return
    step, surge = options.get("stepSizePercent", -1), options.get("maxSurgePercent", 100)
    if not 0 <= step <= surge <= 100:
        yield f"stepSizePercent {step} and maxSurgePercent {surge} must be in this order, from 0 to 100"
    if options.get("intervalSeconds", 0) <= 0:
        yield "intervalSeconds must be more than 0"
    if not options.get("gatewayClassName"):
        yield "an incremental upgrade needs a gatewayClassName"


def _service(spec: Document, cluster: Document) -> Iterator[str]:
    """Find pods that do not serve and would become endpoints: see base/rayservice.yaml."""
    incremental = spec.get("upgradeStrategy", {}).get("type") == "NewClusterWithIncrementalUpgrade"
    named = [port for port in spec.get("serveService", {}).get("spec", {}).get("ports", []) if port["name"] == "serve"]
    ports = cluster["headGroupSpec"]["template"]["spec"]["containers"][0].get("ports", [])
    if incremental and "serve" not in {port.get("name") for port in ports}:
        yield "an incremental upgrade takes the service's port from the head's port named serve, and there is none"
    for group in cluster["workerGroupSpecs"]:
        container = group["template"]["spec"]["containers"][0]
        serves = "serve" in {port.get("name") for port in container.get("ports", [])}
        by_name = not incremental and bool(named) and all(port.get("targetPort") == "serve" for port in named)
        if not serves and not by_name and "readinessProbe" in container:
            yield f"{group['groupName']} serves nothing and would be an endpoint: without a probe of its own it is not"


def _times(service: Document) -> Iterator[str]:
    """Hold this order: a pod's grace > Ray's drain > the time that a replica has to finish."""
    try:
        args = parse_config(service["spec"]["serveConfigV2"], "serveConfigV2").args
    except ConfigError:
        return  # `serve_config` has the reason
    longest = {
        "gateway": args.gateway.drain_s + args.gateway.leave_s,
        "models": max((model.drain_s for model in args.engines().values()), default=0.0),
    }
    for name, group in groups(service):
        component = group["template"]["metadata"]["labels"].get("app.kubernetes.io/component")
        slowest = longest.get(component, max(longest.values()))
        grace = group["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        drain = float(environment(group).get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S") or 30)
        if name != "head" and not slowest < drain < grace:
            yield f"{name}: grace ({grace} s) must exceed Ray's drain ({drain:g} s), and that drain_s ({slowest:g} s)"
