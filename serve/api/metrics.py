"""Exports metrics to Prometheus. Labels are our own routes, models, tasks, codes and names of keys, never client input.

A key's name is the operator's, from the keys file; the key itself is nowhere here.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.accounting import current_account
from serve.api.loop_lag import EVERY_S, LoopLag
from serve.api.request_log import RequestLog
from serve.engines.base import State
from serve.errors import Overloaded
from serve.media.budget import Budget
from serve.router.route import Status
from serve.tasks.reply import Delta, Event, Merged, Reply, Usage

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# OpenTelemetry's buckets for generative AI: time to the first token, and of an operation
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
WHOLE = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
WIDTHS = (1, 2, 3, 4, 6, 8, 16, 32, 64)
TENTHS = tuple(tenth / 10 for tenth in range(11))
STATES = get_args(State)


class Metrics:
    """The metrics of an app, in their own registry. Times are in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "HTTP requests answered.", "route", "status")
        self.request_seconds = self._times(
            "request_seconds", "Time from a request's first byte to its response's last.", SECONDS, "route"
        )
        self.running = Gauge("diptych_requests_running", "HTTP requests in progress.", registry=self.registry)
        self.left = self._counter(
            "clients_left", "Requests whose client disconnected before the response was complete.", "route"
        )
        self.replies = self._counter("replies", "Replies of models.", "model", "task", "status")
        self.errors = self._counter("reply_errors", "Failed replies of models, by error code.", "model", "code")
        self.reply_seconds = self._times(
            "reply_seconds",
            "Time from calling a model to its last token, without replies that were refused for lack of room.",
            WHOLE,
            "model",
            "task",
        )
        self.first_word_seconds = self._times(
            "first_word_seconds", "Time from calling a model to its first token.", FIRST, "model", "task"
        )
        self.tokens = self._counter("tokens", "Tokens read (input) and generated (output) by models.", "model", "kind")
        self.key_tokens = self._counter(
            "key_tokens", "Tokens read (input) and generated (output) by models for a key.", "key", "kind"
        )
        self.key_pictures = self._counter("key_pictures", "Pictures and videos of a key's requests.", "key")
        self.key_widths = self._times("key_fan_out_models", "Models called by a fan-out of a key.", WIDTHS, "key")
        self.energy = self._counter(
            "energy_joules",
            "Energy that GPUs used for replies, of models whose engine has its GPUs to itself.",
            "model",
            "task",
        )
        self.fan_outs = self._counter(
            "fan_outs",
            "Fan-outs by outcome: all models ok, some, no merged answer, or the client left.",
            "task",
            "outcome",
        )
        self.widths = self._times("fan_out_models", "Models called by a fan-out.", WIDTHS, "task")
        self.merge_seconds = self._times(
            "merge_seconds", "Time from the last reply to the merged one, including a judge's.", FIRST, "task"
        )
        self.agreement = self._times("agreement", "Agreement of the models, from 0 to 1.", TENTHS, "task")
        self.states = Gauge(
            "diptych_model_state",
            "1 for the current state of a model, 0 for others.",
            ["model", "state"],
            registry=self.registry,
        )
        self.unanswered = Gauge(
            "diptych_model_requests",
            "Requests of this gateway that a model has not answered yet, including waiting ones.",
            ["model"],
            registry=self.registry,
        )
        self.wakes = Gauge(
            "diptych_model_wakes",
            "How often a model of a group woke since its process started.",
            ["model"],
            registry=self.registry,
        )
        self.wake_seconds = Gauge(
            "diptych_model_wake_seconds",
            "Time that a model of a group took to wake, the last time.",
            ["model"],
            registry=self.registry,
        )

        self.budget_bytes = Gauge(
            "diptych_memory_budget_bytes", "Memory that all requests of this gateway may use.", registry=self.registry
        )
        self.held_bytes = Gauge(
            "diptych_memory_held_bytes", "Memory that requests of this gateway use now.", registry=self.registry
        )
        self.memory_refusals = self._counter(
            "memory_refusals", "Requests refused because the memory budget had no room."
        )
        self.loop_lag = Gauge(
            "diptych_event_loop_lag_seconds",
            "Longest time, in the last minute, for which this process's event loop was blocked, "
            f"at most {EVERY_S} s short.",
            registry=self.registry,
        )
        self.config_refused = Gauge(
            "diptych_config_refused",
            "1 while this gateway serves by an earlier config, as it cannot use the last one.",
            registry=self.registry,
        )
        self.lines_dropped = self._counter(
            "request_log_lines_dropped", "Lines of the request log that were dropped: its disk was too slow or full."
        )
        self._budget: Budget | None = None
        self._lag: LoopLag | None = None
        self._request_log: RequestLog | None = None

    def watch(
        self, budget: Budget | None = None, lag: LoopLag | None = None, request_log: RequestLog | None = None
    ) -> None:
        """Export the numbers of this budget, this event loop's lag, or this request log, from now on."""
        self._budget, self._lag = budget or self._budget, lag or self._lag
        self._request_log = request_log or self._request_log

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"diptych_{name}", about, labels, registry=self.registry)

    def _times(self, name: str, about: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"diptych_{name}", about, labels, buckets=buckets, registry=self.registry)

    def request(self, route: str, status: int | None, seconds: float) -> None:
        """Count an HTTP request. status: None where the client disconnected before the response."""
        if status is None:
            self.left.labels(route).inc()
        else:
            self.requests.labels(route, str(status)).inc()
            self.request_seconds.labels(route).observe(seconds)

    def reply(
        self,
        model: str,
        task: str,
        status: str,
        seconds: float,
        *,
        code: str | None = None,
        first_s: float | None = None,
        usage: Usage | None = None,
        energy_j: float | None = None,
    ) -> None:
        """Count a model's reply. code: of its error. first_s: seconds to its first token. energy_j: joules."""
        self.replies.labels(model, task, status).inc()
        if code != Overloaded.code:  # a refusal takes no time: under a flood the quantiles would be those of refusals
            self.reply_seconds.labels(model, task).observe(seconds)
        if code is not None:
            self.errors.labels(model, code).inc()
        if first_s is not None:
            self.first_word_seconds.labels(model, task).observe(first_s)
        if usage is not None:
            self.count_tokens(model, usage)
        if energy_j is not None:
            self.energy.labels(model, task).inc(energy_j)

    def count_tokens(self, model: str, usage: Usage) -> None:
        """Count a model's tokens, for it, for the current request and for its key: so both sums are the same."""
        account = current_account()
        account.add_tokens(usage.prompt_tokens, usage.completion_tokens)
        for kind, count in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
            self.tokens.labels(model, kind).inc(count)
            if account.key:
                self.key_tokens.labels(account.key, kind).inc(count)

    def count_picture(self) -> None:
        """Count a picture of the current request."""
        account = current_account()
        account.pictures += 1
        if account.key:
            self.key_pictures.labels(account.key).inc()

    @contextlib.contextmanager
    def fan_out(self, task: str, models: int) -> Iterator["FanOutMetrics"]:
        """Yield the counter of the events of a fan-out to so many models, and count the outcome at the block's end."""
        fan_out, left = FanOutMetrics(self, task, models), False
        try:
            yield fan_out
        except (asyncio.CancelledError, GeneratorExit):
            left = True
            raise
        finally:
            fan_out.end(left)

    def update(self, statuses: Sequence[Status]) -> None:
        """Set the gauges: to these states of models, and to the present values of what is watched."""
        self.states.clear()  # a model may have been removed
        self.unanswered.clear()
        self.wakes.clear()
        self.wake_seconds.clear()
        for status in statuses:
            self.unanswered.labels(status.model).set(status.unanswered)
            for state in STATES:
                self.states.labels(status.model, state).set(state == status.state)
            if status.wakes is not None:
                self.wakes.labels(status.model).set(status.wakes.count)
                self.wake_seconds.labels(status.model).set(status.wakes.last_s)
        if self._budget is not None:
            self.budget_bytes.set(self._budget.total)
            self.held_bytes.set(self._budget.held)
            self.memory_refusals.inc(self._budget.refusals())
        if self._lag is not None:
            self.loop_lag.set(self._lag.worst())
        if self._request_log is not None:
            self.lines_dropped.inc(self._request_log.dropped())

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format. May be called in any thread."""
        return generate_latest(self.registry)


class FanOutMetrics:
    """Counts the events and the outcome of a fan-out, and the tokens of columns that were cut."""

    def __init__(self, metrics: Metrics, task: str, models: int) -> None:
        self._metrics = metrics
        self._task = task
        self._models = models
        self._bad = 0
        self._last = time.monotonic()
        self._merged = False
        self._unended: dict[str, Delta] = {}

    def event(self, event: Event) -> None:
        """Count a reply or the merged reply; remember the tokens until now of one that is still written.

        A judge's tokens are not counted here: `Router.run` counts them, since a judge that is cut has no event.
        """
        if isinstance(event, Delta):
            self._unended[event.model] = event
        elif isinstance(event, Reply):
            self._unended.pop(event.model, None)
            if (contents := current_account().contents) is not None:
                contents.add_reply(event.model, event.text)
            self._bad, self._last = self._bad + (event.status != "ok"), time.monotonic()
            self._metrics.reply(
                event.model,
                self._task,
                event.status,
                event.latency_ms / 1000,
                code=event.error.code if event.error is not None else None,
                first_s=event.ttft_ms / 1000 if event.ttft_ms is not None else None,
                usage=event.usage,
                energy_j=event.energy_j,
            )
        elif isinstance(event, Merged):
            self._merged = True
            self._metrics.merge_seconds.labels(self._task).observe(time.monotonic() - self._last)
            self._metrics.agreement.labels(self._task).observe(event.agreement)

    def end(self, left: bool) -> None:
        """Count the outcome, and tokens of columns that were cut. left: the client did, maybe before any reply."""
        for model, delta in self._unended.items():
            self._metrics.count_tokens(model, delta.usage())
        merged = "partial" if self._bad else "whole"
        outcome = merged if self._merged else "left" if left else "failed"
        self._metrics.fan_outs.labels(self._task, outcome).inc()
        self._metrics.widths.labels(self._task).observe(self._models)
        if key := current_account().key:
            self._metrics.key_widths.labels(key).observe(self._models)
