"""How PaliGemma, 1 and 2, is asked each task: the prompts of its training, and its location and segmentation tokens."""

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from serve.engines.base import Prompt, Spoken
from serve.errors import BadRequest, ParseError
from serve.media.geometry import Box, clip
from serve.media.image import Image
from serve.media.masks import encode_in
from serve.models import mask_decoder
from serve.models.base import Skill, Turn, sampling
from serve.models.plain import parse_caption, parse_ocr, parse_vqa
from serve.models.words import plain
from serve.tasks.base import Request, Result
from serve.tasks.boxes import AskedLabels, DetectResult, LabelledBox, bare_phrase, distinct
from serve.tasks.caption import CaptionRequest
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.segment import LabelledMask, SegmentRequest, SegmentResult
from serve.tasks.vqa import VqaRequest

BINS = 1023  # training bins are round(v * 1023); the evaluators of big_vision divide by the same
READ = "ocr"
READ_MIX = "answer en What is written in the image?"
"""PaliGemma 1 mix was not trained on the prefix `ocr`; it answers questions, text in pictures among them."""
_LOCATIONS = r"<loc(\d{4})>\s*<loc(\d{4})>\s*<loc(\d{4})>\s*<loc(\d{4})>"
_CODES = r"((?:\s*<seg\d{3}>)*)"
_FOUND = re.compile(rf"{_LOCATIONS}{_CODES}\s*((?:[^;<]|<(?!loc|seg|eos>|pad>))*)")
MOST_MASKED = 16
"""A reply's masks are drawn until their boxes have so many times the picture's area together."""


class Found(LabelledBox):
    """One object of a reply. box: x0, y0, x1, y1 in fractions of the picture; codes: of its mask, as many as said."""

    codes: tuple[int, ...]


def skills(
    only: Collection[str] = ("vqa", "caption", "ocr", "detect", "segment"),
    *,
    reading: str = READ,
    decoder: str | None = None,
    longest_caption: int = 96,
    read: Callable[[Sequence[Spoken], OcrRequest], Result] = parse_ocr,
) -> Mapping[str, Skill]:
    """The tasks of one checkpoint.

    reading: the prompt for ocr, `read` its parser. decoder: where the mask decoder is, as `mask_decoder.find` takes it.
    """

    def ask_caption(request: CaptionRequest) -> list[Prompt]:
        return _ask(request, f"caption {request.lang}", longest_caption)

    def ask_ocr(request: OcrRequest) -> list[Prompt]:
        return _ask(request, reading, 256)

    def ask_segment(request: SegmentRequest) -> list[Prompt]:
        mask_decoder.find(decoder)  # without it all that is said would be for nothing
        return _ask(request, f"segment {_names(request)}", 512)

    def parse(spoken: Sequence[Spoken], request: SegmentRequest) -> SegmentResult:
        return parse_segment(spoken, request, mask_decoder.find(decoder))

    able = {
        "vqa": Skill(ask_vqa, parse_vqa),
        "caption": Skill(ask_caption, parse_caption),
        "ocr": Skill(ask_ocr, read),
        "detect": Skill(ask_detect, parse_detect),
        "segment": Skill(ask_segment, parse, slow=True),
    }
    return {task: skill for task, skill in able.items() if task in only}


def _ask(request: Request, text: str, max_tokens: int) -> list[Prompt]:
    """The bare text: the processor adds the image tokens, `<bos>` and the newline (parity notes)."""
    return [Prompt(plain(text), request.image, sampling(request, max_tokens))]


def ask_vqa(request: VqaRequest) -> list[Prompt]:
    return _ask(request, f"answer {request.lang} {request.question}", 32)


def ask_detect(request: DetectRequest) -> list[Prompt]:
    return _ask(request, f"detect {_names(request)}", 256)


def _names(request: DetectRequest) -> str:
    return " ; ".join(bare_phrase(label) for label in request.labels)


def parse_detect(spoken: Sequence[Spoken], request: DetectRequest) -> DetectResult:
    """`<locY0><locX0><locY1><locX1> label ; ...` -> boxes in pixels. An empty reply means that nothing was found.

    What a broken-off reply ends with counts where it is a whole box and the beginning of one label that was asked for.
    Raises ParseError when there is no whole box of what was asked for in a reply that says something or was broken off.
    """
    objects = _found(spoken[0], request.labels)
    boxes = [
        LabelledBox(label=found.label, box=_pixels(found.box, request.image), score=found.score) for found in objects
    ]
    if not boxes:
        _require_empty(spoken[0], "box of the form <locY0><locX0><locY1><locX1>, label")
    return DetectResult(boxes=boxes)


def parse_segment(
    spoken: Sequence[Spoken], request: SegmentRequest, decoder: mask_decoder.MaskDecoder
) -> SegmentResult:
    """The same with exactly sixteen `<segNNN>` before the label -> masks. An empty reply means that nothing was found.

    What big_vision's evaluator calls invalid is left out: a box turned inside out or of less than a pixel, codes that
    are not sixteen or above 127. Raises ParseError as `parse_detect` does.
    """
    width, height = request.image.width, request.image.height
    whole = [
        found
        for found in _found(spoken[0], request.labels)
        if len(found.codes) == 16 and max(found.codes) < mask_decoder.CODES
    ]
    whole = _within_area(distinct(whole))
    small = decoder(np.array([found.codes for found in whole], np.int64).reshape(-1, 16))
    boxes = []
    for found, mask in zip(whole, small, strict=True):
        window = mask_decoder.pixels_of(found.box, width, height)
        if window is not None:
            box = _pixels(found.box, request.image)
            rle = encode_in(mask_decoder.enlarged(mask, window), window, (height, width))
            boxes.append(LabelledMask(label=found.label, box=box, score=found.score, mask=rle))
    if not boxes:
        _require_empty(spoken[0], "mask of the form <locY0><locX0><locY1><locX1>, sixteen <segNNN>, label")
    return SegmentResult(boxes=boxes)


def _require_empty(said: Spoken, form: str) -> None:
    """Raises ParseError for a reply that says something, or might have."""
    if said.cut:
        raise ParseError(f"The reply was cut by max_tokens before its first whole {form} that was asked for.")
    if said.text.strip():
        raise ParseError(f"The reply holds no {form} that was asked for.")


def _found(said: Spoken, labels: Sequence[str]) -> list[Found]:
    """The objects whose box is not turned inside out and whose label was asked for, which is given back as asked."""
    asked = AskedLabels(labels)
    objects = []
    for match in _FOUND.finditer(said.text):
        y0, x0, y1, x1 = (int(code) / BINS for code in match.groups()[:4])
        if y1 > y0 and x1 > x0 and max(y1, x1) <= 1:
            last = not said.text[match.end() :].strip()
            label = asked.find(match[6], last=last, cut=last and said.cut)
            if label is not None:
                codes = tuple(int(code) for code in re.findall(r"\d{3}", match[5]))
                score = said.confidence(match.start(), match.start() + len(match[0].rstrip()))
                objects.append(Found(label=label, box=(x0, y0, x1, y1), score=score, codes=codes))
    return objects


def _within_area(objects: Sequence[Found]) -> list[Found]:
    """The first of these objects whose boxes come to no more than MOST_MASKED pictures together."""
    areas = itertools.accumulate((found.box[2] - found.box[0]) * (found.box[3] - found.box[1]) for found in objects)
    return [found for found, area in zip(objects, areas, strict=True) if area <= MOST_MASKED]


def _pixels(box: Box, image: Image) -> Box:
    x0, y0, x1, y1 = box
    return clip((x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height), image.width, image.height)


def converse(turns: Sequence[Turn]) -> str:
    """The user's words are the prompt (`caption en`, `detect cat`); an image alone asks for its caption."""
    if len(turns) != 1 or turns[0].role != "user":
        raise BadRequest(
            "PaliGemma was trained on single prompts: one user message, no system message, no history.",
            param="messages",
        )
    if not turns[0].pictured:
        raise BadRequest("PaliGemma needs an image.", param="messages[0].content")
    return plain(turns[0].text.strip()) or "caption en"


def prepare(image: Image) -> Image:
    """The processor stretches the whole picture to a square, as in training: nothing to do before it."""
    return image
