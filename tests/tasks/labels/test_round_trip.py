"""Every format: what is written is read back equal within its rounding, through the reader of labelled folders."""

import argparse
import base64
import io
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pycocotools.coco import COCO

from serve.client.evaluation.annotations import Labelled
from serve.client.evaluation.export import export_labels
from serve.client.http_client import Failure
from serve.media.masks import Rle, decode, encode, overlap
from serve.tasks import TASKS
from serve.tasks.labels import FORMATS, holders, polygons
from serve.tasks.labels.brush import decode_brush, encode_brush
from serve.tasks.labels.picture import Answered, result_text
from serve.tasks.labels.polygons import join_rings, rings, signed_area
from serve.tasks.labels.yolo import polygon_mask

SIZE = (64, 48)
NAMES = ["a.png", "deep/b c.png", "é<&>'.png"]
PIXELS = {"yolo": 1e-4, "voc": 0.5, "label-studio": 1e-9, "fiftyone": 1e-9, "coco": 1e-9, "jsonl": 0}
TEXTS = {
    "vqa": "a <b>cat</b>",
    "caption": "two\nlines",
    "ocr": "STOP & go",
    "chat": "Yes.",
    "count": 3,
    "extract": {"a": 1, "b": [{"c": "é"}]},
    "classify": [{"label": "cat", "score": 0.5}, {"label": "dog", "score": 1.0}],
}
FURTHER = {"classify": {"multiple": True}}
"""Other fields that a result of a task must have."""


def disc(x: int, y: int, radius: int) -> Any:
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def box(label: str, mask: Any, *, masked: bool) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
    if not masked:
        corners = [corner + 0.25 for corner in corners]
    return {"label": label, "box": corners, "score": 0.5} | (
        {"mask": encode(mask).model_dump(mode="json")} if masked else {}
    )


def pictures(task: str) -> list[Answered]:
    """Return answered pictures: one object, several with a hole and two parts, none."""
    if TASKS[task].places == "points":
        points = [{"label": label, "point": [x, 20.5], "score": 0.5} for label, x in (("cat", 3.25), ("old dog", 40.0))]
        labels: dict[str, Any] = {"labels": ["cat", "old dog", "never seen"]}
        several = {"points": points, "size": [SIZE[1], SIZE[0]]}
        return [Answered(name, task, labels, SIZE, several, 0.9, {"toy-llava": several}) for name in NAMES]
    if TASKS[task].places is None:
        assert task in TEXTS, f"TEXTS wants a result of {task} to write and read back"
        field = next(iter(TASKS[task].result.model_fields))
        text_by_field = {"question": "what?", "labels": ["cat"], "schema": '{"type":"object"}'}
        fields = TASKS[task].text_in({**TASKS[task].example, **text_by_field})
        result = {field: TEXTS[task], **FURTHER.get(task, {})}
        return [Answered(name, task, fields, SIZE, result, 0.9, {"toy-llava": result}) for name in NAMES]
    ring = disc(20, 20, 9) & ~disc(20, 20, 4)
    parts = disc(45, 10, 5) | disc(45, 40, 4)
    masked = task == "segment"
    single = [box("old dog", disc(30, 30, 6), masked=masked)]
    several = [box("cat", ring, masked=masked), box("cat", parts, masked=masked), *single]
    fields = {"labels": ["cat", "old dog", "never seen"]}
    return [
        Answered(name, task, fields, SIZE, {"boxes": boxes}, 0.4 + at / 10, {"toy-llava": {"boxes": boxes}})
        for at, (name, boxes) in enumerate(zip(NAMES, (single, several, []), strict=True))
    ]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", SIZE, "red").save(folder / name)
    return folder


def read_back(folder: Path, album: Path) -> Labelled:
    """Read a folder of labels about the album: on its own where pictures came along, as files else."""
    files = [*folder.glob("annotations/*.json"), *folder.glob("labels.jsonl")]
    return Labelled(album, files) if files else Labelled(folder, None)


def as_reviewed(path: Path) -> list[Path]:
    """Turn Label Studio's tasks with predictions into what it exports once people accepted the merged answers."""
    tasks = json.loads(path.read_text())
    export = [
        {"id": at, "data": task["data"], "annotations": [{"result": task["predictions"][0]["result"]}]}
        for at, task in enumerate(tasks)
    ]
    path.write_text(json.dumps(export))
    return [path]


@pytest.mark.parametrize(("name", "task"), [(name, task) for task in TASKS for name in holders(task)])
def test_labels_are_read_back_as_written(name: str, task: str, album: Path, tmp_path: Path) -> None:
    written, out = pictures(task), tmp_path / "out"
    FORMATS[name](out, album, written)
    if name == "fiftyone" and not TASKS[task].boxed:
        sample = json.loads((out / "samples.json").read_text())["samples"][0]
        if TASKS[task].places == "points":
            assert sample["merged"]["keypoints"][0]["points"] == [[3.25 / SIZE[0], 20.5 / SIZE[1]]]
            return
        assert (
            sample["merged"] == sample["toy_llava"] == result_text({"": TEXTS[task]})
            and (out / sample["filepath"]).is_file()
        )
        return
    labelled = Labelled(album, as_reviewed(out / "tasks.json")) if name == "label-studio" else read_back(out, album)
    assert not [note for note in labelled.notes if "not in" in note]
    read = {Path(item.picture).name: item for item in labelled.items if item.task == task}
    for picture in written:
        key = Path(picture.file).name
        if TASKS[task].boxed and not picture.boxes:
            assert (key in read and read[key].truth == {"boxes": []}) or any(key in file for file, _ in labelled.empty)
        elif TASKS[task].boxed:
            compare(picture.boxes, read[key].truth["boxes"], PIXELS[name])
        elif TASKS[task].places == "points":
            places = [(point["label"], pytest.approx(point["point"])) for point in picture.points]
            assert [(point["label"], point["point"]) for point in read[key].truth["points"]] == places
            assert read[key].fields == picture.fields
        else:
            assert picture.fields.items() <= read[key].fields.items()
            value = next(iter(read[key].truth.values()))
            text = result_text({"": value}) if isinstance(value, dict) else None
            assert (text or "; ".join(map(str, value if isinstance(value, list) else [value]))) == picture.text


def compare(before: Any, after: Any, pixels: float) -> None:
    assert [item["label"] for item in before] == [item["label"] for item in after]
    for was, now in zip(before, after, strict=True):
        assert np.abs(np.subtract(was["box"], now["box"])).max() <= pixels
        if "mask" in was:
            assert overlap(Rle.model_validate(was["mask"]), Rle.model_validate(now["mask"])) > 0.999


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_pycocotools_loads_coco_with_masks_and_scores(album: Path, tmp_path: Path) -> None:
    FORMATS["coco"](tmp_path, album, pictures("segment"))
    loaded = COCO(str(tmp_path / "annotations" / "instances.json"))
    (dog,) = loaded.loadAnns(loaded.getAnnIds(imgIds=[1]))
    assert (loaded.annToMask(dog) == disc(30, 30, 6)).all() and dog["area"] == disc(30, 30, 6).sum()
    assert dog["score"] == 0.5 and loaded.loadImgs([2])[0]["agreement"] == 0.5


def test_outline_of_any_mask_fills_to_the_mask_again() -> None:
    draw = np.random.default_rng(1)
    for density in (0.1, 0.5, 0.9):
        mask = draw.random((12, 15)) < density
        points = [float(value) for point in join_rings(rings(mask)) for value in point]
        assert (decode(Rle.model_validate(polygon_mask([points], (15, 12)))) == mask).all()


def test_mask_with_too_many_corners_is_outlined_more_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(1).random((61, 63)) < 0.5
    assert sum(map(len, rings(noise))) > 500
    monkeypatch.setattr(polygons, "MAX_CORNERS", 500)
    corners = np.array([point for ring in rings(noise) for point in ring])
    assert 0 < len(corners) <= 500 and (corners <= (63, 61)).all()


def test_hole_runs_the_other_way_round() -> None:
    areas = sorted(signed_area(ring) for ring in rings(disc(20, 20, 9) & ~disc(20, 20, 4)))
    assert areas == [-disc(20, 20, 4).sum(), disc(20, 20, 9).sum()]


@pytest.mark.slow
def test_brush_of_any_mask_is_read_back() -> None:
    draw = np.random.default_rng(2)
    for shape in ((1, 1), (7, 9), (300, 400)):  # the last has runs longer than one count holds
        for density in (0.0, 0.001, 0.5, 1.0):
            mask = draw.random(shape) < density
            assert (decode_brush(encode_brush(mask), shape) == mask).all()


@pytest.mark.parametrize("change", [lambda data: data[:-3], lambda data: [300, *data], lambda data: data[4:]])
def test_malformed_brush_is_refused(change: Any) -> None:
    with pytest.raises(ValueError):
        decode_brush(change(encode_brush(disc(20, 20, 9))), SIZE[::-1])


def region(name: str, value: str) -> str:
    """Return an export of Label Studio with one box, of which one value is given."""
    box = {"x": "1", "y": "1", "width": "5", "height": "5", name: value}
    values = ", ".join(f'"{key}": {text}' for key, text in box.items())
    return (
        '[{"data": {"image": "a.png"}, "annotations": [{"result": [{"type": "rectanglelabels", "original_width": 10, '
        f'"original_height": 10, "value": {{"rectanglelabels": ["a"], {values}}}}}]}}]}}]'
    )


def sample(left: str, mask: str) -> str:
    """Return samples of FiftyOne with one detection. mask: packed."""
    detection = f'{{"label": "a", "bounding_box": [{left}, 0, 0.5, 0.5], "mask": "{mask}"}}'
    labels = f'{{"_cls": "Detections", "detections": [{detection}]}}'
    return f'{{"samples": [{{"filepath": "a.png", "merged": {labels}}}]}}'


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def npy_header(shape: str) -> bytes:
    header = f"{{'descr': '|b1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def packed_mask(mask: Any) -> str:
    out = io.BytesIO()
    np.save(out, mask)
    return packed(out.getvalue())


EMPTY = packed(b"")
VOC_BOX = (
    "<annotation><filename>a.png</filename><object><name>a</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>9</xmax>"
    "<ymax>9</ymax></bndbox></object></annotation>"
)


@pytest.mark.parametrize(
    ("name", "content", "refusal"),
    [
        ("data.yaml", "names: 7", "names: a list of the classes"),
        ("data.yaml", "names: [cat]", "line 1: this is not a known class"),
        ("Annotations/a.xml", "<annotation><object/></annotation>", "object 1 has no name"),
        ("Annotations/a.xml", '<!DOCTYPE x [<!ENTITY y "z">]><annotation/>', "document type"),
        ("t.json", '[{"data": {"image": "a"}, "annotations": [{"result": [{"type": "brushlabels"}]}]}]', "[0]"),
        ("samples.json", '{"samples": [{"filepath": "a.png", "merged": {"_cls": "Detections"}}]}', "samples[0]"),
        ("data.yaml", "names: !!int ''", "names: a list of the classes"),
        ("data.yaml", "names: " + 600 * "[", "names: a list of the classes"),
        ("data.yaml", "names: {3: [a]}", "names: a list of the classes"),
        ("Annotations/a.xml", VOC_BOX.format("nan"), "not finite"),
        ("Annotations/a.xml", VOC_BOX.format("-1e308"), "far outside"),
        ("labels.jsonl", '{"image": "a.png", "boxes": [{"label": "a", "box": [0, 0, NaN, 9]}]}', "finite"),
        ("t.json", region("x", "NaN"), "not finite"),
        ("t.json", region("rotation", "Infinity"), "[0]"),
        ("t.json", region("x", "1").replace("10,", "Infinity,"), "[0]"),
        ("samples.json", sample("Infinity", EMPTY), "samples[0]"),
        ("samples.json", sample("NaN", ""), "not finite"),
        ("samples.json", sample("0", EMPTY), "samples[0]"),
        ("samples.json", sample("0", packed(npy_header("()") + b"1")), "samples[0]"),
        ("samples.json", sample("0", packed(npy_header("(100000000000000, 2)"))), "samples[0]"),
        ("samples.json", sample("0", packed(npy_header("(9000000, 900000)").replace(b"|b1", b"|V0"))), "samples[0]"),
        ("samples.json", sample("0", packed(npy_header("(2000, 2000)") + bytes(4_000_000))), "samples[0]"),
        ("samples.json", sample("0", packed_mask(np.ones((3, 4, 5), bool))), "samples[0]"),
        ("samples.json", sample("0", packed_mask(np.ones((0, 4), bool))), "samples[0]"),
    ],
)  # fmt: skip
def test_malformed_labels_are_refused_by_place(name: str, content: str, refusal: str, album: Path) -> None:
    (album / name).parent.mkdir(exist_ok=True)
    (album / name).write_text(content)
    if name == "data.yaml":
        (album / "images").mkdir()
        shutil.copy(album / "a.png", album / "images" / "a.png")
        (album / "labels").mkdir()
        (album / "labels" / "a.txt").write_text("3 0.5 0.5 0.1 0.1\n")
    with pytest.raises(Failure, match="(?s)" + refusal.replace("[", r"\[").replace("]", r"\]")):
        Labelled(album, None)


def fiftyone_mask(mask: Any, place: list[float], folder: Path, size: tuple[int, int] = (400, 300)) -> Any:
    """Return the true mask that is read of a detection with this mask and place; None where it has none."""
    PIL.Image.new("RGB", size).save(folder / "a.png")
    detection = {"label": "a", "bounding_box": place, "mask": packed_mask(mask)}
    samples = [{"filepath": "a.png", "ground_truth": {"_cls": "Detections", "detections": [detection]}}]
    (folder / "samples.json").write_text(json.dumps({"samples": samples}))
    items = {item.task: item for item in Labelled(folder, None).items}
    assert "detect" in items
    return decode(Rle.model_validate(items["segment"].truth["boxes"][0]["mask"])) if "segment" in items else None


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64])
def test_mask_of_fiftyone_of_any_size_covers_its_box(kind: Any, tmp_path: Path) -> None:
    mask = fiftyone_mask(np.ones((28, 28), kind), [0.25, 0.25, 0.5, 0.5], tmp_path)
    assert mask.sum() == 200 * 150 and mask[75:225, 100:300].all()


def test_parts_of_a_resized_mask_of_fiftyone_keep_their_place(tmp_path: Path) -> None:
    quarters = np.array([[True, False], [False, True]])
    mask = fiftyone_mask(quarters, [0.25, 0.25, 0.5, 0.5], tmp_path)
    expected = np.zeros((300, 400), bool)
    expected[75:150, 100:200] = expected[150:225, 200:300] = True
    assert (mask == expected).all()
    finer = fiftyone_mask(np.kron(quarters, np.ones((300, 400), bool)), [0.25, 0.25, 0.5, 0.5], tmp_path)
    assert (finer == expected).all()


def test_mask_of_fiftyone_that_fits_its_box_is_left_alone(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).random((150, 200)) < 0.5
    assert (fiftyone_mask(noise, [0.25, 0.25, 0.5, 0.5], tmp_path)[75:225, 100:300] == noise).all()


@pytest.mark.parametrize(
    ("place", "rows", "columns"),
    [
        ([0.75, 0.5, 0.5, 1.0], slice(150, 300), slice(300, 400)),
        ([-0.25, -0.5, 0.5, 1.0], slice(0, 150), slice(0, 100)),
        ([0.25, 0.25, 0.0001, 0.5], slice(75, 225), slice(100, 101)),
    ],
)
def test_mask_of_fiftyone_past_the_edge_is_clipped(
    place: list[float], rows: slice, columns: slice, tmp_path: Path
) -> None:
    mask = fiftyone_mask(np.ones((28, 28), bool), place, tmp_path)
    expected = np.zeros((300, 400), bool)
    expected[rows, columns] = True
    assert (mask == expected).all()


def test_mask_of_fiftyone_outside_the_picture_is_none(tmp_path: Path) -> None:
    assert fiftyone_mask(np.ones((28, 28), bool), [1.25, 0.25, 0.5, 0.5], tmp_path) is None


def test_mask_of_fiftyone_about_a_picture_that_is_smaller_is_read(tmp_path: Path) -> None:
    mask = fiftyone_mask(np.ones((112, 112), np.uint8), [0.0, 0.0, 1.0, 0.5], tmp_path, (20, 10))
    assert mask.sum() == 100 and mask[:5].all()


def test_corrected_mask_of_another_size_than_the_picture_is_refused(album: Path, tmp_path: Path) -> None:
    rle = str(encode_brush(disc(10, 10, 5)[:24, :32]))
    mask = (
        region("rle", rle).replace("rectanglelabels", "brushlabels").replace("10,", "32,", 1).replace("10,", "24,", 1)
    )
    (tmp_path / "corrected.json").write_text(mask)
    given = {"folder": album, "task": "segment", "asked": None, "format": "coco", "review_below": None}
    options = argparse.Namespace(**given, corrected=[tmp_path / "corrected.json"], pictures_at=None)
    line = {"file": "a.png", "task": "segment", "image": {"width": SIZE[0], "height": SIZE[1]}}
    with pytest.raises(Failure, match=r"a\.png: the labels have a mask of another size"):
        export_labels([line], options, tmp_path / "out")


@pytest.mark.parametrize("shape", ["[4, 2]", "[4, 3]"])
def test_pose_of_yolo_is_its_box_alone(shape: str, album: Path) -> None:
    places = "0.45 0.4 2 0.55 0.4 1 0.45 0.6 0 0.55 0.6 1"
    (album / "labels").mkdir()
    (album / "images").mkdir()
    shutil.copy(album / "a.png", album / "images" / "a.png")
    (album / "data.yaml").write_text(f"names: [cat]\nkpt_shape: {shape}\n")
    line = f"0 0.5 0.5 0.25 0.5 {places}" if "3" in shape else "0 0.5 0.5 0.25 0.5 0.45 0.4 0.55 0.4 0.45 0.6 0.55 0.6"
    (album / "labels" / "a.txt").write_text(f"\ufeff{line}\n", encoding="utf-8")  # as Windows' editor saves it
    (item,) = Labelled(album, [album / "data.yaml"]).items
    assert (item.task, item.truth["boxes"][0]["box"]) == ("detect", [24.0, 12.0, 40.0, 36.0])
    (album / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.5 0.45 0.4\n")
    with pytest.raises(Failure, match=r"a\.txt, line 1: .* outline or pose"):
        Labelled(album, [album / "data.yaml"])


def place_of_label_studio(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    sizes = {"original_width": SIZE[0], "original_height": SIZE[1], "from_name": "tag", "to_name": "image"}
    return sizes | {"type": kind, "value": value}


def read_regions(regions: list[dict[str, Any]], album: Path) -> dict[str, Any]:
    """Return the true results of a picture with these regions, by task."""
    export = [{"data": {"image": "/data/a.png"}, "annotations": [{"result": regions}]}]
    (album / "back.json").write_text(json.dumps(export))
    return {item.task: item.truth for item in Labelled(album, [album / "back.json"]).items}


def test_ellipse_of_label_studio_is_read_with_its_mask(album: Path) -> None:
    upright = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 12.5, "rotation": 0, "ellipselabels": ["cat"]}
    turned = upright | {"rotation": 90, "ellipselabels": ["dog"]}
    regions = [place_of_label_studio("ellipselabels", value) for value in (upright, turned)]
    boxes = read_regions(regions, album)["segment"]["boxes"]
    assert [box["label"] for box in boxes] == ["cat", "dog"]
    assert boxes[0]["box"] == pytest.approx([16, 18, 48, 30]) and boxes[1]["box"] == pytest.approx([26, 8, 38, 40])
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    for box, (across, down) in zip(boxes, ((16, 6), (6, 16)), strict=True):
        inside = ((columns - 32) / across) ** 2 + ((rows - 24) / down) ** 2 <= 1
        assert (decode(Rle.model_validate(box["mask"])) != inside).sum() < 0.08 * inside.sum()


def test_shape_and_its_label_of_two_tags_of_label_studio_are_one_object(album: Path) -> None:
    corner = {"x": 25, "y": 25}
    values: list[dict[str, Any]] = [
        corner | {"width": 25, "height": 50, "rotation": 0},
        {"points": [[0, 0], [50, 0], [50, 50]]},
        corner | {"width": 0.6},
    ]
    regions = []
    for kind, value in zip(("rectangle", "polygon", "keypoint"), values, strict=True):
        regions += [place_of_label_studio(kind, value), place_of_label_studio("labels", value | {"labels": [kind]})]
    regions.append(place_of_label_studio("labels", {"start": 0, "end": 3, "text": "cat", "labels": ["word"]}))
    truths = read_regions(regions, album)
    assert [(box["label"], box["box"]) for box in truths["detect"]["boxes"]] == [
        ("rectangle", [16, 12, 32, 36]),
        ("polygon", [0, 0, 32, 24]),
    ]
    assert [(point["label"], point["point"]) for point in truths["point"]["points"]] == [("keypoint", [16, 12])]
