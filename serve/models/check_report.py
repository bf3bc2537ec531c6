"""The report of a check: whether a model's answers about drawn scenes can be trusted, task by task."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from serve.models.base import Model
from serve.models.contracts import Contract
from serve.models.probing import ProbeFault, ProbeResult, Verdict, meaning
from serve.tasks import TASKS

Outcome = Literal["passed", "failed", "not_asked"]


class BoxCheck(BaseModel):
    """The outcome of probing a model's boxes, as ProbeResult.

    form: the number of the model's way to ask (`Skill.forms`) that was answered best.
    """

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    faults: tuple[ProbeFault, ...]
    contract: Contract | None
    meaning: str | None
    error: float | None
    runner_up: str | None
    margin: float | None
    shift: tuple[float, float] | None
    stretch: tuple[float, float] | None
    read: int
    drawn: int
    form: int = 0

    @classmethod
    def of(cls, probed: ProbeResult, form: int = 0) -> "BoxCheck":
        return cls(
            verdict=probed.verdict,
            faults=probed.faults,
            contract=probed.contract,
            meaning=None if probed.contract is None else meaning(probed.contract),
            error=probed.error,
            runner_up=None if probed.runner_up is None else meaning(probed.runner_up),
            margin=probed.margin,
            shift=probed.shift,
            stretch=probed.stretch,
            read=probed.read,
            drawn=probed.drawn,
            form=form,
        )


class TaskCheck(BaseModel):
    """The outcome of one task's questions.

    outcome: not_asked where too many questions got no reply, which says nothing about the model. reason: one sentence.
    right: the part of answers that are right. messages: errors in place of replies, each once.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    reason: str
    right: float | None = None
    boxes: BoxCheck | None = None
    messages: tuple[str, ...] = ()


class CheckReport(BaseModel):
    """The report of a check. outcome: the worst of its tasks'. at: when, in UTC. versions: of the packages that the
    model ran on, where they are known. tasks: those that were checked.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    outcome: Outcome
    at: str
    versions: Mapping[str, str] = {}
    tasks: Mapping[str, TaskCheck]

    @classmethod
    def of(cls, model: str, tasks: Mapping[str, TaskCheck], versions: Mapping[str, str]) -> "CheckReport":
        """Return the report of a check that ends now. Without tasks nothing was asked."""
        at = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
        outcomes = {task.outcome for task in tasks.values()}
        outcome: Outcome = "failed" if "failed" in outcomes else "passed" if outcomes == {"passed"} else "not_asked"
        return cls(model=model, outcome=outcome, at=at, versions=versions, tasks=tasks)

    @property
    def complete(self) -> bool:
        """Return whether every task was asked, so that the same check again would find the same."""
        return all(task.outcome != "not_asked" for task in self.tasks.values())

    @property
    def contract(self) -> Contract | None:
        """Return the coordinate contract that the boxes follow, where one wins."""
        boxes = self.tasks["detect"].boxes if "detect" in self.tasks else None
        return boxes.contract if boxes is not None and self.tasks["detect"].outcome == "passed" else None

    def refusal(self, task: str, located: bool = False) -> str | None:
        """Return why a task is off: its results are boxes, or made of them, and the model's boxes are wrong. Else None.

        located: whether the model's replies to the task hold coordinates.
        """
        detect = self.tasks.get("detect")
        wrong = detect is not None and detect.outcome == "failed" and (located or TASKS[task].boxed)
        return detect.reason if wrong and detect is not None else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def summary(self) -> str:
        """Return the report as text for a card."""
        parts = []
        for name, task in self.tasks.items():
            if task.outcome != "passed":
                parts.append(f"{name}: {task.reason}")
            elif task.boxes is None:
                parts.append(f"{name}: {task.right:.0%} right.")
            else:
                margin = "" if task.boxes.margin is None else f", {task.boxes.margin:.1%} better than any other"
                parts.append(f"{name}: {task.boxes.meaning}, {task.boxes.error:.1%} off{margin}.")
        outcome = {"passed": "passed", "failed": "failed", "not_asked": "could not be checked"}[self.outcome]
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return " ".join([f"{outcome} at {self.at}{f' on {packages}' if packages else ''}.", *parts])


def contract_of(model: Model, report: CheckReport | None = None) -> Contract | None:
    """Return the coordinate contract of a model's boxes: the declared one, or the one that a check found."""
    skill = model.skills.get("detect")
    if skill is None or skill.contract is not None or not skill.forms:
        return None if skill is None else skill.contract
    return None if report is None else report.contract


def with_contract(model: Model, report: CheckReport) -> Model:
    """Return the model with the contract that a check found, where its own was not known."""
    contract = report.contract
    boxes = report.tasks["detect"].boxes if "detect" in report.tasks else None
    if contract is None or boxes is None:
        return model
    known = {name: skill.forms[boxes.form](contract) for name, skill in model.skills.items() if skill.forms}
    return dataclasses.replace(model, skills={**model.skills, **known})


def refusal(model: Model, task: str, report: CheckReport | None) -> str | None:
    """Return why a model does not do a task that it has a skill for, in one sentence; None where it does."""
    skill = model.skills[task]
    located = skill.contract is not None and not skill.spots  # who misplaces things may still read
    why = None if report is None else report.refusal(task, located=located)
    if why is None and skill.forms:
        detect = None if report is None else report.tasks.get("detect")
        if detect is None or detect.outcome != "passed":
            missing = "Its coordinate contract is not known yet"
            return f"{missing}." if detect is None else f"{missing}: {detect.reason}"
    return why
