"""vLLM as an engine: what it is started with, what it is given, and how its process is watched."""
