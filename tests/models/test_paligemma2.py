import numpy as np
import pytest

from serve.media.image import Image
from serve.models import MODELS
from serve.models.paligemma2 import SIZES
from serve.tasks.caption import CaptionRequest
from serve.tasks.ocr import OcrRequest

WIDE = Image(np.zeros((50, 100, 3), np.uint8))
GEMMA_2 = {
    "3b": (2304, 26, 4, 256, 9216, 8),
    "10b": (3584, 42, 8, 256, 14336, 16),
    "28b": (4608, 46, 16, 128, 36864, 32),
}
"""Hidden size, layers, key-value heads, width of a head, intermediate size and query heads of google/gemma-2-*."""


def test_catalogue_has_the_published_checkpoints() -> None:
    names = [name.removeprefix("paligemma2-") for name in MODELS if name.startswith("paligemma2-")]
    assert names == [
        *(f"{size}-pt-{pixels}" for size in ("3b", "10b", "28b") for pixels in (224, 448, 896)),
        *(f"{size}-mix-{pixels}" for size in ("3b", "10b", "28b") for pixels in (224, 448)),
        "3b-ft-docci-448",
        "10b-ft-docci-448",
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", [224, 448, 896])
def test_parameters_on_the_card_are_the_sum_of_the_shapes(size: str, pixels: int) -> None:
    hidden, layers, kv, head, wide, heads = GEMMA_2[size]
    attention = 2 * hidden * heads * head + 2 * hidden * kv * head
    text = layers * (attention + 3 * hidden * wide + 4 * hidden) + hidden + 257_216 * hidden
    vision = 27 * (4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152) + 2 * 1152
    patches = 3 * 14 * 14 * 1152 + 1152 + (pixels // 14) ** 2 * 1152
    total = text + vision + patches + 1152 * hidden + hidden
    assert MODELS[f"paligemma2-{size}-pt-{pixels}"].card.parameters == total


def test_ocr_prompt_is_the_prefix_ocr() -> None:
    for name in ("paligemma2-3b-mix-448", "paligemma2-28b-pt-896"):
        (prompt,) = MODELS[name].skills["ocr"].ask(OcrRequest(image=WIDE))
        assert prompt.text == "ocr" and MODELS[name].prefix_lm


def test_captioner_only_captions_with_512_tokens() -> None:
    docci = MODELS["paligemma2-3b-ft-docci-448"]
    assert set(docci.skills) == {"caption"}
    (prompt,) = docci.skills["caption"].ask(CaptionRequest(image=WIDE))
    assert prompt.text == "caption en" and prompt.sampling.max_tokens == 512
