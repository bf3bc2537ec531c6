"""A real Prometheus on loopback, to see whether the dashboards' expressions give data."""

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
VLLM = {"source_labels": ["__name__"], "regex": "ray_vllm_(.+)", "target_label": "__name__", "replacement": "vllm:$1"}
"""The PodMonitor's relabelling."""


def query(url: str, expression: str) -> list[dict[str, Any]]:
    """Return the series of an expression now. Raises httpx.HTTPStatusError where it is invalid."""
    reply = httpx.get(f"{url}/api/v1/query", params={"query": expression}, trust_env=False, timeout=30)
    return list(reply.raise_for_status().json()["data"]["result"])


def able() -> bool:
    return shutil.which("prometheus") is not None


@contextmanager
def prometheus(folder: Path, gateways: Sequence[str], key: str, nodes: Sequence[str]) -> Iterator[str]:
    """Scrape the gateways (host:port) with a key, as the PodMonitor does, and Ray's nodes. Yield Prometheus' URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    authorization = {"type": "Bearer", "credentials": key}
    jobs = [
        {"job_name": "gateways", "authorization": authorization, "static_configs": [{"targets": list(gateways)}]},
        {"job_name": "ray", "static_configs": [{"targets": list(nodes)}], "metric_relabel_configs": [VLLM]},
    ]
    config = {"global": {"scrape_interval": f"{EVERY_S}s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                query(url, "up")
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()
