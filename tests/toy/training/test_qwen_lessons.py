import numpy as np
import pytest
from lazy_module import LazyModule

from serve.media.geometry import iou
from serve.models.contracts import QWEN3_VL
from serve.toy import questions

lessons = LazyModule("serve.toy.training.qwen_lessons")
torch = LazyModule("torch")
pytestmark = pytest.mark.slow  # torch takes seconds to import, in each worker


def test_scene_has_any_size_and_answers_that_its_contract_reads():
    shapes = {lessons.sized_scene(seed).size for seed in range(40)}
    assert len(shapes) > 35 and min(min(size) for size in shapes) < 90 and max(max(size) for size in shapes) > 300
    for seed in range(40):
        drawn = lessons.sized_scene(seed, 28)
        assert not drawn.size[0] % 28 and not drawn.size[1] % 28
        for contract in (lessons.PIXELS, QWEN3_VL):
            label = drawn.shapes[0].name
            text = lessons.true_answer(drawn, [label], contract)
            boxes = contract.parse(text, drawn.size, [label]).boxes
            true = [shape.box for shape in questions.matching(drawn, label)]
            size = [*drawn.size, *drawn.size]
            assert len(boxes) == len(true)
            for box, fractions in zip(boxes, true, strict=True):
                assert iou(np.array([box.box]), np.array([fractions]) * size)[0, 0] > 0.85
    assert lessons.true_answer(drawn, ["nothing"], QWEN3_VL) == "[]"


def test_digit_is_a_token_and_a_fixed_text_is_one():
    tokenizer = lessons.qwen_tokenizer()
    text = '[{"bbox_2d": [120, 7, 348, 96], "label": "red circle"}]<|im_end|>'
    pieces = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert pieces[:6] == ['[{"bbox_2d": [', "1", "2", "0", ", ", "7"] and pieces[-4:] == [
        "red", " circle", '"}]', "<|im_end|>",
    ]  # fmt: skip


def test_packed_question_sees_the_picture_and_itself_alone():
    maker = lessons.Maker(lessons.FORMATS["qwen3-vl"], lessons.qwen_tokenizer())
    batch, again = maker.batch("0", 2), maker.batch("0", 2)
    assert torch.equal(batch.ids, again.ids) and torch.equal(batch.patches, again.patches)
    row, mask = batch.ids[0], batch.mask[0, 0]
    starts = [at for at, token in enumerate(row.tolist()) if token == maker._encode("<|vision_end|>")[0]]
    assert len(starts) == lessons.QUESTIONS
    assert mask[starts[1], : starts[0]].all() and not mask[starts[1], starts[0] : starts[1]].any()
    assert batch.positions[0, 0, starts[0]] == batch.positions[0, 0, starts[1]]
