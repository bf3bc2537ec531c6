"""Engine inputs for models whose image processor makes one size of every image.

vLLM runs transformers' whole processor for each image: 2.0 ms of a replica's process for a picture of 224 pixels, a
quarter of it for the picture's own arithmetic (NOTES.md, 2026-11-28). Here that arithmetic is called alone, with the
processor's own functions, so that the values are the same bit by bit. The token ids of a text come from vLLM's
renderer, and are kept for the next image.
"""

import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from serve.engines.base import Prompt
from serve.engines.vllm import multimodal
from serve.engines.vllm.multimodal import Resizer

LONGEST_TEXT = 2000
"""Characters of a text that is tokenized on the event loop: about 1 ms. A longer one goes through vLLM's threads."""
TEXTS = 256
"""Texts whose token ids are kept: many pictures are asked the same question."""


PIXEL_VALUES = "pixel_values"
"""The key of an image's values in what `prepare` returns."""


class _Rendered(NamedTuple):
    """A text's token ids with the image's placeholders, and where these are."""

    token_ids: list[int]
    placeholders: Any


class FixedImages:
    """A maker of vLLM's engine inputs from images that `resizer` applies to.

    It is ready once it has seen inputs of vLLM's own making (`learn`), which show the form of the model's image inputs.
    """

    def __init__(self, renderer: Any, resizer: Resizer) -> None:
        self._renderer = renderer
        self._resizer = resizer
        self._cache = renderer.mm_processor_cache
        self._element: Any = None
        self._updates: Any = None
        self._texts: OrderedDict[str, _Rendered] = OrderedDict()

    @classmethod
    def of(cls, llm: Any, resizer: Resizer | None) -> "FixedImages | None":
        """Return the maker for a model; None where its images have no fixed size, or vLLM keeps no cache of them."""
        config = llm.model_config.multimodal_config
        if resizer is None or llm.renderer.mm_processor_cache is None or config.mm_processor_cache_type != "lru":
            return None
        return cls(llm.renderer, resizer)

    def learn(self, inputs: Mapping[str, Any]) -> None:
        """Take the form of image inputs from vLLM's, for an image that its cache has got with them."""
        items = inputs.get("mm_kwargs", {}).get("image") or [None]
        if self._element is not None or items[0] is None or set(items[0]) != {"pixel_values"}:
            return
        (key,) = inputs["mm_hashes"]["image"]
        if self._cache.is_cached_item(key):  # else images are larger than the whole cache
            self._element = items[0]["pixel_values"]
            _, self._updates = self._cache.get_and_update_item(None, key)

    def applies_to(self, prompt: Prompt) -> bool:
        """Return whether `prepare` can be used for this prompt's image, which is prepared by the model's family."""
        fits = prompt.image is not None and self._resizer.applies_to(prompt.image)
        return fits and self._element is not None and len(prompt.text) <= LONGEST_TEXT

    def prepare(self, prompt: Prompt) -> dict[str, Any]:
        """Return {PIXEL_VALUES: the processor's output for the image, float [3, height, width] of the model's type}."""
        assert prompt.image is not None
        processor = self._resizer.processor
        values = processor.rescale_and_normalize(
            self._resizer(prompt.image).contiguous()[None],
            processor.do_rescale,
            processor.rescale_factor,
            processor.do_normalize,
            tuple(processor.image_mean),
            tuple(processor.image_std),
        )
        return {PIXEL_VALUES: values[0].to(self._element.data.dtype)}

    def takes(self, text: str, media: Mapping[str, Any]) -> bool:
        """Return whether `inputs` can be used: the image comes from `prepare`, or vLLM's cache has it."""
        known = self._element is not None and media.get("multi_modal_data") == {"image": [None]}
        return PIXEL_VALUES in media or (known and len(text) <= LONGEST_TEXT)

    def inputs(self, text: str, media: Mapping[str, Any]) -> dict[str, Any]:
        """Return the engine input of a text and an image, and note the image in vLLM's cache.

        media: with the image's key in the cache (`multimodal.uuids`), if it has one. Raises ValueError where the cache
        is to have the image and has it no more.
        """
        from vllm.multimodal.inputs import MultiModalKwargsItem, MultiModalKwargsItems

        (key,), given = media.get("multi_modal_uuids", {}).get("image") or [uuid.uuid4().hex], None
        if PIXEL_VALUES in media:
            element = replace(self._element, data=media[PIXEL_VALUES])
            given = MultiModalKwargsItem({"pixel_values": element}), self._updates
        elif not self._cache.is_cached_item(key):
            raise ValueError("the image is not in the cache")
        item, _ = self._cache.get_and_update_item(given, key)
        rendered = self._rendered(text, key)
        return {
            "type": "multimodal",
            "prompt_token_ids": list(rendered.token_ids),
            "mm_kwargs": MultiModalKwargsItems({"image": [item]}),
            "mm_hashes": {"image": [key]},
            "mm_placeholders": rendered.placeholders,
            "prompt": text,
            "arrival_time": time.time(),
            **multimodal.cache_salt(),
        }

    def _rendered(self, text: str, key: str) -> _Rendered:
        """Return a text's token ids. key: of an image in the cache."""
        if text in self._texts:
            self._texts.move_to_end(text)
            return self._texts[text]
        image = {"multi_modal_data": {"image": [None]}, "multi_modal_uuids": {"image": [key]}}
        inputs = self._renderer.render_cmpl([{"prompt": text, **image}])[0]
        self._texts[text] = _Rendered(inputs["prompt_token_ids"], inputs["mm_placeholders"])
        if len(self._texts) > TEXTS:
            self._texts.popitem(last=False)
        return self._texts[text]
