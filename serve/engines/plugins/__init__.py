"""Plugins that stand inside vLLM's own processes, and the parts of them that need no vLLM."""
