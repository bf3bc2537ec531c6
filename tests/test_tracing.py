"""Traces: one for a whole fan-out, without any text of requests or replies."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from served import LLAVA, PALIGEMMA, URL, calling, message, served

from serve import tracing
from serve.engines.fake import FakeEngine

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra otel is not installed")

VQA = {"image": URL, "question": "what colour is the secret?"}
ABOVE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class FinishedSpans:
    """The spans that have ended."""

    def __init__(self, exporter: Any) -> None:
        self.exporter = exporter

    def __call__(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> Any:
        spans = [span for span in self() if span.name == name]
        assert len(spans) == 1, [span.name for span in self()]
        return spans[0]


@pytest.fixture
def spans() -> Iterator[FinishedSpans]:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield FinishedSpans(exporter)
    tracing.use(None)


async def ask(path: str, body: Mapping[str, Any], *engines: FakeEngine, **headers: str) -> int:
    async with calling(served(*engines)) as client:
        return (await client.post(path, json=body, headers=headers)).status_code


async def test_fan_out_is_a_single_trace(spans: FinishedSpans) -> None:
    assert await ask("/v1/tasks/vqa", VQA, traceparent=ABOVE) == 200
    request = spans.named("POST /v1/tasks/vqa")
    assert f"{request.parent.trace_id:032x}" == ABOVE[3:35] and f"{request.parent.span_id:016x}" == ABOVE[36:52]
    for name in (f"generate_content {LLAVA}", f"generate_content {PALIGEMMA}", "merge vqa"):
        assert spans.named(name).parent.span_id == request.context.span_id
        assert spans.named(name).context.trace_id == request.context.trace_id
    assert len(spans()) == 4


async def test_span_of_a_model_call_follows_the_conventions(spans: FinishedSpans) -> None:
    await ask("/v1/tasks/vqa", VQA, FakeEngine("dark red"))
    attributes = spans.named(f"generate_content {LLAVA}").attributes
    assert attributes["gen_ai.operation.name"] == "generate_content"
    assert attributes["gen_ai.request.model"] == LLAVA and attributes["diptych.task"] == "vqa"
    assert attributes["gen_ai.usage.output_tokens"] == 2 and attributes["gen_ai.usage.input_tokens"] > 49
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert 0 <= attributes["gen_ai.response.time_to_first_chunk"] < 10
    assert spans.named("merge vqa").attributes["diptych.merge.method"] == "vote"
    request = spans.named("POST /v1/tasks/vqa").attributes
    assert request["http.route"] == "/v1/tasks/vqa" and request["http.response.status_code"] == 200


async def test_failed_spans_have_an_error_type(spans: FinishedSpans) -> None:
    dead = FakeEngine(fail_after=0)
    assert await ask("/v1/tasks/vqa", VQA, dead, dead) == 503
    column, merge = spans.named(f"generate_content {LLAVA}"), spans.named("merge vqa")
    assert column.attributes["error.type"] == "model_error" and not column.status.is_ok
    assert merge.attributes["error.type"] == "no_model_answered"
    assert spans.named("POST /v1/tasks/vqa").attributes["error.type"] == "503"


async def test_chat_with_a_model_is_a_trace(spans: FinishedSpans) -> None:
    body = {"model": LLAVA, "messages": [message("what?", URL)]}
    assert await ask("/v1/chat/completions", body, FakeEngine("a b c")) == 200
    call, request = spans.named(f"chat {LLAVA}"), spans.named("POST /v1/chat/completions")
    assert call.parent.span_id == request.context.span_id
    assert call.attributes["gen_ai.usage.output_tokens"] == 3


async def test_spans_contain_no_text_of_requests_or_replies(spans: FinishedSpans) -> None:
    await ask("/v1/tasks/vqa", VQA, FakeEngine("a hidden word"))
    await ask("/v1/a-path-of-somebodys", {})
    for span in spans():
        recorded = f"{span.name} {dict(span.attributes)} {span.events}"
        assert not [word for word in ("secret", "hidden", "somebodys", "base64") if word in recorded]


async def test_probes_make_no_trace(spans: FinishedSpans) -> None:
    async with calling(served()) as client:
        for path in ("/health", "/ready", "/metrics"):
            await client.get(path)
    assert not spans()


async def test_spans_are_off_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    tracing.start("diptych-test")
    assert tracing.begin("one") is tracing.NONE and tracing.traceparent() == "" and tracing.endpoint() is None
    assert await ask("/v1/tasks/vqa", VQA, traceparent=ABOVE) == 200
