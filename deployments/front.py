"""The gateway's own port: uvicorn in the gateway's process, without a proxy before it."""

import asyncio
import functools
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from deployments.arriving import Arriving
from serve.wire.limits import Limits

KEEP_ALIVE_S = 75  # longer than the minute for which load balancers keep idle connections
BACKLOG = 2048


class Front:
    """Serves an app on one port, which several gateways of a machine may share: the kernel deals out connections."""

    def __init__(self, app: FastAPI, host: str, port: int, grace_s: int, limits: Limits) -> None:
        protocol: Any = functools.partial(Arriving, limits=limits)  # uvicorn calls it, whatever it is declared to be
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=grace_s,
        )
        self._listening = _listen(host, port)
        self._server = uvicorn.Server(config)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([self._listening]))

    def answering(self) -> int:
        """How many requests are being answered now."""
        return len(self._server.server_state.tasks)

    async def stop(self) -> None:
        """Take nothing new, and let what runs end within the grace."""
        self._server.should_exit = True
        await asyncio.gather(self._serving, return_exceptions=True)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((host, port))
    listening.listen(BACKLOG)
    return listening
