"""Lines of text with their boxes: fused where they lie in the same place, whatever they say."""

from serve.tasks import TASKS
from serve.tasks.boxes import LabelledBox
from serve.tasks.ocr_result import OcrResult
from serve.tasks.reply import Reply


def reply(model: str, *lines: tuple[str, float, float], confidence: float = 0.5) -> Reply:
    """lines: text, left edge, score."""
    boxes = [LabelledBox(label=text, box=(x, 0, x + 40, 10), score=score) for text, x, score in lines]
    result = OcrResult(text="\n".join(box.label for box in boxes), boxes=boxes)
    return Reply(model=model, status="ok", result=result, confidence=confidence)


def test_line_that_models_read_otherwise_has_one_box_and_the_voted_text() -> None:
    replies = [
        reply("a", ("EXIT", 0, 0.5)),
        reply("b", ("EX1T", 4, 0.5)),
        reply("c", ("EXIT", 2, 0.5), ("12", 90, 0.3)),
    ]
    merged = TASKS["ocr"].methods["rover"](replies, {})
    assert isinstance(merged.result, OcrResult) and merged.result.boxes is not None
    assert [(line.label, line.box) for line in merged.result.boxes] == [
        ("EXIT", (2, 0, 42, 10)),
        ("12", (90, 0, 130, 10)),
    ]
    assert [round(line.score, 3) for line in merged.result.boxes] == [0.5, 0.1]
    assert merged.result.text == "EXIT" and merged.method == "rover"


def test_reply_alone_keeps_its_lines() -> None:
    single = reply("a", ("EXIT", 0, 0.5), ("12", 90, 0.25))
    assert TASKS["ocr"].methods["rover"]([single], {}).result == single.result
