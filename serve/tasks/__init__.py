"""Tasks, the rows of the table: one file each, with its request, its result and its merge rule."""

from serve.tasks.base import Task
from serve.tasks.caption import CAPTION
from serve.tasks.chat import CHAT
from serve.tasks.classify import CLASSIFY
from serve.tasks.count import COUNT
from serve.tasks.detect import DETECT
from serve.tasks.extract import EXTRACT
from serve.tasks.ocr import OCR
from serve.tasks.point import POINT
from serve.tasks.segment import SEGMENT
from serve.tasks.vqa import VQA

TASKS: dict[str, Task] = {
    task.name: task for task in (VQA, CAPTION, OCR, DETECT, SEGMENT, POINT, COUNT, CLASSIFY, EXTRACT, CHAT)
}
ADDRESSES: dict[str, str] = {name: task.name for task in TASKS.values() for name in (task.name, *task.known_as)}
"""First part of a comparison's address -> task."""
