"""The toys of LLaVA-1.5's architecture."""

from collections.abc import Sequence

from serve.errors import BadRequest
from serve.models.base import Checkpoint, Model, Turn
from serve.models.llava import llava_prompt, pad
from serve.models.llava_tasks import FURTHER, llava_skills
from serve.models.text_replies import parse_toy_ocr
from serve.models.toys import FAMILY_ARGS, FOLDER, toy_card
from serve.models.turns import split_system


def toy_prompt(turns: Sequence[Turn]) -> str:
    """Return `llava_prompt` for a toy. Raises BadRequest for more or less than one question about one image.

    A system text is allowed; a short one does not change a toy's answers.
    """
    _, rest = split_system(turns)
    if len(rest) != 1 or not rest[0].has_image:
        raise BadRequest(
            "This model answers one question about one image: no history, no text alone.", param="messages"
        )
    return llava_prompt(turns)


TASKS = ("chat", "ocr (listed words)", "detect (one box a phrase)", *FURTHER)
MODELS = [
    Model(
        name=f"toy-{folder}",
        checkpoint=Checkpoint(str(FOLDER / folder), expect={"architectures": ["LlavaForConditionalGeneration"]}),
        card=toy_card("LLaVA-1.5", parameters, TASKS, ()),
        skills=llava_skills(llava_prompt, parse_ocr=parse_toy_ocr),
        converse=toy_prompt,
        prepare=pad,
        family_args=FAMILY_ARGS,
    )
    for folder, parameters in (("llava", 5_515_392), ("llava-b", 5_519_424))
]
