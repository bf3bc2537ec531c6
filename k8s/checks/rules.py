"""The alerts: promtool on their syntax and their tests, and every name held against what is counted."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from k8s.checks.rendered import Document
from serve.api.metrics import Metrics

NAME = re.compile(r"\b(?:ray_)?diptych_\w+")
BY_REPLICAS = {"ray_diptych_orphans_total", "ray_diptych_event_loop_lag_seconds"}
"""What deployments/replica.py counts, through Ray."""


def able() -> bool:
    return shutil.which("promtool") is not None


def counted() -> set[str]:
    """Every series that gateways and replicas can show."""
    found = set(BY_REPLICAS)
    for metric in Metrics().registry.collect():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
        found |= {metric.name + end for end in ends}
    return found


def names(rules: Document) -> Iterator[str]:
    """The names in a PrometheusRule's expressions that nothing counts."""
    known = counted()
    for group in rules["spec"]["groups"]:
        for rule in group["rules"]:
            for name in sorted(set(NAME.findall(rule["expr"])) - known):
                yield f"{rule['alert']}: nothing counts {name}"


def promtool(rules: Document, tests: Path) -> Iterator[str]:
    """What promtool says of a PrometheusRule, and of its tests."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rules.yaml").write_text(yaml.safe_dump(rules["spec"]))
        shutil.copy(tests, folder)
        for command in (["check", "rules", "rules.yaml"], ["test", "rules", tests.name]):
            done = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                yield " ".join((done.stdout + done.stderr).split())[:600]
