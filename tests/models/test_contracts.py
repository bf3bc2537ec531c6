import functools
import json
import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transcripts import FORM, ROWS, Row

from serve.engines.base import Generation, Token
from serve.errors import ParseError
from serve.models.contracts import (
    CONTRACTS,
    FLORENCE2,
    GEMMA4,
    GLM4V,
    INTERNVL,
    MAX_SHAPES,
    PALIGEMMA,
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_VL,
    Contract,
    Fault,
)

SIZE = (1000, 1000)
CAT = '{"bbox_2d": [100, 200, 300, 400], "label": "cat"}'
BOX = (100, 200, 300, 400)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[1].name}-{index}" for index, row in enumerate(ROWS)])
def test_published_transcript_decodes_to_its_shapes(row: Row) -> None:
    source, contract, size, labels, text, expected = row
    decoded = contract.parse(text, size, labels)
    assert decoded.fault is None, source
    assert [shape.label for shape in decoded.shapes] == [label for label, _ in expected], source
    for shape, (_, numbers) in zip(decoded.shapes, expected, strict=True):
        assert shape.numbers == pytest.approx(numbers, abs=0.011), source


def test_transcripts_are_at_least_sixty_different_ones() -> None:
    assert len({(row[1].name, row[4]) for row in ROWS if not row[0].startswith(FORM)}) >= 60


@st.composite
def drawn(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[float, ...]]:
    """Draw a picture size and a box in it of at least a twentieth of each side, so that rounding leaves an area."""
    width, height = draw(st.integers(20, 4000)), draw(st.integers(20, 4000))
    x0, y0 = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
    x1, y1 = draw(st.floats(x0 + 0.05, 1)), draw(st.floats(y0 + 0.05, 1))
    return (width, height), (x0 * width, y0 * height, x1 * width, y1 * height)


@pytest.mark.parametrize("name", CONTRACTS)
@given(picture=drawn())
def test_shape_that_is_written_and_read_is_within_half_a_unit(
    name: str, picture: tuple[tuple[int, int], tuple[float, ...]]
) -> None:
    contract = CONTRACTS[name]
    size, box = picture
    numbers = {"box": box, "point": box[:2], "polygon": (*box, box[0], box[3])}[contract.shape]
    decoded = contract.parse(contract.format([("red cat", numbers)], size), size, ["red cat"])
    frame = contract.frame(size)
    half = 0.5 * 10**-contract.decimals
    if decoded.fault == Fault.EMPTY_AREA:  # both ends of a box within one unit
        units = (box[2] - box[0]) / frame.width * frame.across, (box[3] - box[1]) / frame.height * frame.down
        assert min(units) <= 2 * half
        return
    assert decoded.fault is None
    (shape,) = decoded.shapes
    for at, (value, original) in enumerate(zip(shape.numbers, numbers, strict=True)):
        unit = frame.height / frame.down if at % 2 else frame.width / frame.across
        assert abs(value - original) <= half * unit + 0.0051  # boxes are rounded to a hundredth of a pixel


@pytest.mark.parametrize("name", CONTRACTS)
def test_written_nothing_is_read_as_nothing(name: str) -> None:
    decoded = CONTRACTS[name].parse(CONTRACTS[name].format([], SIZE), SIZE, ["cat"])
    assert (decoded.fault, decoded.shapes) == (None, ())


def written(numbers: str, label: str = '"cat"') -> str:
    return f'[{{"bbox_2d": {numbers}, "label": {label}}}]'


READ: dict[str, str] = {
    "reasoning": f"<think>maybe [[1, 2, 3, 4]] or {CAT.replace('100', '150')}</think>[{CAT}]",
    "reasoning whose opening is missing": f"at first {CAT.replace('100', '150')}\n</think>\n[{CAT}]",
    "Gemma's channel": f"<|channel>thought\n{CAT.replace('100', '150')}<channel|>[{CAT}]",
    "channels": f"<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>[{CAT}]",
    "wrapper": f"<|begin_of_box|>[{CAT}]<|end_of_box|>",
    "fence": f"```json\n[{CAT}]\n```",
    "fence without a name": f"```\n[{CAT}]\n```",
    "prose around": f"Here's what I see, it's one:\n[{CAT}]\nIsn't it?",
    "brackets in prose": f"In [0,1] there are [2] objects: [{CAT}]",
    "echoed schema": f'[{{"bbox_2d": [x1, y1, x2, y2], "label": "..."}}]\n[{CAT}]',
    "single quotes": f"[{CAT}]".replace('"', "'"),
    "trailing commas": written("[100, 200, 300, 400,]").replace("}", ",},"),
    "bare object": CAT,
    "wrapped": f'{{"detections": [{CAT}], "count": 1}}',
    "cut after an object": f'[{CAT}, {{"bbox_2d": [5, 6',
    "loop": "[" + ", ".join([CAT] * 50) + "]",
    "box_2d": f"[{CAT}]".replace("bbox_2d", "box_2d"),
    "bbox": f"[{CAT}]".replace("bbox_2d", "bbox"),
    "box": f"[{CAT}]".replace("bbox_2d", "box"),
    "named": '{"x_min": 100, "y_min": 200, "x_max": 300, "y_max": 400, "class_name": "cat"}',
    "named inside": '[{"label": "cat", "bbox": {"x1": 100, "y1": 200, "x2": 300, "y2": 400}}]',
    "nested": written("[[100, 200, 300, 400]]"),
    "pairs": written("[[100, 200], [300, 400]]"),
    "numbers as strings": written('["100", "200", "300", "400"]'),
    "floats": written("[100.0, 200.0, 3e2, 400.0]"),
    "swapped corners": written("[300, 400, 100, 200]"),
    "class": f"[{CAT}]".replace("label", "class"),
    "description": f"[{CAT}]".replace("label", "description"),
    "name": f"[{CAT}]".replace("label", "name"),
    "no label": '[{"bbox_2d": [100, 200, 300, 400]}]',
    "another case": f"[{CAT}]".replace("cat", " The CAT."),
    "plural": f"[{CAT}]".replace("cat", "cats"),
    "unknown label beside": f"[{CAT}, {CAT.replace('cat', 'dog')}]",
    "unquoted keys": f"[{CAT}]".replace('"bbox_2d"', "bbox_2d").replace('"label"', "label"),
    "bare lists": "[[100, 200, 300, 400]]",
}


@pytest.mark.parametrize("name", READ)
def test_deviation_from_strict_json_is_read(name: str) -> None:
    decoded = QWEN3_VL.parse(READ[name], SIZE, ["cat"])
    assert (decoded.fault, [(item.label, item.box) for item in decoded.boxes]) == (None, [("cat", BOX)])


@pytest.mark.parametrize(
    ("label", "word"),
    [
        ("buses", "bus"), ("horse", "horses"), ("people", "person"), ("knives", "knife"), ("mice", "mouse"),
        ("vases", "vase"), ("suitcase", "suitcases"), ("tomato", "tomatoes"), ("ties", "tie"), ("red buses", "red bus"),
        ("red scarf", "red scarves"), ("zombies", "zombie"),
    ],
)  # fmt: skip
def test_word_in_the_other_number_is_the_label(label: str, word: str) -> None:
    text = f"[{CAT}, {CAT.replace('cat', word).replace('100', '101')}]"
    assert [item.label for item in QWEN3_VL.parse(text, SIZE, ["cat", label]).boxes] == ["cat", label]


@pytest.mark.parametrize("label", ['12" pizza', 'a sign that says "STOP"', "C:\\temp", "café table", "a dog's bowl"])
@pytest.mark.parametrize(
    "name", [name for name, each in CONTRACTS.items() if each.style == "json" and each.shape == "box"]
)
def test_escaped_label_is_read(name: str, label: str) -> None:
    contract = CONTRACTS[name]
    text = contract.format([(label, BOX)], SIZE)
    assert [item.label for item in contract.parse(text, SIZE, [label]).boxes] == [label]
    plain = contract.parse(json.dumps(json.loads(text), ensure_ascii=True), SIZE, [label])
    assert [item.label for item in plain.boxes] == [label]


@pytest.mark.parametrize(
    ("written_label", "label"),
    [("'dog\\'s bowl'", "dog's bowl"), ("'12\" \\'pizza\\''", "12\" 'pizza'"), ('"C:\\Users"', "C:\\Users")],
)
def test_label_whose_escapes_are_not_json_is_read(written_label: str, label: str) -> None:
    text = f'[{{"bbox_2d": [100, 200, 300, 400], "label": {written_label}}}]'
    assert [item.label for item in QWEN3_VL.parse(text, SIZE, [label]).boxes] == [label]


NOTHING = [
    (QWEN3_VL, "[]"),
    (QWEN3_VL, "```json\n[]\n```"),
    (QWEN3_VL, '{"detections": []}'),
    (QWEN3_VL, "<think>[[1, 2, 3, 4]]?</think>\n[]"),
    (QWEN3_VL, "There are none."),
    (QWEN3_VL, "No objects found."),
    (INTERNVL, '{"label": "cat", "bbox": []}'),
    (INTERNVL, "<ref>cat</ref><box>[]</box>"),
    (PALIGEMMA, ""),
]


@pytest.mark.parametrize(("contract", "text"), NOTHING)
def test_reply_that_says_nothing_is_there_is_no_fault(contract: Contract, text: str) -> None:
    decoded = contract.parse(text, SIZE, ["cat"])
    assert (decoded.fault, decoded.shapes) == (None, ())
    assert decoded.result().boxes == []


FAULTS: list[tuple[Fault, Contract, str]] = [
    (Fault.EMPTY_REPLY, QWEN3_VL, " \n"),
    (Fault.EMPTY_REPLY, QWEN3_VL, "<think>hm</think>"),
    (Fault.NO_SHAPE, QWEN3_VL, "I cannot help with [that] or {this}."),
    (Fault.NO_SHAPE, QWEN3_VL, "The cat is not in the [] of the picture, I think."),
    (Fault.NO_SHAPE, PALIGEMMA, "sorry"),
    (Fault.NO_SHAPE, QWEN3_VL, '{"objects": 3}'),
    (Fault.NO_SHAPE, QWEN3_VL, '[{"x": 100, "y": 200, "width": 300, "height": 400, "label": "cat"}]'),
    (Fault.NO_SHAPE, QWEN3_VL, '{"x": 100, "y": 200, "width": 300, "height": 400, "label": "cat"}'),
    (Fault.NO_SHAPE, QWEN3_VL, '[{"label": "cat", "box": {"x": 1, "y": 2, "width": 3, "height": 4}}]'),
    (Fault.NO_SHAPE, QWEN3_VL, '```json\n{"cats": [{"centre": [100, 200], "size": [30, 40]}]}\n```'),
    (Fault.NO_SHAPE, QWEN3_VL, "[10%, 20%, 30%, 40%]"),
    (Fault.NO_SHAPE, CONTRACTS["qwen3_vl_points"], '[{"cx": 100, "cy": 200, "label": "cat"}]'),
    (Fault.UNFINISHED_REASONING, QWEN3_VL, f"<think>perhaps [{CAT}]"),
    (Fault.UNFINISHED_REASONING, GEMMA4, "<|channel>thought\nlet me see"),
    (Fault.TRUNCATED, QWEN3_VL, '[{"bbox_2d": [100, 200, 3'),
    (Fault.TRUNCATED, QWEN2_VL, "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3"),
    (Fault.OUTSIDE_CONTRACT, QWEN3_VL, written("[100, 200, 300, 1074]")),
    (Fault.OUTSIDE_CONTRACT, QWEN3_VL, written("[-50, 200, 300, 400]")),
    (Fault.OUTSIDE_CONTRACT, QWEN3_VL, written("[0.1, 0.2, 0.3, 0.4]")),
    (Fault.OUTSIDE_CONTRACT, QWEN3_VL, f"[{CAT}, {CAT.replace('400', '1200')}]"),
    (Fault.OUTSIDE_CONTRACT, CONTRACTS["lfm2_vl"], written("[100, 200, 300, 400]")),
    (Fault.OUTSIDE_CONTRACT, PALIGEMMA, "<loc0100><loc0100><loc0200><loc1024> cat"),
    (Fault.OUTSIDE_CONTRACT, QWEN2_5_VL, written("[100, 200, 300, 1100]")),
    (Fault.OUTSIDE_CONTRACT, QWEN3_VL, written("[1, 2, 3, " + "9" * 5000 + "]")),
    (Fault.WRONG_LENGTH, QWEN3_VL, written("[100, 200, 300]")),
    (Fault.WRONG_LENGTH, QWEN3_VL, written("[0.1, 1, 2, 3, 4, 5, 6, 7, 8]")),
    (Fault.WRONG_LENGTH, FLORENCE2, "cat<loc_1><loc_2><loc_3>"),
    (Fault.NOT_A_NUMBER, QWEN3_VL, written("[100, 200, 300, true]")),
    (Fault.NOT_A_NUMBER, QWEN3_VL, written("[100, 200, 300, NaN]")),
    (Fault.NOT_A_NUMBER, QWEN3_VL, written('[100, 200, 300, "x"]')),
    (Fault.NOT_A_NUMBER, QWEN3_VL, written('"1,2,3,4"')),
    (Fault.NOT_A_NUMBER, QWEN3_VL, written("[10%, 20.5%, 30 %, 40%]")),
    (Fault.NOT_A_NUMBER, QWEN3_VL, written("[x1, y1, x2, y2]")),
    (Fault.EMPTY_AREA, QWEN3_VL, written("[100, 200, 100, 400]")),
    (Fault.UNKNOWN_LABEL, QWEN3_VL, written("[100, 200, 300, 400]", '"unicorn"')),
]


@pytest.mark.parametrize(("fault", "contract", "text"), FAULTS)
def test_reply_that_cannot_be_read_has_its_fault_by_name(fault: Fault, contract: Contract, text: str) -> None:
    decoded = contract.parse(text, SIZE, ["cat"])
    assert (decoded.fault, decoded.shapes) == (fault, ())
    with pytest.raises(ParseError):
        decoded.result()


def test_missing_label_in_a_reply_to_several_is_a_fault() -> None:
    assert QWEN3_VL.parse("[[100, 200, 300, 400]]", SIZE, ["cat", "dog"]).fault == Fault.MISSING_LABEL


def test_shapes_left_out_or_mended_are_counted_by_fault() -> None:
    dog, empty = CAT.replace("cat", "dog"), CAT.replace("300", "100")
    swapped = CAT.replace("100", "350")
    text = f"[{CAT}, {CAT}, {dog}, {empty}, {swapped}, "
    decoded = QWEN3_VL.parse(text, SIZE, ["cat"])
    assert len(decoded.boxes) == 2
    assert decoded.truncated
    assert decoded.counts == {
        Fault.REPEATED: 1,
        Fault.UNKNOWN_LABEL: 1,
        Fault.EMPTY_AREA: 1,
        Fault.SWAPPED_CORNERS: 1,
        Fault.TRUNCATED: 1,
    }


def test_number_a_little_outside_is_moved_to_the_edge() -> None:
    assert QWEN3_VL.parse(written("[-4, 200, 300, 1003]"), SIZE, ["cat"]).boxes[0].box == (0, 200, 300, 1000)


def test_reply_cut_at_any_character_gives_whole_boxes_or_says_truncated() -> None:
    whole = f"[{CAT}, {CAT.replace('100', '120')}]"
    for end in range(1, len(whole)):
        decoded = QWEN3_VL.decode(Generation(whole[:end], cut=True), SIZE, ["cat"])
        assert decoded.truncated
        assert decoded.fault in (None, Fault.TRUNCATED)
        assert [item.box[0] for item in decoded.boxes] == [100, 120][: len(decoded.boxes)]
        assert bool(decoded.boxes) == (decoded.fault is None)


def test_score_is_that_of_the_tokens_of_a_boxs_digits() -> None:
    parts = [('[{"bbox_2d": [', -9), ("1", -0.2), ("00", -0.4), (", ", -9), ("200", 0), (", ", -9), ("300", 0)]
    parts += [(", ", -9), ("400", -0.4), ('], "label": "cat"}]', -9)]
    spoken = Generation("".join(text for text, _ in parts), tuple(Token(text, logprob) for text, logprob in parts))
    (box,) = QWEN3_VL.decode(spoken, SIZE, ["cat"]).boxes
    assert box.score == pytest.approx(math.exp(-1.0 / 5))


HOSTILE: dict[str, Callable[[int], str]] = {
    "open lists": lambda n: "[" * n,
    "open objects": lambda n: '{"a":' * (n // 5),
    "closing": lambda n: "[" + "]}" * (n // 2),
    "alternating": lambda n: "[{" * (n // 2) + "]" * 100,
    "single quotes": lambda n: "[" + "'" * n,
    "quotes and spaces": lambda n: "[" + "' " * (n // 2),
    "wide quotes": lambda n: "[" + ("'" + " " * 999) * (n // 1000),
    "unclosed string": lambda n: '[{"' + "a" * n,
    "backslashes": lambda n: '[{"' + "\\" * n,
    "digits": lambda n: written("[1, 2, 3, " + "9" * n + "]"),
    "dots": lambda n: "[" + ".5" * (n // 2),
    "versions": lambda n: "[" + "1.2" * (n // 3),
    "exponents": lambda n: "[" + "1e5" * (n // 3),
    "signs": lambda n: "[" + "-+" * (n // 2),
    "numbers": lambda n: "[" + "1," * (n // 2) + "]",
    "lists": lambda n: '{"bbox_2d": [' + "[1,2,3,4]," * (n // 10) + "]}",
    "objects": lambda n: "[" + CAT * (n // len(CAT)),
    "thinking": lambda n: "<think></think>" * (n // 15),
    "tags": lambda n: "<|box_start|>" * (n // 13),
    "label tags": lambda n: "<|object_ref_start|>" * (n // 20) + "<|box_start|>(1,2),(3,4)<|box_end|>" * 100,
    "boxes": lambda n: "<box>[[1,2,3,4]]</box>" * (n // 22),
    "locations": lambda n: "<loc_1>" * (n // 7),
    "broken locations": lambda n: "<loc_" * (n // 5),
    "separated locations": lambda n: "<loc_1> a" * (n // 9),
    "padded locations": lambda n: "<loc0001>" + " " * n,
    "points": lambda n: "<points" * (n // 7),
    "coordinates": lambda n: '<points coords="' + "1 100 200 " * (n // 10) + '">a</points>',
    "attributes": lambda n: "<points " + 'x="1" ' * (n // 6) + ">",
    "spaces": lambda n: "[" + " " * n,
    "words": lambda n: "[" + "a" * n,
    "brackets": lambda n: "(" * (n // 2) + "1" * (n // 2),
}


def steps(read: Callable[[], Any]) -> int:
    """Count the lines of the decoder that run."""
    count = 0

    def traced(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename.endswith(("contracts.py", "boxes.py")):
            count += event == "line"
            return traced
        return None

    sys.settrace(traced)
    try:
        read()
    finally:
        sys.settrace(None)
    return count


DECODERS = [QWEN2_VL, QWEN2_5_VL, GLM4V, INTERNVL, FLORENCE2, PALIGEMMA, CONTRACTS["molmo2"], CONTRACTS["llava"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_reply_costs_steps_in_proportion_to_its_length(name: str) -> None:
    for contract in DECODERS:
        few, many = (
            steps(functools.partial(contract.parse, HOSTILE[name](length), SIZE, ["cat"])) for length in (2000, 4000)
        )
        assert many <= 3 * few + 2000, contract.name


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_long_hostile_reply_is_decoded_to_a_bounded_number_of_shapes(name: str) -> None:
    text = HOSTILE[name](2**18)
    for contract in DECODERS:
        assert len(contract.parse(text, SIZE, ["cat"]).shapes) <= MAX_SHAPES


@given(text=st.text(alphabet="[]{}()<>\"',:;.|/_- \n0123456789eaboxlcthink", max_size=200))
def test_any_text_is_decoded_without_an_error(text: str) -> None:
    for contract in CONTRACTS.values():
        decoded = contract.parse(text, SIZE, ["cat"])
        assert decoded.fault is None or not decoded.shapes


def test_empty_key_is_a_label_in_no_contract() -> None:
    boxes = Contract("plain").parse('[{"": "cat", "bbox_2d": [10, 20, 300, 400]}]', (100, 100)).boxes
    assert [box.label for box in boxes] == [""]
