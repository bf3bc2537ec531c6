"""Holds every task, merge rule, model and skill to the same laws, over all entries of TASKS and MODELS. Of models that
differ in their size alone one is drawn for.

A new entry needs no line here. What it declares itself is drawn and sent: a task's `example`, a result by its fields'
types. Only a result that random fields do not make well (boxes inside the image) has a strategy in RESULTS.
tasks/test_new_task.py takes a task that no other file names through every place that knows tasks.
"""

import dataclasses
import importlib
import itertools
import math
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pytest
from decoders import saved, weights
from distinct_models import distinct
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from served import LLAVA

import serve.models
import serve.tasks
from serve.engines.base import Generation
from serve.errors import ParseError
from serve.media.image import Image
from serve.media.masks import decode, encode
from serve.media.video import Video
from serve.models import FAMILIES, MODELS
from serve.models.base import Model, Turn
from serve.models.instructed import chat_messages, instructed_skills
from serve.models.mask_decoder import VARIABLE
from serve.router import merge_replies
from serve.tasks import TASKS
from serve.tasks.base import Task
from serve.tasks.boxes import DetectResult, LabelledBox, label_key
from serve.tasks.detect import DetectRequest
from serve.tasks.extracted import ExtractResult, field_likeness
from serve.tasks.ocr import OcrResult
from serve.tasks.points import LabelledPoint, PointResult
from serve.tasks.reply import Merged, Reply, Result
from serve.tasks.request import Request
from serve.tasks.scored_labels import ClassifyResult, ScoredLabel
from serve.tasks.segment import LabelledMask, SegmentResult
from serve.tasks.vqa import VqaResult

WIDTH, HEIGHT = 40, 30
IMAGE = Image(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
VIDEO = Video(np.zeros((4, HEIGHT, WIDTH, 3), np.uint8), (0.0, 1.0, 2.0, 3.0), 4.0)
EXAMPLES = settings(max_examples=settings.default.max_examples // 3, deadline=None)  # for each of hundreds of cases
INSTRUCTED = dataclasses.replace(MODELS[LLAVA], name="instructed", skills=instructed_skills(chat_messages))
ABLE = {task: [model for model in [*distinct(), INSTRUCTED] if task in model.skills] for task in TASKS}
"""The models of each task. A law over them takes all in one test, which draws once for all of them."""


@pytest.fixture(autouse=True, scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Provide a mask decoder, which segmenting needs: any will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, saved(tmp_path_factory.mktemp("decoder"), weights()))
        yield


texts = st.sampled_from(["yes", "No.", "red", "a red", "two", "2", "", "a blue circle and a star", "a star"])
pages = st.lists(texts, max_size=3).map("\n".join)
left, top = st.floats(0, WIDTH - 8), st.floats(0, HEIGHT - 6)


def make_box(x: float, y: float, label: str, score: float) -> LabelledBox:
    return LabelledBox(label=label, box=(x, y, x + 8, y + 6), score=score)


def make_mask(box: LabelledBox, shape: str) -> LabelledMask:
    """Return a mask inside a box: all of it, its left half, or nothing."""
    x0, y0, x1, y1 = box.box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside = (columns + 0.5 >= x0) & (columns + 0.5 < x1) & (rows + 0.5 >= y0) & (rows + 0.5 < y1)
    edge = {"whole": x1, "left": (x0 + x1) / 2, "none": x0}[shape]
    return LabelledMask(**box.model_dump(), mask=encode(inside & (columns + 0.5 < edge)))


boxes = st.builds(make_box, left, top, st.sampled_from(["cat", "A cat", "dog"]), st.floats(0, 1))
masks = st.builds(make_mask, boxes, st.sampled_from(["whole", "left", "none"]))
points = st.builds(
    LabelledPoint,
    label=st.sampled_from(["cat", "A cat", "dog"]),
    point=st.tuples(*(st.integers(0, 100 * side).map(lambda at: at / 100) for side in (WIDTH, HEIGHT))),
    score=st.floats(0, 1),
)  # hundredths of a pixel, as models answer: points of one model that are 1e-121 apart are one to point fusion
scored = st.builds(ScoredLabel, label=st.sampled_from(["cat", "A cat", "dog", "bird"]), score=st.floats(0, 1))
scalars = st.sampled_from(["Red", " red", "blue", 1, 1.0, 2.5, True, False, None])
objects = st.recursive(
    st.dictionaries(st.sampled_from(["a", "b/c", ""]), scalars, max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(["a", "b/c", "d"]),
        scalars | inner | st.lists(inner, max_size=2) | st.lists(scalars, max_size=3),
    ),
    max_leaves=4,
)
RESULTS: dict[str, st.SearchStrategy[Result]] = {
    "ocr": st.builds(OcrResult, text=pages),
    "detect": st.builds(DetectResult, boxes=st.lists(boxes, max_size=4)),
    "segment": st.builds(SegmentResult, boxes=st.lists(masks, max_size=4)),
    "classify": st.builds(ClassifyResult, labels=st.lists(scored, min_size=1, max_size=1))
    | st.builds(ClassifyResult, labels=st.lists(scored, max_size=3), multiple=st.just(True)),
    "extract": st.builds(ExtractResult, data=objects),
    "point": st.builds(PointResult, points=st.lists(points, max_size=4), size=st.just((HEIGHT, WIDTH))),
}
"""By task, results whose fields depend on each other. Those of other tasks are drawn field by field."""


def results(task: str) -> st.SearchStrategy[Result]:
    """Draw results of a task. Texts come from a few words and most whole numbers are small, so that some models agree;
    other fields are drawn by their types."""
    if task in RESULTS:
        return RESULTS[task]
    kind = TASKS[task].result
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in kind.model_fields.items():
        hint: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        fields[name] = texts if field.annotation is str else st.from_type(hint)
        small = [number for number in range(-2, 4) if field.annotation is int and _takes(hint, number)]
        if small:
            fields[name] = st.sampled_from(small) | fields[name]
    return st.builds(kind, **fields)


def _takes(hint: Any, number: int) -> bool:
    try:
        TypeAdapter(hint).validate_python(number)
    except ValidationError:
        return False
    return True


def request(task: str, model: Model | None = None) -> Request:
    """Return the task's example about the image, or about the video for a model that takes nothing else."""
    media = {"image": IMAGE} if model is None or model.images else {"video": VIDEO}
    return TASKS[task].request(**media, **TASKS[task].example)


def reply(model: str, result: Result, confidence: float | None = 0.5) -> Reply:
    return Reply(model=model, status="ok", result=result, confidence=confidence)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_task_declares_its_text_field_and_an_example(task: Task) -> None:
    place = f"The Task {task.name!r} in serve/tasks"
    names = {field.alias or name: field for name, field in task.request.model_fields.items()}
    text = task.text_field
    required = {name for name, field in names.items() if field.is_required()} - {"image", text.name if text else ""}
    assert not required, (
        f"{place}: clients fill no field {', '.join(required)}. Give it a default, or declare it as what clients "
        "write: text_field=QUESTION, LABELS or TextField(...), of serve/tasks/base.py"
    )
    if text is not None:
        assert text.name in names.keys() - Request.model_fields.keys(), f"{place}: its request has no field {text.name}"
        assert text.name in task.example, f"{place}: give example={{{text.name!r}: ...}}, which page and tests send"
    try:
        request(task.name)
        task.request(image=IMAGE, **({text.name: text.parse(task.written(task.example))} if text else {}))
    except ValidationError as error:
        pytest.fail(f"{place}: its example, and the text of it, do not make a request with an image: {error}")


@pytest.mark.parametrize("module", [*pkgutil.iter_modules(serve.tasks.__path__)], ids=lambda module: module.name)
def test_task_of_every_module_is_in_tasks(module: pkgutil.ModuleInfo) -> None:
    contents = vars(importlib.import_module(f"serve.tasks.{module.name}")).values()
    missing = [task.name for task in contents if isinstance(task, Task) and TASKS.get(task.name) is not task]
    assert not missing, f"add {', '.join(missing)} of serve/tasks/{module.name}.py to TASKS in serve/tasks/__init__.py"


@pytest.mark.parametrize("task", TASKS)
def test_task_has_a_merge_rule_and_results_to_draw(task: str) -> None:
    place = f"The Task {task!r} in serve/tasks"
    assert TASKS[task].methods, f"{place}: methods needs a merge rule, the default first"
    alone = len(TASKS[task].result.model_fields) == 1 or TASKS[task].as_text is not Result.as_text
    assert alone, f"{place}: give as_text, which writes a result of several fields as a person reads it"
    try:
        find(results(task), lambda result: True, settings=settings(database=None, phases=[Phase.generate]))
    except Exception as error:
        pytest.fail(f"tests/test_laws.py cannot draw results of {task}; add a strategy to RESULTS there: {error!r}")


@pytest.mark.parametrize("task", TASKS)
def test_task_is_a_skill_of_some_model(task: str) -> None:
    assert ABLE[task], (
        f"No model can do {task}: give its Task an `instruction`, which tells models that follow instructions what to "
        "do, as serve/tasks/vqa.py does, or a family a Skill for it, as serve/models/paligemma_tasks.py does"
    )


@pytest.mark.parametrize("task", ABLE)
def test_prompt_of_every_skill_holds_the_image(task: str) -> None:
    for model in ABLE[task]:
        prompts = model.skills[task].ask(request(task, model))
        assert prompts and all(prompt.image or prompt.video for prompt in prompts), model.name
        assert all(prompt.sampling.temperature == 0 for prompt in prompts), model.name


@pytest.mark.parametrize("task", ABLE)
@given(text=st.text(max_size=80))
@EXAMPLES
def test_parser_of_every_skill_takes_any_text(task: str, text: str) -> None:
    for model in ABLE[task]:
        example = request(task, model)
        prompts = model.skills[task].ask(example)
        try:
            result = model.skills[task].parse([Generation(text)] * len(prompts), example)
        except ParseError as error:
            assert error.message, model.name
        else:
            assert isinstance(result, TASKS[task].result), model.name
            assert isinstance(TASKS[task].as_text(result), str), model.name


def test_every_model_takes_a_question_about_an_image() -> None:
    for model in MODELS.values():
        prompt = model.converse([Turn("user", "hello", has_image=True)])
        assert "hello" in prompt or model.engine != "vllm", model.name
        unknown = set(model.skills) - set(TASKS)
        assert not unknown, f"{model.name} has skills that are no tasks: add them to TASKS in serve/tasks/__init__.py"


def test_card_of_every_model_names_its_tasks_and_how_each_is_done() -> None:
    for model in MODELS.values():
        basis_by_task = dict(entry.partition(" (")[::2] for entry in model.card.tasks)
        assert {task for task in basis_by_task if task in TASKS} == set(model.skills), model.name
        if model.chat is not None:
            stated = {task: skill.basis for task, skill in model.skills.items()}
            assert {task: basis_by_task[task].rstrip(")") or "native" for task in stated} == stated, model.name


def test_models_of_every_module_are_in_the_catalogue() -> None:
    for module in pkgutil.iter_modules(serve.models.__path__):
        listed = vars(importlib.import_module(f"serve.models.{module.name}")).get("MODELS")
        missing = isinstance(listed, list) and module.name not in FAMILIES
        assert not missing, f"add {module.name!r} to FAMILIES in serve/models/__init__.py"


METHODS = [(task, method) for task in TASKS for method in TASKS[task].methods]
BY_METHOD = pytest.mark.parametrize(("task", "method"), METHODS)


def merge(task: str, method: str, replies: Sequence[Reply], weights: Mapping[str, float] | None = None) -> Merged:
    return TASKS[task].methods[method](replies, weights or {})


@st.composite
def replies_and_weights(draw: st.DrawFn, task: str, least: int = 1) -> tuple[list[Reply], dict[str, float]]:
    """Draw up to four models' replies, and weights of some of them, 0 among them."""
    drawn = draw(st.lists(results(task), min_size=least, max_size=4))
    sure = draw(st.lists(st.floats(0, 1) | st.none(), min_size=4, max_size=4))
    weights = draw(st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1000) | st.just(0.0)))
    return [reply("abcd"[i], result, sure[i]) for i, result in enumerate(drawn)], weights


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_merge_of_a_single_reply_is_that_reply(task: str, method: str, data: st.DataObject) -> None:
    only, weight = data.draw(results(task)), data.draw(st.floats(0, 1000))
    merged = merge(task, method, [reply("a", only)], {"a": weight})
    assert _approx(merged.result, only)
    assert merged.agreement == pytest.approx(1)
    assert merged.models == ["a"] and merged.method == method and merged.judge is None


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_merged_reply_is_repeatable_and_in_bounds(task: str, method: str, data: st.DataObject) -> None:
    replies, weights = data.draw(replies_and_weights(task))
    merged = merge(task, method, replies, weights)
    assert merged == merge(task, method, list(replies), dict(weights))
    assert isinstance(merged.result, TASKS[task].result)
    assert 0 <= merged.agreement <= 1
    assert list(merged.deviations) == merged.models == [r.model for r in replies]
    assert all(set(camp) <= set(merged.models) and camp for camp in merged.supporters)
    places = TASKS[task].places
    merged_items = [] if places is None else getattr(merged.result, places)
    assert len(merged.supporters) == (1 if places is None else len(merged_items))
    for box in merged_items:
        assert 0 <= box.score <= 1
        if isinstance(box, LabelledPoint):
            assert 0 <= box.point[0] <= WIDTH and 0 <= box.point[1] <= HEIGHT
            continue
        x0, y0, x1, y1 = box.box
        assert 0 <= x0 < x1 <= WIDTH and 0 <= y0 < y1 <= HEIGHT
        if isinstance(box, LabelledMask):
            rows, columns = np.nonzero(decode(box.mask))
            assert box.mask.size == (HEIGHT, WIDTH)
            assert not len(rows) or (x0 - 1 <= columns.min() <= columns.max() < x1 + 1)
            assert not len(rows) or (y0 - 1 <= rows.min() <= rows.max() < y1 + 1)


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_order_of_replies_decides_ties_only(task: str, method: str, data: st.DataObject) -> None:
    """Draw confidences, scores and weights that make no two sides of a disagreement equal, so that nothing is a tie."""
    replies, _ = data.draw(replies_and_weights(task, least=2))
    for at, drawn in enumerate(replies):
        drawn.confidence = (0.501, 0.603, 0.707, 0.809)[at]
        for row, box in enumerate(items(drawn.result)):
            box.score = (0.501, 0.603, 0.707, 0.809)[at] + 0.0137 * row
    weights = dict(zip("abcd", (1.0, 1.31, 1.73, 2.19), strict=True))
    merged = merge(task, method, replies, weights)
    turned = merge(task, method, data.draw(st.permutations(replies)), weights)
    assert _approx(turned.result, merged.result)
    assert turned.agreement == pytest.approx(merged.agreement, abs=1e-6)
    assert turned.deviations == pytest.approx(merged.deviations, abs=1e-6)
    assert sorted(map(sorted, turned.supporters)) == sorted(map(sorted, merged.supporters))


@pytest.mark.parametrize(("task", "method"), [pair for pair in METHODS if not TASKS[pair[0]].by_confidence])
@given(data=st.data())
@EXAMPLES
def test_confidence_decides_ties_only_without_by_confidence(task: str, method: str, data: st.DataObject) -> None:
    assert _ignores_confidence(TASKS[task], method, data.draw(replies_and_weights(task, least=2))[0]), (
        f"The Task {task!r} in serve/tasks: {method} weighs replies by their confidence: set by_confidence=True, so "
        "that models are asked for the log-probabilities that it is made from"
    )


def _ignores_confidence(task: Task, method: str, replies: list[Reply]) -> bool:
    """Return whether the merged result is the same for confidences turned around, where no two weights make a tie."""
    weights, sure = dict(zip("abcd", (1.0, 1.31, 1.73, 2.19), strict=True)), (0.1, 0.3, 0.7, 0.9)[: len(replies)]
    turned = [
        [reply.model_copy(update={"confidence": value}) for reply, value in zip(replies, order, strict=True)]
        for order in (sure, sure[::-1])
    ]
    first, second = (task.methods[method](drawn, weights).result for drawn in turned)
    return _approx(first, second)


def test_rule_by_confidence_differs_from_one_without() -> None:
    replies = [reply(name, VqaResult(answer=answer)) for name, answer in (("a", "red"), ("b", "blue"))]
    ignores = [_ignores_confidence(TASKS["vqa"], method, replies) for method in ("vote", "weighted_vote")]
    assert ignores == [True, False]


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_model_more_with_the_merged_reply_does_not_lower_agreement(task: str, method: str, data: st.DataObject) -> None:
    replies, weights = data.draw(replies_and_weights(task))
    merged = merge(task, method, replies, weights)
    for supporter in replies:
        if merged.deviations[supporter.model] == 0 and all(_apart(other.result) for other in replies):
            twin = supporter.model_copy(update={"model": "twin"})
            more = merge(task, method, [*replies, twin], weights | {"twin": weights.get(supporter.model, 1.0)})
            assert more.agreement >= merged.agreement - 1e-6


@BY_METHOD
@given(data=st.data(), least=st.floats(0, 1))
@EXAMPLES
def test_merged_result_is_withheld_below_the_wanted_agreement_alone(
    task: str, method: str, data: st.DataObject, least: float
) -> None:
    replies, weights = data.draw(replies_and_weights(task))
    wanted = request(task).model_copy(update={"merge": method, "min_agreement": least})
    plain = merge(task, method, replies, weights)
    merged = merge_replies.merge(task, wanted, replies, weights)
    assert (merged.result is None) is (merged.error is not None) is (plain.agreement < least - merge_replies.ROUNDING)
    same = {"method", "agreement", "models", "deviations", "judge"}
    assert merged.model_dump(include=same) == plain.model_dump(include=same)
    assert merged == plain or merged.result is None
    assert merge_replies.abstain(merged, least) == merged


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_models_with_equal_replies_agree(task: str, method: str, data: st.DataObject) -> None:
    same = data.draw(results(task).filter(_apart))
    merged = merge(task, method, [reply(name, same) for name in "abc"])
    assert _approx(merged.result, same)
    assert merged.agreement == pytest.approx(1)
    assert all(camp == ["a", "b", "c"] for camp in merged.supporters)


@BY_METHOD
@given(data=st.data())
@EXAMPLES
def test_weights_that_are_all_zero_are_equal_weights(task: str, method: str, data: st.DataObject) -> None:
    replies, _ = data.draw(replies_and_weights(task))
    assert merge(task, method, replies, dict.fromkeys("abcd", 0.0)) == merge(task, method, replies)


@pytest.mark.parametrize(
    ("model", "task"), [(model, task) for task in TASKS if TASKS[task].places for model in ABLE[task]]
)
def test_prompts_hold_every_label_and_their_replies_make_a_result(model: Model, task: str) -> None:
    """A model that takes one phrase at a time has a prompt for each."""
    labels = ["red circle", "blue star"]
    detect = TASKS[task].request(image=IMAGE, labels=labels)
    assert isinstance(detect, DetectRequest)
    prompts = model.skills[task].ask(detect)
    assert len(prompts) in (1, len(labels))
    for at, label in enumerate(labels):
        assert label in prompts[at % len(prompts)].text
    if len(prompts) > 1:
        contract, boxes = model.skills[task].contract, [(4, 3, 20, 15), (20, 15, 36, 27)]
        assert contract is not None
        shapes = zip(labels, boxes, strict=True)
        generations = [Generation(contract.format([shape], (WIDTH, HEIGHT))) for shape in shapes]
        result = model.skills[task].parse(generations, detect)
        assert [item.label for item in items(result)] == labels


def items(result: Result | None) -> Sequence[Any]:
    """Return a result's boxes, points or labels."""
    return next((getattr(result, name) for name in ("boxes", "points", "labels") if hasattr(result, name)), []) or []


def _apart(result: Result | None) -> bool:
    """Return whether no box or point lies on top of another: such cannot be told apart between models."""
    if isinstance(result, PointResult):
        near = itertools.combinations([point.point for point in result.points], 2)
        return all(math.dist(p, q) > 2 * result.reach for p, q in near)
    if not isinstance(result, DetectResult | SegmentResult):
        return True
    pairs = itertools.combinations(result.boxes, 2)
    return all(abs(p.box[0] - q.box[0]) >= 8 or abs(p.box[1] - q.box[1]) >= 6 for p, q in pairs)


def _approx(a: Result | None, b: Result | None) -> bool:
    """Return whether results are equal, but for the order of boxes and the last digits of their numbers."""
    if isinstance(a, ExtractResult) and isinstance(b, ExtractResult):
        return field_likeness(a.data, b.data) == 1  # of equal spellings each may stand
    placed = DetectResult | SegmentResult | PointResult | ClassifyResult
    if not isinstance(a, placed) or not isinstance(b, placed):
        return a == b

    def same(p: Any, q: Any) -> bool:
        there, here = (getattr(item, "point", getattr(item, "box", ())) for item in (p, q))
        near = there == pytest.approx(here, abs=0.02) and p.score == pytest.approx(q.score, abs=1e-6)
        return near and label_key(p.label) == label_key(q.label) and getattr(p, "mask", 0) == getattr(q, "mask", 0)

    rest = list(items(b))
    for box in items(a):
        twin = next((other for other in rest if same(box, other)), None)
        if twin is None:
            return False
        rest.remove(twin)
    return not rest
