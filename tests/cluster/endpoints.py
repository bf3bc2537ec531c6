"""A Kubernetes service before the gateways: its endpoints are the pods that are ready by their probe."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
from anyio.from_thread import start_blocking_portal

from cluster.nodes import Pod

NEW_S = 0.2
"""Seconds between two looks for new pods."""


class Service:
    """Forwards connections from loopback to ready pods, as kube-proxy does; probes each pod, as the kubelet does.

    pods: returns those that there are. probe: the container's readinessProbe. `leaving` names pods that are being
    ended: they are no endpoints any more.
    """

    def __init__(self, pods: Callable[[], list[Pod]], port: int, probe: Mapping[str, Any]) -> None:
        self.pods = pods
        self.port = port
        self.path = probe["httpGet"]["path"]
        self.period_s = float(probe["periodSeconds"])
        self.timeout_s = float(probe["timeoutSeconds"])
        self.url = ""
        self.leaving: set[str] = set()
        self.forwarded = 0
        """The number of connections."""
        self._ready: dict[str, bool] = {}

    def ready(self) -> list[Pod]:
        return [pod for pod in self.pods() if self._ready.get(pod.name) and pod.name not in self.leaving]

    @contextlib.contextmanager
    def running(self) -> Iterator["Service"]:
        """Run in a thread, at `url`, until the block ends."""
        with start_blocking_portal() as portal:
            server = portal.call(asyncio.start_server, self._forward, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            probing = portal.start_task_soon(self._probe_all)
            try:
                yield self
            finally:
                portal.call(server.close)
                probing.cancel()

    async def _probe_all(self) -> None:
        probes: dict[str, asyncio.Task[None]] = {}
        while True:
            for pod in self.pods():
                if pod.name not in probes:
                    probes[pod.name] = asyncio.create_task(self._probe(pod))
            await asyncio.sleep(NEW_S)

    async def _probe(self, pod: Pod) -> None:
        while pod in self.pods():
            try:
                async with httpx.AsyncClient(timeout=self.timeout_s, trust_env=False) as client:
                    reply = await client.get(f"http://{pod.address}:{self.port}{self.path}")
                self._ready[pod.name] = reply.status_code == 200
            except httpx.HTTPError:
                self._ready[pod.name] = False
            await asyncio.sleep(self.period_s)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward a connection to the next ready pod; close it where there is none, or the pod refuses it."""
        ready = self.ready()
        try:
            if not ready:
                return
            self.forwarded += 1
            pod = ready[self.forwarded % len(ready)]
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(pod.address, self.port)
                there, back = self._pipe(reader, far_writer), self._pipe(far_reader, writer)
                await asyncio.gather(there, back)
        finally:
            writer.close()

    @staticmethod
    async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                writer.close()
