"""vLLM as an engine: its arguments, its inputs, and the supervision of its processes."""
