"""The outermost middleware: limits a request's size and its time to arrive, and gives it an id."""

import asyncio
import datetime
import logging
import random
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import tracing
from serve.accounting import Account, open_account
from serve.api.body import LimitedBody, too_large
from serve.api.error_responses import CLIENT_LEFT, error_response
from serve.api.metrics import Metrics
from serve.api.request_log import RequestLog
from serve.errors import HeadTooLarge
from serve.limits import MAX_HEAD, Limits
from serve.media.budget import Budget, Lease
from serve.tracing import REQUEST_ID

ACCESS = logging.getLogger("serve.access")
"""The access log, with a line for each request where its level is INFO."""
API = "/v1/"
UNMATCHED = "unmatched"
"""The metrics label of all paths without a route. A client's own path is never a label: there could be any number."""
QUIET = {"/health", "/ready", "/metrics"}
"""Paths that probes request often; they are not logged."""
REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._-]{1,128}")
MAX_QUERY = 8192
"""Largest query string, in bytes: FastAPI parses 64 KB of `a&a&...` into 32,000 fields, which takes 0.14 s."""
REMOVED_HEADERS = {
    b"cookie",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve_multiplexed_model_id",
    b"x-session-id",
}
"""Headers that are removed. Cookies are not used here, but FastAPI parses them all: 60 KB of backslashes took Python's
parser 12 s (CVE-2024-7592). The others let any client switch off Ray Serve's timeouts and choose a replica. On the
gateway's own port they have no effect before this. Behind Serve's ingress its proxy has obeyed them already, so a proxy
in front of it must remove them. Ray's fifth, x-request-id, is checked here."""


class RequestLimits:
    """Middleware that gives a request an id and a lease on the memory budget, and measures its response.

    It refuses requests that are too large or arrive too slowly. A client's own `x-request-id` is kept where it is short
    and plain, so that all logs have the same id.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        limits: Limits,
        budget: Budget,
        request_log: RequestLog | None = None,
    ) -> None:
        self.app = app
        self.request_log = request_log
        self.metrics = metrics
        self.limits = limits
        self.budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        arrived, began, status, whole = asyncio.get_running_loop().time(), time.perf_counter(), 500, False
        self.metrics.running.inc()
        head_size = self._remove_headers(scope)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID_FORM.fullmatch(given) else f"{random.getrandbits(128):032x}"
        lease, until = Lease(self.budget), arrived + self.limits.body_timeout_s
        state = {"request_id": request_id, "arrived": arrived, "body_until": until, "lease": lease}
        scope.setdefault("state", {}).update(state)
        REQUEST_ID.set(request_id)
        account = open_account(contents=self.request_log is not None and self.request_log.args.contents)
        span = self._span(scope, headers, request_id)

        async def send_with_id(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            declared = _declared_length(headers)
            if head_size > MAX_HEAD:
                message = f"The request's headers are larger than {MAX_HEAD // 1024} KB."
                await error_response(HeadTooLarge(message))(scope, receive, send_with_id)
            elif len(scope.get("query_string", b"")) > MAX_QUERY:
                message = f"The request's query is longer than {MAX_QUERY // 1024} KB."
                await error_response(HeadTooLarge(message))(scope, receive, send_with_id)
            elif declared is not None and declared > self.limits.max_body:
                await error_response(too_large(self.limits))(scope, receive, send_with_id)
            else:
                await self.app(scope, LimitedBody(receive, declared, self.limits, lease, until), send_with_id)
        except Exception:
            whole = True  # the server sends a 500 of its own
            raise
        finally:
            lease.release()
            self.metrics.running.dec()
            left, seconds = not whole or status == CLIENT_LEFT, time.perf_counter() - began
            route = getattr(scope.get("route"), "path", UNMATCHED)
            self.metrics.request(route, None if left else status, seconds)
            self._report(scope, route, span, CLIENT_LEFT if left else status, seconds, account)

    def _span(self, scope: Scope, headers: Headers, request_id: str) -> tracing.Span:
        """Start a span for an API request, as a child of the client's traceparent. Health checks and pages get none."""
        if not scope["path"].startswith(API):
            return tracing.NONE
        method, parent = scope["method"], headers.get("traceparent")
        attributes = {"http.request.method": method, "diptych.request_id": request_id}
        span = tracing.begin(method, "server", parent, attributes)
        span.make_current()
        return span

    def _report(
        self, scope: Scope, route: str, span: tracing.Span, status: int, seconds: float, account: Account
    ) -> None:
        """End the span and write the access-log line."""
        span.name(f"{scope['method']} {route}")
        span.set({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.fail(str(status))
        span.end()
        accessed = ACCESS.isEnabledFor(logging.INFO) and route not in QUIET
        logged = self.request_log is not None and scope["method"] == "POST"
        if not accessed and not logged:
            return
        fields = {"method": scope["method"], "route": route, "status": status, "ms": round(seconds * 1000, 1)}
        fields |= account.counts()
        if account.key:
            fields["key"] = account.key
        if accessed:
            ACCESS.info("%s %s %d", scope["method"], route, status, extra={"fields": fields})
        if self.request_log is not None and logged:
            record = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")}
            more = {"request_id": scope["state"]["request_id"], "task": account.task, "models": dict(account.calls)}
            contents = {} if account.contents is None else account.contents.record()
            self.request_log.write(record | fields | more | {"error": account.error or None} | contents)

    def _remove_headers(self, scope: Scope) -> int:
        """Remove REMOVED_HEADERS from the scope; return the size of the whole head in bytes."""
        size, kept = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")), []
        for pair in scope["headers"]:
            size += len(pair[0]) + len(pair[1]) + 4
            if pair[0] not in REMOVED_HEADERS:
                kept.append(pair)
        scope["headers"] = kept
        return size


def _declared_length(headers: Headers) -> int | None:
    """Return the Content-Length; None for a chunked body."""
    if "transfer-encoding" in headers:
        return None
    length = headers.get("content-length", "0")
    return int(length[:18]) if length.isdecimal() else None  # Python refuses to parse thousands of digits
