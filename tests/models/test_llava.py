import numpy as np
import pytest

from serve.engines.base import Generation, Token
from serve.errors import BadRequest, ParseError
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import Turn
from serve.models.llava import PAD_COLOUR, llava_prompt, pad
from serve.models.llava_tasks import parse_padded_boxes
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


def test_prompts_are_as_published() -> None:
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


def test_conversation_prompt_is_as_published_and_bad_order_is_refused() -> None:
    turns = [
        Turn("system", "Be brief."),
        Turn("user", "What is it?", has_image=True),
        Turn("assistant", "A cat."),
        Turn("user", "Sure?"),
    ]
    assert llava_prompt(turns) == "Be brief. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"
    with pytest.raises(BadRequest, match="last message"):
        llava_prompt(turns[:-1])
    with pytest.raises(BadRequest, match="must come first"):
        llava_prompt([turns[1], turns[0], turns[3]])


def test_toy_refuses_history_and_text_without_an_image() -> None:
    toy = MODELS["toy-llava"]
    for turns in ([Turn("user", "hi")], [Turn("user", "a", True), Turn("assistant", "b"), Turn("user", "c")]):
        with pytest.raises(BadRequest) as error:
            toy.converse(turns)
        assert error.value.param == "messages"


def test_image_is_padded_to_a_square_and_not_cropped() -> None:
    square = pad(WIDE)
    assert (square.width, square.height) == (100, 100)
    assert tuple(square.pixels[0, 0]) == PAD_COLOUR
    assert (square.pixels[25:75] == 0).all()


def test_boxes_map_back_from_the_padded_square_and_score_by_their_tokens() -> None:
    request = DetectRequest(image=WIDE, labels=["cat", "dog"])
    generations = [
        Generation(" [0.10, 0.25, 0.50, 0.75]", (Token(" ", -9.0), Token("[0.10, 0.25, 0.50, 0.75]", 0.0))),
        Generation("[.5,.3,1.0,.9]"),
    ]
    boxes = parse_padded_boxes(generations, request).boxes
    assert [b.label for b in boxes] == ["cat", "dog"]
    assert boxes[0].box == (10, 0, 50, 50) and boxes[0].score == 1
    assert boxes[1].box == (50, 5, 100, 50)


@pytest.mark.parametrize("reply", ["no cat here", "[0.1, 0.2, 0.3]", "[10, 20, 30, 40]", "[0.5, 0.5, 0.1, 0.9]", ""])
def test_reply_without_a_box_raises_parse_error(reply: str) -> None:
    with pytest.raises(ParseError):
        parse_padded_boxes([Generation(reply)], DetectRequest(image=WIDE, labels=["cat"]))


def test_prompts_use_normalized_phrases_and_boxes_keep_the_requested_labels() -> None:
    request = DetectRequest(image=WIDE, labels=[" The Cat.", "cat", '"dog"', "a  cow; brown"])
    assert request.labels == [" The Cat.", '"dog"', "a  cow; brown"]
    assert [line.split("describes: ")[1].split(" ASSISTANT")[0].strip() for line in texts("detect", request)] == [
        "The Cat",
        "dog",
        "a cow brown",
    ]
    boxes = parse_padded_boxes([Generation("[0.1, 0.3, 0.5, 0.7]")] * 3, request).boxes
    assert [item.label for item in boxes] == request.labels  # the same box under two labels is two objects


@pytest.mark.parametrize("end", range(1, len("[0.10, 0.30, 0.50, 0.70]")))
def test_box_cut_at_any_character_is_left_out_and_others_stay(end: int) -> None:
    whole, request = "[0.10, 0.30, 0.50, 0.70]", DetectRequest(image=WIDE, labels=["cat", "dog"])
    cut = Generation(whole[:end], cut=True)
    for generations, label in (([Generation(whole), cut], "cat"), ([cut, Generation(whole)], "dog")):
        assert [item.label for item in parse_padded_boxes(generations, request).boxes] == [label]
    with pytest.raises(ParseError, match="cut by max_tokens"):
        parse_padded_boxes([cut, cut], request)


def test_caption_in_another_language_is_refused_naming_the_field() -> None:
    with pytest.raises(BadRequest) as error:
        texts("caption", CaptionRequest(image=WIDE, lang="de"))
    assert error.value.param == "lang"


@pytest.mark.parametrize(
    "reply, text",
    [(' "STOP" ', "STOP"), ("STOP", "STOP"), ("", ""), ('"A" and "B"', '"A" and "B"'), ("nothing", "nothing")],
)
def test_ocr_text_loses_quotation_marks_around_the_whole_text(reply: str, text: str) -> None:
    request = OcrRequest(image=WIDE)
    assert LLAVA.skills["ocr"].parse([Generation(reply)], request).text == text


@pytest.mark.parametrize(
    ("reply", "text"), [('"STOP', "STOP"), (' "STOP AND', "STOP AND"), ('"A" and "B', '"A" and "B'), ("A\nB", "A\nB")]
)
def test_ocr_text_cut_by_max_tokens_is_kept(reply: str, text: str) -> None:
    assert LLAVA.skills["ocr"].parse([Generation(reply, cut=True)], OcrRequest(image=WIDE)).text == text


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (model, task)
        for model in ("llava-1.5-7b", "toy-llava", "paligemma-3b-mix-448", "toy-paligemma")
        for task in ("vqa", "caption", "ocr", "chat")
        if task in MODELS[model].skills
    ],
)
def test_text_cut_by_max_tokens_is_kept_unless_empty(model: str, task: str) -> None:
    """An empty reply that was cut does not mean that the image has no text."""
    fields = {"question": "q"} if task in ("vqa", "chat") else {}
    request = TASKS[task].request(image=WIDE, **fields)
    parse = MODELS[model].skills[task].parse
    for reply in ("a red ci", "2", "no way"):
        assert list(parse([Generation(reply, cut=True)], request).model_dump().values()) == [reply]
    for reply in ("", " \n"):
        with pytest.raises(ParseError, match="cut by max_tokens"):
            parse([Generation(reply, cut=True)], request)


@pytest.mark.parametrize("name", ["toy-llava", "toy-paligemma"])
def test_toy_ocr_cut_within_the_word_nothing_raises_parse_error(name: str) -> None:
    parse = MODELS[name].skills["ocr"].parse
    for reply in ("n", "no", "nothin"):
        assert parse([Generation(reply)], OcrRequest(image=WIDE)).text == reply
        with pytest.raises(ParseError, match="cut by max_tokens"):
            parse([Generation(reply, cut=True)], OcrRequest(image=WIDE))
    assert parse([Generation("nothing", cut=True)], OcrRequest(image=WIDE)).text == ""


@pytest.mark.parametrize("name", ["toy-llava", "toy-paligemma"])
def test_toy_ocr_reply_nothing_means_no_text(name: str) -> None:
    parse = MODELS[name].skills["ocr"].parse
    assert parse([Generation("nothing")], OcrRequest(image=WIDE)).text == ""
    assert parse([Generation("stop")], OcrRequest(image=WIDE)).text == "stop"
