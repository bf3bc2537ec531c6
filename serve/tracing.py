"""The current request's id and cache salt; OpenTelemetry traces, one for a whole fan-out, off by default.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) turns them on in each process that calls `start`; it needs the
extra `otel`. Names of spans and attributes follow the conventions for generative AI (opentelemetry.io, "Gen AI").
Prompts and replies are never recorded.

A new span is a child of the current one. Spans are made current only in tasks that we create: a context set inside an
async generator could not be reset where another task closes the generator.
"""

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The request's id, the same in headers, bodies, logs and engines. Set where a request enters a process; its tasks and
threads inherit it."""

CACHE_SALT: ContextVar[str] = ContextVar("cache_salt", default="")
"""Requests with different salts share no engine cache entries, so that a client cannot learn from response times what
another has sent. Empty where that is not configured."""

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
W3C = TraceContextTextMapPropagator()
Value = str | int | float | bool | Sequence[str]
Kind = Literal["internal", "server", "client"]
T = TypeVar("T")

_tracer: trace.Tracer | None = None


class Span:
    """An OpenTelemetry span, or a no-op while tracing is off. `with` ends it, as failed where there is an exception."""

    def __init__(self, span: trace.Span = trace.INVALID_SPAN) -> None:
        self._span = span

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """Set attributes; those that are None are left out."""
        self._span.set_attributes(_without_none(attributes))

    def set_outcome(
        self, *, input_tokens: int, output_tokens: int, reasons: Sequence[str], first_s: float | None, code: str | None
    ) -> None:
        """Set the attributes of a finished model call.

        reasons: finish reasons. first_s: seconds to the first token. code: of the error, where the call failed.
        """
        self.set(
            {
                "gen_ai.usage.input_tokens": input_tokens,
                "gen_ai.usage.output_tokens": output_tokens,
                "gen_ai.response.finish_reasons": reasons or None,
                "gen_ai.response.time_to_first_chunk": first_s,
            }
        )
        if code is not None:
            self.fail(code)

    def name(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, code: str) -> None:
        """Mark the span as failed. code: the error's code."""
        self._span.set_attribute("error.type", code)
        self._span.set_status(trace.StatusCode.ERROR)

    def make_current(self) -> None:
        """Make this span the parent of later spans of the current task, and of tasks that it starts."""
        context.attach(trace.set_span_in_context(self._span))

    def parent_of(self, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Return the stream; spans that it begins before its first item are children of this span."""
        return stream if self is NONE else _with_parent(self._span, stream)

    def end(self) -> None:
        self._span.end()

    def __enter__(self) -> "Span":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):  # a cancellation is no failure
            self.fail(getattr(error, "code", None) or type(error).__name__)
        self.end()


NONE = Span()


def start(service: str) -> None:
    """Start sending spans, where an endpoint is configured. Raises ValueError where packages are missing."""
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
    """Send spans to this tracer provider; None turns tracing off."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("diptych")


def begin(
    name: str,
    kind: Kind = "internal",
    under: str | None = None,
    attributes: Mapping[str, Value | None] = MappingProxyType({}),
) -> Span:
    """Begin a child span of the current one, or of `under`, a W3C traceparent. Attributes as in `Span.set`."""
    if _tracer is None:  # OpenTelemetry's no-op would pass a client's traceparent on
        return NONE
    parent = None if under is None else W3C.extract({"traceparent": under}, context.Context())
    kind_of_span = trace.SpanKind[kind.upper()]
    return Span(_tracer.start_span(name, context=parent, kind=kind_of_span, attributes=_without_none(attributes)))


def begin_model_call(model: str, task: str) -> Span:
    """Begin the span of a model call, as the conventions for generative AI define it."""
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


def current() -> Span:
    return Span(trace.get_current_span())


def traceparent() -> str:
    """Return the current span as a W3C traceparent, for another process; "" where there is none."""
    carrier: dict[str, str] = {}
    W3C.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """Return the current trace's id in hex; "" where there is none."""
    return traceparent()[3:35]


def endpoint() -> str | None:
    """Return the URL to which this process sends spans, for vLLM to send its own; None where tracing is off."""
    whole, base = os.environ.get(ENDPOINTS[1]), os.environ.get(ENDPOINTS[0])
    return None if _tracer is None else whole or (f"{base.rstrip('/')}/v1/traces" if base else None)


async def _with_parent(span: trace.Span, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
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


def _without_none(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}
