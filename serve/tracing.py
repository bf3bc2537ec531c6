"""Traces by OpenTelemetry, one for a whole fan-out: off unless an endpoint is named in its own variables.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) turns it on, in each process that calls `start`; what sends
spans is the extra `otel`. Names of spans and attributes are the conventions' for generative AI (opentelemetry.io,
"Gen AI"); prompts and replies are never among them.

Spans are begun under the one that is current in this task's context, and made current only in tasks that are ours to
the end: a context that an async generator had set could not be taken back where another task closes it.
"""

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
W3C = TraceContextTextMapPropagator()
Value = str | int | float | bool | Sequence[str]
Kind = Literal["internal", "server", "client"]
T = TypeVar("T")

_tracer: trace.Tracer | None = None


class Span:
    """A span of OpenTelemetry's; its own no-op while tracing is off. `with` ends it, failed by what was raised."""

    def __init__(self, span: trace.Span = trace.INVALID_SPAN) -> None:
        self._span = span

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """Set attributes by name; None is left out."""
        self._span.set_attributes(_given(attributes))

    def answered(
        self, *, read: int, spoke: int, reasons: Sequence[str], first_s: float | None, code: str | None
    ) -> None:
        """What asking a model came to. read, spoke: tokens. first_s: until its first word. code: of its error."""
        self.set(
            {
                "gen_ai.usage.input_tokens": read,
                "gen_ai.usage.output_tokens": spoke,
                "gen_ai.response.finish_reasons": reasons or None,
                "gen_ai.response.time_to_first_chunk": first_s,
            }
        )
        if code is not None:
            self.fail(code)

    def name(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, code: str) -> None:
        """Mark it as failed. code: ours, as it stands in the error."""
        self._span.set_attribute("error.type", code)
        self._span.set_status(trace.StatusCode.ERROR)

    def enter(self) -> None:
        """Be what later spans of this task, and of those that it starts, are begun under."""
        context.attach(trace.set_span_in_context(self._span))

    def start_of(self, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Begin what the stream starts, until its first item, under this span."""
        return stream if self is NONE else _started_under(self._span, stream)

    def end(self) -> None:
        self._span.end()

    def __enter__(self) -> "Span":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):  # and not that its listener left
            self.fail(getattr(error, "code", None) or type(error).__name__)
        self.end()


NONE = Span()


def start(service: str) -> None:
    """Send spans from now on, where an endpoint is named. Raises ValueError where the packages are missing."""
    global _tracer
    if _tracer is not None or not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ValueError(f"{' or '.join(ENDPOINTS)} is set, which needs: pip install 'diptych[otel]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def use(provider: Any) -> None:
    """Send spans to this provider of tracers; None: to nobody."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("diptych")


def begin(
    name: str,
    kind: Kind = "internal",
    under: str | None = None,
    attributes: Mapping[str, Value | None] = MappingProxyType({}),
) -> Span:
    """Begin a span under the current one, or under a traceparent of W3C's. Attributes as in `Span.set`."""
    if _tracer is None:  # the no-op would hand a client's traceparent on
        return NONE
    parent = None if under is None else W3C.extract({"traceparent": under}, context.Context())
    kind_of_span = trace.SpanKind[kind.upper()]
    return Span(_tracer.start_span(name, context=parent, kind=kind_of_span, attributes=_given(attributes)))


def asking(model: str, task: str) -> Span:
    """The span of asking one model, as the conventions for generative AI have it."""
    operation = "chat" if task in ("chat", "conversation") else "generate_content"
    return begin(
        f"{operation} {model}",
        "client",
        attributes={
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "diptych",
            "gen_ai.request.model": model,
            "diptych.task": task,
        },
    )


def here() -> Span:
    """The current span."""
    return Span(trace.get_current_span())


def header() -> str:
    """The current span as W3C's traceparent, for another process; "" where there is none."""
    carrier: dict[str, str] = {}
    W3C.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """The current trace's id, in hex; "" where there is none."""
    return header()[3:35]


def endpoint() -> str | None:
    """Where this process sends its spans, for who else sends some: vLLM."""
    whole, base = os.environ.get(ENDPOINTS[1]), os.environ.get(ENDPOINTS[0])
    return None if _tracer is None else whole or (f"{base.rstrip('/')}/v1/traces" if base else None)


async def _started_under(span: trace.Span, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    async with aclosing(stream):
        token = context.attach(trace.set_span_in_context(span))
        try:  # current only here, and not across a yield: see above
            first = await anext(stream)
        except StopAsyncIteration:
            return
        finally:
            context.detach(token)
        yield first
        async for item in stream:
            yield item


def _given(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}
