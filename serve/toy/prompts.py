"""How each of the two families is asked, word for word as the published checkpoints were trained, and how it answers.

PaliGemma gets the bare text: its processor adds the image tokens, `<bos>` and the newline.
LLaVA gets a whole turn. Its boxes are fractions of the picture padded to a square.
"""

from serve.toy.questions import Question
from serve.toy.world import Box

SHORT_ANSWER = "Answer the question using a single word or phrase."
CAPTION = "Provide a one-sentence caption for the provided image."
OCR = "What is written in the image? Answer with the text only."
REGION = "Please provide the bounding box coordinate of the region this sentence describes:"

PAD = (122, 116, 104)
"""CLIP's mean colour, which fills the square."""
LOC_BINS = 1024
LOC_STEP = 16
"""PaliGemma toys say only every 16th bin, the middle one: 64 places are learnt sooner than 1024."""
BOX_STEP = 2
"""LLaVA toys say only even hundredths."""


def paligemma(question: Question) -> tuple[str, str]:
    """Prompt and answer."""
    if question.task == "vqa":
        return f"answer en {question.text}", question.answer
    if question.task == "detect":
        return f"detect {question.text}", " ; ".join(f"{locs(box)} {phrase}" for phrase, box in question.boxes)
    return {"caption": "caption en", "ocr": "ocr"}[question.task], question.answer


def llava(question: Question, size: tuple[int, int]) -> tuple[str, str]:
    """What the user says and the answer; `turn` makes a prompt of it. Detect takes one phrase with one box."""
    if question.task == "vqa":
        return f"{question.text}\n{SHORT_ANSWER}", question.answer
    if question.task == "detect":
        ((phrase, box),) = question.boxes
        return f"{REGION} {question.text}", brackets(padded(box, size))
    if question.task == "chat":
        return question.text, question.answer
    return {"caption": CAPTION, "ocr": OCR}[question.task], question.answer


def turn(text: str) -> str:
    return f"USER: <image>\n{text} ASSISTANT:"


def padded(box: Box, size: tuple[int, int]) -> Box:
    """A box of the picture as a box of the square that the picture is centred in."""
    width, height = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    x0, y0, x1, y1 = box
    return (
        (x0 * width + left) / side, (y0 * height + top) / side, (x1 * width + left) / side, (y1 * height + top) / side,
    )  # fmt: skip


def unpadded(box: Box, size: tuple[int, int]) -> Box:
    """The inverse of `padded`."""
    width, height = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    x0, y0, x1, y1 = box
    return (
        (x0 * side - left) / width, (y0 * side - top) / height, (x1 * side - left) / width, (y1 * side - top) / height,
    )  # fmt: skip


def locs(box: Box) -> str:
    """`<locY0><locX0><locY1><locX1>`."""
    x0, y0, x1, y1 = box
    return "".join(f"<loc{loc_bin(v):04d}>" for v in (y0, x0, y1, x1))


def loc_bin(value: float) -> int:
    cell = min(LOC_BINS // LOC_STEP - 1, max(0, int(value * (LOC_BINS - 1) / LOC_STEP)))
    return cell * LOC_STEP + LOC_STEP // 2


def brackets(box: Box) -> str:
    """`[0.12, 0.30, 0.44, 0.62]`: x0, y0, x1, y1."""
    return "[" + ", ".join(f"0.{hundredths(v):02d}" for v in box) + "]"


def hundredths(value: float) -> int:
    return min(100 - BOX_STEP, max(0, BOX_STEP * round(value * 100 / BOX_STEP)))
