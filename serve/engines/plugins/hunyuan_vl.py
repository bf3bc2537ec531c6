"""A vLLM plugin that lets HunyuanVL read several pictures in the same step.

vLLM 0.32 runs transformers' own code for it, and parts the features of a step's pictures by their numbers of patches. A
picture of HunyuanVL has a token for each row more, so that all but the first got features of others, without an error.
"""


def register() -> None:
    """Register the plugin: the entry point `vllm.general_plugins`. It may be called several times."""
    from vllm import ModelRegistry

    name = "HunYuanVLForConditionalGeneration"
    ModelRegistry.register_model(name, "serve.engines.plugins.hunyuan_vl_vllm:TransformersMultiModalForCausalLM")
