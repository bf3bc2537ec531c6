"""Scoring of replies. serve.toy.training.evaluate imports transformers, so these tests run with the engines."""

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

BOX = (0.25, 0.5, 0.5, 0.75)


@pytest.fixture
def evaluate():
    from serve.engines.vllm.torchvision import repair

    repair()
    from serve.toy.training import evaluate

    return evaluate


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_true_answers_score_100_per_cent(evaluate, family):
    """Score the answers that a toy is trained on: all right but for the rounding of masks."""
    from serve.toy.training import prompts

    items = [
        *evaluate.vqa_items(len(evaluate.KINDS), 0),
        *evaluate.other_items(family, 12, 0),
        *evaluate.shipped_items(family, 1),
    ]
    if family == "llava":
        replies = [prompts.llava(item.question, item.scene.size)[1] for item in items]
    else:
        replies = [prompts.paligemma(item.question)[1] for item in items]
    scores = evaluate.score_replies(family, items, replies)
    assert all(scores[task].percent == 100 for task in ("vqa", "caption", "detect", "ocr"))
    assert family == "llava" or 80 < scores["segment"].percent < 100
    assert "BELOW" not in "\n".join(evaluate.table(family, scores))
    wrong = evaluate.score_replies(family, items, ["?"] * len(items))
    assert {score.percent for score in wrong.values()} == {0}
    assert "BELOW" in "\n".join(evaluate.table(family, wrong))


def test_box_counts_once_and_for_its_phrase_only(evaluate):
    true = (("circle", BOX), ("circle", (0.0, 0.0, 0.2, 0.2)))
    assert evaluate.count_recalled(true, [("circle", BOX), ("circle", BOX)]) == 1
    assert evaluate.count_recalled(true, [("star", BOX)]) == 0
    assert evaluate.count_recalled(true, []) == 0


def test_box_iou(evaluate):
    assert evaluate.box_iou(BOX, BOX) == 1
    assert evaluate.box_iou(BOX, (0.5, 0.5, 0.7, 0.7)) == 0
    assert evaluate.box_iou((0, 0, 1, 1), (0, 0, 0.5, 1)) == 0.5
    assert evaluate.box_iou((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)) == 0


def test_malformed_text_has_no_boxes(evaluate):
    assert evaluate.parse_locs("<loc0001><loc0002> circle ; circle") == []
    assert evaluate.parse_brackets("[0.10, 0.20]", None, None) == []
