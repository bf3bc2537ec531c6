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

from k8s.checks import rendered, schemas
from k8s.checks.kuberay import kuberay
from k8s.checks.linted import writable
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
    ("base/disruption.yaml", "maxUnavailable: 1", "maxUnavailble: 1", "'maxUnavailble' was unexpected"),
    ("base/rayservice.yaml", "type: NewCluster", "typ: NewCluster", "'typ' was unexpected"),
    ("base/rayservice.yaml", "replicas: 2", "replicas: two", "'two' is not of type 'integer'"),
    ("base/rayservice.yaml", "httpGet: {path: /health", "httpGet: {pth: /health", "'pth' was unexpected"),
    ("overlays/cpu-demo/serve.yaml", "log_level: WARNING", "log_levl: WARNING", "logging_config.log_levl"),
    ("overlays/cpu-demo/serve.yaml", "import_path:", "max_ongoing: 5\n    import_path:", "0.max_ongoing:"),
    ("overlays/cpu-demo/serve.yaml", "drain_s: 120", "drain: 120", "there is no such field"),
    ("overlays/cpu-demo/serve.yaml", "resources: {model: 1}", "resources: {modl: 1}", "no pod has more than 0"),
    ("components/monitoring/alerts.yaml", "diptych_replies_total", "diptych_reply_total", "nothing counts"),
]
EACH = """
import sys
from k8s.check import main
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
