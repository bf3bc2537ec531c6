"""A vLLM plugin that lets LLaVA-OneVision process videos of different lengths in the same step.

vLLM 0.32 gives such videos one dimension too many and raises an AssertionError, which ends the engine with all its
requests. Two concurrent requests with short clips are enough.
"""


def register() -> None:
    """Register the plugin: the entry point `vllm.general_plugins`. It may be called several times."""
    from vllm import ModelRegistry

    name = "LlavaOnevisionForConditionalGeneration"
    ModelRegistry.register_model(name, "serve.engines.plugins.onevision_vllm:LlavaOnevision")
