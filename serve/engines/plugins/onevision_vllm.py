"""The part of the plugin that runs inside vLLM 0.32. Only vLLM imports this module."""

from typing import Any

from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration


class LlavaOnevision(LlavaOnevisionForConditionalGeneration):  # type: ignore[misc]
    def _process_video_pixels(self, inputs: Any) -> Any:
        """Return each video as [tokens, width]; vLLM returns [1, tokens, width] where lengths differ."""
        return [video.flatten(0, -2) for video in super()._process_video_pixels(inputs)]
