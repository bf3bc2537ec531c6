"""FiftyOne: `samples.json` and the pictures in `data/`, a dataset of its type FiftyOneDataset.

A sample has a field for the merged result and one for each model's, and the field `agreement`. Boxes and masks are
detections, with parts of the picture's width and height; a text is a text.
"""

import base64
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.media.masks import Mask, Rle, Window, decode_in, encode_in
from serve.tasks import TASKS
from serve.tasks.labels.picture import Answered, Json, Truth, answered, box_truths, place, result_text

TRUTHS = ("ground_truth", "merged")
"""Fields that labels are read from: the first that a sample has."""
SMALL = 2**20
"""Bytes that a mask may have about any picture; about a larger one two a pixel."""
HEADER = 1024


def write_fiftyone(folder: Path, pictures_in: Path, pictures: Sequence[Answered]) -> None:
    """Write the samples and link the pictures beside them. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = answered(pictures)
    samples = []
    for picture in kept:
        place(pictures_in / picture.file, folder / "data" / picture.file)
        results = {"merged": picture.result or {}, **picture.answers}
        fields = {_field(name): _label(result, picture.size) for name, result in results.items()}
        task = TASKS.get(picture.task)
        question = picture.written if task and task.text_field and task.text_field.kind == "text" else {}
        sample = {"filepath": f"data/{picture.file}", "tags": [picture.task], "agreement": picture.agreement}
        samples.append(sample | question | fields)
    (folder / "samples.json").write_text(json.dumps({"samples": samples}), encoding="ascii")


def read_fiftyone(where: str, body: Mapping[str, Any], sizes: Any) -> Iterator[Truth]:
    """Yield the detections of an exported dataset's samples. sizes: a sample's path -> the picture's width and height.

    They are read from the field `ground_truth`, else `merged`. Raises ValueError naming the place.
    """
    for at, sample in enumerate(body["samples"]):
        try:
            field = next((name for name in TRUTHS if isinstance(sample.get(name), dict)), None)
            if field is None or sample[field].get("_cls") != "Detections":
                continue
            file = str(sample["filepath"])
            size = sizes(file)
            if size is None:
                continue
            boxes = [_box(detection, size) for detection in sample[field]["detections"]]
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, MemoryError, zlib.error) as error:
            raise ValueError(f"{where}: samples[{at}]: its detections cannot be read ({error}).") from None
        yield from box_truths(f"{where}: samples[{at}]", file, boxes)


def _field(model: str) -> str:
    """Return a field's name for a model's: letters, digits and underscores, a letter first."""
    name = re.sub(r"\W", "_", model, flags=re.ASCII)
    return name if name[:1].isalpha() else f"m_{name}"


def _label(result: Json, size: tuple[int, int]) -> Any:
    if next(iter(result), "") == "points":
        return {"_cls": "Keypoints", "keypoints": [_keypoint(point, size) for point in result["points"]]}
    if "boxes" not in result:
        return result_text(result)
    return {"_cls": "Detections", "detections": [_detection(box, size) for box in result["boxes"]]}


def _keypoint(point: Json, size: tuple[int, int]) -> Json:
    place = [value / side for value, side in zip(point["point"], size, strict=True)]
    return {"_cls": "Keypoint", "label": point["label"], "points": [place], "confidence": [point.get("score", 1.0)]}


def _detection(box: Json, size: tuple[int, int]) -> Json:
    """Return a box as a detection; its mask is that of the box's pixels, packed as FiftyOne packs arrays."""
    width, height = size
    window = Window.around(box["box"], width, height)
    x0, y0, x1, y1 = box["box"]
    mask: Json = {}
    if "mask" in box and window.shape[0] and window.shape[1]:
        x0, y0, x1, y1 = window.left, window.top, window.right, window.bottom
        out = io.BytesIO()
        np.save(out, decode_in(Rle.model_validate(box["mask"]), window), allow_pickle=False)
        packed = base64.b64encode(zlib.compress(out.getvalue())).decode()
        mask = {"mask": {"$binary": {"base64": packed, "subType": "00"}}}
    place = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
    return {
        "_cls": "Detection",
        "label": box["label"],
        "bounding_box": place,
        "confidence": box.get("score", 1.0),
    } | mask


def _box(detection: Mapping[str, Any], size: tuple[int, int]) -> Json:
    width, height = size
    x, y, wide, high = map(float, detection["bounding_box"])
    corners = [x * width, y * height, (x + wide) * width, (y + high) * height]
    box = {"label": str(detection["label"]), "box": corners, "crowd": bool(detection.get("iscrowd"))}
    packed = detection.get("mask")
    if not packed:
        return box
    text = packed["$binary"]["base64"] if isinstance(packed, dict) else packed
    mask, window = _drawn(_unpacked(text, max(2 * width * height, SMALL)), corners, size)
    if not mask.size:  # of a box that is not in the picture
        return box
    return box | {"mask": encode_in(mask, window, (height, width)).model_dump(mode="json")}


def _unpacked(text: str, limit: int) -> Mask:
    """Return an instance's mask, of any size. limit: its most bytes. Raises ValueError or zlib.error."""
    data = zlib.decompressobj().decompress(base64.b64decode(text), limit + HEADER)
    array: Any = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)  # type: ignore[no-untyped-call]
    if array.ndim != 2 or not 0 < array.size <= limit:
        raise ValueError(f"a mask of the shape {array.shape}")
    return np.asarray(array, bool)


def _drawn(mask: Mask, corners: Sequence[float], size: tuple[int, int]) -> tuple[Mask, Window]:
    """Return a mask as FiftyOne draws it, resized to its rounded box, and where: the part that is in the picture."""
    left, top, right, bottom = map(round, corners)
    columns, begin = _nearest(left, right, size[0], mask.shape[1])
    rows, above = _nearest(top, bottom, size[1], mask.shape[0])
    return mask[np.ix_(rows, columns)], Window(begin, above, begin + len(columns), above + len(rows))


def _nearest(first: int, last: int, side: int, length: int) -> tuple[list[int], int]:
    """Return the nearest of a mask's rows, or columns, for each that its box covers in the picture, and which is first.

    first, last: of the box, which covers a row at least. side: the picture's rows. length: the mask's, which are
    returned as they are where the box has as many.
    """
    covered = max(last - first, 1)
    begin = max(first, 0)
    places = range(begin, min(first + covered, side))
    return [(2 * (place - first) + 1) * length // (2 * covered) for place in places], begin
