"""Counters and times for Prometheus. Labels come from routes, models and tasks of ours, never from a request."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import Scope

from serve.tasks.base import Event, Reply

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Meters:
    """One app's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "diptych_requests", "HTTP requests answered.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "diptych_request_seconds",
            "From a request's first byte to the last of its reply.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.replies = Counter(
            "diptych_replies", "Models' replies.", ["model", "task", "status"], registry=self.registry
        )
        self.reply_seconds = Histogram(
            "diptych_reply_seconds",
            "From asking a model to its last word.",
            ["model", "task"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one HTTP request. Paths that no route knows share one label: a scan must not fill the memory."""
        route = getattr(scope.get("route"), "path", "unmatched")
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def reply(self, model: str, task: str, status: str, seconds: float) -> None:
        self.replies.labels(model, task, status).inc()
        self.reply_seconds.labels(model, task).observe(seconds)

    def event(self, task: str, event: Event) -> None:
        """Count what one event of a fan-out tells."""
        if isinstance(event, Reply):
            self.reply(event.model, task, event.status, event.latency_ms / 1000)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
