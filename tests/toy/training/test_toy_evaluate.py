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


def test_true_answers_score_100_per_cent(evaluate):
    from serve.toy.training import prompts
    from serve.toy.training.recipes import RECIPES

    for toy in evaluate.FLOORS:
        family = RECIPES[toy].family
        items = evaluate.fresh_items(family, 20, seed=5)
        if family == "llava":
            replies = [prompts.llava(question, scene.size)[1] for scene, question in items]
        else:
            replies = [prompts.paligemma(question)[1] for _, question in items]
        scores = evaluate.score_replies(family, items, replies)
        masks = scores.pop("segment", None)
        assert {name: score.percent for name, score in scores.items()} == dict.fromkeys(scores, 100)
        assert (masks is not None) == (family == "paligemma")
        if masks is not None:  # boxes are rounded to 64 places, so no mask is exact
            assert 85 < masks.percent < 100
            scores["segment"] = masks
        assert "BELOW" not in "\n".join(evaluate.table(toy, scores, None))
        wrong = evaluate.score_replies(family, items, ["nonsense"] * len(items))
        assert {score.percent for score in wrong.values()} == {0}
        assert "BELOW" in "\n".join(evaluate.table(toy, wrong, wrong))


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
