"""What stands before the gateways in a cluster: a service, whose endpoints are the pods that are ready by a probe."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from cluster.nodes import Pod


class Service:
    """Takes connections on loopback and deals them out, as kube-proxy does; looks at each pod, as the kubelet does.

    probe: the container's readinessProbe. A pod that is being ended is none of its endpoints from then on.
    """

    def __init__(self, pods: list[Pod], port: int, probe: Mapping[str, Any]) -> None:
        self.pods = pods
        self.port = port
        self.path = probe["httpGet"]["path"]
        self.period_s = float(probe["periodSeconds"])
        self.timeout_s = float(probe["timeoutSeconds"])
        self.url = ""
        self.leaving: set[str] = set()
        self.turns = itertools.count()
        self._ready: dict[str, bool] = {}

    def ready(self) -> list[Pod]:
        return [pod for pod in self.pods if self._ready.get(pod.name) and pod.name not in self.leaving]

    @contextlib.contextmanager
    def running(self) -> Iterator["Service"]:
        """In a thread of its own, at `url`."""
        loops: list[asyncio.AbstractEventLoop] = []
        started, stop = threading.Event(), asyncio.Event()

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            server = await asyncio.start_server(self._deal, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            probes = [asyncio.ensure_future(self._probe(pod)) for pod in self.pods]
            started.set()
            await stop.wait()
            server.close()
            for probe in probes:
                probe.cancel()

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)  # cancels what is still dealt out
        thread.start()
        started.wait()
        try:
            yield self
        finally:
            loops[0].call_soon_threadsafe(stop.set)
            thread.join()

    async def _probe(self, pod: Pod) -> None:
        while True:
            try:
                async with httpx.AsyncClient(timeout=self.timeout_s, trust_env=False) as client:
                    reply = await client.get(f"http://{pod.address}:{self.port}{self.path}")
                self._ready[pod.name] = reply.status_code == 200
            except httpx.HTTPError:
                self._ready[pod.name] = False
            await asyncio.sleep(self.period_s)

    async def _deal(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to the next pod that is ready; closed at once where there is none, or it does not take it."""
        ready = self.ready()
        try:
            if not ready:
                return
            pod = ready[next(self.turns) % len(ready)]
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
