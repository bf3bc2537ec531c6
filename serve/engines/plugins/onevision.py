"""A vLLM plugin: films of different lengths may be read in the same step.

vLLM 0.32 gives LLaVA-OneVision's films one dimension too many when their frame counts differ, trips over it, and the
engine dies with every request in it. Two people with two short clips are enough.
"""


def register() -> None:
    """Entry point. Quick, and harmless when it is called again."""
    from vllm import ModelRegistry

    name = "LlavaOnevisionForConditionalGeneration"
    ModelRegistry.register_model(name, "serve.engines.plugins.onevision_vllm:LlavaOnevision")
