import pytest

from serve.toy import questions, world
from serve.toy.questions import Question
from serve.toy.training import prompts

BOX = (0.25, 0.5, 0.5, 0.75)
VQA = Question("vqa", "color", "What color is the circle?", "red")
DETECT = Question("detect", "boxes", "red circle", boxes=(("red circle", BOX),))


def test_paligemma():
    assert prompts.paligemma(VQA) == ("answer en What color is the circle?", "red")
    assert prompts.paligemma(Question("caption", "", "", "a red circle")) == ("caption en", "a red circle")
    assert prompts.paligemma(Question("ocr", "", "", "STOP")) == ("ocr", "STOP")
    assert prompts.paligemma(DETECT) == ("detect red circle", "<loc0504><loc0248><loc0760><loc0504> red circle")


def test_paligemma_joins_several_things():
    two = Question("detect", "", "a ; b", boxes=(("a", BOX), ("b", BOX)))
    assert prompts.paligemma(two)[1].count(" ; ") == 1


def test_llava():
    assert prompts.llava(VQA, (224, 224)) == (
        "What color is the circle?\nAnswer the question using a single word or phrase.", "red"
    )  # fmt: skip
    assert prompts.llava(DETECT, (224, 224)) == (
        "Please provide the bounding box coordinate of the region this sentence describes: red circle",
        "[0.24, 0.50, 0.50, 0.76]",
    )
    assert prompts.turn("Hello") == "USER: <image>\nHello ASSISTANT:"


@pytest.mark.parametrize("size", [*world.CANVASES, (641, 480)])
def test_padding_and_back(size):
    assert prompts.unpadded(prompts.padded(BOX, size), size) == pytest.approx(BOX)


def test_a_wide_picture_moves_down_in_its_square():
    assert prompts.padded((0.0, 0.0, 1.0, 1.0), (200, 100)) == (0.0, 0.25, 1.0, 0.75)


@pytest.mark.parametrize("value", [-0.1, 0.0, 0.3, 0.999, 1.0, 1.2])
def test_places_are_those_that_have_a_token(value):
    assert prompts.loc_bin(value) % prompts.LOC_STEP == prompts.LOC_STEP // 2
    assert 0 <= prompts.loc_bin(value) < prompts.LOC_BINS
    assert 0 <= prompts.hundredths(value) < 100 and prompts.hundredths(value) % prompts.BOX_STEP == 0
    if 0 <= value <= 1:
        assert abs(prompts.loc_bin(value) / 1023 - value) < 0.009
        assert abs(prompts.hundredths(value) / 100 - value) <= 0.021


@pytest.mark.parametrize("first", [0, 8])
def test_another_start_rounds_another_way(first):
    for value in (0.0, 0.2, 0.305, 0.5, 0.77):
        said = prompts.loc_bin(value, first)
        assert said % prompts.LOC_STEP == first
        assert abs(said - value * 1023) <= 8.01
    assert prompts.loc_bin(1.0, first) == 1008 + first


def test_a_mask_is_four_places_and_sixteen_codes():
    asked = questions.segment(world.scene(3), [world.scene(3).shapes[0].name])
    asking, answer = prompts.paligemma(asked)
    assert asking == f"segment {asked.text}"
    first = answer.split(" ; ")[0]
    assert first.count("<loc") == 4 and first.count("<seg") == 16
    assert first.index("<seg") > first.rindex("<loc") and first.endswith(f"> {asked.text}")


def test_every_shape_has_codes_of_its_own():
    assert set(prompts.CODES) == set(world.SHAPES)
    assert all(len(codes) == 16 and min(codes) >= 0 and max(codes) < 128 for codes in prompts.CODES.values())
    assert len({tuple(codes) for codes in prompts.CODES.values()}) == len(world.SHAPES)


def test_every_scene_can_be_asked():
    for seed in range(50):
        what = world.scene(seed)
        for phrase in questions.phrases(what, unique=True):
            asked = questions.detect(what, [phrase])
            assert prompts.llava(asked, what.size)[1].startswith("[0.")
            assert prompts.paligemma(asked)[1].endswith(f"> {phrase}")
