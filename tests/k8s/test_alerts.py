"""The alerts: every name in them is counted, each has its words and its tests, and promtool agrees where it is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.checks import rules

FOLDER = Path(__file__).parents[2] / "k8s" / "components" / "monitoring"


def alerts() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "alerts.yaml").read_text()))


def test_every_name_in_an_alert_is_counted() -> None:
    told = alerts()
    assert not list(rules.names(told))
    told["spec"]["groups"][0]["rules"][0]["expr"] = "rate(diptych_request_total[5m]) > 0"
    assert list(rules.names(told)) == ["DiptychGone: nothing counts diptych_request_total"]


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    pages = (FOLDER / "README.md").read_text()
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    tested = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}
    for rule in (rule for group in alerts()["spec"]["groups"] for rule in group["rules"]):
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (FOLDER.parents[2] / page).is_file() and anchor == rule["alert"].lower()
        assert f"\n## {rule['alert']}\n" in pages
        assert rule["alert"] in tested


@pytest.mark.skipif(not rules.able(), reason="promtool is not installed: apt-get install prometheus")
def test_promtool_finds_each_alert_in_its_case_and_in_no_other() -> None:
    told = alerts()
    assert not list(rules.promtool(told, FOLDER / "alerts_test.yaml"))
    told["spec"]["groups"][0]["rules"][1]["expr"] = "vector(1) > 2"
    assert list(rules.promtool(told, FOLDER / "alerts_test.yaml"))
