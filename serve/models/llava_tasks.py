"""The prompts and parsers of LLaVA and its successors for each task, from LLaVA's training and evaluation scripts.

The families differ in chat template, padding and video; these are arguments of `llava_skills`.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from serve.engines.base import Generation, Prompt
from serve.errors import BadRequest, ParseError
from serve.media.geometry import Colour, pad_to_square
from serve.media.image import Image
from serve.models.base import Skill, Turn, task_sampling
from serve.models.contracts import LLAVA, Fault
from serve.models.derived import count_in_words, points_of_boxes
from serve.models.text_replies import parse_caption, parse_chat, parse_text, parse_vqa
from serve.models.yes_no import classify_by_questions
from serve.tasks.boxes import DetectResult, LabelledBox
from serve.tasks.caption import CaptionRequest
from serve.tasks.chat import ChatRequest
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.reply import Result
from serve.tasks.request import Request
from serve.tasks.vqa import VqaRequest

FURTHER = ("point (derived)", "count (prompted)", "classify (prompted)")
"""On the cards of those that detect, besides what each was trained for."""
SHORT = "\nAnswer the question using a single word or phrase."
SENTENCE = "Provide a one-sentence caption for the provided {}."
READ = "What is written in the {}? Answer with the text only."
REGION = "Please provide the bounding box coordinate of the region this sentence describes: "
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_BOX = re.compile(rf"\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\]")
_QUOTED = re.compile(r'"([^"]*)"')
_QUOTE_CUT = re.compile(r'"([^"]*)')


def llava_skills(
    converse: Callable[[Sequence[Turn]], str],
    *,
    images: bool = True,
    frames: int = 0,
    pad: Colour | None = None,
    ends: tuple[str, ...] = (),
    parse_ocr: Callable[[Sequence[Generation], OcrRequest], Result] | None = None,
) -> Mapping[str, Skill]:
    """Return the skills of one family, by task.

    converse: as in Model. images: whether it takes images. frames: the most frames of a video, 0 if it takes none. pad:
    for detection, pad the image to a square of this colour; None where the family's `prepare` does so for every task.
    ends: texts that end its replies, besides the checkpoint's end token. parse_ocr: `parse_unquoted` by default.
    """

    def ask(request: Request, text: str, max_tokens: int, image: Image | None = None) -> list[Prompt]:
        sampling = task_sampling(request, max_tokens, ends)
        if request.video is not None:
            turn = Turn("user", text, has_video=True)
            return [Prompt(converse([turn]), None, sampling, request.video.sample(frames))]
        return [Prompt(converse([Turn("user", text, has_image=True)]), image or request.image, sampling)]

    def ask_vqa(request: VqaRequest) -> list[Prompt]:
        return ask(request, request.question + SHORT, 32)

    def ask_caption(request: CaptionRequest) -> list[Prompt]:
        if request.lang != "en":
            raise BadRequest("The LLaVA family was trained to caption in English only.", param="lang")
        return ask(request, SENTENCE.format(_medium(request)), 96)

    def ask_ocr(request: OcrRequest) -> list[Prompt]:
        return ask(request, READ.format(_medium(request)), 256)

    def ask_chat(request: ChatRequest) -> list[Prompt]:
        return ask(request, request.question, 512)

    def ask_detect(request: DetectRequest) -> list[Prompt]:
        """Make one prompt per phrase: the training data (RefCOCO, Visual Genome) has one box for one phrase.

        Its coordinates are fractions of the image padded to a square, also for families that cut an image into tiles
        (LLaVA-NeXT was trained on the same data). A tiled image is therefore padded first, so that its overview and
        tiles show the square that the coordinates refer to. The engine pads it, once for all phrases.
        """
        if request.video is not None:
            raise BadRequest("Detection takes an image: a box in a film would not say of which moment.", param="video")
        image = None if pad is None else pad_to_square(request.image, pad)
        return [prompt for phrase in request.phrases for prompt in ask(request, REGION + phrase, 48, image)]

    detect = Skill(
        ask_detect,
        parse_padded_boxes,
        prompts=lambda request: len(request.labels),
        contract=LLAVA,
        basis="native" if pad is None else "prompted",
    )
    reads = pad is not None or parse_ocr is not None  # LLaVA-1.5 was not trained to
    return {
        "vqa": Skill(ask_vqa, parse_vqa),
        "caption": Skill(ask_caption, parse_caption),
        "ocr": Skill(ask_ocr, parse_ocr or parse_unquoted, basis="native" if reads else "prompted"),
        **({"detect": detect, "point": points_of_boxes(detect)} if images else {}),
        # not by boxes: it was trained on one box for a phrase
        "count": count_in_words(lambda request, question: ask(request, question + SHORT, 16)),
        "classify": classify_by_questions(lambda request, question: ask(request, question + SHORT, 8)),
        "chat": Skill(ask_chat, parse_chat),
    }


def _medium(request: Request) -> str:
    return "image" if request.video is None else "video"


def parse_unquoted(generations: Sequence[Generation], request: OcrRequest) -> Result:
    """Return the text without the quotation marks that LLaVA often puts around it. Raises as `parse_text`."""
    result = parse_text(generations, request)
    quoted = _QUOTED.fullmatch(result.text) or (generations[0].cut and _QUOTE_CUT.fullmatch(result.text)) or None
    return result if quoted is None else result.model_copy(update={"text": quoted[1].strip()})


def parse_padded_boxes(generations: Sequence[Generation], request: DetectRequest) -> DetectResult:
    """Parse `[x0, y0, x1, y1]`, fractions of the padded square, into boxes in pixels of the image, one per label.

    Raises ParseError when no label got a box inside the image.
    """
    boxes = []
    for label, generation in zip(request.labels, generations, strict=True):
        match = _BOX.search(generation.text)
        if match is None:
            continue
        placed = LLAVA.place([float(number) for number in match.groups()], (request.image.width, request.image.height))
        if isinstance(placed, Fault):
            continue
        box = (placed[0], placed[1], placed[2], placed[3])
        if box[2] > box[0] and box[3] > box[1]:
            boxes.append(LabelledBox(label=label, box=box, score=generation.confidence(*match.span())))
    if not boxes and any(generation.cut for generation in generations):
        raise ParseError("The reply was cut by max_tokens before its first whole box [x0, y0, x1, y1].")
    if not boxes:
        raise ParseError("The reply holds no box of the form [x0, y0, x1, y1] inside the image.")
    return DetectResult(boxes=boxes)
