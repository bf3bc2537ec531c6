"""Ray Serve's REST API on a cluster's head, by which KubeRay sends it a config and learns what comes of it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from cluster.nodes import Cluster

PATH = "/api/serve/applications/"
ANSWERING = ("RUNNING", "PENDING_MIGRATION")
"""States of a replica in which it answers."""
ANSWER_S = 90.0
"""Ray's first answer takes half a minute on a busy machine."""


@dataclass(frozen=True)
class Process:
    """A replica's process. replica: its id, which a process in its place does not have. address: its node's."""

    deployment: str
    replica: str
    pid: int
    address: str


class RayServe:
    """Serve of a cluster. Nodes that ended at their start are started again while it is waited for."""

    def __init__(self, nodes: Cluster) -> None:
        self._nodes = nodes
        headers = {"authorization": f"Bearer {nodes.token}"}
        self._client = httpx.Client(base_url=nodes.dashboard, headers=headers, timeout=ANSWER_S, trust_env=False)

    def answers(self) -> bool:
        """Return whether Ray's dashboard answers."""
        self._nodes.revive()
        return self._details() is not None

    def put(self, config: dict[str, Any]) -> None:
        """Send a config, as KubeRay does."""
        self._client.put(PATH, json=config).raise_for_status()

    def applications(self) -> dict[str, Any]:
        """Return what Serve says of its applications, by name; {} where it does not answer."""
        for _ in range(5):
            if (details := self._details()) is not None:
                return dict(details.get("applications", {}))
            time.sleep(1)
        return {}

    def deployments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name of each deployment and what Serve says of it."""
        for application in self.applications().values():
            yield from application["deployments"].items()

    def processes(self) -> set[Process]:
        """Return the processes that answer, those that are to move to another node among them."""
        return {
            Process(name, replica["replica_id"], replica["pid"], replica["node_ip"])
            for name, deployment in self.deployments()
            for replica in deployment["replicas"]
            if replica["state"] in ANSWERING
        }

    def complete(self) -> bool:
        """Return whether every deployment has all its replicas running, and no other."""
        self._nodes.revive()
        deployments = list(self.deployments())
        return bool(deployments) and all(
            len(deployment["replicas"]) == deployment["target_num_replicas"]
            and all(replica["state"] == "RUNNING" for replica in deployment["replicas"])
            for _, deployment in deployments
        )

    def _details(self) -> Any:
        try:
            reply = self._client.get(PATH)
            return reply.json() if reply.status_code == 200 else None
        except httpx.HTTPError:
            return None
