"""Labels that people have: COCO's instances and captions, VQA's questions and answers, or one JSON line a picture."""

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pycocotools import mask as coco_mask
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from serve import masks
from serve.evaluation import folder
from serve.evaluation.items import MOST_LABELS, Item, Json, labels
from serve.terminal.client import Failure, Misuse

M = TypeVar("M", bound=BaseModel)
Positive = Field(gt=0)


class Picture(BaseModel):
    id: int
    file_name: str
    height: int = Positive
    width: int = Positive

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


class Named(BaseModel):
    id: int
    name: str


class Instance(BaseModel):
    """bbox: x, y, width, height in pixels. segmentation: polygons, or run lengths compressed or not."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    segmentation: Any = None
    iscrowd: bool = False


class _RunLengths(BaseModel):
    """A mask as COCO writes crowds: counts as a list, or compressed into letters."""

    size: tuple[int, int]
    counts: str | list[int]

    def compressed(self) -> Json:
        if isinstance(self.counts, str):
            return {"size": self.size, "counts": self.counts.encode()}
        return dict(coco_mask.frPyObjects({"size": list(self.size), "counts": self.counts}, *self.size))


_POLYGONS = TypeAdapter(Annotated[list[Annotated[list[float], Field(min_length=6)]], Field(min_length=1)])


class Instances(BaseModel):
    images: list[Picture]
    categories: list[Named]
    annotations: list[Instance]


class CocoCaption(BaseModel):
    image_id: int
    caption: str


class Still(BaseModel):
    id: int
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
    box: tuple[float, float, float, float]
    mask: masks.Rle | None = None
    crowd: bool = False

    @model_validator(mode="after")
    def _right_way_round(self) -> "Place":
        if self.box[2] < self.box[0] or self.box[3] < self.box[1]:
            raise ValueError("box is x0, y0, x1, y1, with x1 and y1 the larger")
        if self.mask is not None:
            masks.decode(self.mask)
        return self


class Line(BaseModel):
    """One line of labels.jsonl. task: needed only for chat, which else looks like vqa."""

    image: str
    task: str | None = None
    question: str | None = None
    answer: str | None = None
    answers: list[str] | None = None
    caption: str | None = None
    captions: list[str] | None = None
    text: str | None = None
    labels: list[str] | None = Field(default=None, max_length=MOST_LABELS)
    boxes: list[Place] | None = None


class Labelled:
    """The items of a folder. notes: what was left out, and why, in sentences."""

    def __init__(self, here: Path, files: Sequence[Path] | None) -> None:
        """files: the annotations; what lies in the folder (or its `annotations/`) where left out. Raises Failure."""
        self.here = here
        self.notes: list[str] = []
        if not here.is_dir():
            raise Misuse(f"{here}: there is no such folder.")
        self.items: list[Item] = []
        questions: list[tuple[Path, Questions]] = []
        answers: list[tuple[Path, Answers]] = []
        for path in files or _found(here):
            if path.suffix == ".jsonl":
                self.items += self._lines(path)
                continue
            body = _load(path)
            match _shape(body):
                case "instances":
                    self.items += self._instances(path, _checked(Instances, body, path))
                case "captions":
                    self.items += self._captions(path, _checked(Captions, body, path))
                case "questions":
                    questions.append((path, _checked(Questions, body, path)))
                case "answers":
                    answers.append((path, _checked(Answers, body, path)))
                case _ if files:
                    raise Failure(f"{path}: these are neither COCO's nor VQA's annotations, nor JSON lines (.jsonl).")
                case _:
                    self.notes.append(f"{path} holds no labels that are known here.")
        self.items += self._vqa(questions, answers)
        if not self.items:
            raise Failure(
                f"{here} holds no labelled pictures: COCO or VQA annotations (.json) or labels.jsonl, there or "
                f"by --annotations. {' '.join(self.notes)}".strip()
            )

    def _instances(self, path: Path, body: Instances) -> Iterator[Item]:
        names = {one.id: one.name for one in body.categories}
        of: dict[int, list[tuple[int, Instance]]] = defaultdict(list)
        for at, one in enumerate(body.annotations):
            if one.category_id not in names:
                raise Failure(f"{path}: annotations[{at}].category_id: there is no category {one.category_id}.")
            of[one.image_id].append((at, one))
        masked = all(one.segmentation for one in body.annotations)
        missing = empty = 0
        for picture in body.images:
            file, some = self._file(picture.file_name), of.get(picture.id, [])
            if file is None or not some:
                missing, empty = missing + (file is None), empty + (file is not None)
                continue
            boxes = [_place(one, names[one.category_id]) for _, one in some]
            yield self._item(path, str(picture.id), "detect", file, {"labels": labels(boxes)}, {"boxes": boxes})
            if masked:
                masked_boxes = [
                    box | {"mask": _rle(path, at, one, picture)} for (at, one), box in zip(some, boxes, strict=True)
                ]
                truth = {"boxes": masked_boxes}
                yield self._item(path, str(picture.id), "segment", file, {"labels": labels(boxes)}, truth)
        self._note(missing, f"pictures of {path.name} are not in {self.here}")
        self._note(empty, f"pictures of {path.name} show nothing that is labelled: nothing to ask for")

    def _captions(self, path: Path, body: Captions) -> Iterator[Item]:
        of: dict[int, list[str]] = defaultdict(list)
        for one in body.annotations:
            of[one.image_id].append(one.caption)
        missing = 0
        for picture in body.images:
            file = self._file(picture.file_name)
            if file is None or picture.id not in of:
                missing += 1
                continue
            yield self._item(path, str(picture.id), "caption", file, {}, {"captions": of[picture.id]})
        self._note(missing, f"pictures of {path.name} are not in {self.here} or have no caption")

    def _vqa(
        self, questions: Sequence[tuple[Path, Questions]], answers: Sequence[tuple[Path, Answers]]
    ) -> Iterator[Item]:
        """VQA names pictures by number: the number at the end of a file's name."""
        given = {one.question_id: one for _, body in answers for one in body.annotations}
        missing = 0
        for path, body in questions:
            for at, asked in enumerate(body.questions):
                file = self._numbered.get(asked.image_id)
                if file is None:
                    missing += 1
                    continue
                if asked.question_id not in given:
                    where = f"{path}: questions[{at}].question_id"
                    raise Failure(f"{where}: no annotations file here answers question {asked.question_id}.")
                truth = {"answers": [one.answer for one in given[asked.question_id].answers]}
                yield self._item(path, str(asked.question_id), "vqa", file, {"question": asked.question}, truth)
        self._note(missing, f"questions are about pictures that are not in {self.here}")

    def _lines(self, path: Path) -> Iterator[Item]:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"{path}: {error}.") from None
        for number, words in enumerate(text.split("\n"), 1):
            if not words.strip():
                continue
            where = f"{path}, line {number}"
            line = _checked(Line, _json(words, where), where)
            if self._file(line.image) is None:
                raise Failure(f"{where}: image: there is no {line.image} in {self.here}.")
            known = list(_tasks(line, where))
            if not known:
                raise Failure(f"{where}: it says nothing about {line.image}: answer, caption, text or boxes.")
            for task, fields, truth in known:
                yield self._item(path, str(number), task, line.image, fields, truth)

    def _item(self, path: Path, name: str, task: str, file: str, fields: Json, truth: Json) -> Item:
        if len(fields.get("labels", [])) > MOST_LABELS:
            raise Failure(f"{path}: {file} has more than {MOST_LABELS} labels, the most that can be asked for at once.")
        load = functools.partial(folder.content, self.here / file)
        return Item(f"{path.name}/{task}/{name}", file, task, fields, truth, load)

    def _file(self, name: str) -> str | None:
        """As named, or wherever in the folder a file is called so (COCO keeps pictures in a folder of their own)."""
        if (self.here / name).is_file():
            return name
        return self._by_name.get(Path(name).name)

    @functools.cached_property
    def _by_name(self) -> Mapping[str, str]:
        return {Path(name).name: name for name in folder.pictures(self.here)}

    @functools.cached_property
    def _numbered(self) -> Mapping[int, str]:
        found = ((re.search(r"(\d+)$", Path(name).stem), name) for name in folder.pictures(self.here))
        return {int(match[1]): name for match, name in found if match}

    def _note(self, count: int, why: str) -> None:
        if count:
            self.notes.append(f"{count} {why}.")


def _found(here: Path) -> list[Path]:
    """All .json, and labels.jsonl by its name: other JSON lines may be what --out recorded."""
    places = (here, here / "annotations")
    return [
        path for place in places for path in (*sorted(place.glob("*.json")), place / "labels.jsonl") if path.is_file()
    ]


def _shape(body: Any) -> str:
    """What a JSON file is, by what it holds."""
    if not isinstance(body, dict):
        return ""
    notes = body.get("annotations")
    first = notes[0] if isinstance(notes, list) and notes and isinstance(notes[0], dict) else {}
    if isinstance(body.get("questions"), list):
        return "questions"
    if "images" in body and "caption" in first:
        return "captions"
    if "images" in body and "categories" in body and notes is not None:
        return "instances"
    return "answers" if "question_id" in first else ""


def _tasks(line: Line, where: str) -> Iterator[tuple[str, Json, Json]]:
    """(task, fields, truth) of everything that a line labels."""
    answers = line.answers if line.answers is not None else [line.answer] if line.answer is not None else []
    captions = line.captions if line.captions is not None else [line.caption] if line.caption is not None else []
    if line.task not in (None, "vqa", "chat", "caption", "ocr", "detect", "segment"):
        raise Failure(f"{where}: task: there is no task {line.task!r}.")
    if line.question is not None or answers:
        if line.question is None or not answers:
            raise Failure(f"{where}: question and answer (or answers) go together.")
        yield ("chat" if line.task == "chat" else "vqa"), {"question": line.question}, {"answers": answers}
    if captions:
        yield "caption", {}, {"captions": captions}
    if line.text is not None:
        yield "ocr", {}, {"text": line.text}
    if line.boxes is not None:
        boxes = [place.model_dump(mode="json", exclude_none=True) for place in line.boxes]
        wanted = {"labels": line.labels or labels(boxes)}
        if not wanted["labels"]:
            raise Failure(f"{where}: boxes: with none of them, labels must say what to look for.")
        yield "detect", wanted, {"boxes": boxes}
        if boxes and all("mask" in box for box in boxes):
            yield "segment", wanted, {"boxes": boxes}


def _place(one: Instance, label: str) -> Json:
    x, y, width, height = one.bbox
    return {"label": label, "box": [x, y, x + width, y + height], "crowd": one.iscrowd}


def _rle(path: Path, at: int, one: Instance, picture: Picture) -> Json:
    """COCO's three ways to write a mask, as compressed run lengths. Raises Failure."""
    try:
        if isinstance(one.segmentation, dict):
            made = _RunLengths.model_validate(one.segmentation).compressed()
        else:
            made = coco_mask.merge(coco_mask.frPyObjects(_POLYGONS.validate_python(one.segmentation), *picture.size))
        rle = masks.Rle(size=made["size"], counts=made["counts"].decode())
        if rle.size != picture.size:
            raise ValueError("another picture's size")
        masks.decode(rle)
    except ValueError:  # pydantic's ValidationError is one
        where = f"{path}: annotations[{at}].segmentation"
        raise Failure(f"{where}: these are neither polygons nor run lengths of the picture's size.") from None
    return rle.model_dump()


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}.") from None
    except ValueError as error:
        raise Failure(f"{path}: this is not JSON: {error}.") from None


def _json(words: str, where: str) -> Any:
    try:
        return json.loads(words)
    except ValueError as error:
        raise Failure(f"{where}: this is not JSON: {error}.") from None


def _checked(kind: type[M], body: Any, where: object) -> M:
    """The annotations as they should be. Raises Failure naming file and field."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem["loc"])
        raise Failure(f"{where}: {steps.removeprefix('.') or 'it'}: {problem['msg']}.") from None
