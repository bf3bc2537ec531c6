"""A vLLM plugin that sends a reply that nobody streams in a few messages in place of one for each token.

A request with a `stream_interval` (SamplingParams) has an output only every so many tokens, and yet vLLM 0.32's engine
sends each of them at once. Each message wakes the process that asked, which costs it more than all else that it does
for a short reply (loadtest/NOTES.md). Here the engine itself keeps tokens until the request has an output: its first
token, then every `stream_interval`, and its end. Requests with stop texts are left alone: the other process looks for
them, token by token. So are steps that have anything else to tell. Tokens that are kept when a request is aborted are
not counted in vLLM's metrics.
"""

import dataclasses
import functools
from typing import Any
from weakref import WeakKeyDictionary

GAUGES = frozenset((
    "num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "num_kv_fetch_reqs_by_stage", "step_counter",
    "current_wave", "kv_cache_usage", "waiting_lora_adapters", "running_lora_adapters",
))  # fmt: skip
"""The parts of SchedulerStats that say how things are: a later message says it again. All others are counted once."""


def register() -> None:
    """Register the plugin: the entry point `vllm.general_plugins`. It may be called several times."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.metrics.stats import IterationStats

    if hasattr(Scheduler.update_from_output, "__wrapped__"):
        return
    Scheduler.update_from_output = with_few_messages(Scheduler.update_from_output)
    IterationStats.update_from_output = _with_latency_of_each_token(IterationStats.update_from_output)


def with_few_messages(stock: Any) -> Any:
    """Return `Scheduler.update_from_output` with messages that tell nothing left out."""
    kept: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()
    """By request: its outputs that were not sent yet."""

    @functools.wraps(stock)
    def update_from_output(self: Any, scheduled: Any, computed: Any) -> Any:
        requests = {name: self.requests.get(name) for name in scheduled.num_scheduled_tokens}  # those that end leave it
        messages = stock(self, scheduled, computed)
        for client, message in list(messages.items()):
            outputs = []
            for output in message.outputs:
                request = requests.get(output.request_id)
                tokens = 1 if request is None else tokens_in_an_output(request)
                outputs += [output] if tokens == 1 else sendable(kept.setdefault(request, []), output, tokens)
            message.outputs = outputs
            if says_nothing(message) and self.has_unfinished_requests():  # else nothing would correct the gauges
                del messages[client]
        return messages

    return update_from_output


def tokens_in_an_output(request: Any) -> int:
    params = request.sampling_params
    return 1 if params is None or params.stop or request.resumable else params.stream_interval or 1


def sendable(kept: list[Any], output: Any, tokens: int) -> list[Any]:
    """Return what is to be sent of a request now that it has one more output; the rest is in `kept`.

    tokens: how many are kept at most. Log-probabilities of other requests in a step make a request's arrays wider.
    """
    sent = []
    if kept and _width(kept[0]) != _width(output):
        sent.append(_joined(kept))
    kept.append(output)
    if not _has_tokens_alone(output) or sum(len(each.new_token_ids) for each in kept) >= tokens:
        sent.append(_joined(kept))
    return sent


def _has_tokens_alone(output: Any) -> bool:
    blank = type(output)(output.request_id, output.new_token_ids, output.new_logprobs)
    blank.trace_headers = output.trace_headers
    return all(getattr(output, name) is getattr(blank, name) for name in output.__struct_fields__)


def _width(output: Any) -> int:
    return 0 if output.new_logprobs is None else output.new_logprobs.logprobs.shape[1]


def _joined(kept: list[Any]) -> Any:
    """Empty the list of a request's outputs and return them as one: the last, with the tokens of all."""
    import numpy as np

    last = kept[-1]
    if len(kept) > 1:
        last.new_token_ids = [token for output in kept for token in output.new_token_ids]
        if last.new_logprobs is not None:
            columns = zip(*(output.new_logprobs[:3] for output in kept), strict=True)
            last.new_logprobs = type(last.new_logprobs)(*(np.concatenate(arrays) for arrays in columns))
    kept.clear()
    return last


def says_nothing(message: Any) -> bool:
    """Return whether a step's message has neither outputs nor anything that is counted."""
    rest = type(message)(engine_index=message.engine_index, timestamp=message.timestamp)
    rest.scheduler_stats, rest.weight_version = message.scheduler_stats, message.weight_version
    if message != rest:
        return False
    stats = message.scheduler_stats
    if stats is None:
        return True
    blank = type(stats)()
    counted = [field.name for field in dataclasses.fields(stats) if field.name not in GAUGES]
    return all(getattr(stats, name) == getattr(blank, name) for name in counted)


def _with_latency_of_each_token(stock: Any) -> Any:
    """Let tokens that come in one output count in vLLM's metrics as so many, evenly spaced."""

    @functools.wraps(stock)
    def update_from_output(self: Any, output: Any, *arguments: Any, **options: Any) -> None:
        latencies: list[float] = self.inter_token_latencies_iter
        before, tokens = len(latencies), len(output.new_token_ids)
        stock(self, output, *arguments, **options)
        if tokens > 1 and len(latencies) > before:
            latencies[before:] = [latency / tokens for latency in latencies[before:] for _ in range(tokens)]

    return update_from_output
