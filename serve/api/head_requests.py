"""Answers HEAD like GET, with the same status and headers but no body (RFC 9110, 9.1)."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """Middleware that routes a HEAD request as GET and drops the response's body.

    The outer scope keeps its method, which the server, metrics and logs need.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        routed = {**scope, "method": "GET"}
        try:
            await self.app(routed, receive, send_without_body)
        finally:
            if "route" in routed:
                scope["route"] = routed["route"]
