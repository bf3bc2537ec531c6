"""Tests the Helm chart: it gives what kustomize gives, a slip in either is a fault, and unknown values are refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from k8s.checks import chart, rendered
from k8s.checks.operations import operations

FOLDER = Path(__file__).parents[2] / "build" / "helm"
CHART = rendered.FOLDER / "chart"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir() or not rendered.able(), reason=f"{FOLDER} (make build/helm) or kubectl is missing"
)


@pytest.fixture(scope="module")
def helm() -> Any:
    return chart.engine(FOLDER)


def test_overlay_that_differs_from_its_profile_is_a_fault(helm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "k8s"
    shutil.copytree(rendered.FOLDER, folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    assert not list(chart.linted(helm, folder / "chart"))
    overlay = folder / "overlays" / "gpu-node"
    assert not list(chart.differences(helm, folder / "chart", "gpu-node", rendered.rendered(overlay)))
    gpus = folder / "components" / "gpu" / "models.yaml"
    gpus.write_text(gpus.read_text().replace("value: 16Gi", "value: 8Gi"))
    kustomization = overlay / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("  - ../../components/http-route\n", ""))
    assert list(chart.differences(helm, folder / "chart", "gpu-node", rendered.rendered(overlay))) == [
        "HTTPRoute diptych is in the chart alone",
        "RayService diptych: spec.rayClusterConfig.workerGroupSpecs.1.template.spec.volumes.3.emptyDir.sizeLimit: "
        "16Gi in the chart, 8Gi in the overlay",
    ]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"replicas": 3}, "additional properties 'replicas' not allowed"),
        ({"models": [{"name": "models"}]}, "at '/models/0': missing properties"),
        ({"gateways": {"replicas": "two"}}, "at '/gateways/replicas'"),
        ({"profile": "gpu"}, "at '/profile'"),
    ],
)
def test_unknown_or_wrong_value_is_refused(helm: Any, values: dict[str, Any], fault: str) -> None:
    with pytest.raises(helm.HelmError, match=fault):
        chart.templated(helm, CHART, values)


def test_values_reach_the_pods(helm: Any) -> None:
    own = "proxy_location: Disabled\n"
    shared = {"kind": "shared", "storageClassName": "nfs"}
    values = {"serveConfig": own, "openshift": True, "tracing": "http://c:4318", "cache": shared}
    documents = chart.templated(helm, CHART, values)
    assert not list(operations(documents))
    (service,) = rendered.of_kind(documents, "RayService")
    assert service["spec"]["serveConfigV2"] == own
    (claim,) = rendered.of_kind(documents, "PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == "nfs"
    for name, group in rendered.groups(service):
        assert "runAsUser" not in group["template"]["spec"]["securityContext"]
        collector = "" if name == "head" else "http://c:4318"
        assert rendered.environment(group)["OTEL_EXPORTER_OTLP_ENDPOINT"] == collector


def test_budgets_of_a_release_let_one_pod_go_of_as_many_as_there_are(helm: Any) -> None:
    values = chart.profile(CHART, "multi-node")
    values["gateways"] = {"replicas": 5, "minReplicas": 5, "maxReplicas": 5}
    values["models"][0]["replicas"] = 3
    budgets = rendered.of_kind(chart.templated(helm, CHART, values), "PodDisruptionBudget")
    fewest = {budget["metadata"]["name"]: budget["spec"]["minAvailable"] for budget in budgets}
    assert fewest == {"diptych-gateways": 4, "diptych-models": 3}
