"""How answers are marked. It imports transformers, so it runs with the engines."""

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

BOX = (0.25, 0.5, 0.5, 0.75)


@pytest.fixture
def evaluate():
    from serve.engines.vllm.torchvision import repair

    repair()
    from serve.toy.training import evaluate

    return evaluate


def test_true_answers_score_in_full(evaluate):
    from serve.toy.training import prompts
    from serve.toy.training.recipes import RECIPES

    for toy in evaluate.FLOORS:
        family = RECIPES[toy].family
        asked = evaluate.exam(family, 20, seed=5)
        if family == "llava":
            said = [prompts.llava(question, what.size)[1] for what, question in asked]
        else:
            said = [prompts.paligemma(question)[1] for _, question in asked]
        scores = evaluate.marked(family, asked, said)
        masks = scores.pop("segment", None)
        assert {name: score.percent for name, score in scores.items()} == dict.fromkeys(scores, 100)
        assert (masks is not None) == (family == "paligemma")
        if masks is not None:  # boxes are rounded to 64 places, so no mask is exact
            assert 85 < masks.percent < 100
            scores["segment"] = masks
        assert "BELOW" not in "\n".join(evaluate.table(toy, scores, None))
        wrong = evaluate.marked(family, asked, ["nonsense"] * len(asked))
        assert {score.percent for score in wrong.values()} == {0}
        assert "BELOW" in "\n".join(evaluate.table(toy, wrong, wrong))


def test_a_box_counts_once_and_only_for_its_phrase(evaluate):
    two = (("circle", BOX), ("circle", (0.0, 0.0, 0.2, 0.2)))
    assert evaluate.recalled(two, [("circle", BOX), ("circle", BOX)]) == 1
    assert evaluate.recalled(two, [("star", BOX)]) == 0
    assert evaluate.recalled(two, []) == 0


def test_overlap(evaluate):
    assert evaluate.overlap(BOX, BOX) == 1
    assert evaluate.overlap(BOX, (0.5, 0.5, 0.7, 0.7)) == 0
    assert evaluate.overlap((0, 0, 1, 1), (0, 0, 0.5, 1)) == 0.5
    assert evaluate.overlap((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)) == 0


def test_odd_words_are_no_boxes(evaluate):
    assert evaluate.locs("<loc0001><loc0002> circle ; circle") == []
    assert evaluate.brackets("[0.10, 0.20]", None, None) == []
