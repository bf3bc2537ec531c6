"""vLLM inside the test's process, on its GPU if it has one: it starts in seconds, and tests can patch its scheduler."""

import asyncio
import contextlib
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from deployments.local.gpus import gpus
from serve.engines.adapters import CheckedAdapter
from serve.engines.base import Prompt
from serve.engines.chat_settings import ChatSettings
from serve.engines.checkpoint_facts import read_facts
from serve.engines.plugins import contiguous_inputs, gated_delta_net, hunyuan_vl, onevision, prefix_lm, smolvlm
from serve.engines.vllm import arguments
from serve.engines.vllm.chat_renderer import ChatRenderer

DEVICE = "cuda" if gpus() else "cpu"
DTYPES = ("float32", "bfloat16") if DEVICE == "cuda" else ("float32",)
CLOSE = 1e-4 if DEVICE == "cpu" else 2e-2
"""The largest error of a log-probability in float32. On a GPU kernels multiply in TF32, of 10 bits."""
SLACK = 0.0 if DEVICE == "cpu" else 2 * CLOSE
"""How much less likely than the likeliest token a greedy one may be by the reference."""
ON_GPU = {"kv_cache_memory_bytes": 1 << 28, "enforce_eager": True} if DEVICE == "cuda" else {}


@dataclass
class Generated:
    """A reply of vLLM: token ids [prompt], token ids [reply], the first token's top log-probabilities by id."""

    prompt: list[int]
    reply: list[int]
    first: dict[int, float]


@contextlib.contextmanager
def engine(
    folder: Path,
    is_prefix_lm: bool,
    family: Mapping[str, Any] | None = None,
    adapters: Sequence[CheckedAdapter] = (),
    chat: bool = False,
    **deployment: Any,
) -> Iterator["InProcess"]:
    """Start vLLM with VllmEngine's arguments, but with the worker and the scheduler in this process.

    family: arguments that the model needs (`limit_mm_per_prompt`). deployment: arguments of the test, which override
    them. chat: prompts are messages.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"  # its handler keeps the standard error of the test that came first
    for name in prefix_lm.ENVIRONMENT:  # which an engine before this one may have set
        os.environ.pop(name, None)
    arguments.environment(is_prefix_lm)
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.model_executor.models import registry
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import core

    prefix_lm.register()
    for plugin in (onevision, contiguous_inputs, hunyuan_vl, smolvlm, gated_delta_net):
        plugin.register()
    registry._run_in_subprocess = lambda look: look()  # at the model's class, which is about to be imported anyway
    chosen = arguments.arguments(
        folder,
        family or {},
        {**ON_GPU, **deployment},
        is_prefix_lm=is_prefix_lm,
        cpu=DEVICE == "cpu",
        adapters=adapters,
        chat=chat,
    )
    chosen.pop("enable_log_requests")
    preempt, running = Scheduler._preempt_request, InProcess()

    def counted(self: Any, *args: Any, **keywords: Any) -> Any:
        running.preemptions += 1
        return preempt(self, *args, **keywords)

    # vLLM collects garbage nine times in a start and an end, half a second each with all that is imported here: what
    # was there before the engine is left out, and the engine's end does not take it in again.
    gc.collect()
    gc.freeze()
    with (
        patch.object(Scheduler, "_preempt_request", counted),
        patch.object(core, "freeze_gc_heap"),
        patch.object(gc, "unfreeze"),
    ):
        try:
            running.llm = LLM(**{**chosen, "distributed_executor_backend": "uni", "disable_log_stats": True})
            if chat:
                running.chat = ChatRenderer(running.llm.llm_engine.renderer, ChatSettings(), read_facts(folder))
            yield running
        finally:
            if running.llm is not None:
                running.llm.llm_engine.engine_core.shutdown()
                running.llm = None
            cleanup_dist_env_and_memory()


class InProcess:
    llm: Any = None
    chat: ChatRenderer | None = None
    preemptions: int = 0

    @property
    def runner(self) -> str:
        """Return which of vLLM's model runners it has."""
        return "V2" if self.llm.llm_engine.vllm_config.use_v2_model_runner else "V1"

    def say(
        self, prompts: list[Prompt], *, tokens: int = 32, every: int = 0, salt: bool = False, top_p: float | None = None
    ) -> list[Generated]:
        """Greedy replies of exactly `tokens` tokens. every: steps between two arrivals; 0 is all at once.

        top_p: draws replies in place of greedy ones, without a seed.
        """
        from vllm import SamplingParams

        drawn = {"temperature": 0} if top_p is None else {"temperature": 1, "top_p": top_p}
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, logprobs=20, detokenize=False, **drawn)
        core, waiting, done, step = self.llm.llm_engine, list(enumerate(prompts)), {}, 0
        while waiting or core.has_unfinished_requests():
            while waiting and (every == 0 or step % every == 0):
                i, prompt = waiting.pop(0)
                request: dict[str, Any] = {"prompt": prompt.text}
                if self.chat is not None:
                    media = {} if prompt.image is None else {"multi_modal_data": {"image": [prompt.image.pil()]}}
                    request = asyncio.run(self.chat.inputs(prompt.text, media, prompt.reasoning))
                elif prompt.image is not None:
                    request["multi_modal_data"] = {"image": prompt.image.pil()}
                if prompt.video is not None:
                    request["multi_modal_data"] = {"video": prompt.video.frames}
                if salt:
                    request["cache_salt"] = prompt.text
                core.add_request(str(i), request, params)
                if every:
                    break
            for output in core.step():
                if output.finished:
                    done[int(output.request_id)] = output
            step += 1
        return [_generated(done[i]) for i in range(len(prompts))]


def _generated(output: Any) -> Generated:
    completion = output.outputs[0]
    first = {token: choice.logprob for token, choice in completion.logprobs[0].items()}
    return Generated(list(output.prompt_token_ids), list(completion.token_ids), first)
