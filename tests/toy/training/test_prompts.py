from dataclasses import replace

import pytest

from serve.toy import questions, world
from serve.toy.questions import Question
from serve.toy.training import prompts
from serve.toy.varied.names import SHAPE_OTHERS

BOX = (0.25, 0.5, 0.5, 0.75)
VQA = Question("vqa", "color", "What color is the circle?", "red")
DETECT = Question("detect", "boxes", "red circle", boxes=(("red circle", BOX),))


def test_paligemma_prompts_and_answers_have_the_trained_form():
    assert prompts.paligemma(VQA) == ("answer en What color is the circle?", "red")
    assert prompts.paligemma(Question("caption", "", "", "a red circle")) == ("caption en", "a red circle")
    assert prompts.paligemma(Question("ocr", "", "", "STOP")) == ("ocr", "STOP")
    assert prompts.paligemma(DETECT) == ("detect red circle", "<loc0508><loc0252><loc0764><loc0508> red circle")


def test_paligemma_joins_several_objects():
    pair = Question("detect", "", "a ; b", boxes=(("a", BOX), ("b", BOX)))
    assert prompts.paligemma(pair)[1].count(" ; ") == 1


def test_llava_prompts_and_answers_have_the_trained_form():
    assert prompts.llava(VQA, (224, 224)) == (
        "What color is the circle?\nAnswer the question using a single word or phrase.", "red"
    )  # fmt: skip
    assert prompts.llava(DETECT, (224, 224)) == (
        "Please provide the bounding box coordinate of the region this sentence describes: red circle",
        "[0.24, 0.50, 0.50, 0.76]",
    )
    assert prompts.turn("Hello") == "USER: <image>\nHello ASSISTANT:"


@pytest.mark.parametrize("size", [*world.CANVASES, (641, 480)])
def test_padded_box_maps_back(size):
    assert prompts.unpadded(prompts.padded(BOX, size), size) == pytest.approx(BOX)


def test_wide_image_moves_down_in_its_square():
    assert prompts.padded((0.0, 0.0, 1.0, 1.0), (200, 100)) == (0.0, 0.25, 1.0, 0.75)


@pytest.mark.parametrize("value", [-0.1, 0.0, 0.3, 0.999, 1.0, 1.2])
def test_coordinates_round_to_those_with_a_token(value):
    assert prompts.loc_bin(value) % prompts.LOC_STEP == prompts.FIRST_LOC
    assert 0 <= prompts.loc_bin(value) < prompts.LOC_BINS
    assert 0 <= prompts.hundredths(value) < 100 and prompts.hundredths(value) % prompts.BOX_STEP == 0
    if 0 <= value <= 1:
        assert abs(prompts.loc_bin(value) / 1023 - value) < 0.005
        assert abs(prompts.hundredths(value) / 100 - value) <= 0.021


@pytest.mark.parametrize("first", [0, 4])
def test_first_loc_changes_the_rounding(first):
    for value in (0.0, 0.2, 0.305, 0.5, 0.77):
        bin_ = prompts.loc_bin(value, first)
        assert bin_ % prompts.LOC_STEP == first
        assert abs(bin_ - value * 1023) <= 4.01
    assert prompts.loc_bin(1.0, first) == 1016 + first


def test_mask_is_four_coordinates_and_sixteen_codes():
    question = replace(questions.detect(world.scene(3), [world.scene(3).shapes[0].name]), task="segment")
    asking, answer = prompts.paligemma(question)
    assert asking == f"segment {question.text}"
    first = answer.split(" ; ")[0]
    assert first.count("<loc") == 4 and first.count("<seg") == 16
    assert first.index("<seg") > first.rindex("<loc") and first.endswith(f"> {question.text}")


def test_every_shape_has_the_codes_of_its_mask_in_its_box():
    assert set(prompts.CODES) == set(SHAPE_OTHERS)
    assert all(len(codes) == 16 and min(codes) >= 0 and max(codes) < 128 for codes in prompts.CODES.values())
    assert prompts.CODES["square"] == prompts.CODES["rectangle"] and prompts.CODES["circle"] == prompts.CODES["ellipse"]
    assert len({tuple(codes) for codes in prompts.CODES.values()}) == len(SHAPE_OTHERS) - 2


def test_every_scene_has_prompts_for_both_families():
    for seed in range(50):
        scene = world.scene(seed)
        for phrase in questions.phrases(scene, unique=True):
            question = questions.detect(scene, [phrase])
            assert prompts.llava(question, scene.size)[1].startswith("[0.")
            assert prompts.paligemma(question)[1].endswith(f"> {phrase}")
