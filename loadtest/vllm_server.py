"""vLLM's own OpenAI server on a machine whose torch is a CPU build."""

import runpy

from serve.engines.vllm.torchvision import repair

repair()  # at the top: the processes that vLLM spawns import this file first

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
