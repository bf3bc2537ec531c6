"""JSON lines, as `diptych evaluate` reads them: a line for each picture, in `labels.jsonl`."""

import json
from collections.abc import Sequence
from pathlib import Path

from serve.tasks import TASKS
from serve.tasks.labels.picture import Answered, Json, answered
from serve.tasks.reply import TextResult


def write_json_lines(folder: Path, pictures_in: Path, pictures: Sequence[Answered]) -> None:
    """Write the lines, with each picture's agreement. Pictures stay where they are. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.jsonl").open("w", encoding="ascii") as file:
        for picture in answered(pictures):
            file.write(json.dumps(_line(picture)) + "\n")


def _line(picture: Answered) -> Json:
    line: Json = {"image": picture.file, "task": picture.task, "agreement": picture.agreement}
    result = picture.result or {}
    if picture.task == "classify":
        answers = [label["label"] for label in result["labels"]]
        return line | {"labels": picture.fields["labels"], "answers": answers, "multiple": result["multiple"]}
    task = TASKS.get(picture.task)
    if "question" in picture.fields and task is not None and issubclass(task.result, TextResult):
        return line | {"question": picture.fields["question"], "answer": picture.text}
    if picture.task == "extract":
        result = {"data": result["data"]}
    return line | result | picture.written
