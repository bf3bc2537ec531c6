"""Label Studio: tasks with predictions, the labelling config they need, and what people made of them.

Its regions have their places in percent of the picture's width and height.
"""

import json
import math
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import numpy as np
from pydantic import TypeAdapter, ValidationError

from serve.media import masks
from serve.media.outline import MAX_SIDE
from serve.tasks import TASKS
from serve.tasks.labels.brush import decode_brush, encode_brush
from serve.tasks.labels.picture import Answered, Json, Truth, box_truths, names, result_text, writable
from serve.tasks.labels.polygons import rings, signed_area
from serve.tasks.labels.voc import parse_xml
from serve.tasks.labels.yolo import polygon_mask

LOCAL_FILES = "/data/local-files/?d="
"""The begin of a picture's address where Label Studio serves a folder of its own machine."""
KINDS = {
    "RectangleLabels": "detect",
    "BrushLabels": "segment",
    "PolygonLabels": "segment",
    "KeyPointLabels": "point",
}
"""By a control's tag, the task that fills it. A TextArea is filled by the task that it is named after."""
DOT = 0.6
"""The size of a point on Label Studio's page, in percent of the picture's width."""
ELLIPSE = 96
"""Corners of the polygon that an ellipse's mask is."""
MAX_CONTROLS = 8
MAX_NAME = 200
"""Characters of a control's name, and of a field's."""
IMAGE = "image"


@dataclass(frozen=True)
class Control:
    """A tag of a labelling config that people, or a model, fill in for a picture.

    picture: the field of a task's data that holds the picture's address.
    """

    tag: str
    name: str
    to_name: str
    picture: str
    task: str
    labels: tuple[str, ...] = ()


def parse_labelling_config(text: str, max_labels: int) -> list[Control]:
    """Return the controls for pictures that models here can fill. Raises ValueError naming what is wrong.

    max_labels: of one control.
    """
    root = parse_xml(text)
    pictures = {tag.get("name"): tag.get("value", "").removeprefix("$") for tag in root.iter("Image")}
    controls = []
    for tag in root.iter():
        name, to_name = tag.get("name", ""), tag.get("toName", "")
        task = KINDS.get(tag.tag) or (name if tag.tag == "TextArea" and name in _written() else None)
        if task is None or to_name not in pictures:
            continue
        if not name or len(name) > MAX_NAME or not 0 < len(pictures[to_name]) <= MAX_NAME:
            raise ValueError(
                f'{tag.tag} needs a name, and its Image a value as "$image", of {MAX_NAME} characters at most.'
            )
        labels = tuple(dict.fromkeys(label.get("value", "") for label in tag.iter("Label") if label.get("value")))
        if tag.tag in KINDS and not 0 < len(labels) <= max_labels:
            raise ValueError(f"{tag.tag} {name} needs labels, {max_labels} at most.")
        controls.append(Control(tag.tag, name, to_name, pictures[to_name], task, labels))
    if not 0 < len(controls) <= MAX_CONTROLS:
        raise ValueError(
            f"It needs an Image and, for it, {', '.join(KINDS)} or a TextArea named {', '.join(_written())}; "
            f"{MAX_CONTROLS} of them at most."
        )
    return controls


def write_config(task: str, labels: Sequence[str]) -> str:
    """Return a labelling config for a task's answers."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", name=IMAGE, value="$image")
    control = _control(task)
    if TASKS[task].places is not None:
        element = ET.SubElement(view, control.tag, name=control.name, toName=control.to_name)
        for label in labels:
            ET.SubElement(element, "Label", value=writable(label))
    else:
        field = TASKS[task].text_field
        if field is not None and field.kind == "text":
            ET.SubElement(view, "Text", name=field.name, value=f"${field.name}")
        elif labels:
            ET.SubElement(view, "Header", value=writable("; ".join(labels)))
        more = {"name": control.name, "toName": control.to_name, "editable": "true", "maxSubmissions": "1"}
        ET.SubElement(view, control.tag, more)
    ET.indent(view)
    return ET.tostring(view, encoding="unicode") + "\n"


def regions(result: Mapping[str, Any], control: Control, size: tuple[int, int]) -> list[Json]:
    """Return a result as regions of a control. size: width and height of the picture."""
    width, height = size
    common = {
        "from_name": control.name, "to_name": control.to_name, "original_width": width, "original_height": height,
        "image_rotation": 0,
    }  # fmt: skip
    places = TASKS[control.task].places
    if places is None:
        place = {"from_name": control.name, "to_name": control.to_name}
        return [{"id": "text", **place, "type": "textarea", "value": {"text": [result_text(result)]}}]
    found_regions = []
    for at, box in enumerate(result[places]):
        for part, (kind, value) in enumerate(_values(box, control, size)):
            region = {"id": f"{control.name}-{at}-{part}", **common, "type": kind, "score": box.get("score", 1.0)}
            found_regions.append(region | {"value": value | {kind: [box["label"]]}})
    return found_regions


def write_label_studio(folder: Path, pictures_in: Path, pictures: Sequence[Answered], base: str = LOCAL_FILES) -> None:
    """Write `tasks.json` and `config.xml`. Raises OSError.

    Each model's own answer is a prediction beside the merged one. A picture without an answer is a task without
    predictions. base: the begin of the pictures' addresses, before their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task, labels = pictures[0].task if pictures else "detect", names(pictures)
    config = write_config(task, labels)
    (folder / "config.xml").write_text(config, encoding="utf-8")
    control = _control(task)
    with (folder / "tasks.json").open("w", encoding="ascii") as file:
        file.write("[\n")
        for at, picture in enumerate(pictures):
            file.write(",\n" * (at > 0) + json.dumps(_task(picture, control, base)))
        file.write("\n]\n")


def read_label_studio(where: str, tasks: Sequence[Any]) -> Iterator[Truth]:
    """Yield what people said of each task of an export (JSON). Tasks without an annotation are left out.

    Of several annotations the ground truth counts, else the last. Raises ValueError naming the place.
    """
    for at, task in enumerate(tasks):
        place = f"{where}: [{at}]"
        data = task.get("data") if isinstance(task, dict) else None
        given = task.get("annotations") if isinstance(task, dict) else None
        if not isinstance(data, dict) or not isinstance(given, list):
            raise ValueError(f"{place}: a task has data and annotations.")
        kept = [entry for entry in given if isinstance(entry, dict) and not entry.get("was_cancelled")]
        if not kept:
            continue
        chosen = next((entry for entry in kept if entry.get("ground_truth")), kept[-1])
        try:
            yield from _truths(place, data, chosen.get("result") or [])
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ValueError(f"{place}: an annotation's result cannot be read ({error}).") from None


def is_export(body: Any) -> bool:
    """Return whether a file's JSON is a list of tasks."""
    return (
        isinstance(body, list)
        and bool(body)
        and isinstance(body[0], dict)
        and {"data", "annotations"} <= body[0].keys()
    )


def _control(task: str) -> Control:
    """Return the control that `write_config` writes for a task."""
    if TASKS[task].places is None:
        return Control("TextArea", task, IMAGE, IMAGE, task)
    tag = {"segment": "BrushLabels", "point": "KeyPointLabels"}.get(task, "RectangleLabels")
    return Control(tag, "label", IMAGE, IMAGE, task)


def _written() -> list[str]:
    return [name for name, task in TASKS.items() if task.places is None]


def _task(picture: Answered, control: Control, base: str) -> Json:
    data = {
        "image": base + urllib.parse.quote(picture.file, errors="replace"),
        "file": picture.file,
        "agreement": picture.agreement,
    }
    data |= picture.written
    if picture.result is None:
        return {"data": data}
    results = {"merged": picture.result, **picture.answers}
    predictions = [
        {
            "model_version": name,
            "score": picture.agreement,
            "result": regions(result, control, picture.size),
        }
        for name, result in results.items()
    ]
    return {"data": data, "predictions": predictions}


def _values(box: Json, control: Control, size: tuple[int, int]) -> Iterator[tuple[str, Json]]:
    """Yield (type, value without labels) of each region of a box or a point."""
    width, height = size
    if "point" in box:
        x, y = box["point"]
        yield "keypointlabels", {"x": 100 * x / width, "y": 100 * y / height, "width": DOT}
        return
    if "mask" in box and control.tag != "RectangleLabels":
        rle = masks.Rle.model_validate(box["mask"])
        if control.tag == "BrushLabels":
            yield "brushlabels", {"format": "rle", "rle": encode_brush(masks.decode(rle))}
            return
        window = masks.Window.around(box["box"], width, height)
        for ring in rings(masks.decode_in(rle, window)):
            if signed_area(ring) > 0:
                points = [[100 * (x + window.left) / width, 100 * (y + window.top) / height] for x, y in ring]
                yield "polygonlabels", {"points": points, "closed": True}
        return
    x0, y0, x1, y1 = box["box"]
    place = {"x": 100 * x0 / width, "y": 100 * y0 / height, "width": 100 * (x1 - x0) / width}
    yield "rectanglelabels", place | {"height": 100 * (y1 - y0) / height, "rotation": 0}


def _truths(where: str, data: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Iterator[Truth]:
    address = next((str(data[name]) for name in ("image", *data) if name in data), "")
    file = str(data.get("file") or _file(address))
    boxes: list[Json] = []
    points: list[Json] = []
    texts: dict[str, str] = {}
    drawn = False
    for region in results:
        kind, value = region.get("type"), region.get("value", {})
        if kind == "textarea" and region["from_name"] in _written():
            text = value["text"]
            texts[region["from_name"]] = "\n".join(text) if isinstance(text, list) else str(text)
        elif (kind := _kind(kind, value)) == "keypointlabels":
            width, height = _size(region)
            place = [float(value["x"]) * width / 100, float(value["y"]) * height / 100]
            points.append({"label": str(value[region["type"]][0]), "point": place, "score": 1.0})
        elif kind in ("rectanglelabels", "polygonlabels", "brushlabels", "ellipselabels"):
            drawn = True
            label = str(value[region["type"]][0])
            boxes.append({"label": label, "crowd": False} | _shape(kind, value, _size(region)))
    wanted = data.get("labels")
    if drawn or not results:  # a person who took all regions away, or drew none, says that nothing is there
        yield from box_truths(where, file, boxes, list(map(str, wanted)) if isinstance(wanted, list) else ())
    if points:
        labels = [*(wanted if isinstance(wanted, list) else ()), *(point["label"] for point in points)]
        fields = {"labels": list(dict.fromkeys(map(str, labels)))}
        yield Truth(where, file, "point", fields, {"points": points, "size": [height, width]})
    for task, text in texts.items():
        field = TASKS[task].text_field
        written = None if field is None else data[field.name]
        request: Json = {} if field is None else {field.name: str(written) if field.kind == "text" else written}
        yield Truth(where, file, task, request, _text_truth(task, text))


def _kind(kind: Any, value: Mapping[str, Any]) -> Any:
    """Return the type of a region; of one that a `Labels` gave its label, that of the tag with both."""
    if kind != "labels":
        return kind
    marks = {"rle": "brushlabels", "points": "polygonlabels", "radiusX": "ellipselabels", "height": "rectanglelabels"}
    place = "keypointlabels" if "x" in value else None  # else it labels a text, or a sound
    return next((kind for mark, kind in marks.items() if mark in value), place)


def _text_truth(task: str, text: str) -> Json:
    """Return what a text that a person left says of a task: a true answer, else the first field of its result.

    Raises ValueError for a text that is no value of that field.
    """
    parts = [part.strip() for part in text.split(";") if part.strip()]
    truths: dict[str, Json] = {"caption": {"captions": [text]}, "classify": {"labels": parts}}
    truths |= dict.fromkeys(("vqa", "chat"), {"answers": [text]})
    if task in truths:
        return truths[task]
    name, field = next(iter(TASKS[task].result.model_fields.items()))
    kind: Any = field.annotation
    try:
        return {name: TypeAdapter(kind).validate_python(parts if get_origin(kind) is list else text)}
    except ValidationError:
        raise ValueError(f"{text[:80]!r} is no {name}") from None


def _size(region: Mapping[str, Any]) -> tuple[int, int]:
    width, height = int(region["original_width"]), int(region["original_height"])
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError("original_width and original_height")
    return width, height


def _shape(kind: str, value: Mapping[str, Any], size: tuple[int, int]) -> Json:
    """Return the box of a region, with a mask where it is an ellipse, a polygon or brush strokes."""
    width, height = size
    if kind == "rectanglelabels":
        x, y, wide, high = (float(value[name]) / 100 for name in ("x", "y", "width", "height"))
        turn = math.radians(float(value.get("rotation") or 0))
        across, down = np.array([wide * width, 0.0]), np.array([0.0, high * height])
        around = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        corners = np.array([x * width, y * height]) + np.array([0 * across, across, down, across + down]) @ around
        return {"box": [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]}
    if kind == "ellipselabels":
        return _ellipse(value, size)
    if kind == "polygonlabels":
        points = [float(part) / 100 * side for point in value["points"] for part, side in zip(point, size, strict=True)]
        if len(points) < 6 or not all(-width - height <= point <= 2 * (width + height) for point in points):
            raise ValueError("a polygon has three points or more, in percent of the picture")
        box = [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])]
        return {"box": box, "mask": polygon_mask([points], size)}
    mask = decode_brush(value["rle"], (height, width))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("a brush region without pixels")
    box = [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
    return {"box": box, "mask": masks.encode(mask).model_dump(mode="json")}


def _ellipse(value: Mapping[str, Any], size: tuple[int, int]) -> Json:
    width, height = size
    turn = math.radians(float(value.get("rotation") or 0))
    across, down = float(value["radiusX"]) * width / 100, float(value["radiusY"]) * height / 100
    x, y = float(value["x"]) * width / 100, float(value["y"]) * height / 100
    if not all(abs(number) <= 2 * (width + height) for number in (x, y, across, down)):
        raise ValueError("an ellipse has its middle and its radii in percent of the picture")
    angles = np.linspace(0, 2 * math.pi, ELLIPSE, endpoint=False)
    xs, ys = across * np.cos(angles), down * np.sin(angles)
    outline = np.stack([x + xs * math.cos(turn) - ys * math.sin(turn), y + xs * math.sin(turn) + ys * math.cos(turn)])
    reach = math.hypot(across * math.cos(turn), down * math.sin(turn))
    drop = math.hypot(across * math.sin(turn), down * math.cos(turn))
    box = [x - reach, y - drop, x + reach, y + drop]
    return {"box": box, "mask": polygon_mask([outline.T.ravel().tolist()], size)}


def _file(url: str) -> str:
    """Return the path of a picture in its address: after `?d=` of a local file, else the address' own."""
    parts = urllib.parse.urlsplit(url)
    local = urllib.parse.parse_qs(parts.query).get("d")
    return urllib.parse.unquote(local[0] if local else parts.path).lstrip("/")
