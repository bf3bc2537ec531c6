"""Plugins that run inside vLLM's processes, and their parts that need no vLLM."""
