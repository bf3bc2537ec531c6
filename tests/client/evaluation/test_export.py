"""`diptych run --format`: labels from a record, what to review apart, corrections back in."""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_folder import album, serving

from serve.client.evaluation.annotations import Labelled
from serve.client.evaluation.export import Below, export_labels
from serve.engines.fake import FakeEngine
from serve.media.masks import encode
from serve.tasks.labels.picture import Answered

LLAVA, PALIGEMMA = "[0.25, 0.25, 0.75, 0.75]", "<loc0256><loc0256><loc0767><loc0767> cat"
RUN = ("--task", "detect", "--labels", "cat")


@pytest.fixture
def recorded(diptych: Any, tmp_path: Path) -> Path:
    """Ask about four pictures, and lower the agreement of the first two."""
    names, out = album(tmp_path / "in", 4), tmp_path / "out.jsonl"
    with serving(FakeEngine(LLAVA), FakeEngine(PALIGEMMA)) as url:
        assert diptych("run", tmp_path / "in", *RUN, "--out", out, "--server", url).status == 0
    lines = sorted(map(json.loads, out.read_text().splitlines()), key=lambda line: line["file"])
    for at, line in enumerate(lines):
        line["merged"]["agreement"] = (0.1, 0.5, 0.9, 1.0)[at]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["file"] for line in lines] == names
    return out


def listed(folder: Path) -> dict[str, str]:
    with (folder / "agreement.csv").open(newline="") as file:
        return {row["file"]: row["part"] for row in csv.DictReader(file)}


def test_least_agreement_is_reviewed_and_its_correction_comes_back(
    diptych: Any, recorded: Path, tmp_path: Path
) -> None:
    folder, names = tmp_path / "in", list(json.loads(line)["file"] for line in recorded.read_text().splitlines())
    call = ("run", folder, *RUN, "--out", recorded, "--server", "http://127.0.0.1:9")  # where nobody answers
    ran = diptych(*call, "--format", "label-studio", "--review-below", "50%", "--pictures-at", "https://a.b/")
    assert ran.status == 0 and "2 accepted, 2 review pictures as label-studio" in ran.err
    labels = tmp_path / "out-label-studio"
    tasks = json.loads((labels / "review" / "tasks.json").read_text())
    assert [task["data"]["file"] for task in tasks] == names[:2]
    assert tasks[0]["data"]["image"] == f"https://a.b/{names[0]}"
    assert [entry["model_version"] for entry in tasks[0]["predictions"]] == ["merged", "toy-llava", "toy-paligemma"]
    assert tasks[0]["predictions"][0]["score"] == 0.1
    assert '<Label value="cat" />' in (labels / "review" / "config.xml").read_text()

    region = tasks[0]["predictions"][0]["result"][0]
    region["value"] |= {"x": 50.0, "y": 0.0, "width": 25.0, "height": 50.0}
    back = tmp_path / "back.json"
    nothing = {"data": tasks[1]["data"], "annotations": [{"result": []}]}
    back.write_text(json.dumps([{"data": tasks[0]["data"], "annotations": [{"result": [region]}]}, nothing]))
    ran = diptych(*call, "--format", "coco", "--corrected", back, "--to", tmp_path / "coco")
    assert ran.status == 0 and "4 pictures as coco" in ran.err
    body = json.loads((tmp_path / "coco" / "annotations" / "instances.json").read_text())
    boxes = {image["file_name"]: [] for image in body["images"]}
    for annotation in body["annotations"]:
        boxes[body["images"][annotation["image_id"] - 1]["file_name"]].append(annotation["bbox"])
    assert boxes[names[0]] == [[16.0, 0.0, 8.0, 12.0]] and boxes[names[1]] == [] and len(boxes[names[2]]) == 1
    assert listed(tmp_path / "coco") == dict(
        zip(names, ["corrected", "corrected", "accepted", "accepted"], strict=True)
    )


def test_unanswered_pictures_are_reviewed_and_never_labelled_empty(
    diptych: Any, recorded: Path, tmp_path: Path
) -> None:
    lines = list(map(json.loads, recorded.read_text().splitlines()))
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with serving(FakeEngine(LLAVA), FakeEngine(PALIGEMMA)) as url:
        ran = diptych("run", tmp_path / "in", *RUN, "--out", recorded, "--server", url, "--format", "coco",
                      "--review-below", "0.2")  # fmt: skip
    assert ran.status == 1 and "1 have no answer" in ran.err
    out = tmp_path / "out-coco"
    images = json.loads((out / "review" / "annotations" / "instances.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [lines[0]["file"]]
    assert listed(out)["broken.png"] == "review" and listed(out)[lines[1]["file"]] == "accepted"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "coco"), "--format goes with --out"),
        (("--review-below", "0.7"), "--review-below goes with --format"),
        (("--format", "voc", "--task", "segment", "--out", "x"), "coco, yolo, label-studio, fiftyone, jsonl do"),
        (("--format", "coco", "--pictures-at", "https://a/", "--out", "x"), "--pictures-at is for label-studio"),
        (("--format", "coco", "--out", "x", "--to", "."), "not empty"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    diptych: Any, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    ran = diptych("run", tmp_path, *RUN, *options, "--server", "http://127.0.0.1:9")
    assert ran.status == 2 and words in ran.err


def test_share_counts_pictures_and_keeps_ties_in_order_of_name() -> None:
    pictures = [Answered(name, "vqa", {}, (1, 1), {"answer": "x"}, 0.5) for name in "dcba"]
    assert Below.parse("50%").chosen(pictures) == {"a", "b"} and Below.parse("1%").chosen(pictures) == {"a"}
    assert Below.parse("0.5").chosen(pictures) == set() and Below.parse("0%").chosen(pictures) == set()


BOX = {"label": "cat", "box": [10.0, 10.0, 30.0, 20.0], "score": 0.9}
MASK = np.zeros((24, 32), bool)
MASK[10:20, 10:30] = True
RESULTS: dict[str, Any] = {
    "detect": {"boxes": [BOX]},
    "segment": {"boxes": [BOX | {"mask": encode(MASK).model_dump(mode="json")}]},
    "point": {"points": [{"label": "cat", "point": [10.0, 10.0], "score": 0.9}], "size": [24, 32]},
    "count": {"count": 3, "by": "words", "points": []},
    "classify": {"labels": [{"label": "cat", "score": 0.9}], "multiple": False},
}


def exported(tmp_path: Path, task: str, form: str, **options: Any) -> Path:
    """Write the labels of two pictures on which all models agreed, in a format, into a new folder."""
    names = album(tmp_path / "in", 2)
    fields = {"question": "cats"} if task == "count" else {"labels": ["cat"]}
    merged = {"result": RESULTS[task], "agreement": 0.9}
    lines = [
        {"file": name, "task": task, "asked": fields, "image": {"width": 32, "height": 24}, "merged": merged}
        for name in names
    ]
    folder = tmp_path / f"{form}-{len(list(tmp_path.iterdir()))}"
    given = {"review_below": None, "corrected": None, "pictures_at": None, "asked": None} | options
    export_labels(lines, argparse.Namespace(task=task, format=form, folder=tmp_path / "in", **given), folder)
    return folder


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "labels.jsonl").read_text().splitlines()))


@pytest.mark.parametrize(("task", "form"), [("segment", "yolo"), ("segment", "fiftyone"), ("point", "label-studio")])
def test_picture_that_a_person_emptied_has_no_object_any_more(tmp_path: Path, task: str, form: str) -> None:
    labels = exported(tmp_path, task, form)
    if form == "yolo":
        back = labels / "data.yaml"
        sorted((labels / "labels").glob("*.txt"))[0].write_text("")
    elif form == "fiftyone":
        back = labels / "samples.json"
        body = json.loads(back.read_text())
        body["samples"][0]["merged"]["detections"] = []
        back.write_text(json.dumps(body))
    else:
        back = labels / "back.json"
        tasks = json.loads((labels / "tasks.json").read_text())
        results = [[], tasks[1]["predictions"][0]["result"]]
        done = [
            {"data": each["data"], "annotations": [{"result": result}]}
            for each, result in zip(tasks, results, strict=True)
        ]
        back.write_text(json.dumps(done))
    folder = exported(tmp_path, task, "jsonl", corrected=[back])
    field = "points" if task == "point" else "boxes"
    assert [len(line[field]) for line in read_lines(folder)] == [0, 1]
    assert set(listed(folder).values()) == {"corrected"}


def test_picture_that_a_person_emptied_in_a_project_of_their_own_has_no_object_any_more(tmp_path: Path) -> None:
    tasks = json.loads((exported(tmp_path, "detect", "label-studio") / "tasks.json").read_text())
    results = [[], tasks[1]["predictions"][0]["result"]]
    done = [
        {"data": {"image": each["data"]["image"]}, "annotations": [{"result": result}]}
        for each, result in zip(tasks, results, strict=True)
    ]
    (tmp_path / "back.json").write_text(json.dumps(done))
    folder = exported(tmp_path, "detect", "jsonl", corrected=[tmp_path / "back.json"])
    assert [len(line["boxes"]) for line in read_lines(folder)] == [0, 1]
    assert set(listed(folder).values()) == {"corrected"}


def test_corrected_count_is_read_back_as_a_number(tmp_path: Path) -> None:
    labels = exported(tmp_path, "count", "label-studio")
    tasks = json.loads((labels / "tasks.json").read_text())
    done = [{"data": each["data"], "annotations": [{"result": each["predictions"][0]["result"]}]} for each in tasks]
    (labels / "back.json").write_text(json.dumps(done))
    folder = exported(tmp_path, "count", "jsonl", corrected=[labels / "back.json"])
    items = Labelled(tmp_path / "in", [folder / "labels.jsonl"]).items
    assert [item.truth["count"] for item in items] == [3, 3]


def test_corrected_class_is_multiple_only_where_a_person_gave_several(tmp_path: Path) -> None:
    labels = exported(tmp_path, "classify", "label-studio")
    tasks = json.loads((labels / "tasks.json").read_text())
    region = tasks[0]["predictions"][0]["result"][0]
    done = [
        {"data": each["data"], "annotations": [{"result": [region | {"value": {"text": [text]}}]}]}
        for each, text in zip(tasks, ("dog", "cat; dog"), strict=True)
    ]
    (labels / "back.json").write_text(json.dumps(done))
    folder = exported(tmp_path, "classify", "jsonl", corrected=[labels / "back.json"])
    assert sorted((line["answers"], line["multiple"]) for line in read_lines(folder)) == [
        (["cat", "dog"], True),
        (["dog"], False),
    ]


def test_part_without_pictures_has_no_folder(tmp_path: Path) -> None:
    folder = exported(tmp_path, "detect", "coco", review_below=Below(least=0.95))
    assert sorted(path.name for path in folder.rglob("*")) == [
        "agreement.csv",
        "annotations",
        "instances.json",
        "review",
    ]


def test_correction_counts_in_any_spelling_and_one_outside_the_record_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = album(tmp_path / "in", 2)  # those of the record
    back = tmp_path / "labels.jsonl"
    images = [f"./{names[0]}", str(tmp_path / "in" / names[1]), "002"]
    assert "002" in album(tmp_path / "in", 3)
    place = {"label": "cat", "box": [1.0, 2.0, 3.0, 4.0]}
    back.write_text("".join(json.dumps({"image": name, "boxes": [place]}) + "\n" for name in images))
    folder = exported(tmp_path, "detect", "jsonl", corrected=[back])
    assert listed(folder) == dict.fromkeys(names, "corrected")
    assert [line["boxes"][0]["box"] for line in read_lines(folder)] == [place["box"]] * 2
    assert "1 corrected pictures are not in the record: 002 is the first." in capsys.readouterr().err


@pytest.mark.parametrize("own", [{"task": "point"}, {}])
def test_corrected_boxes_of_a_run_of_points_are_points_inside(tmp_path: Path, own: dict[str, str]) -> None:
    names = album(tmp_path / "in", 2)
    ring = np.zeros((24, 32), bool)
    ring[2:11, 2:11], ring[3:10, 3:10] = True, False
    boxes = [
        {"label": "cat", "box": [10.0, 10.0, 31.0, 20.0]},
        {"label": "dog", "box": [2.0, 2.0, 11.0, 11.0], "mask": encode(ring).model_dump(mode="json")},
        {"label": "cat", "box": [10.0, 10.0, 30.0, 20.0], "mask": encode(MASK).model_dump(mode="json")},
    ]
    rows = [{"image": names[0], "boxes": boxes}, {"image": names[1], "labels": ["cat"], "boxes": []}]
    back = tmp_path / "labels.jsonl"
    back.write_text("".join(json.dumps(row | own) + "\n" for row in rows))
    lines = read_lines(exported(tmp_path, "point", "jsonl", corrected=[back]))
    corner, *others = [point["point"] for point in lines[0]["points"] if point["label"] == "dog"]
    assert not others and ring[int(corner[1]), int(corner[0])] and 2 < corner[0] < 11 and 2 < corner[1] < 11
    assert [point["point"] for point in lines[0]["points"] if point["label"] == "cat"] == [[20.5, 15.0], [20.0, 15.0]]
    assert lines[0]["size"] == [24, 32] and lines[1]["points"] == []


def test_corrected_boxes_of_a_run_of_counts_are_counted(tmp_path: Path) -> None:
    back, boxes = tmp_path / "labels.jsonl", [{"label": "cats", "box": [at, 1.0, at + 5, 9.0]} for at in (1.0, 9.0)]
    rows = [{"image": name, "boxes": boxes} for name in album(tmp_path / "in", 2)]
    back.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = read_lines(exported(tmp_path, "count", "jsonl", corrected=[back], asked="cats"))
    assert [line["count"] for line in lines] == [2, 2]
