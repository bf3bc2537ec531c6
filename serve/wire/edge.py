"""The outermost layer: a request's id, its size, how long it takes to arrive, and how long it took."""

import asyncio
import logging
import random
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import tracing
from serve.errors import HeadTooLarge, TooLarge, TooSlow
from serve.request_id import REQUEST_ID
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
RAYS_OWN = {
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve_multiplexed_model_id",
    b"x-session-id",
}
"""Headers by which Ray Serve lets anybody switch off its timeouts and choose a replica. Nothing behind this layer sees
them. At a port of our own no Ray comes before it; behind Serve's ingress its proxy has obeyed them already, so there
whatever stands in front must take them away. Ray's fifth, x-request-id, is checked here."""


class Edge:
    """Gives each request an id, refuses what is too large unread and what is too slow, counts and times replies.

    A client's own `x-request-id` is kept where it is short and plain, so that one id runs through everyone's logs.
    """

    def __init__(self, app: ASGIApp, meters: Meters, limits: Limits) -> None:
        self.app = app
        self.meters = meters
        self.limits = limits

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
        scope.setdefault("state", {}).update(request_id=request_id, arrived=arrived)
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
            declared = headers.get("content-length", "0")
            if size > self.limits.head:
                said = f"The request's headers are larger than {self.limits.head // 1024} KB."
                await reply(HeadTooLarge(said))(scope, receive, send_with_id)
            elif declared.isdigit() and int(declared) > self.limits.body:
                await reply(self._too_large())(scope, receive, send_with_id)
            else:
                await self.app(scope, self._counted(receive, arrived + self.limits.body_s), send_with_id)
        except Exception:
            whole = True  # by a 500 of the server's own
            raise
        finally:
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
        """Takes Ray's headers away; gives the size of the head in bytes."""
        size, kept = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")), []
        for pair in scope["headers"]:
            size += len(pair[0]) + len(pair[1]) + 4
            if pair[0] not in RAYS_OWN:
                kept.append(pair)
        scope["headers"] = kept
        return size

    def _counted(self, receive: Receive, end: float) -> Receive:
        """`receive` that gives up on a body that grows too large, or does not come to its end: not every body declares
        its length."""
        size, whole = 0, False

        async def counted() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                said = f"The request did not arrive within {self.limits.body_s:g} s."
                raise TooSlow(said) from None
            whole = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self.limits.body:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The request is larger than {self.limits.body / 2**20:g} MB.", code="request_too_large")
