"""Checks of the alerts: promtool on their syntax and their tests, and that every metric in them exists."""

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
RECORDED = re.compile(r"\bdiptych:[\w:]+")
BY_REPLICAS = {"ray_diptych_orphans_total", "ray_diptych_event_loop_lag_seconds"}
"""The metrics of deployments/replica.py, which Ray exports."""


def able() -> bool:
    return shutil.which("promtool") is not None


def counted() -> set[str]:
    """Return the names of all series that gateways and replicas export."""
    series = set(BY_REPLICAS)
    for metric in Metrics().registry.collect():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
        series |= {metric.name + end for end in ends}
    return series


def names(rules: Document) -> Iterator[str]:
    """Yield the names in a PrometheusRule's expressions that no metric and no rule has, and alerts that add up
    namespaces."""
    every = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    known = counted() | {rule["record"] for rule in every if "record" in rule}
    for rule in every:
        expression = rule["expr"]
        name = rule.get("alert") or rule["record"]
        for unknown in sorted({*NAME.findall(expression), *RECORDED.findall(expression)} - known):
            yield f"{name}: nothing counts {unknown}"
        if "(namespace" not in expression and not RECORDED.search(expression):
            yield f"{name}: it adds up all namespaces: by (namespace, ...)"


def recorded(rules: Document) -> Iterator[tuple[str, str]]:
    """Yield the name and the expression of each rule that records."""
    for group in rules["spec"]["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                yield rule["record"], rule["expr"]


def promtool(rules: Document, tests: Path) -> Iterator[str]:
    """Yield the errors that promtool finds in a PrometheusRule and in its tests."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rules.yaml").write_text(yaml.safe_dump(rules["spec"]))
        shutil.copy(tests, folder)
        for command in (["check", "rules", "rules.yaml"], ["test", "rules", tests.name]):
            done = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                yield " ".join((done.stdout + done.stderr).split())[:600]
