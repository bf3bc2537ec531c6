"""Tests the dashboards: the JSON files are current, every metric exists and is shown, every expression is valid."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from k8s import dashboards
from k8s.checks import rules


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_dashboard_file_is_current(name: str) -> None:
    text = (dashboards.FOLDER / f"{name}.json").read_text()
    assert text == dashboards.text(name), "run python -m k8s.dashboards"
    panels = json.loads(text)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)


def test_shown_metrics_of_diptych_exist() -> None:
    expressions = " ".join(expression for _, expression in dashboards.expressions())
    assert "diptych_fan_outs_total" in expressions and "$" not in expressions
    assert not set(rules.NAME.findall(expressions)) - rules.counted()


def test_shown_metrics_of_vllm_exist() -> None:
    alerts = (dashboards.FOLDER.parent / "alerts.yaml").read_text()
    expressions = " ".join(expression for _, expression in dashboards.expressions()) + alerts
    spec = importlib.util.find_spec("vllm")  # vLLM is not imported: that takes seconds
    assert spec is not None and spec.origin is not None
    declared = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    names = {re.sub(r"_(total|bucket)$", "", name) for name in re.findall(r"vllm:(\w+)", expressions)}
    assert names and not [name for name in sorted(names) if f'"vllm:{name}"' not in declared]


def test_every_metric_is_shown_or_in_an_alert() -> None:
    alerts = (dashboards.FOLDER.parent / "alerts.yaml").read_text()
    seen = " ".join(expression for _, expression in dashboards.expressions()) + alerts
    counted, visible = (
        {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}
        for names in (rules.counted(), rules.NAME.findall(seen))
    )
    assert counted - visible == set()


@pytest.mark.skipif(not rules.able(), reason="promtool is not installed: apt-get install prometheus")
def test_promtool_accepts_every_expression(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel_{i}", "expr": expression} for i, (_, expression) in enumerate(dashboards.expressions())
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    command = ["promtool", "check", "rules", "rules.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"{len(recorded)} rules found" in done.stdout, done.stdout + done.stderr
