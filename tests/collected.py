"""A local OpenTelemetry collector, which keeps the spans that it receives (OTLP over HTTP, protobuf)."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from running import until

LATE_S = 30.0  # spans go out in batches, by default every five seconds


@dataclass(frozen=True)
class ReceivedSpan:
    """A span, with its ids in hex. service: name of the process that sent it. under: the parent's id."""

    service: str
    name: str
    trace: str
    id: str
    under: str


@dataclass
class Collector:
    """The received spans. url: for OTEL_EXPORTER_OTLP_ENDPOINT."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)

    def trace(self, trace: str, *names: str) -> dict[str, ReceivedSpan]:
        """Wait for the spans with these names, and return all spans of the trace by name."""
        until(lambda: set(names) <= {span.name for span in self.spans if span.trace == trace}, LATE_S)
        spans = {span.name: span for span in self.spans if span.trace == trace}
        assert set(names) <= set(spans), spans
        return spans


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector on a free loopback port."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    collector = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {attribute.key: attribute.value.string_value for attribute in sent.resource.attributes}
                for scope in sent.scope_spans:
                    for span in scope.spans:
                        ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                        collector.spans.append(ReceivedSpan(names["service.name"], span.name, *ids))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
