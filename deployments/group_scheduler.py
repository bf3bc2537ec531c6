"""A process that gives the models of a group their turns (deployments/groups)."""

from collections.abc import Sequence
from typing import Any

from deployments import logs
from deployments.args import GroupArgs
from deployments.groups.policy import Order
from deployments.groups.scheduler import Scheduler
from deployments.local.machine import bind_to_loopback
from deployments.routing import tls
from deployments.routing.replicas import Address
from serve.transport.server import Method, StreamServer

SCHEDULER = "scheduler of "
"""Beginning of the name of a group's scheduler; no model's name has a space."""


class GroupScheduler:
    """The scheduler of one group, on a port of its own. Where it dies, Serve starts another, and members join that."""

    def __init__(self, args: GroupArgs, members: list[str], replicas: Sequence[Any] = ()) -> None:
        """replicas: Serve's handles of the members, which makes them parts of one application. They are not used."""
        bind_to_loopback()
        logs.configure("group")
        self.scheduler = Scheduler(args, members)
        methods: dict[str, Method] = {"join": self.scheduler.join, "report": self.scheduler.report}
        self.server = StreamServer(methods, self._statuses, simple=(Order,))
        self._address: Address | None = None

    async def address(self) -> Address:
        """Return the address for members. Called through Ray, which authenticates both sides."""
        import ray.util

        if self._address is None:
            host = ray.util.get_node_ip_address()
            self._address = Address(host, await self.server.start(host, tls.server_context()), self.server.token)
        return self._address

    async def check_health(self) -> None:
        """Raise RuntimeError where it does not decide any more. Called by Serve, which then replaces it."""
        if not self.scheduler.runs:
            raise RuntimeError("The scheduler has stopped deciding.")

    async def __del__(self) -> None:
        self.scheduler.stop()
        await self.server.stop()

    async def _statuses(self) -> dict[str, str]:
        return {}
