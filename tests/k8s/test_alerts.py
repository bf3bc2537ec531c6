"""The alerts: every name in them is counted, each has its words and its tests, and promtool agrees where it is."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.wire.meters import Meters

FOLDER = Path(__file__).parents[2] / "k8s" / "monitoring"
NAME = re.compile(r"\bdiptych_\w+")


def rules() -> list[dict[str, Any]]:
    spec = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]
    return [rule for group in spec["groups"] for rule in group["rules"]]


def counted() -> set[str]:
    """Every series that a gateway can show."""
    found = set()
    for metric in Meters().registry.collect():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
        found |= {metric.name + end for end in ends}
    return found


def unknown(expression: str) -> set[str]:
    return set(NAME.findall(expression)) - counted()


def test_every_name_in_an_alert_is_counted() -> None:
    for rule in rules():
        assert NAME.search(rule["expr"]) and not unknown(rule["expr"]), rule["alert"]
    assert unknown("rate(diptych_request_total[5m]) > 0") == {"diptych_request_total"}  # a slip is noticed


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    pages = (FOLDER / "README.md").read_text()
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    tested = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (FOLDER.parents[1] / page).is_file() and anchor == rule["alert"].lower()
        assert f"\n## {rule['alert']}\n" in pages
        assert rule["alert"] in tested


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")
def test_promtool_finds_each_alert_in_its_case_and_in_no_other(tmp_path: Path) -> None:
    spec = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    shutil.copy(FOLDER / "alerts_test.yaml", tmp_path)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
