"""The part of module_names.py that runs inside vLLM 0.32. Only vLLM imports this module, in a worker's process."""

from vllm.model_executor.models import gemma3_mm, llava, llava_next, llava_next_video, llava_onevision, paligemma
from vllm.model_executor.models.utils import WeightsMapper

from serve.engines.module_names import BARE

NEWER = WeightsMapper(orig_to_new_regex={BARE: r"\1vision_model."})

for model in (
    gemma3_mm.Gemma3ForConditionalGeneration,
    llava.LlavaForConditionalGeneration,
    llava_next.LlavaNextForConditionalGeneration,
    llava_next_video.LlavaNextVideoForConditionalGeneration,
    llava_onevision.LlavaOnevisionForConditionalGeneration,
    paligemma.PaliGemmaForConditionalGeneration,
):
    model.hf_to_vllm_mapper = NEWER | model.hf_to_vllm_mapper


class NewerNames:
    """A base class that vLLM adds to its worker. It is empty: importing this module sets the mappings."""
