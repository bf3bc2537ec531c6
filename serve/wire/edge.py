"""The outermost layer: a request's id, its size, how long it takes to arrive, and how long it took."""

import asyncio
import logging
import random
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import tracing
from serve.errors import HeadTooLarge
from serve.media.budget import Budget, Lease
from serve.request_id import REQUEST_ID
from serve.wire.body import Arriving, too_large
from serve.wire.limits import Limits
from serve.wire.meters import Meters
from serve.wire.refusals import LEFT, reply

ACCESS = logging.getLogger("serve.access")
"""A line for each request, where its level is INFO."""
API = "/v1/"
UNMATCHED = "unmatched"
"""What all paths that no route knows are called: a scan must not fill the memory, and a path may hold anything."""
QUIET = {"/health", "/ready", "/metrics"}
"""What asks all the time, and is not worth a line."""
REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._-]{1,128}")
MAX_QUERY = 8192
"""Bytes of a query: of 64 KB of `a&a&...` FastAPI made 32,000 fields, which held the event loop for 0.14 s."""
UNHEARD = {
    b"cookie",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve_multiplexed_model_id",
    b"x-session-id",
}
"""Headers that nothing behind this layer sees. Cookies mean nothing here, and FastAPI reads them all: 60 KB of
backslashes took Python's reader 12 s (CVE-2024-7592). By the others Ray Serve lets anybody switch off its timeouts and
choose a replica. At a port of our own no Ray comes before it; behind Serve's ingress its proxy has obeyed them already,
so there whatever stands in front must take them away. Ray's fifth, x-request-id, is checked here."""


class Edge:
    """Gives each request an id and a lease on the budget, refuses what is too large unread and what is too slow, counts
    and times replies.

    A client's own `x-request-id` is kept where it is short and plain, so that one id runs through everyone's logs.
    """

    def __init__(self, app: ASGIApp, meters: Meters, limits: Limits, budget: Budget) -> None:
        self.app = app
        self.meters = meters
        self.limits = limits
        self.budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        arrived, began, status, whole = asyncio.get_running_loop().time(), time.perf_counter(), 500, False
        self.meters.running.inc()
        size = self._enter(scope)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID_FORM.fullmatch(given) else f"{random.getrandbits(128):032x}"
        lease, until = Lease(self.budget), arrived + self.limits.body_s
        state = {"request_id": request_id, "arrived": arrived, "body_until": until, "lease": lease}
        scope.setdefault("state", {}).update(state)
        REQUEST_ID.set(request_id)
        span = self._span(scope, headers, request_id)

        async def send_with_id(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            declared = _declared(headers)
            if size > self.limits.head:
                said = f"The request's headers are larger than {self.limits.head // 1024} KB."
                await reply(HeadTooLarge(said))(scope, receive, send_with_id)
            elif len(scope.get("query_string", b"")) > MAX_QUERY:
                said = f"The request's query is longer than {MAX_QUERY // 1024} KB."
                await reply(HeadTooLarge(said))(scope, receive, send_with_id)
            elif declared is not None and declared > self.limits.body:
                await reply(too_large(self.limits))(scope, receive, send_with_id)
            else:
                await self.app(scope, Arriving(receive, declared, self.limits, lease, until), send_with_id)
        except Exception:
            whole = True  # by a 500 of the server's own
            raise
        finally:
            lease.release()
            self.meters.running.dec()
            left, seconds = not whole or status == LEFT, time.perf_counter() - began
            route = getattr(scope.get("route"), "path", UNMATCHED)
            self.meters.request(route, None if left else status, seconds)
            self._tell(scope, route, span, LEFT if left else status, seconds)

    def _span(self, scope: Scope, headers: Headers, request_id: str) -> tracing.Span:
        """Of a request to the API, under the client's own where it names one; what only looks at us has none."""
        if not scope["path"].startswith(API):
            return tracing.NONE
        method, under = scope["method"], headers.get("traceparent")
        told = {"http.request.method": method, "diptych.request_id": request_id}
        span = tracing.begin(method, "server", under, told)
        span.enter()
        return span

    def _tell(self, scope: Scope, route: str, span: tracing.Span, status: int, seconds: float) -> None:
        """How it ended, to whoever traces and whoever reads the log."""
        span.name(f"{scope['method']} {route}")
        span.set({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.fail(str(status))
        span.end()
        if ACCESS.isEnabledFor(logging.INFO) and route not in QUIET:
            fields = {"method": scope["method"], "route": route, "status": status, "ms": round(seconds * 1000, 1)}
            if key := scope["state"].get("key"):
                fields["key"] = key
            ACCESS.info("%s %s %d", scope["method"], route, status, extra={"fields": fields})

    def _enter(self, scope: Scope) -> int:
        """Take away the headers that nobody is to see; return the size of the head in bytes."""
        size, kept = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")), []
        for pair in scope["headers"]:
            size += len(pair[0]) + len(pair[1]) + 4
            if pair[0] not in UNHEARD:
                kept.append(pair)
        scope["headers"] = kept
        return size


def _declared(headers: Headers) -> int | None:
    """Return the body's length by its head; None where it comes in chunks."""
    if "transfer-encoding" in headers:
        return None
    length = headers.get("content-length", "0")
    return int(length[:18]) if length.isdecimal() else None  # more digits are no number that Python reads
