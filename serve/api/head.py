"""Answers HEAD wherever GET is answered: the same status and headers, and no body (RFC 9110, 9.1)."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Head:
    """Middleware that routes a HEAD request as the GET it stands for, and drops the reply's body.

    The scope itself keeps its method: the server needs it to frame the reply, and metrics and logs name it.
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
