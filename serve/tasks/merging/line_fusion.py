"""Lines of text with their boxes, of several models, as one set."""

from collections.abc import Mapping, Sequence

from serve.tasks.base import MergeRule
from serve.tasks.boxes import LabelledBox
from serve.tasks.merging.agreement import weigh
from serve.tasks.merging.sightings import Cluster, clusters, fused, fused_score, settled
from serve.tasks.ocr_result import OcrResult
from serve.tasks.reply import Merged, Reply


class _Line(LabelledBox):
    """A line, whose label is no name of a thing: lines that lie in the same place are the same line."""

    text: str


def with_boxes(rule: MergeRule) -> MergeRule:
    """Make a rule that merges texts by another one, and the boxes of their lines, where replies have some.

    Boxes are fused as those of `weighted_box_fusion`, whatever their lines say; the text of a fused line is made by the
    rule out of theirs. Text, agreement and supporters are those of the whole texts.
    """

    def merge(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        merged = rule(replies, given)
        if all(_result(reply).boxes is None for reply in replies):
            return merged
        weights = weigh(replies, given)
        total = sum(weights.values())
        kept, _ = settled(clusters(replies, weights, _lines), total, 0.0)
        boxes = [
            LabelledBox(label=_text(group, rule), box=fused(group), score=fused_score(group, total)) for group in kept
        ]
        assert isinstance(merged.result, OcrResult)
        return merged.model_copy(update={"result": merged.result.model_copy(update={"boxes": boxes})})

    return merge


def _result(reply: Reply) -> OcrResult:
    assert isinstance(reply.result, OcrResult)
    return reply.result


def _lines(reply: Reply) -> list[_Line]:
    return [_Line(label="", box=box.box, score=box.score, text=box.label) for box in _result(reply).boxes or ()]


def _text(group: Cluster[_Line], rule: MergeRule) -> str:
    """Return the text of a line that several models read."""
    texts = {seen.labelled.text for seen in group}
    if len(texts) == 1:
        return texts.pop()
    readings = [
        Reply(
            model=seen.model,
            status="ok",
            result=OcrResult(text=seen.labelled.text),
            confidence=seen.labelled.score,
        )
        for seen in group
    ]
    result = rule(readings, {seen.model: seen.weight for seen in group}).result
    assert isinstance(result, OcrResult)
    return result.text
