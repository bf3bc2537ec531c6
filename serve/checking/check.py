"""Asks a model the questions of a check and judges its answers.

    report = await check("qwen", ["detect", "vqa"], ask_worker(worker), contract=QWEN3_VL)
    report.outcome, report.tasks["detect"].reason    # "failed", "x and y are swapped."

Probing reads the replies' own text: numbers outside the contract, which the task's parser refuses, tell what is wrong.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from serve.checking.questions import CheckQuestion, check_questions
from serve.models.check_report import BoxCheck, CheckReport, TaskCheck
from serve.models.contracts import Contract
from serve.models.probing import WITHOUT_PICTURE, ProbeAnswer, ProbeFault, probe
from serve.tasks.answers import normalise

CHECKED = ("detect", "vqa", "ocr")
"""The tasks that are checked."""
AT_ONCE = 4
"""Questions of one model that are asked at a time."""
LIMIT_S = 300.0
"""The longest time that a check takes."""
GIVE_UP = 8
"""Questions without any reply after which no more are asked."""
LEAST_ASKED = 0.9
"""The least part of a task's questions that must get a reply, readable or not."""
LEAST_RIGHT = 0.5
"""Of facts and words, more than this part must be right. Without the picture no more can be."""
MAX_MESSAGES = 3
PIXELS = Contract("pixels", scale=None, decimals=2)
"""The contract of results, for models that have no coordinate contract of their own."""


@dataclass(frozen=True)
class CheckAnswer:
    """A reply. text: as generated. result: the parsed one, as text or PIXELS; None where it cannot be read.

    message: why it cannot be read, or why there is no reply. replied: whether there is a reply.
    """

    text: str = ""
    result: str | None = None
    message: str = ""
    replied: bool = True


Ask = Callable[[CheckQuestion], Awaitable[CheckAnswer]]


async def check(
    model: str,
    tasks: Iterable[str],
    ask: Ask,
    *,
    contract: Contract | None = None,
    forms: Sequence[Ask] = (),
    seed: int = 0,
    limit_s: float = LIMIT_S,
    versions: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> CheckReport:
    """Ask the questions of the model's tasks, a few at a time.

    contract: the declared one. forms: where none is declared, ways to ask for boxes, tried in turn until the replies to
    one follow a contract. seed: which scenes are drawn. limit_s: questions that are open then count as not asked.
    progress: called with a sentence after each few questions.
    """
    checked: dict[str, TaskCheck] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            for task in (name for name in CHECKED if name in set(tasks)):
                checked[task] = TaskCheck(outcome="not_asked", reason=f"The check took longer than {limit_s:g} s.")
                asker = _Asker(task, check_questions(task, seed), progress)
                if task == "detect":
                    checked[task] = await _check_boxes(asker, ask, contract, forms)
                else:
                    checked[task] = _check_words(task, asker.questions, await asker.answers(ask))
    return CheckReport.of(model, _without_picture(checked), dict(versions or {}))


def _without_picture(checked: Mapping[str, TaskCheck]) -> dict[str, TaskCheck]:
    """Return the outcomes, where boxes that are wrong for no known cause have the one that the facts show."""
    detect, facts = checked.get("detect"), checked.get("vqa")
    if detect is None or detect.boxes is None or facts is None or facts.reason != WITHOUT_PICTURE:
        return dict(checked)
    if detect.outcome != "failed" or detect.boxes.faults:
        return dict(checked)
    boxes = detect.boxes.model_copy(update={"faults": (ProbeFault.WITHOUT_PICTURE,)})
    cause = detect.model_copy(update={"boxes": boxes, "reason": f"{WITHOUT_PICTURE} {detect.reason}"})
    return {**checked, "detect": cause}


class _Asker:
    """The questions of one task. progress: called with how many were asked of how many."""

    def __init__(self, task: str, questions: Sequence[CheckQuestion], progress: Callable[[str], None]) -> None:
        self.task, self.questions = task, questions
        self._progress = progress

    async def answers(self, ask: Ask) -> list[CheckAnswer]:
        """Return the answers in order, and stop early where no question gets a reply."""
        answers: list[CheckAnswer] = []
        for start in range(0, len(self.questions), AT_ONCE):
            self._progress(f"{self.task}: {start} of {len(self.questions)} questions")
            answers += await asyncio.gather(*map(ask, self.questions[start : start + AT_ONCE]))
            if len(answers) >= GIVE_UP and not any(answer.replied for answer in answers):
                break
        rest = len(self.questions) - len(answers)
        return answers + [CheckAnswer(replied=False)] * rest


async def _check_boxes(asker: _Asker, ask: Ask, contract: Contract | None, forms: Sequence[Ask]) -> TaskCheck:
    """Ask for boxes in each way until one is answered by a contract; return the outcome of the best."""
    outcomes = []
    for form, ask_so in enumerate(forms or [ask]):
        answers = await asker.answers(ask_so)
        if (unasked := _unasked(answers)) is not None:
            return unasked
        if forms or contract is not None:
            probed = probe(_probe_answers(asker.questions, answers), contract)
        else:
            probed = probe(_probe_answers(asker.questions, answers, parsed=True), PIXELS)
        outcomes.append((probed, form, answers))
        if probed.usable:
            break
    probed, form, answers = max(outcomes, key=lambda outcome: (outcome[0].usable, outcome[0].read))
    return TaskCheck(
        outcome="passed" if probed.usable else "failed",
        reason=probed.reason,
        boxes=BoxCheck.of(probed, form),
        messages=() if probed.usable else _messages(answers),
    )


def _probe_answers(
    questions: Sequence[CheckQuestion], answers: Sequence[CheckAnswer], *, parsed: bool = False
) -> list[ProbeAnswer]:
    """Return the replies as generated, or their parsed results."""
    probed = []
    for question, answer in zip(questions, answers, strict=True):
        if answer.replied:
            text = answer.result or "" if parsed else answer.text
            (label,) = question.fields["labels"]
            assert not isinstance(question.truth, str)
            probed.append(ProbeAnswer(text, question.size, [(label, question.truth)]))
    return probed


def _check_words(task: str, questions: Sequence[CheckQuestion], answers: Sequence[CheckAnswer]) -> TaskCheck:
    if (unasked := _unasked(answers)) is not None:
        return unasked
    pairs = [(question, answer) for question, answer in zip(questions, answers, strict=True) if answer.replied]
    right = sum(_is_right(question, answer) for question, answer in pairs) / len(pairs)
    if right > LEAST_RIGHT:
        return TaskCheck(outcome="passed", reason=f"{right:.0%} of answers are right.", right=right)
    reason = f"Only {right:.0%} of answers are right."
    by_words: dict[str, set[str]] = {}
    for question, answer in pairs:
        by_words.setdefault(str(question.fields), set()).add(normalise(answer.result or ""))
    if all(len(different) == 1 for different in by_words.values()) and any(answer.result for _, answer in pairs):
        reason = WITHOUT_PICTURE
    return TaskCheck(outcome="failed", reason=reason, right=right, messages=_messages(answers))


def _is_right(question: CheckQuestion, answer: CheckAnswer) -> bool:
    assert isinstance(question.truth, str)
    return answer.result is not None and normalise(answer.result) == normalise(question.truth)


def _unasked(answers: Sequence[CheckAnswer]) -> TaskCheck | None:
    """Return the outcome where too few questions got a reply; None where enough did."""
    missing = sum(not answer.replied for answer in answers)
    if missing <= (1 - LEAST_ASKED) * len(answers):
        return None
    messages = _messages([answer for answer in answers if not answer.replied])
    reason = f"{missing} of {len(answers)} questions could not be asked: {' '.join(messages[:1])}".rstrip(": ")
    return TaskCheck(outcome="not_asked", reason=reason, messages=messages)


def _messages(answers: Sequence[CheckAnswer]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(answer.message for answer in answers if answer.message))[:MAX_MESSAGES]
