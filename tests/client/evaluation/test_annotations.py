"""Labelled folders: COCO's and VQA's JSON, labels.jsonl, and errors in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from served_folder import serving

from serve.client.evaluation.annotations import Labelled
from serve.client.http_client import Failure
from serve.engines.fake import FakeEngine
from serve.media import masks

SQUARE = np.zeros((48, 64), bool)
SQUARE[10:20, 8:28] = True


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name in ("val/COCO_val_000000000042.png", "val/COCO_val_000000000043.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PIL.Image.new("RGB", (64, 48), "red").save(tmp_path / name)
    return tmp_path


def put(path: Path, body: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


def instances(**changes: Any) -> dict[str, Any]:
    image = {"file_name": "COCO_val_000000000042.png", "height": 48, "width": 64}
    annotation = {"image_id": 42, "category_id": 3, "bbox": [8, 10, 20, 10], "iscrowd": 0, "area": 200}
    annotation |= {"segmentation": [[8, 10, 28, 10, 28, 20, 8, 20]]} | changes
    images = [image | {"id": 42}, image | {"id": 43, "file_name": "COCO_val_000000000043.png"}]
    images.append(image | {"id": 44, "file_name": "elsewhere.png"})
    return {"images": images, "categories": [{"id": 3, "name": "cat"}], "annotations": [annotation]}


def test_coco_instances_are_items_of_detect_and_segment(here: Path) -> None:
    put(here / "annotations" / "instances_val.json", instances())
    labelled = Labelled(here, None)
    detect, segment = labelled.items
    assert (detect.task, segment.task) == ("detect", "segment")
    assert detect.fields == segment.fields == {"labels": ["cat"]}
    assert detect.picture == "val/COCO_val_000000000042.png" and detect.load().startswith(b"\x89PNG")
    assert detect.truth == {"boxes": [{"label": "cat", "box": [8, 10, 28, 20], "crowd": False}]}
    assert (masks.decode(masks.Rle(**segment.truth["boxes"][0]["mask"])) == SQUARE).all()
    assert labelled.notes == [
        f"1 pictures of instances_val.json are not in {here}.",
        "1 pictures of instances_val.json show nothing that is labelled: nothing to ask for.",
    ]


def test_vqa_question_about_a_number_of_two_images_is_left_out(here: Path) -> None:
    (here / "train").mkdir()
    PIL.Image.new("RGB", (32, 24), "blue").save(here / "train" / "42.png")
    questions = [{"image_id": number, "question": "what?", "question_id": number} for number in (42, 43)]
    put(here / "questions.json", {"questions": questions})
    answers = [{"question_id": number, "answers": [{"answer": "cat"}]} for number in (42, 43)]
    put(here / "answers.json", {"annotations": answers})
    labelled = Labelled(here, None)
    assert [item.picture for item in labelled.items] == ["val/COCO_val_000000000043.png"]
    assert labelled.notes == [f"1 questions of questions.json are about a number that several pictures in {here} have."]


@pytest.mark.parametrize("compressed", [True, False])
def test_coco_run_lengths_are_masks(here: Path, compressed: bool) -> None:
    flat = SQUARE.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    counts = masks.encode(SQUARE).counts if compressed else runs
    put(here / "a.json", instances(segmentation={"size": [48, 64], "counts": counts}, iscrowd=1))
    segment = Labelled(here, None).items[1]
    assert segment.truth["boxes"][0]["crowd"] is True
    assert (masks.decode(masks.Rle(**segment.truth["boxes"][0]["mask"])) == SQUARE).all()


def test_mask_of_cvat_is_no_crowd(here: Path) -> None:
    crowd = {"iscrowd": 1, "segmentation": masks.encode(SQUARE).model_dump()}
    truths = []
    for attributes in ({}, {"attributes": {"occluded": False}}):
        path = put(here / "instances_default.json", instances(**crowd, **attributes))
        labelled = Labelled(here, [path])
        truths.append(([item.truth["boxes"][0]["crowd"] for item in labelled.items], len(labelled.of("count"))))
    assert truths == [([True, True], 0), ([False, False], 1)]


def test_coco_captions_are_items_of_caption(here: Path) -> None:
    images = [{"id": 42, "file_name": "COCO_val_000000000042.png"}]
    notes = [{"image_id": 42, "caption": "a cat"}, {"image_id": 42, "caption": "one cat"}]
    put(here / "captions.json", {"images": images, "annotations": notes})
    (item,) = Labelled(here, None).items
    assert (item.task, item.fields, item.truth) == ("caption", {}, {"captions": ["a cat", "one cat"]})


def vqa(folder: Path) -> None:
    items = [{"image_id": 42, "question": "what?", "question_id": 420}]
    items.append({"image_id": 99, "question": "who?", "question_id": 990})
    put(folder / "questions.json", {"questions": items})
    answers = [{"answer": "cat", "answer_id": at, "answer_confidence": "yes"} for at in range(10)]
    put(folder / "answers.json", {"annotations": [{"question_id": 420, "image_id": 42, "answers": answers}]})


def test_vqa_images_match_by_number(here: Path) -> None:
    vqa(here)
    labelled = Labelled(here, None)
    (item,) = labelled.items
    assert (item.task, item.fields, item.truth) == ("vqa", {"question": "what?"}, {"answers": ["cat"] * 10})
    assert item.picture.endswith("42.png")
    assert labelled.notes == [f"1 questions of questions.json are about pictures that are not in {here}."]


def test_labels_jsonl_has_items_of_every_task(here: Path) -> None:
    mask = masks.encode(SQUARE).model_dump()
    some = [
        {"image": "val/COCO_val_000000000042.png", "question": "what?", "answer": "cat", "text": "STOP"},
        {"image": "COCO_val_000000000043.png", "question": "what?", "answers": ["a", "b"], "task": "chat"},
        {"image": "COCO_val_000000000043.png", "captions": ["a", "b"]},
        {"image": "COCO_val_000000000043.png", "labels": ["cat", "dog"], "boxes": []},
        {"image": "COCO_val_000000000043.png", "boxes": [{"label": "cat", "box": [8, 10, 28, 20], "mask": mask}]},
    ]
    put(here / "labels.jsonl", "\n".join(map(json.dumps, some)) + "\n\n")
    items = [(item.task, item.fields) for item in Labelled(here, None).items]
    assert items == [
        ("vqa", {"question": "what?"}),
        ("ocr", {}),
        ("chat", {"question": "what?"}),
        ("caption", {}),
        ("detect", {"labels": ["cat", "dog"]}),
        ("detect", {"labels": ["cat"]}),
        ("segment", {"labels": ["cat"]}),
    ]


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("a.json", instances(category_id=9), "a.json: annotations[0].category_id: there is no category 9."),
        ("a.json", instances(bbox=[1, 2]), "a.json: annotations[0].bbox[2]: Field required."),
        ("a.json", instances(segmentation=[[1, 2, 3]]), "a.json: annotations[0].segmentation: "),
        ("a.json", instances(segmentation={"size": [9, 9], "counts": [1]}), "a.json: annotations[0].segmentation: "),
        ("a.json", instances(segmentation={"size": [48, 64], "counts": [-5, 3077]}), "annotations[0].segmentation: "),
        ("a.json", instances(segmentation={"size": [48, 64], "counts": [10**12]}), "annotations[0].segmentation: "),
        ("a.json", instances(segmentation={"size": [10**6, 10**6], "counts": [9]}), "annotations[0].segmentation: "),
        ("a.json", instances(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), "annotations[0].segmentation: "),
        ("a.json", instances(segmentation=[[float("nan")] * 6]), "annotations[0].segmentation: "),
        ("a.json", instances(bbox=[8, float("inf"), 20, 10]), "a.json: annotations[0].bbox[1]: "),
        ("a.json", instances(bbox=[8, 10, -20, 10]), "a.json: annotations[0].bbox[2]: "),
        ("labels.jsonl", '{"image": "a.png", "task": "extract", "schema": "\\ud83d"}', "line 1: this is not JSON"),
        ("a.json", instances(bbox=[1e308, 10, 1e308, 10]), "a.json: annotations[0].bbox[0]: "),
        (
            "a.json",
            instances() | {"images": [{"id": 42, "file_name": "a", "height": 10**9, "width": 9}]},
            "images[0].height: ",
        ),
        ("a.json", '{"images": ' + "[" * 100_000, "a.json: this is not JSON: "),
        ("a.json", "{", "a.json: this is not JSON: "),
        ("a.json", {"what": 1}, "holds no labelled pictures"),
        ("labels.jsonl", '{"image": "gone.png", "text": "a"}', "line 1: image: there is no gone.png in "),
        ("labels.jsonl", '{"text": "a"}', "labels.jsonl, line 1: image: Field required."),
        ("labels.jsonl", '{"image": "COCO_val_000000000042.png"}', "line 1: it says nothing about "),
        ("labels.jsonl", '{"image": "COCO_val_000000000042.png", "answer": "a"}', "question and answer"),
        ("labels.jsonl", '{"image": "COCO_val_000000000042.png", "boxes": []}', "line 1: boxes: "),
        ("labels.jsonl", '{"image": "COCO_val_000000000042.png", "text": 3}', "line 1: text: "),
        ("labels.jsonl", '{"image": "COCO_val_000000000042.png", "text": "a", "task": "x"}', "task: there is no"),
        (
            "labels.jsonl",
            '{"image": "COCO_val_000000000042.png", "boxes": [{"label": "a", "box": [9, 9, 1, 1]}]}',
            "line 1: boxes[0]: ",
        ),
        ("labels.jsonl", "nonsense", "labels.jsonl, line 1: this is not JSON: "),
    ],
)
def test_error_names_file_and_field(here: Path, name: str, body: Any, says: str) -> None:
    put(here / name, body)
    with pytest.raises(Failure) as error:
        Labelled(here, None)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "val\\COCO_val_000000000042.png",
        ".\\val\\coco_VAL_000000000042.PNG",
        "C:\\data\\val\\COCO_val_000000000042.png",
        "\\\\server\\share\\COCO_val_000000000042.png",
        "/home/someone/val/COCO_val_000000000042.png",
        "../val/COCO_val_000000000042.png",
        "COCO_val_000000000042.PNG",
    ],
)
def test_image_matches_under_names_of_other_systems(here: Path, name: str) -> None:
    put(here / "labels.jsonl", json.dumps({"image": name, "text": "a"}))
    body = instances()
    body["images"] = [body["images"][0] | {"file_name": name}]
    put(here / "a.json", body)
    items = Labelled(here, None).items
    assert [item.task for item in items] == ["detect", "segment", "ocr"]
    assert {item.picture for item in items} == {"val/COCO_val_000000000042.png"}
    assert all(item.load().startswith(b"\x89PNG") for item in items)


def test_folders_choose_between_images_of_the_same_name(here: Path) -> None:
    for place in ("a/train", "b/train", "b/val"):
        (here / place).mkdir(parents=True)
        PIL.Image.new("RGB", (64, 48), "red").save(here / place / "1.png")
    for name, path in (("X:\\b\\train\\1.png", "b/train/1.png"), ("/data/val/1.PNG", "b/val/1.png")):
        put(here / "labels.jsonl", json.dumps({"image": name, "text": "a"}))
        assert [item.picture for item in Labelled(here, None).items] == [path]
    for name in ("1.png", "X:\\train\\1.png"):
        put(here / "labels.jsonl", json.dumps({"image": name, "text": "a"}))
        with pytest.raises(Failure, match="there is no"):
            Labelled(here, None)


@pytest.mark.parametrize(
    "name", ["../secret.png", "{}/secret.png", "val/../../secret.png", "link.png", "out/secret.png"]
)
def test_file_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    here = tmp_path / "set"
    (here / "val").mkdir(parents=True)
    for path in (tmp_path / "secret.png", here / "val" / "1.png"):
        PIL.Image.new("RGB", (64, 48), "red").save(path)
    (here / "link.png").symlink_to(tmp_path / "secret.png")
    (here / "out").symlink_to(tmp_path)
    put(here / "labels.jsonl", json.dumps({"image": name.format(tmp_path), "text": "a"}))
    with pytest.raises(Failure, match="there is no"):
        Labelled(here, None)


@pytest.mark.parametrize("name", ["", ".", "..", "\0", "val", "a" * 5000, "\\\\.\\pipe\\x", "C:", "/", "val/\0.png"])
def test_impossible_file_name_is_refused(here: Path, name: str) -> None:
    put(here / "labels.jsonl", json.dumps({"image": name, "text": "a"}))
    with pytest.raises(Failure, match="line 1: image: there is no"):
        Labelled(here, None)


def test_link_within_the_folder_is_accepted(here: Path) -> None:
    (here / "same.png").symlink_to(here / "val" / "COCO_val_000000000042.png")
    put(here / "labels.jsonl", json.dumps({"image": "same.png", "text": "a"}))
    assert len(Labelled(here, None).items) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_line_ends_of_other_systems_are_read(here: Path, encoding: str) -> None:
    """Read byte order marks, UTF-16 as PowerShell writes it, CRLF line ends, and upper-case file names."""
    line = {"image": "COCO_val_000000000043.png", "text": "façade"}
    text = "\r\n".join([json.dumps(line, ensure_ascii=False)] * 2) + "\r\n\r\n"
    (here / "LABELS.JSONL").write_bytes(text.encode(encoding))
    (here / "Instances.JSON").write_bytes(json.dumps(instances(), indent=1).replace("\n", "\r\n").encode(encoding))
    (here / "._Instances.json").write_bytes(b"\0\5\x16\7")
    items = [(item.task, item.truth) for item in Labelled(here, None).items]
    assert [task for task, _ in items] == ["detect", "segment", "ocr", "ocr"]
    assert items[-1][1] == {"text": "façade"}


@pytest.mark.parametrize("segmentation", [None, [], [[]], {}, [[1, 2], [3, 4, 5, 6]]])
def test_image_with_an_object_without_a_mask_is_not_segmented(here: Path, segmentation: Any) -> None:
    body = instances()
    body["annotations"].append(body["annotations"][0] | {"image_id": 43, "segmentation": segmentation})
    put(here / "a.json", body)
    labelled = Labelled(here, None)
    assert [(item.task, item.name.rsplit("/")[-1]) for item in labelled.items] == [
        ("detect", "42"),
        ("segment", "42"),
        ("detect", "43"),
    ]
    assert any("1 pictures of a.json have objects without a mask" in note for note in labelled.notes)
    body["annotations"][0]["segmentation"] = segmentation
    put(here / "a.json", body)
    labelled = Labelled(here, None)
    assert [item.task for item in labelled.items] == ["detect", "detect"]
    assert not any("objects without a mask" in note for note in labelled.notes)


def test_optional_fields_may_be_missing_and_ids_may_be_text(here: Path) -> None:
    body = instances()
    for image in body["images"]:
        del image["height"], image["width"]
        image["id"] = str(image["id"])
    body["categories"][0]["id"] = "3"
    del body["annotations"][0]["iscrowd"]
    put(here / "a.json", body)
    labelled = Labelled(here, None)
    assert [(item.task, item.truth["boxes"][0]["crowd"]) for item in labelled.items] == [("detect", False)]


def test_question_without_an_answer_is_refused(here: Path) -> None:
    vqa(here)
    put(here / "answers.json", {"annotations": [{"question_id": 7, "answers": [{"answer": "a"}]}]})
    with pytest.raises(Failure, match=r"questions\[0\].question_id: no annotations file here answers question 420"):
        Labelled(here, None)


def test_annotation_files_may_be_given(here: Path, tmp_path: Path) -> None:
    vqa(here / "elsewhere")
    files = [here / "elsewhere" / "questions.json", here / "elsewhere" / "answers.json"]
    assert len(Labelled(here, files).items) == 1
    with pytest.raises(Failure, match="neither COCO, VQA, Label Studio nor FiftyOne"):
        Labelled(here, [put(here / "x.json", {"a": 1})])
    with pytest.raises(Failure, match="No such file"):
        Labelled(here, [here / "gone.json"])


@pytest.mark.slow
def test_folder_is_evaluated_end_to_end(here: Path, diptych: Any) -> None:
    """Evaluate COCO boxes with a model whose box is right and another whose box is beside the cat."""
    put(here / "instances.json", instances())
    vqa(here)
    close = "[0.12, 0.33, 0.44, 0.44]"  # of the square that the picture is centred in
    first = FakeEngine({"bounding box": close, "": "dog"})
    second = FakeEngine({"detect": "<loc0213><loc0128><loc0426><loc0447> cat", "segment": "", "": "cat"})
    with serving(first, second) as url:
        arguments = ("evaluate", here, "--task", "all", "--json", "--server", url, "--out", here / "out.jsonl")
        ran, prompts = diptych(*arguments), len(first.prompts)
        assert ran.status == 0, ran.err
        assert diptych(*arguments).out == ran.out and len(first.prompts) == prompts  # all is recorded
    reports = {report["task"]: report for report in json.loads(ran.out)}
    detect = {row["name"]: row["measures"]["mAP@0.5"]["value"] for row in reports["detect"]["rows"]}
    assert detect["toy-paligemma"] == pytest.approx(100.0)
    vqa_ = {row["name"]: row["measures"]["VQA accuracy"]["value"] for row in reports["vqa"]["rows"]}
    assert vqa_["toy-llava"] == 0.0 and vqa_["toy-paligemma"] == 100.0


def test_items_of_two_files_of_one_name_have_names_of_their_own(here: Path) -> None:
    line = json.dumps({"image": "COCO_val_000000000042.png", "text": "a"})
    files = [put(here / place / "labels.jsonl", line) for place in ("train", "val", ".", "annotations")]
    other = put(here / "other.jsonl", line)
    names = [item.name for item in Labelled(here, [*files[:2], files[0].parent / "../train/labels.jsonl", other]).items]
    assert names == ["train/labels.jsonl/ocr/1", "val/labels.jsonl/ocr/1", "other.jsonl/ocr/1"]
    names = [item.name for item in Labelled(here, None).items]
    assert names == ["labels.jsonl/ocr/1", "annotations/labels.jsonl/ocr/1"]
    files[2].unlink()
    assert [item.name for item in Labelled(here, None).items] == ["labels.jsonl/ocr/1"]


def test_file_without_items_leaves_another_of_its_name_its_items_names(here: Path) -> None:
    question = {"image_id": 42, "question": "what?", "question_id": 7}
    files = [put(here / "q" / "val.json", {"questions": [question]})]
    files.append(put(here / "a" / "val.json", {"annotations": [{"question_id": 7, "answers": [{"answer": "cat"}]}]}))
    assert [item.name for item in Labelled(here, files).items] == ["val.json/vqa/7"]


def test_labels_written_twice_are_counted_once(here: Path) -> None:
    line = {
        "image": "COCO_val_000000000042.png",
        "labels": ["cat", "cat"],
        "boxes": [{"label": "cat", "box": [0, 0, 9, 9]}],
    }
    put(here / "labels.jsonl", json.dumps(line))
    assert [item.truth for item in Labelled(here, None).of("count")] == [{"count": 1}]


def test_items_of_one_name_are_refused_before_any_request(diptych: Any, here: Path) -> None:
    question = {"image_id": 42, "question": "what?", "question_id": 7}
    put(here / "questions.json", {"questions": [question, question | {"question": "where?"}]})
    put(here / "answers.json", {"annotations": [{"question_id": 7, "answers": [{"answer": "cat"}]}]})
    engine = FakeEngine("cat")
    with serving(engine) as url:
        ran = diptych("evaluate", here, "--task", "vqa", "--server", url)
    assert ran.status == 1 and "questions.json/vqa/7 names two items" in ran.err and not engine.prompts


@pytest.mark.parametrize("given", [".", "elsewhere"])
def test_image_in_any_spelling_is_the_path_from_the_folder(
    here: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = "val/COCO_val_000000000042.png"
    outside = here.parent / f"{here.name}-link"
    outside.symlink_to(here)
    monkeypatch.chdir(here)
    (here / "other").mkdir()
    (here / "deep").symlink_to(here / "val")
    written = [f"./{picture}", f"val//../{picture}", f"other/../{picture}", str(here / picture), str(outside / picture)]
    written += ["deep/../val/COCO_val_000000000042.png", f"../{here.name}/{picture}", f"x/{picture}"]
    put(here / "labels.jsonl", "\n".join(json.dumps({"image": name, "text": "a"}) for name in written))
    labelled = Labelled(Path(".") if given == "." else outside, None)
    assert [item.picture for item in labelled.items] == [picture] * len(written)
