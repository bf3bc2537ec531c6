"""Texts of several lengths, in the form that each family reads."""

import numpy as np

from .vocabulary import WORDS

FORMS = {
    "llava": "USER: <image>\n{} ASSISTANT:",
    "llava_next_mistral": "[INST] <image>\n{} [/INST]",
    "llava_next_vicuna": "USER: <image>\n{} ASSISTANT:",
    "llava_onevision": "<|im_start|>user <image>\n{}<|im_end|><|im_start|>assistant\n",
    "llava_next_video": "USER: <video>\n{} ASSISTANT:",
}


def prompts(family: str, count: int) -> list[str]:
    """2 to 17 words each; PaliGemma reads them bare."""
    rng = np.random.default_rng(5)
    words = WORDS.split()
    texts = [" ".join(rng.choice(words, size=2 + 3 * (i % 6))) for i in range(count)]
    return [FORMS.get(family, "{}").format(text) for text in texts]
