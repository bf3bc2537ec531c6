"""The part of the plugin that runs inside vLLM 0.32. Only vLLM imports this module, and only for a HunyuanVL.

The class stays vLLM's own, as vLLM asks by its name whether it runs transformers' code.
"""

import functools
from typing import Any

from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM
from vllm.model_executor.models.transformers.multimodal import MultiModalMixin

__all__ = ["TransformersMultiModalForCausalLM"]

_process = MultiModalMixin._process_vision_input


@functools.wraps(_process)
def _process_each(self: Any, modality: str, pixel_values: Any, num_patches: Any, **inputs: Any) -> list[Any]:
    """Return the features of each picture, [tokens, width]. pixel_values: [patches of all pictures, ...]."""
    if self.config.model_type != "hunyuan_vl":
        return list(_process(self, modality, pixel_values, num_patches, **inputs))
    grids = inputs[f"{modality}_grid_thw"]
    features = []
    for index, pixels in enumerate(pixel_values.split(grids.prod(-1).tolist())):
        own = self._select_item_kwargs(inputs, index, len(grids))
        features.append(self._get_features(modality, pixels, **own).flatten(0, -2))
    return features


MultiModalMixin._process_vision_input = _process_each
