"""A picture with models' answers, and a picture with labels that people gave."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.tasks import TASKS

Json = dict[str, Any]
NO_TEXT = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\ufffd")
"""Characters that XML cannot hold, and lone surrogates, which no UTF-8 can."""


@dataclass(frozen=True)
class Answered:
    """A picture with its merged result.

    file: its path in the folder. size: width, height. fields: of the request, but for the image. result: as the server
    sends it; None where there is no answer. agreement: 0 to 1, the score of the result. answers: each model's own
    result, by name.
    """

    file: str
    task: str
    fields: Json
    size: tuple[int, int] = (0, 0)
    result: Json | None = None
    agreement: float = 0.0
    answers: Mapping[str, Json] = field(default_factory=dict)

    @property
    def boxes(self) -> Sequence[Json]:
        """Return the result's boxes; none where it is something else."""
        boxes: Sequence[Json] = (self.result or {}).get("boxes", ())
        return boxes

    @property
    def points(self) -> Sequence[Json]:
        """Return the result's points; none where it is something else."""
        points: Sequence[Json] = (self.result or {}).get("points", ())
        return points

    @property
    def written(self) -> Json:
        """Return the field of the request for what the client wrote; empty without, and of a task unknown here."""
        return TASKS[self.task].text_in(self.fields) if self.task in TASKS else {}

    @property
    def text(self) -> str:
        """Return the result's text, of a task that is answered in one."""
        return result_text(self.result or {})


@dataclass(frozen=True)
class Truth:
    """Labels that a file gives a picture. where: the file and the place in it. Else as evaluation's Item."""

    where: str
    file: str
    task: str
    fields: Json
    truth: Json


def result_text(result: Mapping[str, Any]) -> str:
    """Return the text, number, labels, texts or object (JSON) of a result's first field; empty for one without."""
    answer = next(iter(result.values()), "")
    if isinstance(answer, dict):
        return json.dumps(answer, ensure_ascii=False)
    if isinstance(answer, list):
        return "; ".join(str(item["label"] if isinstance(item, dict) else item) for item in answer)
    return str(answer)


def box_truths(where: str, file: str, boxes: Sequence[Json], labels: Sequence[str] | None = None) -> Iterator[Truth]:
    """Yield what boxes are the truth of: detect, and segment where all of them have masks.

    labels: those that were asked for, where the file says so, beside those of the boxes. Without boxes the labels say
    that nothing is there.
    """
    fields = {"labels": list(dict.fromkeys([*(labels or ()), *(box["label"] for box in boxes)]))}
    plain = [{name: box[name] for name in box if name != "mask"} for box in boxes]
    yield Truth(where, file, "detect", fields, {"boxes": plain})
    if all("mask" in box for box in boxes):
        yield Truth(where, file, "segment", fields, {"boxes": boxes})


def answered(pictures: Sequence[Answered]) -> list[Answered]:
    """Return the pictures that have a result."""
    return [picture for picture in pictures if picture.result is not None]


def names(pictures: Sequence[Answered]) -> list[str]:
    """Return all labels, those that were asked for first, each once."""
    fields = (value for picture in pictures for value in picture.written.values() if isinstance(value, list))
    wanted = [str(label) for labels in fields for label in labels]
    others = (str(item["label"]) for picture in pictures for item in (*picture.boxes, *picture.points))
    return list(dict.fromkeys([*wanted, *others]))


def place(source: Path, target: Path) -> None:
    """Link a picture into a folder of labels, or copy it where the disk is another. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def writable(text: str) -> str:
    """Return a text without the characters that XML cannot hold."""
    return text.translate(NO_TEXT)
