"""The served models, one file per family. Responses, tables and pages list them in the order of `MODELS`."""

import importlib

from serve.models.base import Model

FAMILIES = (
    "llava",
    "toy_llava",
    "llava_next",
    "llava_onevision",
    "llava_next_video",
    "paligemma",
    "toy_paligemma",
    "paligemma2",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "gemma3",
    "gemma4",
    "internvl",
    "glm4v",
    "smolvlm2",
    "lfm2_vl",
    "mistral",
    "ministral3",
    "minicpm_v",
    "llama4",
    "cohere_vision",
    "granite_vision",
    "glm_ocr",
    "lighton_ocr",
    "paddleocr_vl",
    "hunyuan_ocr",
    "ocr",
)
"""The files with `MODELS`, in order."""

_ALL: list[Model] = [model for name in FAMILIES for model in importlib.import_module(f"serve.models.{name}").MODELS]
MODELS: dict[str, Model] = {model.name: model for model in _ALL}
if len(MODELS) != len(_ALL):
    raise ValueError("Two models share a name.")
