"""Models, the columns of the table: one file per family. Their order here is the order of everything returned."""

from serve.models import llava, paligemma
from serve.models.base import Model

MODELS: dict[str, Model] = {model.name: model for model in (*llava.MODELS, *paligemma.MODELS)}
if len(MODELS) != len(llava.MODELS) + len(paligemma.MODELS):
    raise ValueError("Two models share a name.")
