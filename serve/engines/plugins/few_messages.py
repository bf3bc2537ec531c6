"""A vLLM plugin that sends replies in fewer messages than one for each token.

Each message of the engine wakes the process that asked, which costs it more than all else that it does for a short
reply, and a gateway and a client after it (loadtest/NOTES.md). vLLM 0.32 sends each token at once. Here the engine
itself keeps tokens:

- of a request that is not streamed (SamplingParams.stream_interval) until it has an output: its first token, then
  every `stream_interval`, and its end;
- of a stream (the extra argument PACE) while the message before is younger than that: no reader tells thirty pieces a
  second from more. The first token goes at once, and so does each where steps of the engine take longer. What is kept
  goes with the first step that ends when it is due, whether the request had a part in that step or not.

Requests with stop texts are left alone: the other process looks for them, token by token. So are steps that have
anything else to tell. Tokens that are kept when a request is aborted are not counted in vLLM's metrics.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

GAUGES = frozenset((
    "num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "num_kv_fetch_reqs_by_stage", "step_counter",
    "current_wave", "kv_cache_usage", "waiting_lora_adapters", "running_lora_adapters",
))  # fmt: skip
"""The parts of SchedulerStats that say how things are: a later message says it again. All others are counted once."""


PACE = "diptych_pace_s"
"""The extra argument of a stream: the least seconds from one message to the next, but for the first and the last."""


@dataclass
class Unsent:
    """A request's outputs that were not sent yet, one for each step. sent_at: when its last message was sent."""

    outputs: list[Any] = field(default_factory=list)
    sent_at: float = -math.inf

    def is_due(self, pace_s: float, now: float) -> bool:
        """Return whether the next message of a stream may be sent."""
        return now - self.sent_at >= pace_s


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
    from vllm.v1.engine import EngineCoreOutputs

    unsent: WeakKeyDictionary[Any, Unsent] = WeakKeyDictionary()
    """By request."""

    @functools.wraps(stock)
    def update_from_output(self: Any, scheduled: Any, computed: Any) -> Any:
        requests = {name: self.requests.get(name) for name in scheduled.num_scheduled_tokens}  # those that end leave it
        messages = stock(self, scheduled, computed)
        for message in messages.values():
            outputs = []
            for output in message.outputs:
                request = requests.get(output.request_id)
                tokens, pace_s = tokens_in_an_output(request), pace_of(request)
                if tokens == 1 and not pace_s:
                    outputs.append(output)
                else:
                    outputs += sendable(unsent.setdefault(request, Unsent()), output, tokens, pace_s)
            message.outputs = outputs
        now = time.monotonic()
        for request, kept in list(unsent.items()):
            if not kept.outputs or request.request_id in requests:
                continue
            runs = self.requests.get(request.request_id) is request  # it may have been aborted
            if runs and (pace_s := pace_of(request)) and kept.is_due(pace_s, now):
                message = messages.setdefault(request.client_index, EngineCoreOutputs())
                message.outputs.append(_joined(kept.outputs))
                kept.sent_at = now
        for client, message in list(messages.items()):
            if says_nothing(message) and self.has_unfinished_requests():  # else nothing would correct the gauges
                del messages[client]
        return messages

    return update_from_output


def tokens_in_an_output(request: Any) -> int:
    """Return how many tokens are kept at most for one output of a request; 1 for a stream."""
    params = _params_to_keep_by(request)
    return 1 if params is None else params.stream_interval or 1


def pace_of(request: Any) -> float:
    """Return the least seconds between two messages of a stream; 0 where each token is sent at once."""
    params = _params_to_keep_by(request)
    return 0.0 if params is None else float((params.extra_args or {}).get(PACE, 0))


def _params_to_keep_by(request: Any) -> Any:
    """Return a request's SamplingParams; None where each token has to be sent at once."""
    params = None if request is None else request.sampling_params
    return None if params is None or params.stop or request.resumable else params


def sendable(
    kept: Unsent, output: Any, tokens: int, pace_s: float = 0.0, clock: Callable[[], float] = time.monotonic
) -> list[Any]:
    """Return what is to be sent of a request now that it has one more output; the rest is in `kept`.

    tokens: how many are kept at most; of a stream, which has a pace_s, any number. Log-probabilities of other requests
    in a step make a request's arrays wider.
    """
    sent = []
    if kept.outputs and _width(kept.outputs[0]) != _width(output):
        sent.append(_joined(kept.outputs))
    kept.outputs.append(output)
    is_due = kept.is_due(pace_s, clock()) if pace_s else sum(len(each.new_token_ids) for each in kept.outputs) >= tokens
    if is_due or not _has_tokens_alone(output):
        sent.append(_joined(kept.outputs))
    if sent and pace_s:
        kept.sent_at = clock()
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
