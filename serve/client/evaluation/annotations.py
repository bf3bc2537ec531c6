"""Labelled folders: COCO, VQA, YOLO, Pascal VOC, Label Studio, FiftyOne, or one JSON line a picture."""

import functools
import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, TypeVar

from pycocotools import mask as coco_mask
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from serve.client.evaluation import folder
from serve.client.evaluation.items import Item, Json, labels
from serve.client.http_client import Failure, Misuse
from serve.errors import BadRequest, ServeError
from serve.limits import MAX_LABELS
from serve.media import masks
from serve.media.image import undecoded_image
from serve.media.outline import MAX_SIDE
from serve.tasks import TASKS
from serve.tasks.base import Task
from serve.tasks.boxes import label_key
from serve.tasks.extracted import ExtractResult
from serve.tasks.labels import fiftyone, label_studio, voc, yolo
from serve.tasks.labels.picture import Truth
from serve.tasks.object_schema import fault_of, object_schema

M = TypeVar("M", bound=BaseModel)
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]
LEAST, MOST = -MAX_SIDE, 2 * MAX_SIDE
"""Edges of places, which may reach over the picture's. pycocotools takes memory for each pixel between two points."""
Length = Annotated[FiniteFloat, Field(ge=0, le=MOST)]
Coordinate = Annotated[FiniteFloat, Field(ge=LEAST, le=MOST)]
Run = Annotated[int, Field(ge=0, lt=2**32)]
Id = Annotated[str, BeforeValidator(str)]
"""COCO's are numbers, other tools write them as text; a file may mix the two."""


class Picture(BaseModel):
    id: Id
    file_name: str
    height: Side | None = None
    width: Side | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """Return (height, width), or None where the file leaves them out."""
        return None if self.height is None or self.width is None else (self.height, self.width)


class Named(BaseModel):
    id: Id
    name: str


class Instance(BaseModel):
    """bbox: x, y, width, height in pixels. segmentation: polygons, or run lengths compressed or not.

    attributes: of tools that write them, as CVAT.
    """

    image_id: Id
    category_id: Id
    bbox: tuple[Coordinate, Coordinate, Length, Length]
    segmentation: Any = None
    iscrowd: bool = False
    attributes: Any = None

    @property
    def crowd(self) -> bool:
        """Return whether it is a crowd. CVAT says so of every mask that was drawn with a brush, of a single thing too
        (cvat-ai/cvat 7030); its annotations all say whether they are occluded."""
        return self.iscrowd and not (isinstance(self.attributes, dict) and "occluded" in self.attributes)

    @field_validator("segmentation")
    @classmethod
    def _drop_empty(cls, mask: Any) -> Any:
        """Replace a mask without area (no polygon, or only points and lines) by None."""
        if isinstance(mask, list) and all(isinstance(part, list) for part in mask):
            return [part for part in mask if len(part) not in (0, 2, 4)] or None
        return mask or None


class _RunLengths(BaseModel):
    """A mask as COCO writes crowds: run lengths as a list, or compressed into a string."""

    size: tuple[Side, Side]
    counts: str | list[Run]

    def compressed(self) -> Json:
        if isinstance(self.counts, str):
            return {"size": self.size, "counts": self.counts.encode()}
        return dict(coco_mask.frPyObjects({"size": list(self.size), "counts": self.counts}, *self.size))


_POLYGONS = TypeAdapter(Annotated[list[Annotated[list[Coordinate], Field(min_length=6)]], Field(min_length=1)])


class Instances(BaseModel):
    images: list[Picture]
    categories: list[Named]
    annotations: list[Instance]


class CocoCaption(BaseModel):
    image_id: Id
    caption: str


class Still(BaseModel):
    id: Id
    file_name: str


class Captions(BaseModel):
    images: list[Still]
    annotations: list[CocoCaption]


class VqaQuestion(BaseModel):
    image_id: int
    question: str
    question_id: int


class Questions(BaseModel):
    questions: list[VqaQuestion]


class VqaWords(BaseModel):
    answer: str


class VqaAnnotation(BaseModel):
    question_id: int
    answers: list[VqaWords] = Field(min_length=1)


class Answers(BaseModel):
    annotations: list[VqaAnnotation]


class Place(BaseModel):
    label: str = Field(min_length=1)
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate]
    mask: masks.Rle | None = None
    crowd: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Place":
        if self.box[2] < self.box[0] or self.box[3] < self.box[1]:
            raise ValueError("box is x0, y0, x1, y1, with x1 and y1 the larger")
        if self.mask is not None:
            masks.decode(self.mask)
        return self


class Line(BaseModel):
    """A line of labels.jsonl. task: whose question or result it is; vqa's question where left out.

    Fields without a place here are those of that task's result.
    """

    model_config = ConfigDict(extra="allow")

    image: str
    task: str | None = None
    question: str | None = None
    answer: str | None = None
    answers: list[str] | None = None
    caption: str | None = None
    captions: list[str] | None = None
    text: str | None = None
    labels: list[str] | None = Field(default=None, max_length=MAX_LABELS)
    boxes: list[Place] | None = None


class Labelled:
    """The items of a labelled folder. notes: sentences that say what was left out and why.

    empty: pictures, by path and task, of which the labels say that nothing is in them: there is nothing to ask for.
    """

    def __init__(self, here: Path, files: Sequence[Path] | None) -> None:
        """Read the annotations. files: all in the folder and its `annotations/` where left out. Raises Failure."""
        self.here = here
        self.notes: list[str] = []
        if not here.is_dir():
            raise Misuse(f"{here}: there is no such folder.")
        items: dict[Path, list[Item]] = defaultdict(list)
        self.empty: set[tuple[str, str]] = set()
        questions: list[tuple[Path, Questions]] = []
        answers: list[tuple[Path, Answers]] = []
        for path in {os.path.realpath(path): path for path in files or _annotation_files(here)}.values():
            if path.suffix.lower() == ".jsonl":
                items[path] += self._lines(path)
                continue
            if path.is_dir():
                items[path] += self._truths(path, voc.read_voc(path))
                continue
            if path.suffix.lower() in (".yaml", ".yml"):
                items[path] += self._truths(path, yolo.read_yolo(path))
                continue
            body = _load(path)
            match _shape(body):
                case "instances":
                    items[path] += self._instances(path, _checked(Instances, body, path))
                case "captions":
                    items[path] += self._captions(path, _checked(Captions, body, path))
                case "questions":
                    questions.append((path, _checked(Questions, body, path)))
                case "answers":
                    answers.append((path, _checked(Answers, body, path)))
                case "label-studio":
                    items[path] += self._truths(path, label_studio.read_label_studio(str(path), body))
                case "fiftyone":
                    items[path] += self._truths(path, fiftyone.read_fiftyone(str(path), body, self._size))
                case _ if files:
                    raise Failure(
                        f"{path}: these are annotations of neither COCO, VQA, Label Studio nor FiftyOne, nor JSON "
                        "lines (.jsonl), nor YOLO's data.yaml."
                    )
                case _:
                    self.notes.append(f"{path} holds no labels that are known here.")
        answered = {annotation.question_id: annotation for _, body in answers for annotation in body.annotations}
        for path, body in questions:
            items[path] += self._vqa(path, body, answered)
        self.items = self._named(items)
        if not self.items and not self.empty:
            raise Failure(
                f"{here} holds no labelled pictures: annotations of COCO, VQA, Label Studio or FiftyOne (.json), "
                "data.yaml (YOLO), Annotations/ (VOC) or labels.jsonl, there or by --annotations. "
                + " ".join(self.notes)
            )

    def of(self, task: str) -> list[Item]:
        """Return a task's items. For pointing and counting, of which nothing is labelled, they are made of boxes."""
        own = [item for item in self.items if item.task == task]
        if own or task not in ("point", "count"):
            return own
        masked = {item.picture: item for item in self.items if item.task == "segment"}
        boxed = [masked.get(item.picture, item) for item in self.items if item.task == "detect"]
        if task == "point":
            return [replace(item, name=f"{item.name}/point", task=task) for item in boxed]
        return [counted for item in boxed for counted in _counted(item)]

    def _instances(self, path: Path, body: Instances) -> Iterator[Item]:
        names = {category.id: category.name for category in body.categories}
        by_picture: dict[str, list[tuple[int, Instance]]] = defaultdict(list)
        for at, instance in enumerate(body.annotations):
            if instance.category_id not in names:
                raise Failure(f"{path}: annotations[{at}].category_id: there is no category {instance.category_id}.")
            by_picture[instance.image_id].append((at, instance))
        masked = any(instance.segmentation for instance in body.annotations)
        missing = empty = bare = 0
        for picture in body.images:
            file, rows = self._file(picture.file_name), by_picture.get(picture.id, [])
            if file is None or not rows:
                missing, empty = missing + (file is None), empty + (file is not None)
                if file is not None:
                    self.empty |= {(file, "detect"), (file, "segment")}
                continue
            boxes = [_box(instance, names[instance.category_id]) for _, instance in rows]
            yield self._item(path, str(picture.id), "detect", file, {"labels": labels(boxes)}, {"boxes": boxes})
            if masked and (picture.size is None or not all(instance.segmentation for _, instance in rows)):
                bare += 1
            elif masked:
                masked_boxes = [
                    box | {"mask": _rle(path, at, instance, picture)}
                    for (at, instance), box in zip(rows, boxes, strict=True)
                ]
                truth = {"boxes": masked_boxes}
                yield self._item(path, str(picture.id), "segment", file, {"labels": labels(boxes)}, truth)
        self._note(missing, f"pictures of {path.name} are not in {self.here}")
        self._note(bare, f"pictures of {path.name} have objects without a mask, or no size: not asked to segment")
        self._note(empty, f"pictures of {path.name} show nothing that is labelled: nothing to ask for")

    def _truths(self, path: Path, truths: Iterable[Truth]) -> Iterator[Item]:
        """Yield the items of other tools' labels. Raises Failure naming the place that cannot be read."""
        missing, empty = 0, set[str]()
        try:
            for at, truth in enumerate(truths):
                if not all(LEAST <= edge <= MOST for box in truth.truth.get("boxes", ()) for edge in box["box"]):
                    raise ValueError(f"{truth.where}: a box has numbers that are not finite, or far outside.")
                file = self._file(truth.file)
                if file is None or truth.fields.get("labels") == []:
                    missing += file is None
                    if file is not None:
                        empty.add(file)
                        self.empty.add((file, truth.task))
                    continue
                yield self._item(path, str(at), truth.task, file, truth.fields, truth.truth)
        except (ValueError, ServeError, OSError) as error:
            raise Failure(str(error)) from None
        self._note(missing, f"labels of {path.name} are about pictures that are not in {self.here}")
        self._note(len(empty), f"labels of {path.name} say that nothing is there: nothing to ask for")

    def _size(self, name: str) -> tuple[int, int] | None:
        """Return width and height of a picture, None where it is not in the folder. Raises OSError or ServeError."""
        file = self._file(name)
        if file is None:
            return None
        image = undecoded_image(folder.content(self.here / file))
        return image.width, image.height

    def _captions(self, path: Path, body: Captions) -> Iterator[Item]:
        by_picture: dict[str, list[str]] = defaultdict(list)
        for annotation in body.annotations:
            by_picture[annotation.image_id].append(annotation.caption)
        missing = 0
        for picture in body.images:
            file = self._file(picture.file_name)
            if file is None or picture.id not in by_picture:
                missing += 1
                continue
            yield self._item(path, str(picture.id), "caption", file, {}, {"captions": by_picture[picture.id]})
        self._note(missing, f"pictures of {path.name} are not in {self.here} or have no caption")

    def _vqa(self, path: Path, body: Questions, answered: Mapping[int, VqaAnnotation]) -> Iterator[Item]:
        """Yield VQA's questions. It names pictures by number: the number at the end of a file's name.

        A question is left out where several pictures have its number. answered: answers by the question's number.
        """
        missing = unclear = 0
        for at, question in enumerate(body.questions):
            files = self._numbered.get(question.image_id, [])
            if len(files) != 1:
                missing, unclear = missing + (not files), unclear + (len(files) > 1)
                continue
            if question.question_id not in answered:
                where = f"{path}: questions[{at}].question_id"
                raise Failure(f"{where}: no annotations file here answers question {question.question_id}.")
            truth = {"answers": [given.answer for given in answered[question.question_id].answers]}
            yield self._item(path, str(question.question_id), "vqa", files[0], {"question": question.question}, truth)
        self._note(missing, f"questions of {path.name} are about pictures that are not in {self.here}")
        self._note(unclear, f"questions of {path.name} are about a number that several pictures in {self.here} have")

    def _lines(self, path: Path) -> Iterator[Item]:
        try:
            data = path.read_bytes()
            text = data.decode(json.detect_encoding(data))  # what begins with a byte order mark, and UTF-16
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"{path}: {error}.") from None
        for number, row in enumerate(text.split("\n"), 1):
            if not row.strip():
                continue
            where = f"{path}, line {number}"
            line = _checked(Line, _json(row, where), where)
            file = self._file(line.image)
            if file is None:
                raise Failure(f"{where}: image: there is no {line.image} in {self.here}.")
            labelled = list(_labelled(line, where))
            if not labelled:
                raise Failure(f"{where}: it says nothing about {line.image}: answer, caption, text or boxes.")
            for task, fields, truth in labelled:
                yield self._item(path, str(number), task, file, fields, truth)

    def _item(self, path: Path, name: str, task: str, file: str, fields: Json, truth: Json) -> Item:
        if len(fields.get("labels", [])) > MAX_LABELS:
            raise Failure(f"{path}: {file} has more than {MAX_LABELS} labels, the most that can be asked for at once.")
        load = functools.partial(folder.content, self.here / file)
        return Item(f"{path.name}/{task}/{name}", file, task, fields, truth, load)

    def _named(self, items: Mapping[Path, Sequence[Item]]) -> list[Item]:
        """Return all files' items. Where files share a name, their items have the file's path from the folder instead.

        Others keep the file's own name, by which records of earlier calls go on.
        """
        of_name = Counter(path.name for path, of_file in items.items() if of_file)
        named: list[Item] = []
        for path, of_file in items.items():
            if of_name[path.name] > 1:
                place = Path(os.path.relpath(path, self.here)).as_posix()
                of_file = [replace(item, name=place + item.name.removeprefix(path.name)) for item in of_file]
            named += of_file
        return named

    def _file(self, name: str) -> str | None:
        """Find the picture that an annotation names, as a path inside the folder; None where there is no such picture.

        It is the file of that path, else the only picture of that file name whose folders end like the path's: the path
        may be written for another system or another place (COCO keeps pictures in a folder of their own).
        """
        if self._inside(name):
            return self._relative(name)
        wanted = [part.casefold() for part in PureWindowsPath(name).parts]
        same = self._by_name.get(wanted[-1], []) if wanted else []
        alike = [_common_end(wanted, [part.casefold() for part in Path(file).parts]) for file in same]
        best = [file for file, parts in zip(same, alike, strict=True) if parts == max(alike)]
        return best[0] if len(best) == 1 else None

    def _inside(self, name: str) -> bool:
        """Return whether a file of that name is in the folder, links followed."""
        try:
            path = (self.here / name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # no such file; a name that none can have; links in a circle
            return False
        return path.is_file() and path.is_relative_to(self.here.resolve())

    def _relative(self, name: str) -> str:
        """Return the path from the folder of a file in it, without dots, as records name pictures."""
        path = Path(os.path.relpath(self.here / name, self.here))
        straight = ".." not in path.parts
        if straight and path.as_posix() == name:
            return name
        if straight and self._inside(str(path)) and os.path.samefile(self.here / path, self.here / name):
            return path.as_posix()
        return (self.here / name).resolve().relative_to(self.here.resolve()).as_posix()  # by way of links

    @functools.cached_property
    def _by_name(self) -> Mapping[str, Sequence[str]]:
        """Return the paths of the folder's pictures by their file names in lower case."""
        paths: dict[str, list[str]] = defaultdict(list)
        for file in folder.pictures(self.here):
            if self._inside(file):
                paths[Path(file).name.casefold()].append(file)
        return paths

    @functools.cached_property
    def _numbered(self) -> Mapping[int, Sequence[str]]:
        """Return the paths of the folder's pictures by the numbers that their names end in."""
        paths: dict[int, list[str]] = defaultdict(list)
        for name in filter(self._inside, folder.pictures(self.here)):
            if match := re.search(r"(\d+)$", Path(name).stem):
                paths[int(match[1])].append(name)
        return paths

    def _note(self, count: int, why: str) -> None:
        if count:
            self.notes.append(f"{count} {why}.")


def _counted(item: Item) -> Iterator[Item]:
    """Yield an item for each label of an item with boxes: how many there are. A crowd cannot be counted."""
    for label in dict.fromkeys(item.fields["labels"]):
        same = [box for box in item.truth["boxes"] if label_key(box["label"]) == label_key(label)]
        if not any(box.get("crowd", False) for box in same):
            fields, truth = {"question": label}, {"count": len(same)}
            yield replace(item, name=f"{item.name}/count/{label}", task="count", fields=fields, truth=truth)


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the number of parts that both end with."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _annotation_files(here: Path) -> list[Path]:
    """List all .json files, labels.jsonl and data.yaml by their names, and VOC's folder of XML files.

    Other JSON lines may be what --out recorded.
    """
    paths: list[Path] = []
    for parent in (here, here / "annotations"):
        files = sorted(path for path in parent.glob("[!.]*") if path.is_file())
        paths += [path for path in files if path.suffix.lower() == ".json"]
        paths += [path for path in files if path.name.lower() in ("labels.jsonl", "data.yaml")]
    return paths + [path for path in (here / "Annotations",) if any(path.glob("**/*.xml"))]


def _shape(body: Any) -> str:
    """Return the kind of a JSON file, by its content: questions, captions, instances, answers, or nothing known."""
    if label_studio.is_export(body):
        return "label-studio"
    if not isinstance(body, dict):
        return ""
    if isinstance(body.get("samples"), list):
        return "fiftyone"
    notes = body.get("annotations")
    first = notes[0] if isinstance(notes, list) and notes and isinstance(notes[0], dict) else {}
    if isinstance(body.get("questions"), list):
        return "questions"
    if "images" in body and "caption" in first:
        return "captions"
    if "images" in body and "categories" in body and notes is not None:
        return "instances"
    return "answers" if "question_id" in first else ""


def _labelled(line: Line, where: str) -> Iterator[tuple[str, Json, Json]]:
    """Yield (task, fields, truth) of everything that a line labels."""
    answers = line.answers if line.answers is not None else [line.answer] if line.answer is not None else []
    captions = line.captions if line.captions is not None else [line.caption] if line.caption is not None else []
    if line.task is not None and line.task not in TASKS:
        raise Failure(f"{where}: task: there is no task {line.task!r}.")
    if line.task == "classify":
        if line.labels is None or (line.answers is None and line.answer is None):
            raise Failure(f"{where}: classify needs labels, and answer, or answers where several are right.")
        multiple = bool((line.model_extra or {}).get("multiple", line.answers is not None))
        yield "classify", {"labels": line.labels, "multiple": multiple}, {"labels": answers}
        return
    field = TASKS[line.task].text_field if line.task is not None else None
    own = answers == [] and field is not None and field.name == "question" and _gives_result(line)
    if (line.question is not None or answers) and not own:
        if line.question is None or not answers:
            raise Failure(f"{where}: question and answer (or answers) go together.")
        task = line.task if line.task and field is not None and field.name == "question" else "vqa"
        yield task, {"question": line.question}, {"answers": answers}
    if captions:
        yield "caption", {}, {"captions": captions}
    if line.text is not None:
        yield "ocr", {}, {"text": line.text}
    if line.boxes is not None:
        boxes = [place.model_dump(mode="json", exclude_none=True) for place in line.boxes]
        fields = {"labels": line.labels or labels(boxes)}
        if not fields["labels"]:
            raise Failure(f"{where}: boxes: with none of them, labels must say what to look for.")
        if line.task == "point":
            yield "point", fields, {"boxes": boxes}
            return
        yield "detect", fields, {"boxes": boxes}
        if (boxes or line.task == "segment") and all("mask" in box for box in boxes):
            yield "segment", fields, {"boxes": boxes}
    if line.task is not None and (truth := _own_truth(TASKS[line.task], line, where)):
        field = TASKS[line.task].text_field
        yield line.task, {} if field is None else {field.name: _written(line, field.name)}, truth


def _gives_result(line: Line) -> bool:
    """Return whether a line has fields of its task's result."""
    return line.task is not None and not TASKS[line.task].result.model_fields.keys().isdisjoint(line.model_extra or {})


def _own_truth(task: Task, line: Line, where: str) -> Json:
    """Return the true result that a line gives in fields of the task's own; empty where it gives none."""
    extra = line.model_extra or {}
    truth = {name: extra[name] for name in task.result.model_fields if name in extra}
    written = None if task.text_field is None else _written(line, task.text_field.name)
    if truth and task.text_field is not None and written is None:
        raise Failure(f"{where}: {task.text_field.name}: {task.name} needs it.")
    checked = _checked(task.result, truth, where).model_dump(mode="json") if truth else {}
    if checked and task.result is ExtractResult:
        _check_object(checked["data"], written, where)
    return checked


def _check_object(value: Json, schema: Any, where: str) -> None:
    """Raise Failure for an object that does not satisfy its schema, and for a schema that no request may have."""
    try:
        fault = fault_of(value, object_schema(schema))
    except (BadRequest, ValueError) as error:
        raise Failure(f"{where}: schema: {error}") from None
    if fault is not None:
        raise Failure(f"{where}: data: {fault}")


def _written(line: Line, field: str) -> Any:
    """Return what a line gives in the field for what is written beside the image: a schema as text; None without."""
    given = getattr(line, field) if field in Line.model_fields else (line.model_extra or {}).get(field)
    return json.dumps(given) if isinstance(given, dict) else given


def _box(instance: Instance, label: str) -> Json:
    x, y, width, height = instance.bbox
    return {"label": label, "box": [x, y, x + width, y + height], "crowd": instance.crowd}


def _rle(path: Path, at: int, instance: Instance, picture: Picture) -> Json:
    """Return a mask, written in any of COCO's three ways, as compressed run lengths. Raises Failure."""
    assert picture.size is not None
    try:
        if isinstance(instance.segmentation, dict):
            lengths = _RunLengths.model_validate(instance.segmentation).compressed()
        else:
            polygons = _POLYGONS.validate_python(instance.segmentation)
            lengths = coco_mask.merge(coco_mask.frPyObjects(polygons, *picture.size))
        rle = masks.Rle(size=lengths["size"], counts=lengths["counts"].decode())
        if rle.size != picture.size:
            raise ValueError("another picture's size")
        masks.decode(rle)
    except ValueError:  # pydantic's ValidationError is one
        where = f"{path}: annotations[{at}].segmentation"
        raise Failure(f"{where}: these are neither polygons nor run lengths of the picture's size.") from None
    return rle.model_dump()


def _load(path: Path) -> Any:
    try:
        data = path.read_bytes()
        return from_json(data.decode(json.detect_encoding(data)))
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}.") from None
    except ValueError as error:
        raise Failure(f"{path}: this is not JSON: {error}.") from None


def _json(text: str, where: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise Failure(f"{where}: this is not JSON: {error}.") from None


def _checked(kind: type[M], body: Any, where: object) -> M:
    """Validate annotations. Raises Failure naming file and field."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem["loc"])
        raise Failure(f"{where}: {steps.removeprefix('.') or 'it'}: {problem['msg']}.") from None
