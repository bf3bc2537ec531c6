"""Labels in the formats of other tools: written from models' answers, and read back once people corrected them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from serve.tasks import TASKS
from serve.tasks.labels import coco, fiftyone, json_lines, label_studio, voc, yolo
from serve.tasks.labels.picture import Answered

Writer = Callable[[Path, Path, Sequence[Answered]], None]
"""(the folder to write into, the pictures' folder, pictures of one task) -> None. Raises OSError."""

FORMATS: Mapping[str, Writer] = {
    "coco": coco.write_coco,
    "yolo": yolo.write_yolo,
    "voc": voc.write_voc,
    "label-studio": label_studio.write_label_studio,
    "fiftyone": fiftyone.write_fiftyone,
    "jsonl": json_lines.write_json_lines,
}
HELD: Mapping[str, Sequence[str]] = {
    "coco": ("detect", "segment", "caption"),
    "yolo": ("detect", "segment"),
    "voc": ("detect",),
    "label-studio": tuple(task for task in TASKS if task != "extract"),
}
"""The tasks whose results a format can hold; those that are not here hold every task's."""


def holders(task: str) -> list[str]:
    """Return the formats that can hold a task's results."""
    return [name for name in FORMATS if task in HELD.get(name, TASKS)]
