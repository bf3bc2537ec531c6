"""How LLaVA and its descendants are asked each task: the prompts of LLaVA's training and evaluation scripts.

What a family does in its own way (the turn around the words, the picture's geometry) comes in as an argument.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from serve.engines.base import Prompt, Spoken
from serve.errors import BadRequest, ParseError
from serve.media.geometry import Colour, from_padded, pad_to_square
from serve.media.image import Image
from serve.models.base import Skill, Turn, sampling
from serve.models.plain import parse_caption, parse_chat, parse_ocr, parse_vqa
from serve.tasks.base import Request, Result
from serve.tasks.boxes import DetectResult, LabelledBox
from serve.tasks.caption import CaptionRequest
from serve.tasks.chat import ChatRequest
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.vqa import VqaRequest

SHORT = "\nAnswer the question using a single word or phrase."
SENTENCE = "Provide a one-sentence caption for the provided {}."
READ = "What is written in the {}? Answer with the text only."
REGION = "Please provide the bounding box coordinate of the region this sentence describes: "
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_BOX = re.compile(rf"\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\]")
_QUOTED = re.compile(r'"([^"]*)"')
_QUOTE_CUT = re.compile(r'"([^"]*)')


def skills(
    say: Callable[[Sequence[Turn]], str],
    *,
    images: bool = True,
    frames: int = 0,
    pad: Colour | None = None,
    ends: tuple[str, ...] = (),
    read: Callable[[Sequence[Spoken], OcrRequest], Result] | None = None,
) -> Mapping[str, Skill]:
    """The tasks of one family.

    say: its `converse`. images, frames: whether it takes pictures, and of how many frames a film. pad: the colour of
    the square that a picture is set into for detection, where the engine does not do so anyway. ends: where a reply
    ends, beside the checkpoint's end token. read: parses ocr.
    """

    def ask(request: Request, words: str, max_tokens: int, image: Image | None = None) -> list[Prompt]:
        drawn = sampling(request, max_tokens, ends)
        if request.video is not None:
            return [Prompt(say([Turn("user", words, filmed=True)]), None, drawn, request.video.sample(frames))]
        return [Prompt(say([Turn("user", words, pictured=True)]), image or request.image, drawn)]

    def ask_vqa(request: VqaRequest) -> list[Prompt]:
        return ask(request, request.question + SHORT, 32)

    def ask_caption(request: CaptionRequest) -> list[Prompt]:
        if request.lang != "en":
            raise BadRequest("The LLaVA family was trained to caption in English only.", param="lang")
        return ask(request, SENTENCE.format(_shown(request)), 96)

    def ask_ocr(request: OcrRequest) -> list[Prompt]:
        return ask(request, READ.format(_shown(request)), 256)

    def ask_chat(request: ChatRequest) -> list[Prompt]:
        return ask(request, request.question, 512)

    def ask_detect(request: DetectRequest) -> list[Prompt]:
        """One box for one phrase is what it was trained on (RefCOCO, Visual Genome): one prompt a phrase.

        The coordinates of that data are fractions of the picture padded to a square, also where the family itself
        cuts a picture into tiles (LLaVA-NeXT's training took them over as they were). So a tiled picture is padded
        first: then the overview, the tiles and the data mean the same square. The engine
        makes it, once for all phrases.
        """
        if request.video is not None:
            raise BadRequest("Detection takes an image: a box in a film would not say of which moment.", param="video")
        image = None if pad is None else pad_to_square(request.image, pad)
        return [prompt for phrase in request.phrases for prompt in ask(request, REGION + phrase, 48, image)]

    still = {"detect": Skill(ask_detect, parse_detect, prompts=lambda request: len(request.labels))} if images else {}
    return {
        "vqa": Skill(ask_vqa, parse_vqa),
        "caption": Skill(ask_caption, parse_caption),
        "ocr": Skill(ask_ocr, read or parse_unquoted),
        **still,
        "chat": Skill(ask_chat, parse_chat),
    }


def _shown(request: Request) -> str:
    return "image" if request.video is None else "video"


def parse_unquoted(spoken: Sequence[Spoken], request: OcrRequest) -> Result:
    """The text, out of the quotation marks that LLaVA likes to set around all it reads."""
    result = parse_ocr(spoken, request)
    quoted = _QUOTED.fullmatch(result.text) or (spoken[0].cut and _QUOTE_CUT.fullmatch(result.text)) or None
    return result if quoted is None else result.model_copy(update={"text": quoted[1].strip()})


def parse_detect(spoken: Sequence[Spoken], request: DetectRequest) -> DetectResult:
    """`[x0, y0, x1, y1]` in fractions of the padded square -> pixels. Raises ParseError when no phrase got a box."""
    boxes = []
    for label, said in zip(request.labels, spoken, strict=True):
        match = _BOX.search(said.text)
        if match is None:
            continue
        x0, y0, x1, y1 = (float(number) for number in match.groups())
        if max(x0, y0, x1, y1) > 1:
            continue
        box = from_padded((x0, y0, x1, y1), request.image.width, request.image.height)
        if box[2] > box[0] and box[3] > box[1]:
            boxes.append(LabelledBox(label=label, box=box, score=said.confidence(*match.span())))
    if not boxes and any(said.cut for said in spoken):
        raise ParseError("The reply was cut by max_tokens before its first whole box [x0, y0, x1, y1].")
    if not boxes:
        raise ParseError("The reply holds no box of the form [x0, y0, x1, y1] inside the image.")
    return DetectResult(boxes=boxes)
