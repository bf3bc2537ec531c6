"""Tests `make k8s-check`: the manifests pass it, and a slip in any of them does not."""

import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.config import read_config
from deployments.replica import loading_file
from k8s.checks import rendered, schemas
from k8s.checks.kuberay import kuberay
from k8s.checks.linted import writable
from k8s.checks.operations import operations
from k8s.checks.serve_config import room
from serve.limits import Limits

ROOT = Path(__file__).parents[2]
CRDS = Path(os.environ.get("CRDS", ROOT.parent / "shared" / "kuberay"))
needs_kubectl = pytest.mark.skipif(not rendered.able(), reason="kubectl is not installed")
needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason=f"{CRDS} is no folder of CRDs: CRDS names one")


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the check in a process of its own: Ray's schema warns when it is imported."""
    command = [sys.executable, "-m", "k8s.check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_ingress_allows_the_largest_body() -> None:
    text = (ROOT / "k8s" / "components" / "ingress" / "ingress.yaml").read_text()
    limit = re.search(r"proxy-body-size: (\d+)m", text)
    assert limit is not None and int(limit[1]) > Limits().max_body_mb


@pytest.fixture(scope="module")
def demo() -> list[rendered.Document]:
    return rendered.rendered(rendered.FOLDER / "overlays" / "cpu-demo")


@pytest.fixture(scope="module")
def service(demo: list[rendered.Document]) -> rendered.Document:
    return rendered.of_kind(demo, "RayService")[0]


@pytest.mark.slow
@needs_kubectl
@needs_crds
def test_overlays_have_no_fault() -> None:
    done = check("--crds", str(CRDS))
    assert done.returncode == 0 and "no fault" in done.stdout, done.stdout + done.stderr
    for overlay in rendered.overlays():
        assert f"ok    {overlay.name}: " in done.stdout
    assert "SKIPPED  checkov" in done.stdout  # what it leaves out is printed


PLANTED = [
    ("base/disruption.yaml", "minAvailable: 1", "minAvailble: 1", "'minAvailble' was unexpected"),
    ("base/rayservice.yaml", "type: NewCluster", "typ: NewCluster", "'typ' was unexpected"),
    ("base/rayservice.yaml", "replicas: 2", "replicas: two", "'two' is not of type 'integer'"),
    ("base/rayservice.yaml", "httpGet: {path: /health", "httpGet: {pth: /health", "'pth' was unexpected"),
    ("overlays/cpu-demo/applications.yaml", "log_level: WARNING", "log_levl: WARNING", "logging_config.log_levl"),
    ("overlays/cpu-demo/applications.yaml", "import_path:", "max_ongoing: 5\n  import_path:", "0.max_ongoing:"),
    ("overlays/cpu-demo/serve.yaml", "drain_s: 120", "drain: 120", "there is no such field"),
    ("overlays/cpu-demo/serve.yaml", "drain_s: 120", "drain_s: 121", "is not made of serve.yaml: make k8s-config"),
    ("overlays/cpu-demo/applications.yaml", " model: 1.0", " modl: 1.0", "no pod has more than 0"),
    ("base/rayservice.yaml", "[ray.io/cluster]", "[ray.io/group]", "both clusters of an upgrade"),
    (
        "components/serve-config/kustomization.yaml",
        "data.[applications.yaml]",
        "data.[serve.yaml]",
        "Serve takes an application for each model",
    ),
    (
        "Dockerfile",
        "COPY deployments/locks",
        "COPY serve serve\nCOPY deployments/locks",
        "before packages are installed",
    ),
    ("components/monitoring/alerts.yaml", "diptych_replies_total", "diptych_reply_total", "nothing counts"),
]
EACH = """
import functools, sys
from k8s.check import main
from k8s.checks import rules, schemas
schemas.definitions = functools.cache(schemas.definitions)
rules.able = lambda: False  # promtool takes longer than all other checks, and has a test of its own
for folder in sys.argv[2:]:
    code = main(["--crds", sys.argv[1], "--folder", folder, "--only", "cpu-demo"])
    print(f"==== {code}")
"""


@pytest.mark.slow
@needs_kubectl
@needs_crds
def test_planted_slip_is_a_fault(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(len(PLANTED))]
    for folder, (file, right, wrong, _) in zip(folders, PLANTED, strict=True):
        shutil.copytree(rendered.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
        text = (folder / file).read_text()
        assert right in text
        (folder / file).write_text(text.replace(right, wrong))
    # in one process, as importing Ray takes longer than the checks
    command = [sys.executable, "-c", EACH, str(CRDS), *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    *outputs, rest = done.stdout.split("====")
    assert len(outputs) == len(PLANTED), done.stdout + done.stderr
    for (file, _, wrong, fault), before, after in zip(PLANTED, outputs, [*outputs[1:], rest], strict=True):
        assert fault in before and after.startswith(" 1\n"), (file, wrong, before)


@pytest.mark.slow
@needs_kubectl
@needs_crds
def test_tracing_component_reaches_every_group_of_pods(tmp_path: Path) -> None:
    folder = tmp_path / "k8s"
    shutil.copytree(rendered.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "overlays" / "multi-node" / "kustomization.yaml"
    file.write_text(re.sub(r"(components:\n(  - .*\n)+)", r"\1  - ../../components/tracing\n", file.read_text()))
    done = check("--crds", str(CRDS), "--folder", str(folder), "--only", "multi-node")
    assert done.returncode == 0, done.stdout + done.stderr
    (traced,) = rendered.of_kind(rendered.rendered(file.parent), "RayService")
    for name, group in rendered.groups(traced):
        env = rendered.environment(group)
        collector = "" if name == "head" else "http://otel-collector.monitoring:4318"
        assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == collector


@needs_kubectl
def test_kind_without_crd_is_a_fault(demo: list[rendered.Document]) -> None:
    assert [fault for fault in schemas.custom(demo, {})] == ["RayService diptych: there is no CRD of ray.io/v1"]


def cluster(service: Any) -> Any:
    return service["spec"]["rayClusterConfig"]


def pod(service: Any) -> Any:
    return cluster(service)["workerGroupSpecs"][1]["template"]["spec"]


SLIPS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda ray: ray["metadata"].update(name="9lives"), "DNS-1035"),
    (lambda ray: cluster(ray).update(rayVersion="2.50.1"), "2.52.0"),
    (lambda ray: cluster(ray)["workerGroupSpecs"][0].update(maxReplicas=1), "out of order"),
    (lambda ray: cluster(ray)["workerGroupSpecs"][0].pop("maxReplicas"), "minReplicas and maxReplicas"),
    (lambda ray: cluster(ray)["workerGroupSpecs"][0].update(resources={"CPU": "1"}), "resources both"),
    (lambda ray: cluster(ray)["headGroupSpec"]["rayStartParams"].update({"redis-username": "x"}), "Redis' user"),
    (lambda ray: ray["spec"].update(rayClusterDeletionDelaySeconds=60), "upgrades would cut"),
    (lambda ray: ray["spec"]["upgradeStrategy"].update(type="NewClusterWithIncrementalUpgrade"), "enableInTree"),
    (lambda ray: ray["spec"].pop("serveService"), "models serves nothing and would be an endpoint"),
    (lambda ray: pod(ray).update(terminationGracePeriodSeconds=30), "grace"),
]  # fmt: skip


@needs_kubectl
@pytest.mark.parametrize(("slip", "fault"), SLIPS)
def test_slip_that_kuberay_refuses_is_a_fault(
    slip: Callable[[Any], Any], fault: str, service: rendered.Document
) -> None:
    assert not list(kuberay(service))
    wrong = copy.deepcopy(service)
    slip(wrong)
    assert fault in " ".join(kuberay(wrong))


@needs_kubectl
def test_container_that_may_write_into_its_image_is_a_fault(demo: list[rendered.Document]) -> None:
    pods = copy.deepcopy(rendered.pods(demo))
    assert not list(writable(pods))
    pods[0]["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] = False
    assert list(writable(pods)) == ["diptych-head: its root file system can be written"]


def ray(documents: list[rendered.Document]) -> Any:
    return rendered.of_kind(documents, "RayService")[0]


def models(documents: list[rendered.Document]) -> Any:
    return cluster(ray(documents))["workerGroupSpecs"][1]["template"]


def named(documents: list[rendered.Document], kind: str, name: str = "diptych") -> Any:
    return next(each for each in rendered.of_kind(documents, kind) if each["metadata"]["name"] == name)


def job(documents: list[rendered.Document]) -> None:
    spec = {"template": {"spec": models(documents)["spec"]}}
    documents.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "download"}, "spec": spec})


def two_pods_on_one_volume(documents: list[rendered.Document]) -> None:
    cluster(ray(documents))["workerGroupSpecs"][1]["maxReplicas"] = 2


def claimed_by_many(documents: list[rendered.Document]) -> None:
    named(documents, "PersistentVolumeClaim", "diptych-models")["spec"]["accessModes"] = ["ReadWriteMany"]


def budget(documents: list[rendered.Document]) -> Any:
    return named(documents, "PodDisruptionBudget", "diptych-models")["spec"]


def selector(documents: list[rendered.Document]) -> Any:
    return budget(documents)["selector"]["matchLabels"]


def at_most_one_away(documents: list[rendered.Document]) -> None:
    del budget(documents)["minAvailable"]
    budget(documents)["maxUnavailable"] = 1


OLD_PROBE = {"httpGet": {"path": "/api/local_raylet_healthz", "port": 52365}}
SPREAD = "topologySpreadConstraints"
DAY_TWO: list[tuple[Callable[[Any], Any], str]] = [
    (lambda docs: ray(docs)["metadata"].update(annotations={"ray.io/initializing-timeout": "60m"}), "for good"),
    (lambda docs: models(docs)["spec"]["containers"][0].update(readinessProbe=OLD_PROBE), "before its models"),
    (lambda docs: models(docs)["spec"]["containers"][0].pop("readinessProbe"), "its budget holds nothing"),
    (lambda docs: selector(docs).update(x="y"), "selects no pods"),
    (lambda docs: budget(docs).update(minAvailable=1), "minAvailable 1 of 1 pods: a drain takes one at a time with 0"),
    (lambda docs: budget(docs).update(minAvailable="50%"), "a RayCluster has no scale"),
    (at_most_one_away, "a RayCluster has no scale, so that no pod could be evicted"),
    (job, "Job download: a Job cannot be changed"),
    (two_pods_on_one_volume, "can be mounted on one node, and up to 2 pods want it"),
    (claimed_by_many, "the usual default class cannot do ReadWriteMany"),
    (lambda docs: models(docs)["spec"].update(nodeSelector={"nvidia.com/gpu.present": "true"}), "feature discovery"),
    (lambda docs: models(docs)["metadata"]["labels"].update({"app.kubernetes.io/name": "diptych"}), "is KubeRay's"),
    (lambda docs: models(docs)["spec"][SPREAD][0].pop("matchLabelKeys"), "both clusters of an upgrade"),
    (lambda docs: models(docs)["spec"][SPREAD][1].pop("nodeTaintsPolicy"), "nodeTaintsPolicy: Honor"),
    (lambda docs: models(docs)["metadata"].pop("annotations"), "autoscalers of nodes may move it"),
    (lambda docs: models(docs)["spec"].pop("imagePullSecrets"), "a private registry refuses it"),
    (lambda docs: named(docs, "PrometheusRule")["metadata"].pop("labels"), "Prometheus selects by the label release"),
]  # fmt: skip


@pytest.fixture(scope="module")
def gpu_node() -> list[rendered.Document]:
    return rendered.rendered(rendered.FOLDER / "overlays" / "gpu-node")


@pytest.mark.slow
@needs_kubectl
@pytest.mark.parametrize(("slip", "fault"), DAY_TWO)
def test_slip_that_only_a_second_day_shows_is_a_fault(
    slip: Callable[[Any], Any], fault: str, gpu_node: list[rendered.Document]
) -> None:
    assert not list(operations(gpu_node))
    wrong = copy.deepcopy(gpu_node)
    slip(wrong)
    assert fault in " ".join(operations(wrong))


def halved(entry: Any) -> None:
    entry.num_gpus, entry.engine_args["gpu_memory_utilization"] = 0.5, 0.6


@pytest.mark.slow
@needs_kubectl
@pytest.mark.parametrize(
    ("overlay", "slip", "fault"),
    [
        (
            "multi-node",
            lambda args: [entry.resources.pop("small", None) for entry in args.engines().values()],
            "llava-onevision-qwen2-72b-ov may find no pod with room where the others are placed first",
        ),
        (
            "ha",
            lambda args: setattr(args.engines()["llava-1.5-7b"], "max_replicas_per_node", None),
            "all 2 replicas of llava-1.5-7b may be in one pod: set its max_replicas_per_node",
        ),
        ("ha", lambda args: setattr(args.engines()["llava-1.5-7b"], "replicas", 3), "asks for 5 GPU together"),
        (
            "gpu-node",
            lambda args: [halved(entry) for entry in args.engines().values()],
            "llava-1.5-7b takes 0.6 of a GPU's memory and reserves 0.5 of the GPU",
        ),
    ],
)
def test_placing_that_fails_in_the_worst_order_is_a_fault(overlay: str, slip: Callable[[Any], Any], fault: str) -> None:
    folder = rendered.FOLDER / "overlays" / overlay
    service = ray(rendered.rendered(folder))
    args = read_config(folder / "serve.yaml").args
    assert not list(room(service, args))
    slip(args)
    assert fault in " ".join(room(service, args))


@pytest.mark.slow
@needs_kubectl
@pytest.mark.parametrize(
    ("gpus", "faults"),
    [(6, []), (8, ["the Serve config asks for 8 GPU together, and the groups have 6"])],
)
def test_model_that_spans_nodes_needs_room_on_all_together(gpus: int, faults: list[str]) -> None:
    folder = rendered.FOLDER / "overlays" / "multi-node"
    service = ray(rendered.rendered(folder))
    args = read_config(folder / "serve.yaml").args
    large = args.engines()["llava-onevision-qwen2-72b-ov"]
    args.models = [large]
    large.spans_nodes, large.num_gpus, large.resources = True, gpus, {}
    cluster(service)["workerGroupSpecs"][1]["maxReplicas"] = 1
    assert list(room(service, args)) == faults


@needs_kubectl
@pytest.mark.parametrize("folder", ["loadtest", "batch"])
def test_policy_of_a_job_opens_the_way_to_the_gateways(folder: str, demo: list[rendered.Document]) -> None:
    (policy,) = rendered.of_kind(rendered.rendered(rendered.FOLDER / folder), "NetworkPolicy")
    gateways = next(pod for pod in rendered.pods(demo) if pod["metadata"]["name"] == "diptych-gateways")
    peers = [peer for rule in policy["spec"]["egress"] for peer in rule["to"] if "podSelector" in peer]
    (wanted,) = (peer["podSelector"]["matchLabels"] for peer in peers)
    assert wanted.items() <= gateways["metadata"]["labels"].items()


@pytest.mark.slow
@needs_kubectl
@pytest.mark.parametrize("component", ["openshift", "model-cache-shared"])
def test_component_beside_an_overlay_leaves_no_fault(component: str, tmp_path: Path) -> None:
    folder = tmp_path / "k8s"
    shutil.copytree(rendered.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "overlays" / "ha" / "kustomization.yaml"
    file.write_text(re.sub(r"(components:\n(  - .*\n)+)", rf"\1  - ../../components/{component}\n", file.read_text()))
    documents = rendered.rendered(file.parent)
    assert not [*operations(documents), *schemas.core(documents + rendered.pods(documents))]
    if component == "openshift":
        ids = {"runAsUser", "runAsGroup", "fsGroup"}
        pods = rendered.pods(documents)
        assert [pod["metadata"]["name"] for pod in pods if ids & pod["spec"]["securityContext"].keys()] == []


@pytest.mark.slow
@needs_kubectl
def test_models_on_spot_nodes_need_a_drain_within_the_notice(tmp_path: Path) -> None:
    folder = tmp_path / "k8s"
    shutil.copytree(rendered.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "overlays" / "gpu-node" / "kustomization.yaml"
    file.write_text(re.sub(r"(components:\n(  - .*\n)+)", r"\1  - ../../components/spot\n", file.read_text()))
    spot = ray(rendered.rendered(file.parent))
    assert "grace (25 s) must exceed Ray's drain (20 s), and that drain_s (120 s)" in " ".join(kuberay(spot))
    config = (file.parent / "serve.yaml").read_text()
    gateway = config[config.index("      gateway:") :]
    spot["spec"]["serveConfigV2"] = config.replace(gateway, "").replace("drain_s: 120", "drain_s: 15") + gateway
    assert not list(kuberay(spot))
    cluster(spot)["workerGroupSpecs"][0]["template"]["spec"]["terminationGracePeriodSeconds"] = 25
    assert "gateways: grace (25 s)" in " ".join(kuberay(spot))


def test_probe_of_models_fails_while_a_process_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = yaml.safe_load((ROOT / "k8s" / "base" / "rayservice.yaml").read_text())
    command = pod(base)["containers"][0]["readinessProbe"]["exec"]["command"]
    loading, wget = tmp_path / "loading", tmp_path / "wget"
    wget.write_text("#!/bin/sh\n")
    wget.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DIPTYCH_LOADING": str(loading)}

    def ready() -> bool:
        return subprocess.run(command, env=env, timeout=10).returncode == 0

    assert ready()
    monkeypatch.setenv("DIPTYCH_LOADING", str(loading))
    file = loading_file()
    assert file is not None and not ready()
    file.rename(loading / "4194305")  # of a process that was killed: no id is so high
    assert ready()
    wget.write_text("#!/bin/sh\nexit 4\n")
    assert not ready()
