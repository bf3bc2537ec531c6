"""Votes: what was chosen between two models' answers, and by whom. A vote is a line of the JSONL record."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.tasks.request import Name

Choice = Literal["left", "right", "tie", "both_bad"]
Verdict = Choice | Literal["abstained"]
"""A judge abstains where it contradicts itself once the seats are swapped."""
VoteId = Annotated[str, Field(pattern=r"^[A-Za-z0-9:._-]{1,300}$")]


class Seat(BaseModel):
    """A model in a duel. length: of its answer, in characters; the number of boxes where it is boxes."""

    model_config = ConfigDict(extra="forbid")

    model: Name
    length: int = Field(ge=0, le=2**40)
    tokens: int = Field(ge=0, le=2**40)
    latency_ms: float = Field(ge=0, le=1e9, allow_inf_nan=False)


class Vote(BaseModel):
    """A vote. Its id is the duel's, with the judge's name behind it for a judge's, so that it is counted once.

    voter: the name of a person's API key, empty where there are no keys; the model that judged where `judge`.
    family: the judge's. own_family: number of seats with a model of that family. at: seconds since 1970.
    """

    model_config = ConfigDict(extra="forbid")

    id: VoteId
    task: Name
    left: Seat
    right: Seat
    choice: Verdict
    voter: str = Field(default="", max_length=200)
    judge: bool = False
    family: str = Field(default="", max_length=200)
    own_family: int = Field(default=0, ge=0, le=2)
    at: float = Field(ge=0, le=1e11, allow_inf_nan=False)
