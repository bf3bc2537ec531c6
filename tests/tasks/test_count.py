import numpy as np
import pytest
from pydantic import ValidationError

from serve.engines.base import Generation
from serve.errors import BadRequest, ParseError
from serve.media.image import Image
from serve.tasks.count import COUNT, CountRequest, CountResult

IMAGE = Image(np.zeros((30, 40, 3), np.uint8))


@pytest.mark.parametrize(
    ("question", "thing"),
    [
        ("red circle", "red circle"),
        (" The Cats. ", "The Cats"),
        ("rote Kreise", "rote Kreise"),
        ("How many red buses are there?", "red bus"),
        ("how many boys do you see in the photo", "boy"),
        ("How many people are in this picture?", "person"),
        ("How many people are wearing hats?", "people that are wearing hats"),
        ("How many people with hats can be seen?", "person with hats"),
        ("Please count all the dogs in the image.", "dog"),
        ("Count how many houses there are.", "house"),
        ("Count the number of cats in the image.", "cat"),
        ("Tell me the number of red cars", "red car"),
        ("Please give me the total number of cats", "cat"),
        ("What is the total number of cats?", "cat"),
        ("Can you count the cats?", "cat"),
        ("Could you please tell me how many cats there are?", "cat"),
        ("Count each of the cats.", "cat"),
        ("number plate", "number plate"),
        ("What is the number of cats and dogs?", "cats and dogs"),
    ],
)
def test_question_names_the_thing_that_is_counted(question: str, thing: str) -> None:
    request = CountRequest(image=IMAGE, question=question)
    assert (request.thing, request.labels) == (thing, [thing])
    assert COUNT.instruction is not None and f'How many of "{thing}" are there' in COUNT.instruction.prompt(request)


@pytest.mark.parametrize(
    "question",
    ["Is there a cat?", "How many?", "How many are there?", "How many legs does it have?", "Wie viele?", "x" * 201],
)
def test_question_that_names_no_thing_is_refused(question: str) -> None:
    with pytest.raises(ValidationError, match="name one thing to count"):
        CountRequest(image=IMAGE, question=question)


def test_labels_of_a_count_are_refused_with_the_name_of_the_field_to_use() -> None:
    with pytest.raises(BadRequest, match="written in question, not in labels") as refusal:
        CountRequest.model_validate({"image": IMAGE, "labels": ["cat"]})
    assert refusal.value.param == "labels"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("3", 3),
        ("There are three cats.", 3),
        ("None", 0),
        ("1,200 people", 1200),
        ("3 (three)", 3),
        ("**12**", 12),
        ("I see 4. So the answer is 4.", 4),
        ("No one.", 0),
        ("Nobody is there", 0),
    ],
)
def test_number_is_read_in_digits_and_words(text: str, count: int) -> None:
    assert CountResult.read(Generation(text)).count == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "many",
        "2 or 3",
        "two or three",
        "-3",
        "3.5",
        "50%",
        "10-12",
        "10–12",
        "10 - 12",
        "2024-11-28",
        "12345678",
        "9" * 10_000,
        "Twenty-one",
        "thirty two",
        "two hundred",
        "2 thousand",
        "2 dozen",
        "50 %",
        "50 percent",
        "\u22123",
        "minus three",
        "Not a single one.",
        "I don't see one",
        "None of the 3",
    ],
)
def test_reply_without_one_number_is_an_error(text: str) -> None:
    with pytest.raises(ParseError, match="does not say one number"):
        CountResult.read(Generation(text))


def test_cut_reply_without_a_number_says_so() -> None:
    with pytest.raises(ParseError, match="cut by max_tokens"):
        CountResult.read(Generation("There are", cut=True))
