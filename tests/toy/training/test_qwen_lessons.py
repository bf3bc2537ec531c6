import numpy as np
import pytest
from lazy_module import LazyModule

from serve.media.geometry import iou

lessons = LazyModule("serve.toy.training.qwen_lessons")
torch = LazyModule("torch")
pytestmark = pytest.mark.slow  # torch takes seconds to import, in each worker


def test_scene_has_any_size_and_an_answer_that_its_contract_reads():
    scenes = [lessons.sized_scene(seed) for seed in range(40)]
    sides = [side for drawn in scenes for side in drawn.size]
    assert len({drawn.size for drawn in scenes}) > 35 and min(sides) < 90 and max(sides) > 300
    for format in lessons.FORMATS.values():
        for drawn in scenes:
            labels = [f"{shape.color} rectangle" for shape in drawn.shapes]
            read = format.contract.parse(lessons.true_answer(drawn, labels, format.contract), drawn.size, labels).boxes
            for box, true in zip(read, lessons.true_boxes(drawn, labels), strict=True):
                assert box.label == true.label and iou(np.array([box.box]), np.array([true.box]))[0, 0] > 0.85
    assert lessons.true_answer(drawn, ["nothing"], format.contract) == "[]"


def test_digit_is_a_token_and_a_fixed_text_is_one():
    tokenizer = lessons.qwen_tokenizer()
    text = '[{"bbox_2d": [120, 7, 348, 96], "label": "red rectangle"}]<|im_end|>'
    pieces = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert pieces[:6] == ['[{"bbox_2d": [', "1", "2", "0", ", ", "7"] and pieces[-4:] == [
        "red", " rectangle", '"}]', "<|im_end|>",
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
