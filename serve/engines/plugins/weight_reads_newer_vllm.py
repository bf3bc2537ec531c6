"""Both of weight_reads_vllm.py and module_names_vllm.py: a worker of vLLM's has one extension."""

import serve.engines.plugins.module_names_vllm  # noqa: F401  # importing it sets the mappings
from serve.engines.plugins.weight_reads_vllm import CountedReads

__all__ = ["CountedReads"]
