"""The plugin that sends replies in few messages. Real engines' replies with it are test_vllm.py's."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from lazy_module import LazyModule

from serve.engines.plugins import few_messages
from serve.engines.vllm.torchvision import repair

engine, outputs, stats = (LazyModule(f"vllm.v1.{name}") for name in ("engine", "outputs", "metrics.stats"))
np = LazyModule("numpy")
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def torchvision() -> None:
    repair()


def step(*tokens: int, width: int = 1, **fields: Any) -> Any:
    """Make a step's output of a request: tokens with log-probabilities in `width` columns."""
    columns = np.array([[float(token)] * width for token in tokens])
    lists = outputs.LogprobsLists(columns.astype(int), columns, np.array(tokens))
    return engine.EngineCoreOutput("a", list(tokens), lists, **fields)


def sent(steps: list[Any], tokens: int) -> list[Any]:
    """Send the outputs of a request, each with the arrays of its own tokens."""
    kept = few_messages.Unsent()
    sent = [output for each in steps for output in few_messages.sendable(kept, each, tokens)]
    for output in sent:
        assert output.new_logprobs.logprobs[:, 0].tolist() == output.new_token_ids
        assert output.new_logprobs.sampled_token_ranks.tolist() == output.new_token_ids
    return sent


def test_tokens_are_kept_until_there_are_enough_or_the_reply_ends() -> None:
    first = step(1, prefill_stats=stats.PrefillStats())
    last = step(9, finish_reason=engine.FinishReason.LENGTH)
    outputs_sent = sent([first, step(2), step(3, 4), step(5), step(6), step(7), last], 4)
    assert [output.new_token_ids for output in outputs_sent] == [[1], [2, 3, 4, 5], [6, 7, 9]]
    assert outputs_sent[0].prefill_stats is not None and outputs_sent[1].prefill_stats is None
    assert [output.finish_reason for output in outputs_sent] == [None, None, engine.FinishReason.LENGTH]


def test_output_with_an_event_is_sent_with_the_tokens_before() -> None:
    event = engine.EngineCoreEvent.new_event(engine.EngineCoreEventType.PREEMPTED)
    outputs_sent = sent([step(1), step(2, events=[event]), step(3)], 4)
    assert [(output.new_token_ids, output.events) for output in outputs_sent] == [([1, 2], [event])]


def test_wider_log_probabilities_are_sent_apart() -> None:
    outputs_sent = sent(
        [step(1), step(2), step(3, width=4), step(4, width=4, finish_reason=engine.FinishReason.STOP)], 8
    )
    assert [output.new_token_ids for output in outputs_sent] == [[1, 2], [3, 4]]


def test_tokens_without_log_probabilities_are_joined() -> None:
    kept = few_messages.Unsent()
    assert few_messages.sendable(kept, engine.EngineCoreOutput("a", [1]), 2) == []
    (output,) = few_messages.sendable(kept, engine.EngineCoreOutput("a", [2]), 2)
    assert output.new_token_ids == [1, 2] and output.new_logprobs is None and kept.outputs == []


@pytest.mark.parametrize(
    ("step_s", "expected"),
    [(0.01, [[1], [2, 3, 4], [5, 6, 7], [8, 9]]), (0.016, [[1], [2, 3], [4, 5], [6, 7], [8, 9]]), (0.04, 9)],
)
def test_stream_has_a_message_where_the_one_before_is_as_old_as_its_pace(
    step_s: float, expected: list[list[int]] | int
) -> None:
    kept, now, outputs_sent = few_messages.Unsent(), 0.0, []
    for token in range(1, 10):
        now += step_s
        each = step(token, finish_reason=engine.FinishReason.LENGTH if token == 9 else None)
        outputs_sent += few_messages.sendable(kept, each, 1, 0.03, lambda now=now: now)
    tokens = [output.new_token_ids for output in outputs_sent]
    assert tokens == ([[token] for token in range(1, 10)] if expected == 9 else expected)


@pytest.mark.parametrize(
    ("params", "resumable", "expected"),
    [
        ({"stream_interval": 32, "stop": []}, False, 32),
        ({"stream_interval": None, "stop": []}, False, 1),
        ({"stream_interval": 32, "stop": ["."]}, False, 1),
        ({"stream_interval": 32, "stop": []}, True, 1),
        (None, False, 1),
    ],
)
def test_tokens_of_streams_and_before_stop_texts_are_sent_at_once(
    params: dict[str, Any] | None, resumable: bool, expected: int
) -> None:
    sampling = None if params is None else SimpleNamespace(**params)
    request = SimpleNamespace(sampling_params=sampling, resumable=resumable)
    assert few_messages.tokens_in_an_output(request) == expected


@pytest.mark.parametrize(
    ("params", "resumable", "expected"),
    [
        ({"extra_args": {few_messages.PACE: 0.03}, "stop": []}, False, 0.03),
        ({"extra_args": {few_messages.PACE: 0.03}, "stop": ["."]}, False, 0.0),
        ({"extra_args": {few_messages.PACE: 0.03}, "stop": []}, True, 0.0),
        ({"extra_args": {"other": 1}, "stop": []}, False, 0.0),
        ({"extra_args": None, "stop": []}, False, 0.0),
        (None, False, 0.0),
    ],
)
def test_streams_of_ours_have_a_pace_and_others_have_none(
    params: dict[str, Any] | None, resumable: bool, expected: float
) -> None:
    sampling = None if params is None else SimpleNamespace(**params)
    assert few_messages.pace_of(SimpleNamespace(sampling_params=sampling, resumable=resumable)) == expected


def test_message_is_sent_that_has_an_output_or_something_to_count() -> None:
    def message(**fields: Any) -> Any:
        return engine.EngineCoreOutputs(timestamp=1.0, **fields)

    gauges = stats.SchedulerStats(num_running_reqs=2, num_waiting_reqs=1, kv_cache_usage=0.5)
    counted = stats.SchedulerStats(prefix_cache_stats=stats.PrefixCacheStats(requests=1, queries=16))
    for quiet in (message(), message(scheduler_stats=gauges)):
        assert few_messages.says_nothing(quiet)
    for telling in (
        message(outputs=[step(1)]),
        message(finished_requests={"a"}),
        message(scheduler_stats=counted),
        message(scheduler_stats=stats.SchedulerStats(kv_connector_stats={"bytes": 1})),
    ):
        assert not few_messages.says_nothing(telling)


class Request:
    """A request that is not streamed, as the scheduler has it."""

    request_id, client_index = "a", 0
    resumable = False
    sampling_params = SimpleNamespace(stream_interval=32, stop=[], extra_args=None)


class Scheduler:
    """A scheduler with one running request, which `left` has aborted or not."""

    def __init__(self, left: bool) -> None:
        self.requests, self.left = {"a": Request()}, left

    def has_unfinished_requests(self) -> bool:
        return not self.left


@pytest.mark.parametrize("left", [False, True])
def test_message_with_gauges_alone_is_sent_where_none_would_follow(left: bool) -> None:
    gauges = stats.SchedulerStats(num_running_reqs=1 - left)

    def step_of_vllm(self: Any, scheduled: Any, computed: Any) -> dict[int, Any]:
        return {0: engine.EngineCoreOutputs(outputs=[] if left else [step(1)], scheduler_stats=gauges)}

    update = few_messages.with_few_messages(step_of_vllm)
    messages = update(Scheduler(left), SimpleNamespace(num_scheduled_tokens={"a": 1}), None)
    assert [message.scheduler_stats for message in messages.values()] == ([gauges] if left else [])


@pytest.mark.parametrize("waits_s", [0.0, 1.0])
def test_kept_tokens_of_a_stream_are_sent_by_steps_of_others(waits_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(few_messages, "time", SimpleNamespace(monotonic=lambda: now))
    scheduler = Scheduler(False)
    stream = scheduler.requests["a"]
    stream.client_index = 3
    stream.sampling_params = SimpleNamespace(stream_interval=None, stop=[], extra_args={few_messages.PACE: 0.03})
    steps = [[step(1)], [step(2)], []]

    def step_of_vllm(self: Any, scheduled: Any, computed: Any) -> dict[int, Any]:
        each = steps.pop(0)
        return {3: engine.EngineCoreOutputs(outputs=each)} if each else {}

    update = few_messages.with_few_messages(step_of_vllm)
    with_it, without_it = (SimpleNamespace(num_scheduled_tokens=names) for names in ({"a": 1}, {}))
    assert [output.new_token_ids for output in update(scheduler, with_it, None)[3].outputs] == [[1]]
    assert update(scheduler, with_it, None) == {}
    now += waits_s
    messages = update(scheduler, without_it, None)
    expected = {3: [[2]]} if waits_s else {}
    assert {
        client: [each.new_token_ids for each in message.outputs] for client, message in messages.items()
    } == expected


def test_every_gauge_is_one_of_vllms() -> None:
    assert set(vars(stats.SchedulerStats())) >= few_messages.GAUGES


def test_tokens_of_one_output_count_as_so_many_latencies() -> None:
    few_messages.register()
    few_messages.register()  # a second time changes nothing
    iteration, request = stats.IterationStats(), stats.RequestStateStats(arrival_time=0.0)
    for tokens, at in (((1,), 10.0), ((2, 3, 4), 16.0)):
        iteration.update_from_output(step(*tokens), at, len(tokens) == 1, request, None, None)
    assert iteration.inter_token_latencies_iter == [2.0, 2.0, 2.0]
    assert (iteration.num_generation_tokens, request.last_token_ts) == (4, 16.0)
