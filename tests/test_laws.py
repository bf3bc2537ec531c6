"""What every model, skill and merge rule must hold, over all entries of the tables."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from decoders import saved, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engines.base import Spoken, Token
from serve.errors import ParseError
from serve.media.image import Image
from serve.media.masks import decode, encode
from serve.media.video import Video
from serve.models import MODELS
from serve.models.base import Model, Turn
from serve.models.mask_decoder import VARIABLE
from serve.tasks import TASKS
from serve.tasks.base import Merged, Reply, Request, Result
from serve.tasks.boxes import DetectResult, LabelledBox, label_key
from serve.tasks.caption import CaptionResult
from serve.tasks.chat import ChatResult
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrResult
from serve.tasks.segment import LabelledMask, SegmentResult
from serve.tasks.vqa import VqaResult

WIDTH, HEIGHT = 40, 30
PICTURE = Image(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
FILM = Video(np.zeros((4, HEIGHT, WIDTH, 3), np.uint8), (0.0, 1.0, 2.0, 3.0), 4.0)
FIELDS: dict[str, dict[str, object]] = {
    "vqa": {"question": "what color is the circle?"},
    "caption": {},
    "ocr": {},
    "detect": {"labels": ["red circle", "blue star"]},
    "segment": {"labels": ["red circle", "blue star"]},
    "chat": {"question": "What do you see?"},
}
EXAMPLES = settings(max_examples=settings.default.max_examples // 3, deadline=None)  # for each of hundreds of cases
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


def request(task: str, model: Model | None = None) -> Request:
    """About the picture; about the film for a model that takes nothing else."""
    shown = {"image": PICTURE} if model is None or model.images else {"video": FILM}
    return TASKS[task].request(**shown, **FIELDS[task])


def reply(model: str, result: Result, confidence: float | None = 0.5) -> Reply:
    return Reply(model=model, status="ok", result=result, confidence=confidence)


@pytest.mark.parametrize(("model", "task"), PAIRS, ids=lambda x: x if isinstance(x, str) else x.name)
def test_every_skill_asks_prompts_that_hold_the_picture(model: Model, task: str) -> None:
    prompts = model.skills[task].ask(request(task, model))
    assert prompts and all(prompt.image or prompt.video for prompt in prompts)
    assert all(prompt.sampling.temperature == 0 for prompt in prompts)


@pytest.mark.parametrize(("model", "task"), PAIRS, ids=lambda x: x if isinstance(x, str) else x.name)
@given(said=st.text(max_size=80))
@EXAMPLES
def test_every_parser_takes_any_words(model: Model, task: str, said: str) -> None:
    asked = request(task, model)
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
    assert "hello" in model.converse([Turn("user", "hello", has_image=True)])
    assert set(model.skills) <= set(TASKS)


METHODS = [(task, method) for task in TASKS for method in TASKS[task].methods]
BY_METHOD = pytest.mark.parametrize(("task", "method"), METHODS)


def merge(task: str, method: str, replies: Sequence[Reply], weights: Mapping[str, float] | None = None) -> Merged:
    return TASKS[task].methods[method](replies, weights or {})


@st.composite
def columns(draw: st.DrawFn, task: str, least: int = 1) -> tuple[list[Reply], dict[str, float]]:
    """Up to four models' replies, and weights of some of them, 0 among them."""
    drawn = draw(st.lists(RESULTS[task], min_size=least, max_size=4))
    sure = draw(st.lists(st.floats(0, 1) | st.none(), min_size=4, max_size=4))
    weights = draw(st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1000) | st.just(0.0)))
    return [reply("abcd"[i], result, sure[i]) for i, result in enumerate(drawn)], weights


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_merging_one_reply_gives_that_reply(task: str, method: str, data: st.DataObject) -> None:
    only, weight = data.draw(RESULTS[task]), data.draw(st.floats(0, 1000))
    merged = merge(task, method, [reply("a", only)], {"a": weight})
    assert _approx(merged.result, only)
    assert merged.agreement == pytest.approx(1)
    assert merged.models == ["a"] and merged.method == method and merged.judge is None


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_merging_is_sane_and_repeatable(task: str, method: str, data: st.DataObject) -> None:
    replies, weights = data.draw(columns(task))
    merged = merge(task, method, replies, weights)
    assert merged == merge(task, method, list(replies), dict(weights))
    assert isinstance(merged.result, TASKS[task].result)
    assert 0 <= merged.agreement <= 1
    assert list(merged.deviations) == merged.models == [r.model for r in replies]
    assert all(set(camp) <= set(merged.models) and camp for camp in merged.supporters)
    boxes = getattr(merged.result, "boxes", None)
    assert len(merged.supporters) == (1 if boxes is None else len(boxes))
    for one in boxes or []:
        x0, y0, x1, y1 = one.box
        assert 0 <= one.score <= 1 and 0 <= x0 < x1 <= WIDTH and 0 <= y0 < y1 <= HEIGHT
        if isinstance(one, LabelledMask):
            rows, columns_ = np.nonzero(decode(one.mask))
            assert one.mask.size == (HEIGHT, WIDTH)
            assert not len(rows) or (x0 - 1 <= columns_.min() <= columns_.max() < x1 + 1)
            assert not len(rows) or (y0 - 1 <= rows.min() <= rows.max() < y1 + 1)


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_the_order_of_replies_only_decides_ties(task: str, method: str, data: st.DataObject) -> None:
    """The router hands replies on in catalogue order, whoever was first; a rule itself needs that order for ties only.

    Confidences, scores and weights here make no two sides of a disagreement equal.
    """
    replies, _ = data.draw(columns(task, least=2))
    for at, one in enumerate(replies):
        one.confidence = (0.501, 0.603, 0.707, 0.809)[at]
        for row, box in enumerate(getattr(one.result, "boxes", [])):
            box.score = (0.501, 0.603, 0.707, 0.809)[at] + 0.0137 * row
    weights = dict(zip("abcd", (1.0, 1.31, 1.73, 2.19), strict=True))
    merged = merge(task, method, replies, weights)
    turned = merge(task, method, data.draw(st.permutations(replies)), weights)
    assert _approx(turned.result, merged.result)
    assert turned.agreement == pytest.approx(merged.agreement, abs=1e-6)
    assert turned.deviations == pytest.approx(merged.deviations, abs=1e-6)
    assert sorted(map(sorted, turned.supporters)) == sorted(map(sorted, merged.supporters))


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_another_model_that_says_the_merged_reply_does_not_lower_agreement(
    task: str, method: str, data: st.DataObject
) -> None:
    replies, weights = data.draw(columns(task))
    merged = merge(task, method, replies, weights)
    for one in replies:
        if merged.deviations[one.model] == 0 and all(_apart(other.result) for other in replies):
            twin = one.model_copy(update={"model": "twin"})
            more = merge(task, method, [*replies, twin], weights | {"twin": weights.get(one.model, 1.0)})
            assert more.agreement >= merged.agreement - 1e-6


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_models_that_say_the_same_agree(task: str, method: str, data: st.DataObject) -> None:
    same = data.draw(RESULTS[task].filter(_apart))
    merged = merge(task, method, [reply(name, same) for name in "abc"])
    assert _approx(merged.result, same)
    assert merged.agreement == pytest.approx(1)
    assert all(camp == ["a", "b", "c"] for camp in merged.supporters)


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_weights_of_nothing_but_zero_are_equal_weights(task: str, method: str, data: st.DataObject) -> None:
    replies, _ = data.draw(columns(task))
    assert merge(task, method, replies, dict.fromkeys("abcd", 0.0)) == merge(task, method, replies)


@pytest.mark.parametrize(("model", "task"), [pair for pair in PAIRS if "labels" in FIELDS[pair[1]]])
def test_every_phrase_is_asked_and_all_are_one_reply(model: Model, task: str) -> None:
    """A model that takes one phrase at a time is asked once for each; its answers are one result."""
    asked = request(task)
    assert isinstance(asked, DetectRequest)
    prompts = model.skills[task].ask(asked)
    assert len(prompts) in (1, len(asked.labels))
    for at, label in enumerate(asked.labels):
        assert label in prompts[at % len(prompts)].text
    if len(prompts) > 1:
        said = [Spoken("[0.1, 0.1, 0.5, 0.5]"), Spoken("[0.5, 0.5, 0.9, 0.9]")]
        result = model.skills[task].parse(said, asked)
        assert isinstance(result, DetectResult) and [found.label for found in result.boxes] == asked.labels


def _apart(result: Result | None) -> bool:
    """Boxes that one model itself draws on top of each other cannot be told apart between models."""
    if not isinstance(result, DetectResult | SegmentResult):
        return True
    pairs = itertools.combinations(result.boxes, 2)
    return all(abs(p.box[0] - q.box[0]) >= 8 or abs(p.box[1] - q.box[1]) >= 6 for p, q in pairs)


def _approx(a: Result | None, b: Result | None) -> bool:
    """Equal, but for the order of boxes and the last digits of their numbers."""
    if not isinstance(a, DetectResult | SegmentResult) or not isinstance(b, DetectResult | SegmentResult):
        return a == b

    def same(p: LabelledBox, q: LabelledBox) -> bool:
        near = p.box == pytest.approx(q.box, abs=0.02) and p.score == pytest.approx(q.score, abs=1e-6)
        return near and label_key(p.label) == label_key(q.label) and getattr(p, "mask", 0) == getattr(q, "mask", 0)

    left = list(b.boxes)
    for one in a.boxes:
        twin = next((other for other in left if same(one, other)), None)
        if twin is None:
            return False
        left.remove(twin)
    return not left


@given(
    st.lists(st.tuples(st.text("ab", max_size=3), st.floats(-9, 0)), max_size=8), st.integers(0, 20), st.integers(0, 20)
)
def test_confidence_is_of_every_token_that_overlaps(tokens: list[tuple[str, float]], start: int, length: int) -> None:
    spoken = Spoken("".join(text for text, _ in tokens), tuple(Token(text, sure) for text, sure in tokens))
    end, at, sure = start + length, 0, []
    for text, logprob in tokens:
        if at < end and at + len(text) > start:
            sure.append(logprob)
        at += len(text)
    expected = math.exp(sum(sure) / len(sure)) if sure else 1.0
    assert spoken.confidence(start, end) == pytest.approx(expected)


def test_confidence_reads_the_tokens_under_the_words() -> None:
    spoken = Spoken("ab cd", (Token("ab", math.log(0.5)), Token(" cd", math.log(0.125))))
    assert spoken.confidence() == pytest.approx(0.25)
    assert spoken.confidence(0, 2) == pytest.approx(0.5)
    assert spoken.confidence(3, 5) == pytest.approx(0.125)
    assert Spoken("ab").confidence() == 1
