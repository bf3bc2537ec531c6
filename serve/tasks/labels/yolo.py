"""YOLO: `data.yaml`, `images/` and `labels/` with a text file for each picture.

A line is a class and its box (centre, width, height), or a class and the corners of its mask's outline, all as parts of
the picture's width and height. There is no place for scores. A mask of several parts, or with holes, is one outline
that goes from part to part. Of a pose (`kpt_shape` in `data.yaml`) the box is read, its key points are not.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import yaml
from pycocotools import mask as coco_mask

from serve.media.image import undecoded_image
from serve.media.masks import Rle, Window, decode_in
from serve.tasks.labels.picture import Answered, Json, Truth, answered, box_truths, names, place
from serve.tasks.labels.polygons import join_rings, rings

MOST = 20 * 2**20
"""Bytes of a picture that is read for its size; the server refuses larger ones."""


def write_yolo(folder: Path, pictures_in: Path, pictures: Sequence[Answered]) -> None:
    """Write the labels and link the pictures beside them. Raises OSError."""
    kept = answered(pictures)
    classes = {name: number for number, name in enumerate(names(kept))}
    for picture in kept:
        lines = [_line(box, classes[box["label"]], picture.size) for box in picture.boxes]
        place(pictures_in / picture.file, folder / "images" / picture.file)
        path = folder / "labels" / PurePosixPath(picture.file).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines if line), encoding="ascii")
    body = {"train": "images", "val": "images", "names": {number: name for name, number in classes.items()}}
    (folder / "data.yaml").write_text(yaml.safe_dump(body, sort_keys=False, allow_unicode=True), encoding="utf-8")


def read_yolo(where: Path) -> Iterator[Truth]:
    """Yield the labels of the pictures below the folder of a `data.yaml`. Raises ValueError naming the place."""
    folder = where.parent
    try:
        body = yaml.load(where.read_text(encoding="utf-8"), yaml.BaseLoader)  # of texts alone: a class may be named no
        given = body["names"]
        classes = dict(enumerate(given)) if isinstance(given, list) else {int(key): name for key, name in given.items()}
        if not all(isinstance(name, str) for name in classes.values()):
            raise ValueError
        key_points = math.prod(map(int, body.get("kpt_shape") or "0"))  # their numbers, in each line after the box
    except (yaml.YAMLError, TypeError, LookupError, AttributeError, ValueError, RecursionError):
        raise ValueError(
            f"{where}: names: a list of the classes, or their numbers with their names; kpt_shape, if any: two numbers."
        ) from None
    for path in sorted(folder.rglob("*.txt")):
        parts = path.relative_to(folder).parts
        if "labels" not in parts[:-1]:
            continue
        at = len(parts) - 2 - parts[:-1][::-1].index("labels")
        picture = _picture(folder.joinpath(*parts[:at], "images", *parts[at + 1 :]))
        if picture is not None:
            yield from _truths(path, picture.relative_to(folder).as_posix(), _size(picture), classes, key_points)


def _line(box: Json, number: int, size: tuple[int, int]) -> str:
    """Return a box's line, empty where its mask is."""
    width, height = size
    if "mask" not in box:
        x0, y0, x1, y1 = box["box"]
        values = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
    else:
        rle = Rle.model_validate(box["mask"])
        window = Window.around(box["box"], width, height)
        outlines = rings(decode_in(rle, window))
        points = join_rings(outlines) if outlines else []
        values = [value for x, y in points for value in ((x + window.left) / width, (y + window.top) / height)]
    return f"{number} {' '.join(f'{min(1.0, max(0.0, value)):.6f}' for value in values)}" if values else ""


def _picture(stem: Path) -> Path | None:
    """Return the picture that a text file labels."""
    for suffix in (".png", ".jpg", ".jpeg", ".webp", ".gif"):
        for path in (stem.with_suffix(suffix), stem.with_suffix(suffix.upper())):
            if path.is_file():
                return path
    return next((path for path in stem.parent.glob("*") if path.stem == stem.stem and path.is_file()), None)


def _size(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        image = undecoded_image(file.read(MOST))
    return image.width, image.height


def _truths(path: Path, file: str, size: tuple[int, int], classes: dict[int, str], key_points: int) -> Iterator[Truth]:
    boxes: list[Json] = []
    for row, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            number, *values = map(float, line.split())
            label = classes[int(number)]
            if key_points and len(values) not in (4, 4 + key_points):
                raise ValueError("no pose")
            box, mask = _shape(values[:4] if key_points else values, size)
        except (ValueError, KeyError, OverflowError):
            raise ValueError(
                f"{path}, line {row}: this is not a known class with its box, outline or pose, from 0 to 1."
            ) from None
        boxes.append({"label": label, "box": box, "crowd": False} | ({"mask": mask} if mask else {}))
    yield from box_truths(str(path), file, boxes)


def _shape(values: Sequence[float], size: tuple[int, int]) -> tuple[list[float], Json | None]:
    """Return the box in pixels, and the mask where the values are an outline. Raises ValueError."""
    width, height = size
    if not all(-0.01 <= value <= 1.01 for value in values):
        raise ValueError("no parts of a picture")
    if len(values) == 4:
        x, y, wide, high = values[0] * width, values[1] * height, values[2] * width, values[3] * height
        return [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], None
    if len(values) < 6 or len(values) % 2:
        raise ValueError("no outline")
    points = [value * size[at % 2] for at, value in enumerate(values)]
    mask = polygon_mask([points], size)
    return [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])], mask


def polygon_mask(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Json:
    """Return the mask inside polygons x, y, x, y ... of a picture of this width and height."""
    lengths = coco_mask.merge(coco_mask.frPyObjects([list(points) for points in polygons], size[1], size[0]))
    return {"size": list(lengths["size"]), "counts": lengths["counts"].decode()}
