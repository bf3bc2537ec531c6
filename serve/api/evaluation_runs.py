"""The folder of evaluated runs: `diptych evaluate --keep` writes them, and the page /evaluations shows them.

A run NAME is two files: NAME.json with its scores, and NAME.jsonl with its answers and small pictures. Those of
evaluations that people started over HTTP are in a folder of their own in it, as the oldest of them are removed.
"""

import itertools
import re
import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.api.evaluation_starts import KEPT, Bounds, Starts
from serve.errors import NotFound
from serve.models.base import Price

MAX_RUNS = 200
"""Runs that are listed, the newest first."""
MAX_SCORES = 2**20
"""Bytes of a run's scores; a larger file is left out."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Scores(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)  # a page would show NaN as nothing, or as 0


class Measure(Scores):
    """A value and its 95 % interval over bootstrap resamples of the pictures; of two rows the resamples are paired."""

    value: float
    low: float
    high: float


class Cost(Scores):
    """A row's cost, on average of its answers. seconds: to the whole answer; of a merged row, to the slowest model's.

    first_word_s: None where it is not known. price: of a million tokens, where the operator gave it; price_per_1000:
    of 1,000 pictures, by it. energy_wh_per_1000: watt-hours, where GPUs tell them (serve/engines/energy.py).
    """

    seconds: float
    first_word_s: float | None
    prompt_tokens: float
    completion_tokens: float
    price: Price | None = None
    price_per_1000: float | None = None
    energy_wh_per_1000: float | None = None


class RunRow(Scores):
    """A model, or a merge. failed: the number of items without its answer."""

    name: str
    merged: bool
    failed: int
    measures: dict[str, Measure]
    cost: Cost | None = None


class RunGain(Scores):
    """The difference of a merge and the best single model by a measure, on the same resamples; positive: better."""

    row: str
    measure: str
    best: str
    gain: Measure


class TaskScores(Scores):
    """A task's table. measures: whether lower is better, by name; the first decides. best: of each measure."""

    task: str
    items: int
    pictures: int
    left_out: int
    measures: dict[str, bool]
    rows: list[RunRow]
    gains: list[RunGain]
    best: dict[str, list[str]]


class Run(Scores):
    """A run's scores. labelled_set: a digest of its questions and true answers; runs with the same are repeats."""

    name: Annotated[str, Field(pattern=NAME)]
    object: Literal["diptych.evaluation"] = "diptych.evaluation"
    at: float
    target: str
    labelled_set: str
    tasks: list[TaskScores]


class RunFolder:
    """The runs of a folder. Its methods read files: call them in a thread.

    bounds: of evaluations that people start over HTTP; None where they may not.
    """

    def __init__(self, path: Path, bounds: Bounds | None = None) -> None:
        self.folders = path, path / KEPT
        self.starts = None if bounds is None else Starts(path, bounds)
        self._read: dict[Path, tuple[int, Run]] = {}

    def runs(self) -> list[Run]:
        """Return the newest runs that can be read, newest first."""
        kept: dict[Path, tuple[int, Run]] = {}
        for path in itertools.chain.from_iterable(folder.glob("*.json") for folder in self.folders):
            try:
                state = path.stat()
                known = self._read.get(path)
                if known is not None and known[0] == state.st_mtime_ns:
                    kept[path] = known
                elif (
                    stat.S_ISREG(state.st_mode) and state.st_size <= MAX_SCORES and path.with_suffix(".jsonl").is_file()
                ):
                    kept[path] = state.st_mtime_ns, Run.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                continue
        self._read = kept
        return sorted((run for _, run in kept.values()), key=lambda run: -run.at)[:MAX_RUNS]

    def record(self, name: str) -> Path:
        """Return the path of a run's answers. Raises NotFound."""
        for folder in self.folders if re.fullmatch(NAME, name) else ():
            if (path := folder / f"{name}.jsonl").is_file():
                return path
        raise NotFound(f"There is no run {name[:200]!r}.", param="name", code="run_not_found")
