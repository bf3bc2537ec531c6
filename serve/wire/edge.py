"""The outermost layer: a request's id, its size, and how long it took."""

import random
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import TooLarge
from serve.wire.meters import Meters
from serve.wire.refusals import reply

MAX_BODY = 25 * 1024 * 1024
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Edge:
    """Gives each request an id, refuses bodies that are too large unread, counts and times replies.

    A client's own `x-request-id` is kept where it is short and plain, so that one id runs through everyone's logs.
    """

    def __init__(self, app: ASGIApp, meters: Meters, max_body: int = MAX_BODY) -> None:
        self.app = app
        self.meters = meters
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            declared = headers.get("content-length", "0")
            if declared.isdigit() and int(declared) > self.max_body:
                await reply(self._too_large())(scope, receive, send_with_id)
            else:
                await self.app(scope, self._counted(receive), send_with_id)
        finally:
            self.meters.request(scope, status, time.perf_counter() - began)

    def _counted(self, receive: Receive) -> Receive:
        """`receive` that gives up on a body that grows too large: not every body declares its length."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The request is larger than {self.max_body / 2**20:g} MB.", code="request_too_large")
