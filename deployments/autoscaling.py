"""How many replicas of a model there should be. Serve asks: it cannot count the requests that go past its handles."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

ONGOING = "ongoing"
"""The name under which a replica tells how many answers it owes, those that wait in its engine's queue among them."""


class Scaling(BaseModel):
    """The part of Serve's autoscaling_config that means something here; Serve applies bounds, delays and factors."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(
        default=1, ge=0, description="0: a model that nobody asks costs nothing, and starts late."
    )
    max_replicas: int = Field(ge=1)
    initial_replicas: int | None = Field(default=None, ge=0)
    # Serve's own 2 is for replicas that answer one request after the other. vLLM batches: below a batch, the sum of its
    # running and waiting requests says little.
    target_ongoing_requests: float = Field(default=32, gt=0, description="Answers that a replica should owe.")
    look_back_period_s: float = Field(default=20, gt=10, description="What is averaged over.")
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=600, ge=0)
    downscale_to_zero_delay_s: float | None = Field(default=None, ge=0)
    upscaling_factor: float | None = Field(default=None, gt=0)
    downscaling_factor: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> "Scaling":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}.")
        return self

    def config(self) -> dict[str, Any]:
        """Serve's autoscaling_config."""
        return {**self.model_dump(exclude_none=True), "policy": {"policy_function": f"{__name__}:by_queue"}}


def by_queue(context: Any) -> tuple[float, dict[str, Any]]:
    """So many replicas (Serve rounds up) that each owes `target_ongoing_requests` answers.

    Called by Serve's controller with its AutoscalingContext. With no replica there it does not ask, but starts one for
    whoever waits at its handle: Pool knocks there.
    """
    told = (context.aggregated_metrics or {}).get(ONGOING, {})
    if len(told) < context.current_num_replicas:  # some have just started: until they tell, nothing changes
        return float(context.target_num_replicas), {}
    return sum(told.values()) / context.config.get_target_ongoing_requests(), {}
