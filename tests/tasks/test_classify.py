import json
import math

import numpy as np
import pytest

from serve.engines.base import Generation, ReasoningOptions, Token
from serve.errors import ParseError
from serve.media.image import Image
from serve.models import MODELS
from serve.models.instructed import chat_messages, instructed_skills
from serve.models.reasoning import Reasoning
from serve.tasks.classify import ClassifyRequest
from serve.tasks.scored_labels import ClassifyResult

IMAGE = Image(np.zeros((30, 40, 3), np.uint8))
SINGLE = ClassifyRequest(image=IMAGE, labels=["A cat", "dog", "polar bear"])
SEVERAL = ClassifyRequest(image=IMAGE, labels=["A cat", "dog", "polar bear"], multiple=True)
INSTRUCTED = instructed_skills(chat_messages)["classify"]


def read(text: str, request: ClassifyRequest, *, cut: bool = False) -> list[str]:
    result = INSTRUCTED.parse([Generation(text, cut=cut)], request)
    assert isinstance(result, ClassifyResult) and result.multiple == request.multiple
    return [label.label for label in result.labels]


def spoken(answer: str, probability: float) -> Generation:
    return Generation(answer, (Token(answer, math.log(probability)),))


def test_instructed_model_is_held_to_the_labels_by_a_schema_where_its_engine_takes_one() -> None:
    (prompt,) = INSTRUCTED.ask(SINGLE)
    schema = json.loads(prompt.sampling.json_schema or "")
    assert schema["properties"]["label"]["enum"] == ["A cat", "dog", "polar bear"] and prompt.sampling.logprobs
    (prompt,) = INSTRUCTED.ask(SEVERAL)
    assert json.loads(prompt.sampling.json_schema or "")["properties"]["labels"]["maxItems"] == 3
    free = instructed_skills(chat_messages, schemas=False)["classify"]
    assert free.ask(SINGLE)[0].sampling.json_schema is None


@pytest.mark.parametrize("text", ['{"label": "cat"}', '```json\n{"label": "A cat."}\n```', "cat", "A cat."])
def test_label_is_read_in_the_spelling_of_the_request(text: str) -> None:
    assert read(text, SINGLE) == ["A cat"]


def test_model_that_reasons_is_not_held_to_a_schema() -> None:
    (prompt,) = INSTRUCTED.ask(SINGLE)
    reasoning = Reasoning(switchable=True)
    assert reasoning.prompt(prompt, ReasoningOptions("high"), extend=True).sampling.json_schema is None
    assert reasoning.prompt(prompt, ReasoningOptions("none"), extend=True).sampling.json_schema


def test_several_labels_are_read_or_none() -> None:
    assert read('{"labels": ["dog", "polar bear", "dog"]}', SEVERAL) == ["dog", "polar bear"]
    assert read('{"labels": []}', SEVERAL) == []


@pytest.mark.parametrize(
    ("text", "classify", "cut"),
    [
        ('{"label": "horse"}', SINGLE, False),
        ('{"labels": ["dog", "horse"]}', SEVERAL, False),
        ("It may be a cat.", SINGLE, False),
        ("", SINGLE, False),
        ("polar", SINGLE, True),
        ('{"labels": ["dog"', SEVERAL, True),
        ("dog", SEVERAL, False),
        ('{"label": 3}', SINGLE, False),
        ('{"label": ["A cat", "dog"]}', SINGLE, False),
        ('{"label": []}', SINGLE, False),
        ("{" * 5000, SINGLE, False),
    ],
)
def test_answer_outside_the_labels_is_an_error(text: str, classify: ClassifyRequest, cut: bool) -> None:
    with pytest.raises(ParseError):
        read(text, classify, cut=cut)


def test_toy_answers_a_question_for_each_label_and_the_most_probable_is_taken() -> None:
    for name in ("toy-llava", "toy-paligemma"):
        skill = MODELS[name].skills["classify"]
        prompts = skill.ask(SINGLE)
        assert ["Is there a cat?" in prompts[0].text, "Is there a polar bear?" in prompts[2].text] == [True, True]
        assert skill.prompts(SINGLE) == len(prompts) == 3
        result = skill.parse([spoken("no", 0.9), spoken("no", 0.6), spoken("no", 0.7)], SINGLE)
        assert isinstance(result, ClassifyResult)
        assert [(label.label, label.score) for label in result.labels] == [("dog", pytest.approx(0.302, rel=0.01))]
        several = skill.parse([spoken("yes", 0.9), spoken("no", 0.6), spoken("Yes.", 0.4)], SEVERAL)
        assert isinstance(several, ClassifyResult)
        assert [label.label for label in several.labels] == ["A cat", "polar bear"]


@pytest.mark.parametrize(("second", "least", "most"), [("no", 0.97, 0.99), ("yes", 0.7, 0.8)])
def test_yes_to_two_labels_is_less_sure_of_the_one_that_is_chosen(second: str, least: float, most: float) -> None:
    answers = [spoken("yes", 0.99), spoken(second, 0.97), spoken("no", 0.99)]
    result = MODELS["toy-llava"].skills["classify"].parse(answers, SINGLE)
    assert isinstance(result, ClassifyResult)
    assert result.labels[0].label == "A cat" and least < result.labels[0].score < most


def test_answer_of_a_toy_that_tells_no_label_apart_is_an_error() -> None:
    parse = MODELS["toy-llava"].skills["classify"].parse
    with pytest.raises(ParseError, match="'red' is neither yes nor no"):
        parse([spoken("yes", 0.9), spoken("red", 0.9), spoken("no", 0.9)], SEVERAL)
    with pytest.raises(ParseError, match="one label from another"):
        parse([Generation("yes"), Generation("yes"), Generation("no")], SINGLE)
