"""Decides how many replicas a model should have, for Serve, which cannot count requests that bypass its handles."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

ONGOING = "ongoing"
"""Name of the metric in which a replica reports its unfinished requests, including queued ones."""


class Scaling(BaseModel):
    """The part of Serve's autoscaling_config that has an effect here; Serve applies bounds, delays and factors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    min_replicas: int = Field(
        default=1, ge=0, description="With 0 an unused model is stopped, and starts with the next request."
    )
    max_replicas: int = Field(ge=1)
    initial_replicas: int | None = Field(default=None, ge=0)
    # Serve's default, 2, is for replicas that answer one request after the other. vLLM batches: below a batch, the sum
    # of its running and waiting requests says little.
    target_ongoing_requests: float = Field(default=32, gt=0, description="Unfinished requests per replica to aim at.")
    look_back_period_s: float = Field(default=20, gt=10, description="Seconds to average over.")
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=600, ge=0)
    downscale_to_zero_delay_s: float | None = Field(default=None, ge=0)
    upscaling_factor: float | None = Field(default=None, gt=0)
    downscaling_factor: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> "Scaling":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}.")
        first = self.initial_replicas
        if first is not None and not self.min_replicas <= first <= self.max_replicas:
            raise ValueError(f"initial_replicas {first} is not between min_replicas and max_replicas.")
        return self

    def config(self) -> dict[str, Any]:
        """Return Serve's autoscaling_config."""
        return {**self.model_dump(exclude_none=True), "policy": {"policy_function": f"{__name__}:by_queue"}}


def fixed(replicas: int) -> dict[str, Any]:
    """Return an autoscaling_config for a fixed number of replicas that need not be there.

    Serve counts an application as running while replicas of an autoscaled deployment wait for room, but not while those
    of a fixed number do: a model that no node has room for would keep all of a cluster from counting as ready. Without
    initial_replicas, to which Serve would go back at each change: it would stop the old replica for a changed model.
    """
    policy = {"policy_function": f"{__name__}:as_many_as_may_be"}
    return {"min_replicas": 0, "max_replicas": replicas, "upscale_delay_s": 0, "policy": policy}


def as_many_as_may_be(context: Any) -> tuple[float, dict[str, Any]]:
    """Return max_replicas, and no state. Called as `by_queue` is."""
    return float(context.config.max_replicas), {}


def by_queue(context: Any) -> tuple[float, dict[str, Any]]:
    """Return the number of replicas (Serve rounds up) at which each has `target_ongoing_requests`, and no state.

    Called by Serve's controller with its AutoscalingContext. Where there is no replica Serve does not call it, but
    starts one for a call that waits at its handle, which `Replicas.wake` makes.
    """
    reports = (context.aggregated_metrics or {}).get(ONGOING, {})
    if len(reports) < context.current_num_replicas:  # some have just started: until they report, nothing changes
        return float(context.target_num_replicas), {}
    return sum(reports.values()) / context.config.get_target_ongoing_requests(), {}
