"""The gateway's own port: uvicorn in the gateway's process, without a proxy before it."""

import asyncio
import math
import socket
import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.args import GatewayArgs
from deployments.server.timed_protocol import TimedHttpProtocol
from serve.errors import Unavailable
from serve.wire.refusals import reply

KEEP_ALIVE_S = 75  # longer than the minute for which load balancers keep idle connections
BACKLOG = 2048
SEND_BUFFER = 128 * 1024
"""What the kernel holds of a reply for a client that does not take it; left alone it grows to 4 MB for each of them."""
LOOK_S = 0.05
HEALTH = "/health"


class HttpServer:
    """Serves an app on one port, which several gateways of a machine may share: the kernel deals out connections."""

    def __init__(self, app: ASGIApp, host: str, port: int, gateway: GatewayArgs) -> None:
        self._app, self._leaving, self._going = app, False, False
        self.limit(gateway)
        protocol: Any = self._protocol  # uvicorn calls it, whatever it is declared to be
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",  # a bound method would be taken for an older one
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(self._drain_s),
        )
        self._listening = _listen(host, port)
        self._server = uvicorn.Server(config)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([self._listening]))

    def limit(self, gateway: GatewayArgs) -> None:
        """From now on by these limits."""
        self._drain_s, self._leave_s, self._limits = gateway.drain_s, gateway.leave_s, gateway.limits()

    def answering(self) -> int:
        """How many requests are being answered now."""
        return len(self._server.server_state.tasks)

    async def drain(self) -> None:
        """Refuse what is new, so that it is tried elsewhere or later, until what was begun is done; then stop."""
        self._leaving = True
        until = time.monotonic() + self._drain_s
        while self.answering() and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)
        await self.stop()

    async def stop(self) -> None:
        """Tell /health for leave_s that it goes, then take nothing new, and let what runs end within drain_s."""
        if not self._leaving:
            self._going = True
            await asyncio.sleep(self._leave_s)
        self._server.should_exit = True
        await asyncio.gather(self._serving, return_exceptions=True)

    def _protocol(self, *args: Any, **more: Any) -> TimedHttpProtocol:
        return TimedHttpProtocol(*args, limits=self._limits, **more)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (self._leaving or (self._going and scope["path"] == HEALTH)):
            leaving = Unavailable("The server is being stopped.", code="stopping")
            await reply(leaving, {"connection": "close"})(scope, receive, send)
        else:
            await self._app(scope, receive, _last(send) if self._going else send)


def _last(send: Send) -> Send:
    """Has the connection end behind the reply: a client that kept it would ask into one that is being closed."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await send(message)

    return sending


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
    listening.bind((host, port))
    listening.listen(BACKLOG)
    return listening
