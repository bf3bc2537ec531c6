"""`diptych evaluate`: labelled sets in, scores out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from served_folder import lines, serving

from serve.api.evaluation_runs import RunFolder
from serve.client.evaluation import keep, score, toys, varied
from serve.client.evaluation.measures.answers import vqa_accuracy
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.media import masks
from serve.media.image import decode_image
from serve.models.base import Price
from serve.tasks import TASKS
from serve.toy import questions, world


def scene_of(prompt: Prompt, known: dict[bytes, world.Scene]) -> world.Scene:
    """Return the scene of a prompt's image, by the pixels of its middle square (LLaVA's images are padded)."""
    assert prompt.image is not None
    return known[signature(prompt.image.pil())]


def signature(picture: PIL.Image.Image) -> bytes:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize((16, 16)).tobytes()


class CaptionScript:
    """A reply of a FakeEngine: the true caption of a fresh scene, or `wrong` where `fails(seed)`."""

    def __init__(self, count: int, fails: Any) -> None:
        self.fails = fails
        self.known: dict[bytes, world.Scene] = {}
        for text in (None, True):
            for at in range(count):
                what = world.scene(toys.FRESH + at, text=text)
                self.known[signature(world.draw(what, toys.SCALE))] = what

    def __call__(self, prompt: Prompt) -> str:
        what = self.known.get(signature(prompt.image.pil())) if prompt.image is not None else None
        return "wrong" if what is None or self.fails(what.seed) else questions.caption(what)


@pytest.mark.slow
def test_items_are_reproducible_and_true() -> None:
    for task in toys.QUESTIONS:
        first, again = list(toys.items(task, 6, 3)), list(toys.items(task, 6, 3))
        assert [(i.name, i.fields, i.truth) for i in first] == [(i.name, i.fields, i.truth) for i in again]
        assert [item.name for item in toys.items(task, 2, 5)] == [item.name for item in first[2:4]]
        for item in first:
            picture = decode_image(item.load())
            for place in item.truth.get("boxes", []):
                x0, y0, x1, y1 = place["box"]
                assert 0 <= x0 < x1 <= picture.width and 0 <= y0 < y1 <= picture.height
                assert place["label"] in item.fields["labels"]
            if task == "segment":
                assert item.truth["boxes"]
            for place in item.truth.get("boxes", []) if task == "segment" else []:
                mask = masks.decode(masks.Rle(**place["mask"]))
                assert mask.shape == (picture.height, picture.width)
                ys, xs = np.nonzero(mask)
                bounds = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
                assert np.abs(np.array(bounds) - np.array(place["box"])).max() <= 2
                background = picture.pixels[0, 0].astype(int)
                covered = np.abs(picture.pixels[mask].astype(int) - background).max(axis=1)
                assert (covered > 30).mean() > 0.95  # the mask covers drawn pixels


def test_all_kinds_of_questions_occur() -> None:
    kinds = [item.truth["kind"] for item in toys.items("vqa", 70, 0)]
    assert all(kinds.count(kind) >= 5 for kind in questions.KINDS)


def test_varied_items_are_the_same_each_time_and_their_answers_are_accepted() -> None:
    for task in varied.QUESTIONS:
        first = list(varied.varied_items(task, 6, 3))
        assert [item.truth for item in first] == [item.truth for item in varied.varied_items(task, 6, 3)]
        assert len({item.name for item in first}) == 6
        assert decode_image(first[0].load()).width >= 48
        truths = [item.truth for item in first]
        if task == "vqa":
            right = [{"answer": truth["accepted"][-1]} for truth in truths]
            assert vqa_accuracy(truths, right, np.ones((1, 6), np.uint8))[0].value == 100.0
            assert vqa_accuracy(truths, [{"answer": "a cow"}] * 6, np.ones((1, 6), np.uint8))[0].value == 0.0
        if task in ("detect", "segment"):
            assert all(item.truth["boxes"] for item in first)


def test_scores_by_kind_are_those_of_its_questions(diptych: Any, tmp_path: Path) -> None:
    out = tmp_path / "vqa.jsonl"
    merged = {"result": {"answer": "red"}}
    with out.open("w") as file:
        for at, kind in enumerate(("color_of", "color_of", "shape_of")):
            reply = {"model": "a", "status": "ok", "result": {"answer": "red" if at else "blue"}, "text": ""}
            truth = {"accepted": ["red"] if kind == "color_of" else ["star"], "kind": kind}
            line = {"item": str(at), "task": "vqa", "picture": str(at), "asked": {}, "truth": truth}
            file.write(json.dumps(line | {"replies": [reply], "merged": merged}) + "\n")
    (report,) = json.loads(diptych("evaluate", "--from", out, "--json", "--by-kind").out)
    values = {
        kind: [row["measures"]["VQA accuracy"]["value"] for row in part["rows"]]
        for kind, part in report["kinds"].items()
    }
    assert values == {"color_of": [50.0, 100.0], "shape_of": [0.0, 0.0]}
    assert "shape_of" in diptych("evaluate", "--from", out, "--by-kind").out


@pytest.fixture(scope="module")
def captioners() -> Iterator[str]:
    """Serve two models that caption scenes: the first is wrong at every second, the other at every fourth."""
    first, second = CaptionScript(24, lambda seed: seed % 2 == 0), CaptionScript(24, lambda seed: seed % 4 == 1)
    with serving(FakeEngine(first), FakeEngine(second)) as url:
        yield url


@pytest.mark.slow
def test_scores_of_models_and_merge_are_reported(diptych: Any, captioners: str, tmp_path: Path) -> None:
    out = tmp_path / "toy.jsonl"
    arguments = ("evaluate", "toy", "--task", "caption", "--n", 24, "--out", out)
    ran = diptych(*arguments, "--server", captioners)
    assert ran.status == 0, ran.err
    header = next(line for line in ran.out.splitlines() if "CIDEr-D" in line)
    assert "every shape" in header
    rows = {line.split()[0]: line for line in ran.out.splitlines() if line.strip().startswith(("toy-", "merged"))}
    assert set(rows) == {"toy-llava", "toy-paligemma", "merged", "merged:"} - {"merged:"}
    assert " 50.0 [" in rows["toy-llava"] and " 75.0 [" in rows["toy-paligemma"]
    assert "merged - toy-paligemma (best single)" in ran.out
    recorded_lines = lines(out)
    assert (
        len(recorded_lines) == 24
        and {"item", "task", "picture", "asked", "truth", "merged", "replies"} <= recorded_lines[0].keys()
    )

    again = diptych(*arguments, "--json", "--server", captioners)
    report = json.loads(again.out)[0]
    assert report["task"] == "caption" and report["items"] == 24
    by = {row["name"]: row["measures"]["every shape"] for row in report["rows"]}
    assert by["toy-llava"]["value"] == 50.0 and by["toy-paligemma"]["value"] == 75.0
    assert by["toy-llava"]["low"] < 50 < by["toy-llava"]["high"]
    assert report["best"]["every shape"] in (["toy-paligemma"], ["toy-paligemma", "merged"])
    offline = diptych("evaluate", "--from", out, "--json")  # nothing listens at the default address
    assert json.loads(offline.out) == [report]


@pytest.mark.slow
def test_second_call_requests_missing_items_only(diptych: Any, tmp_path: Path) -> None:
    out = tmp_path / "toy.jsonl"
    engine = FakeEngine("yes")
    with serving(engine) as url:
        arguments = ("evaluate", "toy", "--task", "vqa", "--out", out, "--server", url)
        assert diptych(*arguments, "--n", 10).status == 0
        out.write_bytes(out.read_bytes()[:-30])
        assert diptych(*arguments, "--n", 15).status == 0
        assert len(engine.prompts) == 10 + 6
        assert len({line["item"] for line in lines(out)}) == len(lines(out)) == 15
        less = diptych(*arguments, "--n", 4, "--json")
        assert json.loads(less.out)[0]["items"] == 4 and len(engine.prompts) == 16
        other = diptych(*arguments, "--models", "toy-llava")
        assert other.status == 2 and "another question" in other.err


@pytest.mark.slow
@pytest.mark.parametrize(("drawn", "tasks"), [("toy", toys.QUESTIONS), ("varied", varied.QUESTIONS)])
def test_second_call_with_all_tasks_requests_no_answered_item(
    diptych: Any, server: str, tmp_path: Path, drawn: str, tasks: Any
) -> None:
    out = tmp_path / "drawn.jsonl"
    arguments = ("evaluate", drawn, "--n", 1, "--out", out, "--server", server)
    assert diptych(*arguments).status == 0
    before = [line for line in lines(out) if "error" not in line]  # "red" is no box: the fakes fail at some
    assert diptych(*arguments).status == 0
    assert [line for line in lines(out) if "error" not in line] == before
    assert {line["task"] for line in lines(out)} == set(tasks)


@pytest.mark.slow
def test_recorded_replies_are_merged_by_other_rules(diptych: Any, captioners: str, tmp_path: Path) -> None:
    out = tmp_path / "toy.jsonl"
    diptych("evaluate", "toy", "--task", "caption", "--n", 24, "--out", out, "--server", captioners)
    every = json.loads(diptych("evaluate", "--from", out, "--merge", "all", "--json").out)[0]
    merged = [row["name"] for row in every["rows"] if row["merged"]]
    assert merged == [f"merged by {name}" for name in TASKS["caption"].methods]
    own = json.loads(diptych("evaluate", "--from", out, "--json").out)[0]["rows"][-1]["measures"]
    assert every["rows"][2]["measures"] == own  # merging again by the task's own method comes to what was recorded
    for model, at in (("toy-llava", 0), ("toy-paligemma", 1)):
        reweighted = diptych(
            "evaluate", "--from", out, "--weights", f"{model}=9,toy-llava=1"[: 99 if at else 11], "--json"
        )
        rows = json.loads(reweighted.out)[0]["rows"]
        assert rows[2]["measures"] == rows[at]["measures"]  # the merge is the heavy model's
    ran = diptych("evaluate", "--from", out, "--merge", "dice")
    assert ran.status == 2 and "caption merges again by" in ran.err


def line(item: str, merged: str, **answers: str) -> dict[str, Any]:
    replies = [{"model": model, "status": "ok", "result": {"answer": answer}} for model, answer in answers.items()]
    head = {"item": item, "task": "vqa", "picture": item, "asked": {}, "truth": {"answers": ["yes"]}}
    return head | {"image": {}, "merged": {"result": {"answer": merged}}, "replies": replies}


def recorded(path: Path, *some: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(body) + "\n" for body in some))
    return path


def test_require_merged_fails_for_a_merge_below_the_best_model(diptych: Any, tmp_path: Path) -> None:
    bad = [line(str(at), "no", a="yes", b="no") for at in range(5)]
    path = recorded(tmp_path / "r.jsonl", *bad)
    assert diptych("evaluate", "--from", path).status == 0
    ran = diptych("evaluate", "--from", path, "--require-merged")
    assert ran.status == 1 and "vqa: merged is 100.00 worse than a in VQA accuracy." in ran.err
    good = recorded(tmp_path / "g.jsonl", *(line(str(at), "yes", a="yes", b="no") for at in range(5)))
    assert diptych("evaluate", "--from", good, "--require-merged").status == 0


def test_gain_is_paired(tmp_path: Path) -> None:
    """Let merge and best model differ in a single image: the interval is that of this image."""
    some = [line(str(at), "yes", a="yes", b="no") for at in range(50)] + [line("x", "yes", a="no", b="no")]
    some += [line(f"n{at}", "no", a="no", b="no") for at in range(49)]
    (report,) = score.reports(some)
    (gain,) = report.gains
    assert (gain.row, gain.best) == ("merged", "a") and gain.gain.value == pytest.approx(1.0)
    assert gain.gain.low == 0.0 and gain.gain.high <= 4.0
    assert not report.lost()


def test_failed_request_is_left_out_and_failed_model_is_wrong() -> None:
    base = {"task": "vqa", "asked": {}, "truth": {"answers": ["yes"]}}
    lost = base | {"item": "1", "picture": "1", "error": {"code": "connection_error", "message": "x"}}
    silent = base | {"item": "2", "picture": "2", "error": {"code": "parse_error", "message": "x"}}
    broken = line("3", "yes", a="yes")
    broken["replies"].append({"model": "b", "status": "timeout", "result": None})
    (report,) = score.reports([lost, silent, broken])
    assert (report.items, report.left_out) == (2, 1)
    assert [(row.name, row.failed, row.measures["VQA accuracy"].value) for row in report.rows] == [
        ("a", 1, 50.0),
        ("b", 2, 0.0),
        ("merged", 1, 50.0),
    ]


@pytest.mark.slow
def test_unparsable_reply_is_wrong_and_not_retried(diptych: Any, tmp_path: Path) -> None:
    engine, out = FakeEngine("nonsense"), tmp_path / "out.jsonl"
    with serving(engine, FakeEngine("nonsense")) as url:
        arguments = ("evaluate", "toy", "--task", "detect", "--n", 2, "--models", "toy-paligemma")
        ran = diptych(*arguments, "--out", out, "--server", url, "--json")
    assert [line["error"]["code"] for line in lines(out)] == ["parse_error"] * 2
    (report,) = json.loads(ran.out)
    assert (report["items"], report["left_out"]) == (2, 0)


def test_record_with_different_models_is_refused(diptych: Any, tmp_path: Path) -> None:
    path = recorded(tmp_path / "r.jsonl", line("1", "yes", a="yes"), line("2", "yes", b="yes"))
    ran = diptych("evaluate", "--from", path)
    assert ran.status == 1 and "not every question went to the same models (a; b)" in ran.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Evaluate what?"),
        (("toy", "--from", "x"), "Evaluate what?"),
        (("toy", "--task", "sing"), "invalid choice"),
        (("toy", "--weights", "a"), "not of the form"),
        (("toy", "--n", "0"), "must be 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(diptych: Any, arguments: tuple[str, ...], says: str) -> None:
    ran = diptych("evaluate", *arguments)
    assert ran.status == 2 and says in ran.err


def test_missing_file_folder_or_model_is_reported(diptych: Any, server: str, tmp_path: Path) -> None:
    assert "No such file" in diptych("evaluate", "--from", tmp_path / "gone.jsonl").err
    assert "no such folder" in diptych("evaluate", tmp_path / "gone", "--server", server).err
    ran = diptych("evaluate", "toy", "--models", "toy-lava", "--server", server)
    assert ran.status == 1 and "toy-lava is not served here" in ran.err
    ran = diptych("evaluate", "toy", "--task", "chat", "--models", "toy-paligemma", "--server", server)
    assert ran.status == 1 and "No served model can do chat." in ran.err


def test_kept_run_has_scores_costs_answers_and_small_pictures(diptych: Any, server: str, tmp_path: Path) -> None:
    ask = ("evaluate", "toy", "--task", "vqa", "--n", "3", "--server", server, "--keep", tmp_path)
    ran = diptych(*ask)
    assert ran.status == 0 and "Kept as" in ran.err
    (run,) = RunFolder(tmp_path).runs()
    (task,) = run.tasks
    assert (task.task, task.items, [row.name for row in task.rows]) == (
        "vqa",
        3,
        ["toy-llava", "toy-paligemma", "merged"],
    )
    costs = [row.cost for row in task.rows if row.cost is not None]
    assert len(costs) == 3 and costs[2].completion_tokens == costs[0].completion_tokens + costs[1].completion_tokens
    assert costs[0].seconds > 0 and costs[0].price_per_1000 is None
    answers = lines(RunFolder(tmp_path).record(run.name))
    assert len(answers) == 3 and all(line["preview"].startswith("data:image/webp") for line in answers)


RECORDED = {
    "item": "x/1", "task": "vqa", "picture": "a.png", "asked": {"question": "?"}, "truth": {"answers": ["cat"]},
    "merged": {"result": {"answer": "cat"}, "agreement": 1.0}, "replies": [],
}  # fmt: skip


@pytest.mark.parametrize("name", ["Häuser", "٣x", "_a.b", "\udcff", "猫" * 60])
def test_run_of_a_set_is_kept_whatever_the_set_is_called(diptych: Any, tmp_path: Path, name: str) -> None:
    record = tmp_path / f"{name}.jsonl"
    record.write_text(json.dumps(RECORDED) + "\n")
    ran = diptych("evaluate", "--from", record, "--keep", tmp_path / "runs")
    assert ran.status == 0
    (run,) = RunFolder(tmp_path / "runs").runs()
    assert run.target == name.replace("\udcff", "?") and run.name.isascii() and f"Kept as {run.name}" in ran.err


def test_scores_are_printed_where_the_run_cannot_be_kept(diptych: Any, tmp_path: Path) -> None:
    record, folder = tmp_path / "a.jsonl", tmp_path / "runs"
    record.write_text(json.dumps(RECORDED) + "\n")
    folder.write_text("a file")
    ran = diptych("evaluate", "--from", record, "--keep", folder)
    assert ran.status == 1 and "was not kept" in ran.err and "100.0" in ran.out


def test_judge_accepts_an_answer_in_other_words(diptych: Any, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (32, 24), "red").save(tmp_path / "a.png")
    labels = '{"image": "a.png", "question": "what is this?", "answer": "a cat"}\n'
    (tmp_path / "labels.jsonl").write_text(labels)
    replies = {"": "a kitten", "The answer given was: 'a kitten'": "Yes", "The answer given was: 'a dog'": "No"}
    with serving(FakeEngine(replies), FakeEngine("a dog")) as url:
        ran = diptych("evaluate", tmp_path, "--task", "vqa", "--json", "--judged-by", "toy-llava", "--server", url)
    rows = {row["name"]: row["measures"] for row in json.loads(ran.out)[0]["rows"]}
    judged = {name: measures["judged by toy-llava"]["value"] for name, measures in rows.items()}
    assert judged["toy-llava"] == 100.0 and judged["toy-paligemma"] == 0.0
    assert all(measures["VQA accuracy"]["value"] == 0.0 for measures in rows.values())


def test_price_and_energy_of_a_thousand_pictures_follow_from_the_replies() -> None:
    def reply(model: str, prompt: int, completion: int, ms: float) -> dict[str, Any]:
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        return {"model": model, "status": "ok", "latency_ms": ms, "ttft_ms": None, "usage": usage}

    answers = [{"replies": [reply("a", 100, 10, 500), reply("b", 300, 20, 200)]}]
    prices = {"a": Price(2, 4), "b": Price(1, 1)}
    single, merged = keep._cost(answers, "a", prices), keep._merged_cost(answers, prices)
    assert single is not None and single.price_per_1000 == pytest.approx(0.24) and single.seconds == 0.5
    assert merged is not None and merged.price_per_1000 == pytest.approx(0.24 + 0.32) and merged.seconds == 0.5
    assert single.energy_wh_per_1000 is None
    for metered, joules in zip(answers[0]["replies"], (3.6, 7.2), strict=True):
        metered["energy_j"] = joules
    single, merged = keep._cost(answers, "a", prices), keep._merged_cost(answers, prices)
    assert single is not None and single.energy_wh_per_1000 == pytest.approx(1.0)
    assert merged is not None and merged.energy_wh_per_1000 == pytest.approx(3.0)
    unpriced = keep._merged_cost(answers, {"a": Price(2, 4)})
    assert unpriced is not None and unpriced.price_per_1000 is None
