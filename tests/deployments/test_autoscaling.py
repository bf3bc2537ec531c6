"""Autoscaling follows the unfinished requests that replicas report, within the config."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.args import Args
from deployments.autoscaling import ONGOING, Scaling, by_queue


def context(reports: dict[str, float], replicas: int, target: int = 1) -> Any:
    return SimpleNamespace(
        aggregated_metrics={ONGOING: reports},
        current_num_replicas=replicas,
        target_num_replicas=target,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 10),
    )


def test_replicas_follow_the_sum_of_unfinished_requests() -> None:
    assert by_queue(context({"a": 35.0}, 1))[0] == 3.5
    assert by_queue(context({"a": 5.0, "b": 0.0}, 2))[0] == 0.5


def test_replica_without_a_report_changes_nothing() -> None:
    assert by_queue(context({"a": 35.0}, 2, target=2))[0] == 2


def test_config_names_the_policy_and_only_fields_that_are_set() -> None:
    config = Scaling(min_replicas=0, max_replicas=3, upscaling_factor=0.5).config()
    assert (config["min_replicas"], config["max_replicas"], config["upscaling_factor"]) == (0, 3, 0.5)
    assert config["policy"] == {"policy_function": "deployments.autoscaling:by_queue"}
    assert "downscaling_factor" not in config


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"max_replica": 2}, "max_replica"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas 3 is more than max_replicas 2"),
        ({"initial_replicas": 3, "max_replicas": 2}, "initial_replicas 3 is not between min_replicas and max_replicas"),
        ({"upscale_delay_s": math.inf, "max_replicas": 2}, "upscale_delay_s"),
    ],
)
def test_wrong_scaling_is_refused_by_field(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Args.model_validate({"models": [{"name": "toy-llava", "autoscaling": scaling}]})


@pytest.mark.parametrize(
    "setting",
    [
        {"max_replicas_per_node": 101},
        {"resources": {"GPU": 1}},
        {"resources": {"card": -1}},
        {"resources": {"": 1}},
        {"num_cpus": math.inf},
        {"drain_s": math.inf},
    ],
)
def test_placement_that_ray_refuses_is_refused_by_name(setting: dict[str, Any]) -> None:
    (name,) = setting
    for args in ({"models": [{"name": "toy-llava", **setting}]}, {"models": ["toy-llava"], "gateway": setting}):
        with pytest.raises(ValidationError, match=name):
            Args.model_validate(args)


def test_simulated_engines_run_on_simulated_gpus_and_real_ones_do_not() -> None:
    fake: dict[str, Any] = {"name": "llava-1.5-7b", "num_gpus": 2, "simulate": {}, "autoscaling": {"max_replicas": 3}}
    assert Args.model_validate({"models": [fake]}).simulated_gpus() == 6
    assert Args.model_validate({"models": [fake, "toy-llava"]}).simulated_gpus() is None
