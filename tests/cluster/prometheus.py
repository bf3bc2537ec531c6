"""A real Prometheus on loopback, for as long as it is needed to see whether expressions give data."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

EVERY_S = 2


class Prometheus:
    """url: where it answers."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, trust_env=False, timeout=30)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that it gives now. Raises httpx.HTTPStatusError where it is no expression."""
        reply = self.http.get("/api/v1/query", params={"query": expression}).raise_for_status()
        return list(reply.json()["data"]["result"])

    def up(self) -> dict[str, bool]:
        """Which of its targets it reaches."""
        return {one["metric"]["instance"]: one["value"][1] == "1" for one in self.query("up")}


def able() -> bool:
    return shutil.which("prometheus") is not None


@contextmanager
def prometheus(folder: Path, gateways: Sequence[str], key: str, nodes: Sequence[str]) -> Iterator[Prometheus]:
    """Scrapes the gateways (host:port) with a key, as the PodMonitor does, and Ray's nodes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    authorization = {"type": "Bearer", "credentials": key}
    jobs = [
        {"job_name": "gateways", "authorization": authorization, "static_configs": [{"targets": list(gateways)}]},
        {"job_name": "ray", "static_configs": [{"targets": list(nodes)}]},
    ]
    config = {"global": {"scrape_interval": f"{EVERY_S}s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        running = Prometheus(f"http://127.0.0.1:{port}")
        for _ in range(100):
            try:
                running.query("up")
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        process.wait()
