"""Tests the Helm chart: it gives what kustomize gives, a slip in either is a fault, and unknown values are refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from k8s.checks import chart, rendered
from k8s.checks.operations import operations

FOLDER = Path(__file__).parents[2] / "build" / "helm"
CHART = rendered.FOLDER / "chart"
OVERLAYS = rendered.FOLDER / "overlays"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir() or not rendered.able(), reason=f"{FOLDER} (make build/helm) or kubectl is missing"
)


@pytest.fixture(scope="module")
def helm() -> Any:
    return chart.engine(FOLDER)


def numbers(count: int) -> dict[str, int]:
    return {"replicas": count, "minReplicas": count, "maxReplicas": count}


def models(count: int) -> dict[str, Any]:
    return {**chart.profile(CHART, "gpu-node")["models"][0], **numbers(count)}


def config(gateways: int) -> str:
    text = (OVERLAYS / "cpu-demo" / "applications.yaml").read_text()
    return text.replace("num_replicas: 2", f"num_replicas: {gateways}")


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
        ({"gateways": {"replicas": 4}}, "gateways: minReplicas 2, replicas 4 and maxReplicas 2 are out of order"),
        ({"gateways": numbers(4)}, "The Serve config has 2 gateways, and there are 4 to 4 pods"),
        ({"gateways": numbers(1)}, "The Serve config has 2 gateways, and there are 1 to 1 pods"),
        ({"serveConfig": config(3)}, "The Serve config has 3 gateways, and there are 2 to 2 pods"),
        ({"serveConfig": (OVERLAYS / "cpu-demo" / "serve.yaml").read_text()}, "serveConfig is a serve.yaml"),
        ({"cache": {"kind": "claim"}, "models": [models(2)]}, "volume of one node, and up to 2 pods of models"),
        ({"incrementalUpgrade": {"gatewayClassName": "istio"}}, "incrementalUpgrade needs autoscaler: true"),
        ({"incrementalUpgrade": {"gatewayClassName": "istio"}, "autoscaler": True}, "has no stepSizePercent"),
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


@pytest.mark.parametrize(
    ("profile", "autoscaler", "fewest"),
    [
        ("multi-node", True, {"diptych-gateways": 2, "diptych-models": 1}),
        ("multi-node", False, {"diptych-gateways": 2, "diptych-models": 3}),
        ("incremental-upgrade", True, {"diptych-gateways": 3}),
    ],
)
def test_budgets_of_a_release_let_one_pod_go_of_those_that_are_always_there(
    profile: str, autoscaler: bool, fewest: dict[str, int], helm: Any
) -> None:
    values = {**chart.profile(CHART, profile), "autoscaler": autoscaler}
    values["models"][0]["replicas"] = 3
    documents = chart.templated(helm, CHART, values)
    budgets = rendered.of_kind(documents, "PodDisruptionBudget")
    assert {budget["metadata"]["name"]: budget["spec"]["minAvailable"] for budget in budgets} == fewest
    assert not list(operations(documents))


def test_gateways_of_a_config_and_pods_of_the_same_number_are_a_release(helm: Any) -> None:
    documents = chart.templated(helm, CHART, {"serveConfig": config(4), "gateways": numbers(4)})
    (service,) = rendered.of_kind(documents, "RayService")
    assert service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplicas"] == 4
