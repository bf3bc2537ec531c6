"""Tests the alerts: every metric in them exists, each has a runbook and a test, and promtool accepts them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from k8s.checks import rules
from serve.api.metrics import Metrics
from serve.api.request_limits import QUIET

FOLDER = Path(__file__).parents[2] / "k8s" / "components" / "monitoring"


def alerts() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "alerts.yaml").read_text()))


def test_alert_on_an_unknown_metric_or_on_all_namespaces_is_a_fault() -> None:
    document = alerts()
    assert not list(rules.names(document))
    expected = {
        "sum by (namespace) (rate(diptych_request_total[5m])) > 0": "nothing counts diptych_request_total",
        "diptych:errors:ratio_rate2h > 0": "nothing counts diptych:errors:ratio_rate2h",
        "sum(diptych_requests_running) == 0": "it adds up all namespaces: by (namespace, ...)",
    }
    for expression, fault in expected.items():
        document["spec"]["groups"][1]["rules"][0]["expr"] = expression
        assert list(rules.names(document)) == [f"DiptychGone: {fault}"]


def test_every_alert_has_a_runbook_and_a_test() -> None:
    pages = (FOLDER / "README.md").read_text()
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    for rule in (rule for group in alerts()["spec"]["groups"] for rule in group["rules"] if "alert" in rule):
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (FOLDER.parents[2] / page).is_file() and anchor == rule["alert"].lower()
        assert f"\n## {rule['alert']}\n" in pages
        assert rule["alert"] in tested


def test_objective_for_first_words_is_a_bucket_of_its_histogram() -> None:
    metrics = Metrics()
    metrics.first_word_seconds.labels("a", "vqa").observe(1)
    (bound,) = set(re.findall(r"first_word_seconds_bucket\{le=~\"([^\"]+)\"", str(dict(rules.recorded(alerts())))))
    buckets = re.findall(r'first_word_seconds_bucket\{le="([^"]+)"', generate_latest(metrics.registry).decode())
    assert [bucket for bucket in buckets if re.fullmatch(bound, bucket)] == ["5.0"]


def test_probes_count_in_no_rule_about_requests() -> None:
    text = (FOLDER / "alerts.yaml").read_text()
    selected = re.findall(r"diptych_requests_total(.*?)\[", text)
    routes = [re.match(r'\{route!~"([^"]+)"', selector) for selector in selected]
    assert routes and all(route is not None and set(route[1].split("|")) == QUIET for route in routes), selected


@pytest.mark.slow
@pytest.mark.skipif(not rules.able(), reason="promtool is not installed: apt-get install prometheus")
def test_promtool_finds_each_alert_in_its_case_alone() -> None:
    document = alerts()
    assert not list(rules.promtool(document, FOLDER / "alerts_test.yaml"))
    document["spec"]["groups"][1]["rules"][1]["expr"] = "vector(1) > 2"
    assert list(rules.promtool(document, FOLDER / "alerts_test.yaml"))
