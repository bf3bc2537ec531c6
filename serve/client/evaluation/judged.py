"""A served model as judge of other models' answers: is an answer right that is not worded as the true one?"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from serve.client.evaluation.asker import Asker
from serve.client.evaluation.batch import Job, ask_all
from serve.client.evaluation.lines import Kept
from serve.tasks import TASKS
from serve.tasks.answers import normalise
from serve.tasks.labels.picture import result_text
from serve.tasks.reply import TextResult

Json = dict[str, Any]
QUESTION = (
    "Somebody was asked about this picture: {asked} A right answer is: {truth} The answer given was: {answer} "
    "Is the given answer right, too? Answer yes or no."
)
MAX_TEXT = 400
"""Characters of each text in the question."""


def judge_answers(
    lines: Sequence[Json],
    pictures: Mapping[str, Callable[[], bytes | str]],
    asker: Asker,
    model: str,
    others: Mapping[str, Sequence[Json | None]] = MappingProxyType({}),
) -> None:
    """Put into each line of a task with texts `judged`: the judge and, by answer, whether it is right.

    others: by item, results to be judged beside those of the line: what its replies are merged to again. An answer
    that is worded as the true one is right without a question. One that the judge answers by neither yes nor no, or
    not at all, counts as wrong. Raises Failure where the server refuses.
    """
    jobs: list[Job] = []
    for line in lines:
        task = TASKS.get(line["task"])
        if task is None or not issubclass(task.result, TextResult) or "replies" not in line:
            continue
        right = true_texts(line["truth"])
        results = [*_results(line), *others.get(line["item"], ())]
        answers = dict.fromkeys(answer for answer in (result_text(result or {}) for result in results) if answer)
        same = {normalise(text) for text in right}
        line["judged"] = {"by": model, "answers": {answer: normalise(answer) in same for answer in answers}}
        for answer in answers if right else ():
            if not line["judged"]["answers"][answer]:
                wanted = task.written(line["asked"]) or f"({task.name})"
                texts = (text[:MAX_TEXT] for text in (wanted, right[0], answer))
                question = QUESTION.format(**dict(zip(("asked", "truth", "answer"), map(repr, texts), strict=True)))
                about = {"item": line["item"], "task": "vqa", "answer": answer}
                jobs.append(Job(about, "vqa", {"question": question, "models": [model]}, pictures[line["item"]]))
    kept = Kept()
    ask_all(jobs, asker, kept, total=len(jobs))
    verdicts = {(line["item"], line["answer"]): says_yes(line) for line in kept.lines}
    for line in lines:
        if "judged" in line:
            answers = line["judged"]["answers"]
            answers |= {answer: verdicts.get((line["item"], answer), right) for answer, right in answers.items()}


def says_yes(line: Json) -> bool:
    return any(
        normalise(result_text(reply["result"])).startswith("yes")
        for reply in line.get("replies") or []
        if reply["result"]
    )


def judged_right(line: Json, result: Json | None) -> float | None:
    """Return 1 where the result is worded as the true one or the judge held it right, else 0; None for a text that was
    not judged."""
    answer = result_text(result or {})
    if not answer:
        return 0.0
    verdict = line["judged"]["answers"].get(answer)
    if verdict is None and normalise(answer) in map(normalise, true_texts(line["truth"])):
        return 1.0
    return None if verdict is None else float(verdict)


def true_texts(truth: Json) -> list[str]:
    """Return the true answers of an item."""
    for name in ("answers", "accepted", "captions"):
        if truth.get(name):
            return [str(text) for text in truth[name]]
    return [str(truth["text"])] if "text" in truth else []


def _results(line: Json) -> list[Json | None]:
    replies = [reply["result"] for reply in line["replies"] if reply["status"] == "ok"]
    return [*replies, (line.get("merged") or {}).get("result")]
