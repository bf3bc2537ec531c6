"""What the families ask when they serve is, to the letter, what the toys were trained on; and answers read back."""

import random

import pytest
from later import Later

from serve.engines.base import Spoken
from serve.media.image import Image
from serve.media.masks import decode
from serve.models import MODELS
from serve.tasks import TASKS
from serve.tasks.base import Request
from serve.tasks.boxes import DetectResult
from serve.tasks.segment import SegmentResult
from serve.toy import masks, questions, world
from serve.toy.training import prompts

SCENES = [world.scene(seed) for seed in range(40)]
recipes = Later("serve.toy.training.recipes")
TOYS = [name.removeprefix("toy-") for name, model in MODELS.items() if model.card.toy]


def asked(scene: world.Scene, family: str) -> list[questions.Question]:
    rng = random.Random(scene.text)
    found = [questions.vqa(scene, kind, rng) for kind in questions.KINDS]
    found.append(questions.Question("caption", "caption", "", questions.caption(scene)))
    found += [questions.detect(scene, [phrase]) for phrase in questions.phrases(scene, unique=True)[:2]]
    found.append(questions.Question("ocr", "ocr", "", scene.text or "nothing"))
    if family == "paligemma":
        found += [questions.segment(scene, [phrase]) for phrase in questions.phrases(scene)[:2]]
    return [question for question in found if question is not None]


def request(question: questions.Question, image: Image) -> Request:
    fields: dict[str, object] = {}
    if question.task == "vqa":
        fields = {"question": question.text}
    elif question.task in ("detect", "segment"):
        fields = {"labels": question.text.split(" ; ")}
    return TASKS[question.task].request(image=image, **fields)


@pytest.mark.parametrize("toy", TOYS)
def test_prompts_are_the_trained_ones(toy: str) -> None:
    family = recipes.RECIPES[toy].family
    seen = set()
    for scene in SCENES:
        picture = Image.of(world.draw(scene))
        for question in asked(scene, family):
            (prompt,) = MODELS[f"toy-{toy}"].skills[question.task].ask(request(question, picture))
            if family == "llava":
                trained = prompts.turn(prompts.llava(question, (picture.width, picture.height))[0])
            else:
                trained = prompts.paligemma(question)[0]
            assert prompt.text == trained
            seen.add(question.task)
    assert seen == {"vqa", "caption", "detect", "ocr"} | ({"segment"} if family == "paligemma" else set())


@pytest.mark.parametrize("toy", TOYS)
def test_a_trained_box_reads_back_as_the_drawn_one(toy: str) -> None:
    family = recipes.RECIPES[toy].family
    for scene in SCENES:
        picture = Image.of(world.draw(scene))
        size = (picture.width, picture.height)
        for phrase in questions.phrases(scene, unique=True):
            question = questions.detect(scene, [phrase])
            said = (
                prompts.llava(question, size)[1]
                if family == "llava"
                else prompts.paligemma(question, recipes.RECIPES[toy].first_loc)[1]
            )
            result = MODELS[f"toy-{toy}"].skills["detect"].parse([Spoken(said)], request(question, picture))
            assert isinstance(result, DetectResult)
            (found,) = result.boxes
            true = question.boxes[0][1]
            drawn = (true[0] * size[0], true[1] * size[1], true[2] * size[0], true[3] * size[1])
            assert found.label == phrase
            assert found.box == pytest.approx(drawn, abs=0.02 * max(size))


@pytest.mark.parametrize("toy", [name for name in TOYS if MODELS[f"toy-{name}"].prefix_lm])
def test_a_trained_mask_reads_back_as_the_drawn_one(toy: str) -> None:
    for scene in SCENES[:10]:
        picture = Image.of(world.draw(scene))
        for shape in scene.shapes:
            question = questions.segment(scene, [shape.name])
            said = prompts.paligemma(question, recipes.RECIPES[toy].first_loc)[1]
            result = MODELS[f"toy-{toy}"].skills["segment"].parse([Spoken(said)], request(question, picture))
            assert isinstance(result, SegmentResult)
            true = masks.mask(scene, shape, (picture.width, picture.height))
            found = [decode(one.mask) for one in result.boxes]
            assert max((true & one).sum() / (true | one).sum() for one in found) > 0.75
