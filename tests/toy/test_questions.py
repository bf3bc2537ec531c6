import random
from collections import Counter

import pytest

from serve.toy import questions, world
from serve.toy.world import Scene, Shape

SCENE = Scene(
    seed=0,
    size=(224, 168),
    background="gray",
    shapes=(
        Shape("circle", "red", (0.05, 0.05, 0.25, 0.35)),
        Shape("star", "orange", (0.4, 0.6, 0.6, 0.9)),
        Shape("circle", "blue", (0.7, 0.6, 0.9, 0.9)),
    ),
    text="STOP",
    text_box=(0.4, 0.1, 0.9, 0.3),
    font=50,
)


def answers(kind):
    rng = random.Random(0)
    drawn = [questions.vqa(SCENE, kind, rng) for _ in range(40)]
    return {question.text: question.answer for question in drawn if question is not None}


def test_caption_lists_shapes_and_text():
    assert questions.caption(SCENE) == "a red circle, an orange star and a blue circle and the word STOP"


def test_vqa_answers_are_true():
    assert answers("color") == {"What color is the star?": "orange"}
    assert answers("shape")["What shape is the orange object?"] == "star"
    assert answers("count") == {"How many shapes are there?": "3"}
    assert answers("count_kind")["How many circles are there?"] == "2"
    assert answers("background") == {"What color is the background?": "gray"}
    assert answers("where") == {"Where is the red circle?": "top left", "Where is the blue circle?": "bottom right"}
    exists = answers("exists")
    assert exists["Is there a red circle?"] == "yes"
    assert exists.get("Is there an orange star?", "yes") == "yes"
    assert all((answer == "yes") == bool(questions.matching(SCENE, text[9:-1].split(" ", 1)[1]))
               for text, answer in exists.items())  # fmt: skip


def test_answers_yes_and_no_are_equally_frequent():
    rng = random.Random(1)
    counts = Counter(questions.vqa(world.scene(seed), "exists", rng).answer for seed in range(400))
    assert 160 < counts["yes"] < 240


def test_unknown_question_type_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown question type 'size'"):
        questions.vqa(SCENE, "size", random.Random(0))


def test_detect_lists_boxes_phrase_by_phrase():
    question = questions.detect(SCENE, ["circle", "orange star"])
    assert question.text == "circle ; orange star"
    assert [phrase for phrase, _ in question.boxes] == ["circle", "circle", "orange star"]
    assert questions.phrases(SCENE, unique=True) == ["red circle", "orange star", "star", "blue circle"]


def test_chat_answers_are_sentences():
    rng = random.Random(2)
    replies = {questions.chat(world.scene(seed), rng).answer for seed in range(500)}
    assert all(answer.endswith(".") and answer[0].isupper() for answer in replies)
    assert not any("  " in answer or "the the" in answer or " a orange" in answer for answer in replies)
    starts = (
        "I see ",
        "It says ",
        "The background is ",
        "There is 1 ",
        "There are ",
        "Yes, there is ",
        "No, there is no ",
    )
    for start in starts:
        assert any(answer.startswith(start) for answer in replies), start
