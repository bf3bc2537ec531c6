import numpy as np
import pytest

from serve.engines.base import Spoken, Token
from serve.errors import BadRequest, ParseError
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import Turn
from serve.models.llava import PAD_COLOUR, converse, prepare
from serve.models.llava_tasks import parse_detect
from serve.tasks import TASKS
from serve.tasks.caption import CaptionRequest
from serve.tasks.chat import ChatRequest
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.vqa import VqaRequest

WIDE = Image(np.zeros((50, 100, 3), np.uint8))
LLAVA = MODELS["llava-1.5-7b"]


def texts(task: str, request: object) -> list[str]:
    return [prompt.text for prompt in LLAVA.skills[task].ask(request)]


def test_prompts_are_the_published_ones() -> None:
    assert texts("vqa", VqaRequest(image=WIDE, question="What is it?")) == [
        "USER: <image>\nWhat is it?\nAnswer the question using a single word or phrase. ASSISTANT:"
    ]
    assert texts("caption", CaptionRequest(image=WIDE)) == [
        "USER: <image>\nProvide a one-sentence caption for the provided image. ASSISTANT:"
    ]
    assert texts("chat", ChatRequest(image=WIDE, question="Why?")) == ["USER: <image>\nWhy? ASSISTANT:"]
    assert texts("ocr", OcrRequest(image=WIDE)) == [
        "USER: <image>\nWhat is written in the image? Answer with the text only. ASSISTANT:"
    ]
    region = "Please provide the bounding box coordinate of the region this sentence describes: "
    assert texts("detect", DetectRequest(image=WIDE, labels=["a cat", "dog"])) == [
        f"USER: <image>\n{region}a cat ASSISTANT:",
        f"USER: <image>\n{region}dog ASSISTANT:",
    ]


def test_conversation() -> None:
    turns = [
        Turn("system", "Be brief."),
        Turn("user", "What is it?", pictured=True),
        Turn("assistant", "A cat."),
        Turn("user", "Sure?"),
    ]
    assert converse(turns) == "Be brief. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"
    with pytest.raises(BadRequest, match="last message"):
        converse(turns[:-1])
    with pytest.raises(BadRequest, match="must come first"):
        converse([turns[1], turns[0], turns[3]])


def test_the_toy_takes_one_question_only() -> None:
    toy = MODELS["toy-llava"]
    for turns in ([Turn("user", "hi")], [Turn("user", "a", True), Turn("assistant", "b"), Turn("user", "c")]):
        with pytest.raises(BadRequest) as refused:
            toy.converse(turns)
        assert refused.value.param == "messages"


def test_the_picture_is_padded_not_cropped() -> None:
    square = prepare(WIDE)
    assert (square.width, square.height) == (100, 100)
    assert tuple(square.pixels[0, 0]) == PAD_COLOUR
    assert (square.pixels[25:75] == 0).all()


def test_boxes_map_back_from_the_padded_square_and_carry_their_tokens_confidence() -> None:
    asked = DetectRequest(image=WIDE, labels=["cat", "dog"])
    said = [
        Spoken(" [0.10, 0.25, 0.50, 0.75]", (Token(" ", -9.0), Token("[0.10, 0.25, 0.50, 0.75]", 0.0))),
        Spoken("[.5,.3,1.0,.9]"),
    ]
    boxes = parse_detect(said, asked).boxes
    assert [b.label for b in boxes] == ["cat", "dog"]
    assert boxes[0].box == (10, 0, 50, 50) and boxes[0].score == 1
    assert boxes[1].box == (50, 5, 100, 50)


@pytest.mark.parametrize("words", ["no cat here", "[0.1, 0.2, 0.3]", "[10, 20, 30, 40]", "[0.5, 0.5, 0.1, 0.9]", ""])
def test_a_reply_without_a_box_is_a_parse_error(words: str) -> None:
    with pytest.raises(ParseError):
        parse_detect([Spoken(words)], DetectRequest(image=WIDE, labels=["cat"]))


def test_each_phrase_is_asked_plainly_and_its_box_bears_the_label_as_it_was_asked() -> None:
    asked = DetectRequest(image=WIDE, labels=[" The Cat.", "cat", '"dog"', "a  cow; brown"])
    assert asked.labels == [" The Cat.", '"dog"', "a  cow; brown"]
    assert [line.split("describes: ")[1].split(" ASSISTANT")[0].strip() for line in texts("detect", asked)] == [
        "The Cat",
        "dog",
        "a cow brown",
    ]
    boxes = parse_detect([Spoken("[0.1, 0.3, 0.5, 0.7]")] * 3, asked).boxes
    assert [found.label for found in boxes] == asked.labels  # the same box under two labels is two objects


@pytest.mark.parametrize("end", range(1, len("[0.10, 0.30, 0.50, 0.70]")))
def test_a_box_that_is_cut_anywhere_is_left_out_and_the_others_stay(end: int) -> None:
    whole, asked = "[0.10, 0.30, 0.50, 0.70]", DetectRequest(image=WIDE, labels=["cat", "dog"])
    cut = Spoken(whole[:end], cut=True)
    for spoken, label in (([Spoken(whole), cut], "cat"), ([cut, Spoken(whole)], "dog")):
        assert [found.label for found in parse_detect(spoken, asked).boxes] == [label]
    with pytest.raises(ParseError, match="cut by max_tokens"):
        parse_detect([cut, cut], asked)


def test_captions_in_other_languages_are_refused_by_name() -> None:
    with pytest.raises(BadRequest) as refused:
        texts("caption", CaptionRequest(image=WIDE, lang="de"))
    assert refused.value.param == "lang"


@pytest.mark.parametrize(
    "words, text",
    [(' "STOP" ', "STOP"), ("STOP", "STOP"), ("", ""), ('"A" and "B"', '"A" and "B"'), ("nothing", "nothing")],
)
def test_text_is_read_as_it_stands_without_the_quotation_marks_around_it(words: str, text: str) -> None:
    asked = OcrRequest(image=WIDE)
    assert LLAVA.skills["ocr"].parse([Spoken(words)], asked).text == text


@pytest.mark.parametrize(
    ("words", "text"), [('"STOP', "STOP"), (' "STOP AND', "STOP AND"), ('"A" and "B', '"A" and "B'), ("A\nB", "A\nB")]
)
def test_text_that_is_cut_stays_as_far_as_it_goes(words: str, text: str) -> None:
    assert LLAVA.skills["ocr"].parse([Spoken(words, cut=True)], OcrRequest(image=WIDE)).text == text


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (model, task)
        for model in ("llava-1.5-7b", "toy-llava", "paligemma-3b-mix-448", "toy-paligemma")
        for task in ("vqa", "caption", "ocr", "chat")
        if task in MODELS[model].skills
    ],
)
def test_words_that_are_cut_are_kept_and_none_are_no_result(model: str, task: str) -> None:
    """Nothing said before max_tokens is no reading of a picture without text."""
    fields = {"question": "q"} if task in ("vqa", "chat") else {}
    asked = TASKS[task].request(image=WIDE, **fields)
    parse = MODELS[model].skills[task].parse
    for words in ("a red ci", "2", "no way"):
        assert list(parse([Spoken(words, cut=True)], asked).model_dump().values()) == [words]
    for words in ("", " \n"):
        with pytest.raises(ParseError, match="cut by max_tokens"):
            parse([Spoken(words, cut=True)], asked)


@pytest.mark.parametrize("name", ["toy-llava", "toy-paligemma"])
def test_a_toy_that_was_cut_while_it_may_have_said_nothing_says_neither(name: str) -> None:
    read = MODELS[name].skills["ocr"].parse
    for words in ("n", "no", "nothin"):
        assert read([Spoken(words)], OcrRequest(image=WIDE)).text == words
        with pytest.raises(ParseError, match="cut by max_tokens"):
            read([Spoken(words, cut=True)], OcrRequest(image=WIDE))
    assert read([Spoken("nothing", cut=True)], OcrRequest(image=WIDE)).text == ""


@pytest.mark.parametrize("name", ["toy-llava", "toy-paligemma"])
def test_the_toys_say_nothing_where_there_is_no_text(name: str) -> None:
    read = MODELS[name].skills["ocr"].parse
    assert read([Spoken("nothing")], OcrRequest(image=WIDE)).text == ""
    assert read([Spoken("stop")], OcrRequest(image=WIDE)).text == "stop"
