"""The served models, one file per family. Responses, tables and pages list them in the order of `MODELS`."""

from serve.models import llava, llava_next, llava_next_video, llava_onevision, ocr, paligemma, paligemma2
from serve.models.base import Model

_ALL = [
    *llava.MODELS,
    *llava_next.MODELS,
    *llava_onevision.MODELS,
    *llava_next_video.MODELS,
    *paligemma.MODELS,
    *paligemma2.MODELS,
    *ocr.MODELS,
]
MODELS: dict[str, Model] = {model.name: model for model in _ALL}
if len(MODELS) != len(_ALL):
    raise ValueError("Two models share a name.")
