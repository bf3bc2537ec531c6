"""What every model, skill and merge rule must hold, over all entries of the tables."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from decoders import saved, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engines.base import Spoken, Token
from serve.errors import ParseError
from serve.image import Image
from serve.masks import encode
from serve.models import MODELS
from serve.models.base import Model, Turn
from serve.models.mask_decoder import VARIABLE
from serve.tasks import TASKS
from serve.tasks.base import Merged, Reply, Request, Result
from serve.tasks.boxes import DetectResult, LabelledBox
from serve.tasks.caption import CaptionResult
from serve.tasks.chat import ChatResult
from serve.tasks.ocr import OcrResult
from serve.tasks.segment import LabelledMask, SegmentResult
from serve.tasks.vqa import VqaResult

WIDTH, HEIGHT = 40, 30
PICTURE = Image(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
FIELDS: dict[str, dict[str, object]] = {
    "vqa": {"question": "what color is the circle?"},
    "caption": {},
    "ocr": {},
    "detect": {"labels": ["red circle", "blue star"]},
    "segment": {"labels": ["red circle", "blue star"]},
    "chat": {"question": "What do you see?"},
}
PAIRS = [(model, task) for model in MODELS.values() for task in model.skills]


@pytest.fixture(autouse=True, scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Segmenting needs a mask decoder: any will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, saved(tmp_path_factory.mktemp("decoder"), weights()))
        yield


words = st.sampled_from(["yes", "No.", "red", "a red", "two", "2", "", "a blue circle and a star", "a star"])
pages = st.lists(words, max_size=3).map("\n".join)
left, top = st.floats(0, WIDTH - 8), st.floats(0, HEIGHT - 6)


def box(x: float, y: float, label: str, score: float) -> LabelledBox:
    return LabelledBox(label=label, box=(x, y, x + 8, y + 6), score=score)


def mask(found: LabelledBox, shape: str) -> LabelledMask:
    """A mask inside a box of the picture: all of it, its left half, or nothing."""
    x0, y0, x1, y1 = found.box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside = (columns + 0.5 >= x0) & (columns + 0.5 < x1) & (rows + 0.5 >= y0) & (rows + 0.5 < y1)
    edge = {"whole": x1, "left": (x0 + x1) / 2, "none": x0}[shape]
    return LabelledMask(**found.model_dump(), mask=encode(inside & (columns + 0.5 < edge)))


found = st.builds(box, left, top, st.sampled_from(["cat", "A cat", "dog"]), st.floats(0, 1))
cut_out = st.builds(mask, found, st.sampled_from(["whole", "left", "none"]))
RESULTS: dict[str, st.SearchStrategy[Result]] = {
    "vqa": st.builds(VqaResult, answer=words),
    "caption": st.builds(CaptionResult, caption=words),
    "ocr": st.builds(OcrResult, text=pages),
    "chat": st.builds(ChatResult, text=words),
    "detect": st.builds(DetectResult, boxes=st.lists(found, max_size=4)),
    "segment": st.builds(SegmentResult, boxes=st.lists(cut_out, max_size=4)),
}


def request(task: str) -> Request:
    return TASKS[task].request(image=PICTURE, **FIELDS[task])


def reply(model: str, result: Result, confidence: float = 0.5) -> Reply:
    return Reply(model=model, status="ok", result=result, confidence=confidence)


@pytest.mark.parametrize(("model", "task"), PAIRS, ids=lambda x: x if isinstance(x, str) else x.name)
def test_every_skill_asks_prompts_that_hold_the_picture(model: Model, task: str) -> None:
    prompts = model.skills[task].ask(request(task))
    assert prompts and all(prompt.image is PICTURE and prompt.sampling.temperature == 0 for prompt in prompts)


@pytest.mark.parametrize(("model", "task"), PAIRS, ids=lambda x: x if isinstance(x, str) else x.name)
@given(said=st.text(max_size=80))
@settings(max_examples=30)
def test_every_parser_takes_any_words(model: Model, task: str, said: str) -> None:
    asked = request(task)
    prompts = model.skills[task].ask(asked)
    try:
        result = model.skills[task].parse([Spoken(said)] * len(prompts), asked)
    except ParseError as error:
        assert error.message
    else:
        assert isinstance(result, TASKS[task].result)
        assert isinstance(TASKS[task].words(result), str)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_every_model_takes_one_question_about_one_picture(model: Model) -> None:
    assert "hello" in model.converse([Turn("user", "hello", pictured=True)])
    assert set(model.skills) <= set(TASKS)


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
def test_merging_one_reply_gives_that_reply(task: str, data: st.DataObject) -> None:
    only = data.draw(RESULTS[task])
    for rule in TASKS[task].methods.values():
        merged = rule([reply("a", only)], {})
        assert merged.result == only
        assert merged.agreement == pytest.approx(1)
        assert merged.models == ["a"]


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
def test_merging_is_sane_and_repeatable(task: str, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(RESULTS[task], min_size=1, max_size=4))
    sure = data.draw(st.lists(st.floats(0, 1), min_size=4, max_size=4))
    replies = [reply("abcd"[i], result, sure[i]) for i, result in enumerate(drawn)]
    weights = data.draw(st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1000)))
    for rule in TASKS[task].methods.values():
        merged = rule(replies, weights)
        assert merged == rule(list(replies), dict(weights))
        assert 0 <= merged.agreement <= 1
        assert set(merged.deviations) == set(merged.models) == {r.model for r in replies}
        assert all(set(camp) <= set(merged.models) and camp for camp in merged.supporters)
        for one in getattr(merged.result, "boxes", []):
            assert 0 <= one.score <= 1 and one.box[0] < one.box[2] and one.box[1] < one.box[3]


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
def test_models_that_say_the_same_agree(task: str, data: st.DataObject) -> None:
    same = data.draw(RESULTS[task].filter(_apart))
    merged = next(iter(TASKS[task].methods.values()))([reply(name, same) for name in "abc"], {})
    assert merged.agreement == pytest.approx(1)
    assert all(camp == ["a", "b", "c"] for camp in merged.supporters)


def _apart(result: Result) -> bool:
    """Boxes that one model itself draws on top of each other cannot be told apart between models."""
    if not isinstance(result, DetectResult | SegmentResult):
        return True
    pairs = itertools.combinations(result.boxes, 2)
    return all(abs(p.box[0] - q.box[0]) >= 8 or abs(p.box[1] - q.box[1]) >= 6 for p, q in pairs)


def votes(*answers: tuple[str, float], weights: dict[str, float] | None = None) -> Merged:
    replies: Sequence[Reply] = [reply(f"m{i}", VqaResult(answer=a), c) for i, (a, c) in enumerate(answers)]
    return TASKS["vqa"].methods["vote"](replies, weights or {})


def test_vote() -> None:
    merged = votes(("blue", 0.99), ("Red.", 0.2), ("a red", 0.3))
    assert merged.result == VqaResult(answer="a red")  # the surest of the winning camp speaks for it
    assert merged.supporters == [["m1", "m2"]]
    assert merged.agreement == pytest.approx(2 / 3)
    assert votes(("blue", 0.6), ("red", 0.7)).result == VqaResult(answer="red")  # a tie: confidence
    assert votes(("blue", 0.7), ("red", 0.7)).result == VqaResult(answer="blue")  # and then the catalogue
    assert votes(("blue", 0.1), ("red", 0.9), weights={"m0": 3}).result == VqaResult(answer="blue")


def test_medoid_is_the_most_central_text() -> None:
    texts = ["a red circle and a star", "a dog", "a red circle and a blue star"]
    replies = [reply(name, CaptionResult(caption=text)) for name, text in zip("abc", texts, strict=True)]
    merged = TASKS["caption"].methods["medoid"](replies, {})
    assert merged.result in (replies[0].result, replies[2].result)
    assert "b" not in merged.supporters[0]
    assert merged.deviations["b"] > 0.5


def test_boxes_are_fused_by_score_and_a_lone_box_scores_by_its_share() -> None:
    one = DetectResult(boxes=[LabelledBox(label="cat", box=(0, 0, 10, 10), score=0.9)])
    two = DetectResult(
        boxes=[
            LabelledBox(label="A cat", box=(1, 0, 11, 10), score=0.3),
            LabelledBox(label="dog", box=(20, 20, 30, 30), score=0.8),
        ]
    )
    merged = TASKS["detect"].methods["weighted_box_fusion"]([reply("a", one), reply("b", two)], {})
    assert isinstance(merged.result, DetectResult)
    cat, dog = merged.result.boxes
    assert cat.box == (0.25, 0, 10.25, 10) and cat.score == pytest.approx(0.6)
    assert dog.box == (20, 20, 30, 30) and dog.score == pytest.approx(0.4)
    assert merged.supporters == [["a", "b"], ["b"]]


def test_labels_are_fused_apart() -> None:
    replies = [
        reply(name, DetectResult(boxes=[LabelledBox(label=label, box=(0, 0, 9, 9), score=1)]))
        for name, label in (("a", "cat"), ("b", "dog"))
    ]
    merged = TASKS["detect"].methods["weighted_box_fusion"](replies, {})
    assert isinstance(merged.result, DetectResult) and len(merged.result.boxes) == 2


def test_nothing_found_by_anyone_is_full_agreement() -> None:
    merged = TASKS["detect"].methods["weighted_box_fusion"]([reply(n, DetectResult(boxes=[])) for n in "ab"], {})
    assert merged.agreement == 1 and merged.supporters == []


def test_confidence_reads_the_tokens_under_the_words() -> None:
    spoken = Spoken("ab cd", (Token("ab", math.log(0.5)), Token(" cd", math.log(0.125))))
    assert spoken.confidence() == pytest.approx(0.25)
    assert spoken.confidence(0, 2) == pytest.approx(0.5)
    assert spoken.confidence(3, 5) == pytest.approx(0.125)
    assert Spoken("ab").confidence() == 1
