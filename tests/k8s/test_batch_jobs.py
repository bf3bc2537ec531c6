"""The batches' manifests are rendered without a fault, and a slip in them is named."""

import copy
from typing import Any

import pytest

from k8s.checks import rendered
from k8s.checks.batches import indexed_job, ray_batch
from k8s.checks.kuberay import ray_job

pytestmark = pytest.mark.skipif(not rendered.able(), reason="kubectl is not installed")


@pytest.fixture(scope="module")
def job() -> Any:
    return rendered.of_kind(rendered.rendered(rendered.FOLDER / "batch"), "Job")[0]


@pytest.fixture(scope="module")
def ray() -> list[Any]:
    return rendered.rendered(rendered.FOLDER / "ray-batch")


def test_shipped_batches_have_no_fault(job: Any, ray: list[Any]) -> None:
    (service,) = rendered.of_kind(ray, "RayJob")
    assert [*indexed_job(job), *ray_job(service), *ray_batch(ray)] == []
    assert len(rendered.pods(ray)) == 3


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("completions", 8, "8 pods have a shard of 16 each"),
        ("completionMode", "NonIndexed", "a pod has no JOB_COMPLETION_INDEX"),
        ("args", ["--shard", "3/16"], "so that every pod has the same"),
    ],
)
def test_planted_slip_in_a_job_of_shards_is_named(job: Any, field: str, value: Any, fault: str) -> None:
    planted = copy.deepcopy(job)
    (planted["spec"]["template"]["spec"]["containers"][0] if field == "args" else planted["spec"])[field] = value
    assert [line for line in indexed_job(planted) if fault in line]


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("replicas: 4", "replicas: 5", "the models take 9 GPUs, and the pods have 8"),
        ("replicas: 4", "replica: 4", "replica: there is no such field"),
    ],
)
def test_planted_slip_in_the_models_of_a_ray_job_is_named(ray: list[Any], right: str, wrong: str, fault: str) -> None:
    planted = copy.deepcopy(ray)
    (config,) = rendered.of_kind(planted, "ConfigMap")
    config["data"] = {name: text.replace(right, wrong, 1) for name, text in config["data"].items()}
    assert [line for line in ray_batch(planted) if fault in line]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"submissionMode": "SidecarMode"}, "SidecarMode has no submitterPodTemplate"),
        ({"backoffLimit": -1}, "must not be negative"),
    ],
)
def test_planted_slip_in_a_ray_job_is_named(ray: list[Any], change: dict[str, Any], fault: str) -> None:
    planted = copy.deepcopy(rendered.of_kind(ray, "RayJob")[0])
    planted["spec"] |= change
    assert [line for line in ray_job(planted) if fault in line]
