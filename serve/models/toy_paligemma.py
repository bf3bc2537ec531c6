"""The toys of PaliGemma's architecture."""

from serve.models.base import Checkpoint, Model, unchanged
from serve.models.paligemma_tasks import paligemma_prompt, paligemma_skills
from serve.models.text_replies import parse_toy_ocr
from serve.models.toys import FAMILY_ARGS, FOLDER, toy_card


def _toy(folder: str, parameters: int) -> Model:
    """Make a toy, which can segment if its mask decoder is in its folder."""
    path = FOLDER / folder
    decoder = path / "vae-oid.npz"
    segments = decoder.is_file()
    tasks = ("detect", *(["segment"] if segments else []))
    more = ("ocr (listed words)", "point (derived)", "count (derived)", "classify (prompted)")
    features = ("boxes as location tokens", *(["masks as segmentation tokens"] if segments else []))
    return Model(
        name=f"toy-{folder}",
        checkpoint=Checkpoint(str(path), expect={"architectures": ["PaliGemmaForConditionalGeneration"]}),
        card=toy_card("PaliGemma", parameters, (*tasks, *more), features),
        skills=paligemma_skills(
            without=() if segments else ("segment",), decoder=str(decoder), parse_ocr=parse_toy_ocr
        ),
        converse=paligemma_prompt,
        prepare=unchanged,
        family_args=FAMILY_ARGS,
        prefix_lm=True,
        # the LLaVA toys' boxes are in hundredths, and a mean of equal parts loses by it (client/evaluation/NOTES.md)
        task_weights={"detect": 4.0},
    )


MODELS = [_toy("paligemma", 4_688_832), _toy("paligemma-b", 5_652_096)]
