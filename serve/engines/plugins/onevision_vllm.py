"""The part of the plugin that stands inside vLLM 0.32. Only vLLM imports this module."""

from typing import Any

from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration


class LlavaOnevision(LlavaOnevisionForConditionalGeneration):  # type: ignore[misc]
    def _process_video_pixels(self, inputs: Any) -> Any:
        """Each film as [tokens, width], where vLLM makes [1, tokens, width] of films that differ in length."""
        return [film.flatten(0, -2) for film in super()._process_video_pixels(inputs)]
