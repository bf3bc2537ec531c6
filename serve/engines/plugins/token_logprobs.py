"""A vLLM plugin that finds the log-probability of a generated token alone for less.

Merging weighs replies by the log-probabilities of their tokens, without alternatives. For such a request vLLM 0.32 also
looks for the likeliest of none and counts how many tokens are likelier, in every step of the engine, by a compiled
function whose guards alone cost more than the sum (NOTES.md). Here neither is done: the values are vLLM's own, and the
rank is 0. A step in which any request asks for alternatives is vLLM's own work, and so are all on a GPU, whose runner
has another sampler.
"""

import functools
from typing import Any


def register() -> None:
    """Register the plugin: the entry point `vllm.general_plugins`. It may be called several times."""
    import torch
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.sample.sampler import Sampler

    stock = Sampler.gather_logprobs
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def gather_logprobs(logprobs: Any, num_logprobs: int, token_ids: Any) -> Any:
        if num_logprobs:
            return stock(logprobs, num_logprobs, token_ids)
        ids = token_ids.unsqueeze(-1)
        return LogprobsTensors(ids.to(torch.int32), logprobs.gather(-1, ids), torch.zeros_like(token_ids))

    Sampler.gather_logprobs = staticmethod(gather_logprobs)
