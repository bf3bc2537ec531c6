"""Serves an app from the gateway's own port: uvicorn in the gateway's process, without Serve's proxy."""

import asyncio
import contextlib
import math
import socket
import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.args import GatewayArgs
from deployments.server.timed_protocol import TimedHttpProtocol
from serve.api.error_responses import error_response
from serve.errors import Unavailable

KEEP_ALIVE_S = 75  # longer than the minute for which load balancers keep idle connections
BACKLOG = 2048
SEND_BUFFER = 128 * 1024
"""Bytes of a response that the kernel buffers for a client that does not read; by default up to 4 MB."""
DRAIN_CHECK_S = 0.05
PROBES = ("/health", "/ready")


class HttpServer:
    """A server of one app on one port. Gateways on a machine may share the port: the kernel spreads connections."""

    def __init__(self, app: ASGIApp, host: str, port: int, gateway: GatewayArgs) -> None:
        self._app, self._refusing, self._leaving = app, False, False
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
        )
        self._listening = _bind(host, port)
        self._server = _Server(config)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([self._listening]))

    def limit(self, gateway: GatewayArgs) -> None:
        """Apply the limits of this config to new connections, and its times when the server is stopped."""
        self._drain_s, self._leave_s, self._limits = gateway.drain_s, gateway.leave_s, gateway.limits()

    def answering(self) -> int:
        """Return the number of requests being answered now."""
        return len(self._server.server_state.tasks)

    async def drain(self) -> None:
        """Refuse new requests with 503, finish running ones within drain_s, then stop."""
        self._refusing = True
        until = time.monotonic() + self._drain_s
        while self.answering() and time.monotonic() < until:
            await asyncio.sleep(DRAIN_CHECK_S)
        await self._close(until - time.monotonic())

    async def stop(self) -> None:
        """Fail the probes for leave_s seconds, then take no new requests and finish running ones within drain_s."""
        if not self._refusing:
            self._leaving = True
            await asyncio.sleep(self._leave_s)
        await self._close(self._drain_s)

    async def _close(self, within_s: float) -> None:
        self._server.config.timeout_graceful_shutdown = max(0, math.ceil(within_s))
        self._server.end()
        await asyncio.gather(self._serving, return_exceptions=True)

    def _protocol(self, *args: Any, **more: Any) -> TimedHttpProtocol:
        return TimedHttpProtocol(*args, limits=self._limits, **more)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (self._refusing or (self._leaving and scope["path"] in PROBES)):
            stopping = Unavailable("The server is being stopped.", code="stopping")
            await error_response(stopping, {"connection": "close"})(scope, receive, send)
        else:
            await self._app(scope, receive, _closing_send(send) if self._leaving else send)


class _Server(uvicorn.Server):
    """A server that wakes once a second, for the header `Date`, and at its end. uvicorn's wakes ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Stop listening, and finish running requests within the config's timeout_graceful_shutdown."""
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 1)


def _closing_send(send: Send) -> Send:
    """Return a `send` that ends the connection after the response, so that no client reuses one that is closing."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await send(message)

    return sending


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
    listening.bind((host, port))
    listening.listen(BACKLOG)
    return listening
