"""The prompts and parsers of PaliGemma 1 and 2 for each task, as trained: location and segmentation tokens are text."""

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from serve.engines.base import Generation, Prompt
from serve.errors import BadRequest, ParseError
from serve.media.geometry import Box, clip
from serve.media.image import Image
from serve.media.masks import encode_in
from serve.models import mask_decoder
from serve.models.base import Skill, Turn, task_sampling
from serve.models.contracts import PALIGEMMA, Fault
from serve.models.derived import count_of_boxes, points_of_boxes
from serve.models.text_replies import parse_caption, parse_text, parse_vqa
from serve.models.turns import escape_control_tokens
from serve.models.yes_no import classify_by_questions
from serve.tasks.boxes import AskedLabels, DetectResult, LabelledBox, bare_phrase, distinct
from serve.tasks.caption import CaptionRequest
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.reply import Result
from serve.tasks.request import Request
from serve.tasks.segment import LabelledMask, SegmentRequest, SegmentResult
from serve.tasks.vqa import VqaRequest

READ = "ocr"
READ_MIX = "answer en What is written in the image?"
"""The prompt for ocr of PaliGemma 1 mix, which was trained on questions about text in images but not on `ocr`."""
_LOCATIONS = r"<loc(\d{4})>\s*<loc(\d{4})>\s*<loc(\d{4})>\s*<loc(\d{4})>"
_CODES = r"((?:\s*<seg\d{3}>)*)"
_OBJECT = re.compile(rf"{_LOCATIONS}{_CODES}\s*((?:[^;<]|<(?!loc|seg|eos>|pad>))*)")
MAX_MASKED_AREA = 16
"""The most area of boxes, in images, whose masks are drawn for one reply."""


class ParsedObject(LabelledBox):
    """An object in a reply's text. box: x0, y0, x1, y1 in fractions of the image. codes: its mask's, of any number."""

    codes: tuple[int, ...]


def paligemma_skills(
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    ocr_prompt: str = READ,
    decoder: str | None = None,
    caption_tokens: int = 96,
    parse_ocr: Callable[[Sequence[Generation], OcrRequest], Result] = parse_text,
) -> Mapping[str, Skill]:
    """Return the skills of one checkpoint, by task.

    only: tasks that it was tuned for; None is all. without: tasks that it cannot do. caption_tokens: max_tokens of a
    caption. decoder: the mask decoder's place, as `mask_decoder.find` takes it.
    """

    def ask_caption(request: CaptionRequest) -> list[Prompt]:
        return _ask(request, f"caption {request.lang}", caption_tokens)

    def ask_ocr(request: OcrRequest) -> list[Prompt]:
        return _ask(request, ocr_prompt, 256)

    def ask_segment(request: SegmentRequest) -> list[Prompt]:
        mask_decoder.find(decoder)  # raises before the model generates codes that nothing could decode
        return _ask(request, f"segment {_names(request)}", 512)

    def parse(generations: Sequence[Generation], request: SegmentRequest) -> SegmentResult:
        return parse_segment(generations, request, mask_decoder.find(decoder))

    detect = Skill(ask_detect, parse_located_boxes, contract=PALIGEMMA)
    skills = {
        "vqa": Skill(ask_vqa, parse_vqa),
        "caption": Skill(ask_caption, parse_caption),
        "ocr": Skill(ask_ocr, parse_ocr, basis="native" if ocr_prompt == READ else "prompted"),
        "detect": detect,
        "segment": Skill(ask_segment, parse, slow=True),
        "point": points_of_boxes(detect),
        "count": count_of_boxes(detect),
        "classify": classify_by_questions(lambda request, question: _ask(request, f"answer en {question}", 8)),
    }
    return {task: skill for task, skill in skills.items() if task not in without and (only is None or task in only)}


def _ask(request: Request, text: str, max_tokens: int) -> list[Prompt]:
    # The bare text: the processor adds the image tokens, `<bos>` and the newline.
    return [Prompt(escape_control_tokens(text), request.image, task_sampling(request, max_tokens))]


def ask_vqa(request: VqaRequest) -> list[Prompt]:
    return _ask(request, f"answer {request.lang} {request.question}", 32)


def ask_detect(request: DetectRequest) -> list[Prompt]:
    return _ask(request, f"detect {_names(request)}", 256)


def _names(request: DetectRequest) -> str:
    return " ; ".join(bare_phrase(label) for label in request.labels)


def parse_located_boxes(generations: Sequence[Generation], request: DetectRequest) -> DetectResult:
    """Parse `<locY0><locX0><locY1><locX1> label ; ...` into boxes in pixels of the image. An empty reply has no boxes.

    The last object of a reply cut by max_tokens counts if its box is whole and the text after it begins exactly one
    requested label. Raises ParseError when a reply with text, or one that was cut, has no whole box with a requested
    label.
    """
    objects = _objects(generations[0], request.labels)
    boxes = [LabelledBox(label=item.label, box=_pixels(item.box, request.image), score=item.score) for item in objects]
    if not boxes:
        _require_empty(generations[0], "box of the form <locY0><locX0><locY1><locX1>, label")
    return DetectResult(boxes=boxes)


def parse_segment(
    generations: Sequence[Generation], request: SegmentRequest, decoder: mask_decoder.MaskDecoder
) -> SegmentResult:
    """Parse boxes as `parse_located_boxes`, with sixteen `<segNNN>` before each label, into masks in COCO RLE.

    Objects that big_vision's evaluator calls invalid are left out: an inverted box or one below a pixel, a number of
    codes other than sixteen, a code above 127. Raises ParseError as `parse_located_boxes` does.
    """
    width, height = request.image.width, request.image.height
    objects = [
        item
        for item in _objects(generations[0], request.labels)
        if len(item.codes) == 16 and max(item.codes) < mask_decoder.CODES
    ]
    objects = _within_area(distinct(objects))
    masks = decoder(np.array([item.codes for item in objects], np.int64).reshape(-1, 16))
    boxes = []
    for item, mask in zip(objects, masks, strict=True):
        window = mask_decoder.pixel_window(item.box, width, height)
        if window is not None:
            box = _pixels(item.box, request.image)
            rle = encode_in(mask_decoder.enlarge(mask, window), window, (height, width))
            boxes.append(LabelledMask(label=item.label, box=box, score=item.score, mask=rle))
    if not boxes:
        _require_empty(generations[0], "mask of the form <locY0><locX0><locY1><locX1>, sixteen <segNNN>, label")
    return SegmentResult(boxes=boxes)


def _require_empty(generation: Generation, form: str) -> None:
    """Raise ParseError unless the generation is empty and was not cut. form: the missing object, for the message."""
    if generation.cut:
        raise ParseError(f"The reply was cut by max_tokens before its first whole {form} that was asked for.")
    if generation.text.strip():
        raise ParseError(f"The reply holds no {form} that was asked for.")


def _objects(generation: Generation, labels: Sequence[str]) -> list[ParsedObject]:
    """Return the objects with a valid box and a requested label, which they carry in the request's spelling."""
    requested = AskedLabels(labels)
    objects = []
    for match in _OBJECT.finditer(generation.text):
        located = PALIGEMMA.locate([int(code) for code in match.groups()[:4]], (1, 1))
        if isinstance(located, Fault):
            continue
        x0, y0, x1, y1 = located
        if y1 > y0 and x1 > x0:
            last = not generation.text[match.end() :].strip()
            label = requested.find(match[6], last=last, cut=last and generation.cut)
            if label is not None:
                codes = tuple(int(code) for code in re.findall(r"\d{3}", match[5]))
                score = generation.confidence(match.start(), match.start() + len(match[0].rstrip()))
                objects.append(ParsedObject(label=label, box=(x0, y0, x1, y1), score=score, codes=codes))
    return objects


def _within_area(objects: Sequence[ParsedObject]) -> list[ParsedObject]:
    """Return the first objects whose boxes have at most MAX_MASKED_AREA times the image's area together."""
    areas = itertools.accumulate((item.box[2] - item.box[0]) * (item.box[3] - item.box[1]) for item in objects)
    return [item for item, area in zip(objects, areas, strict=True) if area <= MAX_MASKED_AREA]


def _pixels(box: Box, image: Image) -> Box:
    x0, y0, x1, y1 = box
    return clip((x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height), image.width, image.height)


def paligemma_prompt(turns: Sequence[Turn]) -> str:
    """Return the user's text, which is the prompt (`detect cat`), or `caption en` for an image without text."""
    if len(turns) != 1 or turns[0].role != "user":
        raise BadRequest(
            "PaliGemma was trained on single prompts: one user message, no system message, no history.",
            param="messages",
        )
    if not turns[0].has_image:
        raise BadRequest("PaliGemma needs an image.", param="messages[0].content")
    return escape_control_tokens(turns[0].text.strip()) or "caption en"
