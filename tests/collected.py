"""A collector of OpenTelemetry's, of one's own: what is sent to it over HTTP, as protobuf."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from running import until

LATE_S = 30.0  # spans go out in batches, by default every five seconds


@dataclass(frozen=True)
class Told:
    """A span, its ids in hex. service: whose process it is from."""

    service: str
    name: str
    trace: str
    id: str
    under: str


@dataclass
class Collector:
    """url: for OTEL_EXPORTER_OTLP_ENDPOINT."""

    url: str = ""
    spans: list[Told] = field(default_factory=list)

    def of(self, trace: str, *names: str) -> dict[str, Told]:
        """The spans of a trace by name, once these are among them."""
        until(lambda: set(names) <= {one.name for one in self.spans if one.trace == trace}, LATE_S)
        found = {one.name: one for one in self.spans if one.trace == trace}
        assert set(names) <= set(found), found
        return found


@contextmanager
def collector() -> Iterator[Collector]:
    """On a free port of loopback."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {one.key: one.value.string_value for one in sent.resource.attributes}
                for scope in sent.scope_spans:
                    for span in scope.spans:
                        ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                        found.spans.append(Told(names["service.name"], span.name, *ids))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
