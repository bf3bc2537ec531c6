"""`diptych run --format`: the merged answers as labels for other tools, those that a person should review apart."""

import argparse
import csv
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from serve.client.evaluation.annotations import Labelled
from serve.client.http_client import Failure, Misuse
from serve.media import masks
from serve.tasks import TASKS
from serve.tasks.labels import FORMATS, holders
from serve.tasks.labels.picture import Answered
from serve.tasks.points import LabelledPoint, PointResult, middle, middle_in

Json = dict[str, Any]
ACCEPTED, REVIEW = "accepted", "review"
LIST = "agreement.csv"


@dataclass(frozen=True)
class Below:
    """The pictures to review: with less agreement than `least`, or the given share of all with the least agreement."""

    least: float = 0.0
    share: float = 0.0

    @classmethod
    def parse(cls, word: str) -> "Below":
        """Parse 0.7 or 10%. Raises ValueError."""
        percent = word.endswith("%")
        value = float(word.removesuffix("%")) / (100 if percent else 1)
        if not 0 <= value <= 1:
            raise ValueError("no part of the whole")
        return cls(share=value) if percent else cls(least=value)

    def chosen(self, pictures: Sequence[Answered]) -> set[str]:
        """Return the files to review: those without an answer, and those with the least agreement."""
        ordered = sorted(pictures, key=lambda picture: (picture.result is not None, picture.agreement, picture.file))
        first = ordered[: math.ceil(self.share * len(pictures) - 1e-9)]
        low = [picture for picture in pictures if picture.result is None or picture.agreement < self.least]
        return {picture.file for picture in [*first, *low]}


def check_export(options: argparse.Namespace) -> Path | None:
    """Return the folder that labels are written to; None where no format is given. Raises Misuse."""
    if options.format is None:
        for name in ("to", "review_below", "corrected", "pictures_at"):
            if getattr(options, name) is not None:
                raise Misuse(f"--{name.replace('_', '-')} goes with --format.")
        return None
    if options.out is None:
        raise Misuse("--format goes with --out FILE: labels are made from what it records.")
    if options.task in TASKS and options.format not in holders(options.task):
        raise Misuse(
            f"{options.format} does not hold what {options.task} answers: {', '.join(holders(options.task))} do."
        )
    if options.pictures_at is not None and options.format != "label-studio":
        raise Misuse("--pictures-at is for label-studio: other formats name files.")
    folder: Path = options.to or options.out.with_name(f"{options.out.stem}-{options.format}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Misuse(f"{folder} is there and not empty: give another --to, or remove it.")
    return folder


def export_labels(lines: Sequence[Json], options: argparse.Namespace, folder: Path) -> None:
    """Write the labels of recorded lines into a folder, and print how many. Raises Failure."""
    pictures = sorted(map(answered_picture, lines), key=lambda picture: picture.file)
    pictures, corrected = _corrected(pictures, options)
    _check_names(pictures, options.format)
    review: Below | None = options.review_below
    to_review = review.chosen([picture for picture in pictures if picture.file not in corrected]) if review else set()
    parts: dict[str, list[Answered]] = {ACCEPTED: [], REVIEW: []} if review else {"": []}
    for picture in pictures:
        parts[(REVIEW if picture.file in to_review else ACCEPTED) if review else ""].append(picture)
    try:
        for part, chosen in parts.items():
            if part and not chosen:
                continue
            if options.pictures_at is not None:
                from serve.tasks.labels import label_studio

                label_studio.write_label_studio(folder / part, options.folder, chosen, options.pictures_at)
            else:
                FORMATS[options.format](folder / part, options.folder, chosen)
        _list(folder / LIST, pictures, to_review, corrected)
    except OSError as error:
        raise Failure(f"{folder} was not written: {error.strerror or error}.") from None
    written = ", ".join(f"{len(chosen)} {part}".strip() for part, chosen in parts.items())
    silent = sum(picture.result is None for picture in pictures)
    without = f" {silent} have no answer." if silent else ""
    print(f"{folder}: {written} pictures as {options.format}.{without}", file=sys.stderr)


def answered_picture(line: Json) -> Answered:
    """Return a line of a record as a picture with its answers."""
    merged = line.get("merged") or {}
    image = line.get("image") or {}
    return Answered(
        file=line["file"],
        task=line["task"],
        fields=line.get("asked") or {},
        size=(image.get("width", 0), image.get("height", 0)),
        result=merged.get("result"),
        agreement=merged.get("agreement", 0.0),
        answers={
            reply["model"]: reply["result"]
            for reply in line.get("replies", [])
            if reply["status"] == "ok" and reply["result"] is not None
        },
    )


def _corrected(pictures: Sequence[Answered], options: argparse.Namespace) -> tuple[list[Answered], set[str]]:
    """Return the pictures with people's labels in place of the merged ones, and the files that have them."""
    if options.corrected is None:
        return list(pictures), set()
    labelled = Labelled(options.folder, options.corrected)
    task = TASKS[options.task]
    truths: dict[str, Json] = {
        item.picture: item.truth
        for item in labelled.of(task.name)
        if options.asked is None or task.written(item.fields) == options.asked
    }
    # labels that say that nothing is there are of boxes, whatever was asked for in its place
    empty = {file for file, kind in labelled.empty if kind in (task.name, "detect")}
    empty |= {item.picture for item in labelled.items if item.task == "detect" and not item.truth["boxes"]}
    if task.places is not None:
        truths |= dict.fromkeys(empty - truths.keys(), {task.places: []})
    for note in labelled.notes:
        print(note, file=sys.stderr)
    if not truths:
        raise Failure(f"{', '.join(map(str, options.corrected))} says nothing for {options.task}.")
    strangers = truths.keys() - {picture.file for picture in pictures}
    if strangers:
        print(
            f"{len(strangers)} corrected pictures are not in the record: {min(strangers)} is the first.",
            file=sys.stderr,
        )
    for picture in pictures:
        for box in truths.get(picture.file, {}).get("boxes", ()):
            if "mask" in box and tuple(box["mask"]["size"]) != picture.size[::-1]:
                raise Failure(f"{picture.file}: the labels have a mask of another size than the picture's.")
    changed = [
        replace(picture, result=_result(picture, truths[picture.file]), agreement=1.0)
        if picture.file in truths and picture.size[0]
        else picture
        for picture in pictures
    ]
    return changed, truths.keys() & {picture.file for picture in changed if picture.result is not None}


def _result(picture: Answered, truth: Mapping[str, Any]) -> Json:
    """Return what is true of a picture in the form of its task's result."""
    task = picture.task
    if task == "point" and not truth.get("points"):
        points = [LabelledPoint(label=box["label"], point=_point(box), score=1.0) for box in truth.get("boxes", ())]
        return PointResult(points=points, size=picture.size[::-1]).model_dump(mode="json")
    if TASKS[task].boxed:
        return {
            "boxes": [
                {name: box[name] for name in ("label", "box", "mask") if name in box} | {"score": 1.0}
                for box in truth["boxes"]
            ]
        }
    if task == "classify":
        labels = [{"label": label, "score": 1.0} for label in truth["labels"]]
        multiple = bool(picture.fields.get("multiple")) or len(labels) != 1  # a person may say more than was asked for
        return {"labels": labels, "multiple": multiple}
    if len(TASKS[task].result.model_fields) > 1:  # of such a task the truth is its result
        return dict(truth)
    (field,) = TASKS[task].result.model_fields
    if field in truth:
        return {field: truth[field]}
    value = next(iter(truth.values()))
    return {field: value[0] if isinstance(value, list) else value}


def _point(box: Json) -> tuple[float, float]:
    """Return a point in a true box, and in its mask where it has one."""
    if "mask" not in box:
        return middle(box["box"])
    return middle_in(box["box"], masks.decode(masks.Rle.model_validate(box["mask"])))


def _check_names(pictures: Sequence[Answered], name: str) -> None:
    """Raise Failure for pictures that differ in their suffix alone, where a format names its files after them."""
    if name not in ("yolo", "voc"):
        return
    same: dict[PurePosixPath, list[str]] = defaultdict(list)
    for picture in pictures:
        same[PurePosixPath(picture.file).with_suffix("")].append(picture.file)
    for files in same.values():
        if len(files) > 1:
            raise Failure(f"{' and '.join(files)} would have one file of labels in {name}: rename one of them.")


def _list(path: Path, pictures: Sequence[Answered], to_review: set[str], corrected: set[str]) -> None:
    """Write each picture's agreement, which some formats have no place for."""
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "agreement", "part"))
        for picture in pictures:
            part = "corrected" if picture.file in corrected else REVIEW if picture.file in to_review else ACCEPTED
            agreement = "" if picture.result is None else f"{picture.agreement:.4f}"
            writer.writerow(
                (picture.file, agreement, part if picture.result is not None or part == REVIEW else "no answer")
            )
