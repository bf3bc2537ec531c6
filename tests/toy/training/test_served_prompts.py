"""The prompts of the served families are those that the toys were trained on, and parsers read the trained answers."""

import random
from dataclasses import replace

import pytest
from lazy_module import LazyModule

from serve.engines.base import Generation
from serve.media.image import Image
from serve.media.masks import decode
from serve.models import MODELS
from serve.tasks import TASKS
from serve.tasks.boxes import DetectResult
from serve.tasks.request import Request
from serve.tasks.segment import SegmentResult
from serve.toy import masks, questions, world
from serve.toy.training import prompts

SCENES = [world.scene(seed) for seed in range(40)]
recipes = LazyModule("serve.toy.training.recipes")
pytestmark = pytest.mark.slow  # torch takes seconds to import, in each worker
TOYS = [name.removeprefix("toy-") for name, model in MODELS.items() if model.card.toy]


def masked(scene: world.Scene, phrase: str) -> questions.Question:
    return replace(questions.detect(scene, [phrase]), task="segment")


def all_questions(scene: world.Scene, family: str) -> list[questions.Question]:
    rng = random.Random(scene.text)
    drawn = [questions.vqa(scene, kind, rng) for kind in questions.KINDS]
    drawn.append(questions.Question("caption", "caption", "", questions.caption(scene)))
    drawn += [questions.detect(scene, [phrase]) for phrase in questions.phrases(scene, unique=True)[:2]]
    drawn.append(questions.Question("ocr", "ocr", "", scene.text or "nothing"))
    if family == "paligemma":
        drawn += [masked(scene, phrase) for phrase in questions.phrases(scene)[:2]]
    return [question for question in drawn if question is not None]


def request(question: questions.Question, image: Image) -> Request:
    fields: dict[str, object] = {}
    if question.task == "vqa":
        fields = {"question": question.text}
    elif question.task in ("detect", "segment"):
        fields = {"labels": question.text.split(" ; ")}
    return TASKS[question.task].request(image=image, **fields)


@pytest.mark.parametrize("toy", TOYS)
def test_served_prompts_equal_the_trained_prompts(toy: str) -> None:
    family = recipes.RECIPES[toy].family
    seen = set()
    for scene in SCENES:
        picture = Image.of(world.draw(scene))
        for question in all_questions(scene, family):
            (prompt,) = MODELS[f"toy-{toy}"].skills[question.task].ask(request(question, picture))
            if family == "llava":
                trained = prompts.turn(prompts.llava(question, (picture.width, picture.height))[0])
            else:
                trained = prompts.paligemma(question)[0]
            assert prompt.text == trained
            seen.add(question.task)
    assert seen == {"vqa", "caption", "detect", "ocr"} | ({"segment"} if family == "paligemma" else set())


@pytest.mark.parametrize("toy", TOYS)
def test_trained_box_parses_as_the_drawn_box(toy: str) -> None:
    family = recipes.RECIPES[toy].family
    for scene in SCENES:
        picture = Image.of(world.draw(scene))
        size = (picture.width, picture.height)
        for phrase in questions.phrases(scene, unique=True):
            question = questions.detect(scene, [phrase])
            answer = (
                prompts.llava(question, size)[1]
                if family == "llava"
                else prompts.paligemma(question, recipes.RECIPES[toy].first_loc, recipes.RECIPES[toy].loc_step)[1]
            )
            result = MODELS[f"toy-{toy}"].skills["detect"].parse([Generation(answer)], request(question, picture))
            assert isinstance(result, DetectResult)
            (item,) = result.boxes
            true = question.boxes[0][1]
            drawn = (true[0] * size[0], true[1] * size[1], true[2] * size[0], true[3] * size[1])
            assert item.label == phrase
            assert item.box == pytest.approx(drawn, abs=0.02 * max(size))


@pytest.mark.parametrize("toy", [name for name in TOYS if MODELS[f"toy-{name}"].prefix_lm])
def test_trained_mask_parses_as_the_drawn_mask(toy: str) -> None:
    for scene in SCENES[:10]:
        picture = Image.of(world.draw(scene))
        for shape in scene.shapes:
            question = masked(scene, shape.name)
            answer = prompts.paligemma(question, recipes.RECIPES[toy].first_loc, recipes.RECIPES[toy].loc_step)[1]
            result = MODELS[f"toy-{toy}"].skills["segment"].parse([Generation(answer)], request(question, picture))
            assert isinstance(result, SegmentResult)
            true = masks.mask(scene, shape, (picture.width, picture.height))
            parsed = [decode(item.mask) for item in result.boxes]
            assert max((true & mask).sum() / (true | mask).sum() for mask in parsed) > 0.75
