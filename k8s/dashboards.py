"""`python -m k8s.dashboards`: writes the Grafana dashboards of the monitoring component.

A panel is its title, its unit and its expressions; the rest of Grafana's fields is the same for all. The JSON files are
checked in, and a test holds them to this file.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "components" / "monitoring" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT = 8, 8


METRIC = re.compile(r"\b((?:ray_)?(?:diptych|serve)_\w+|vllm:\w+)(\{)?")


class Panel(NamedTuple):
    """A panel. unit: by Grafana's name; series: legend -> expression."""

    title: str
    unit: str
    series: dict[str, str]


def percentiles(
    histogram: str, by: str, where: str = "", shares: Sequence[float] = (0.95,), legend: str = "p%"
) -> dict[str, str]:
    """Return a panel's series: percentiles of a histogram by a label. legend: with % for the percentile's number."""
    buckets = f"sum by ({by}, le) (rate({histogram}_bucket{where}[$__rate_interval]))"
    return {legend.replace("%", f"{share * 100:g}"): f"histogram_quantile({share}, {buckets})" for share in shares}


def mean(histogram: str, by: str, where: str = "") -> str:
    total, count = (f"sum by ({by}) (rate({histogram}_{end}{where}[$__rate_interval]))" for end in ("sum", "count"))
    return f"{total} / {count}"


def within(expression: str) -> str:
    """Return an expression with every metric in the dashboard's namespace: others may be watched beside it."""
    return METRIC.sub(lambda at: f'{at[1]}{{namespace=~"$namespace"{"," if at[2] else "}"}', expression)


def rate(counter: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({counter}{where}[$__rate_interval]))"


def engine_rate(counter: str, beside: str) -> str:
    """Return the rate of a vLLM counter, 0 until it first counts: Ray exports none before.

    beside: a counter that counts from the first request on.
    """
    own, other = (rate(f"vllm:{name}_total", "model_name", ENGINE) for name in (counter, beside))
    return f"({own} or 0 * {other})"


def or_none(gauge: str) -> str:
    """Return the greatest value of a gauge by model, 0 for a model that has none."""
    return f"max by (model) ({gauge}{MODEL}) or 0 * max by (model) (diptych_model_state{MODEL})"


def hits(cache: str) -> str:
    queries = f"{cache}_queries"
    return f"{engine_rate(f'{cache}_hits', queries)} / {rate(f'vllm:{queries}_total', 'model_name', ENGINE)}"


TASK, MODEL = '{task=~"$task"}', '{model=~"$model"}'
ENGINE = '{model_name=~"$model"}'

SHARES = (0.5, 0.95)
FAN_OUT = [
    Panel("Fan-outs by outcome", "reqps", {"{{outcome}}": rate("diptych_fan_outs_total", "outcome", TASK)}),
    Panel("Models asked by a fan-out, mean", "short", {"{{task}}": mean("diptych_fan_out_models", "task", TASK)}),
    Panel("Columns, first word", "s", percentiles("diptych_first_word_seconds", "model", TASK, SHARES, "p% {{model}}")),
    Panel("Columns, whole", "s", percentiles("diptych_reply_seconds", "model", TASK, SHARES, "p% {{model}}")),
    Panel("Columns by status", "reqps", {"{{model}} {{status}}": rate("diptych_replies_total", "model, status", TASK)}),
    Panel("Merging, p95", "s", percentiles("diptych_merge_seconds", "task", TASK, legend="{{task}}")),
    Panel("Agreement, mean", "percentunit", {"{{task}}": mean("diptych_agreement", "task", TASK)}),
    Panel("Requests by status", "reqps", {"{{route}} {{status}}": rate("diptych_requests_total", "route, status")}),
    Panel("Requests, p95", "s", percentiles("diptych_request_seconds", "route", legend="{{route}}")),
    Panel("Clients who left", "reqps", {"{{route}}": rate("diptych_clients_left_total", "route")}),
    Panel("Requests under way", "short", {"{{instance}}": "sum by (instance) (diptych_requests_running)"}),
    Panel("Models that can answer", "short", {"{{model}}": 'max by (model) (diptych_model_state{state="ready"})'}),
    Panel("Gateways", "short", {"gateways": "count(diptych_requests_running)"}),
    Panel(
        "Memory held for requests",
        "bytes",
        {f"{what} {{{{instance}}}}": f"max by (instance) (diptych_memory_{what}_bytes)" for what in ("held", "budget")},
    ),
    Panel("Keys: tokens a second", "short", {"{{key}} {{kind}}": rate("diptych_key_tokens_total", "key, kind")}),
    Panel("Keys: pictures", "reqps", {"{{key}}": rate("diptych_key_pictures_total", "key")}),
    Panel("Keys: models asked by a fan-out, mean", "short", {"{{key}}": mean("diptych_key_fan_out_models", "key")}),
    Panel(
        "Request log: lines dropped",
        "reqps",
        {"{{instance}}": rate("diptych_request_log_lines_dropped_total", "instance")},
    ),
    Panel("Refused for memory", "reqps", {"{{instance}}": rate("diptych_memory_refusals_total", "instance")}),
    Panel("Event loop, longest lag", "s", {"{{instance}}": "max by (instance) (diptych_event_loop_lag_seconds)"}),
    Panel("Serve by an earlier config", "short", {"gateways": "sum(diptych_config_refused)"}),
]
"""The panels about tasks."""

ORPHANS = f"{rate('ray_diptych_orphans_total', 'model', MODEL)} or 0 * max by (model) (diptych_model_state{MODEL})"
"""Ray exports a counter from its first count on; till then it is 0."""
LAG = f"max by (ReplicaId) (ray_diptych_event_loop_lag_seconds{MODEL})"
CACHE = f"max by (ReplicaId) (vllm:kv_cache_usage_perc{ENGINE})"
HEALTHY = 'sum by (deployment) (ray_serve_deployment_replica_healthy{deployment=~"$model"})'
SERVE_STATE = 'min by (deployment) (ray_serve_deployment_status{deployment=~"$model"})'

A_MODEL = [
    Panel("Replies by status", "reqps", {"{{status}}": rate("diptych_replies_total", "status", MODEL)}),
    Panel("First word", "s", percentiles("diptych_first_word_seconds", "model", MODEL, (0.5, 0.95, 0.99))),
    Panel("Whole reply", "s", percentiles("diptych_reply_seconds", "model", MODEL, (0.5, 0.95, 0.99))),
    Panel("Errors by code", "reqps", {"{{code}}": rate("diptych_reply_errors_total", "code", MODEL)}),
    Panel("Asked and not answered", "short", {"{{model}}": f"sum by (model) (diptych_model_requests{MODEL})"}),
    Panel("Broken off for a gateway that is gone", "reqps", {"{{model}}": ORPHANS}),
    Panel("Event loop, longest lag", "s", {"{{ReplicaId}}": LAG}),
    Panel("Tokens", "short", {"{{kind}} a second": rate("diptych_tokens_total", "kind", MODEL)}),
    Panel("Power of GPUs for replies", "watt", {"{{model}}": rate("diptych_energy_joules_total", "model", MODEL)}),
    Panel("State", "short", {"{{state}}": f"max by (state) (diptych_model_state{MODEL})"}),
    Panel("Wakings of models that take turns", "short", {"{{model}}": or_none("diptych_model_wakes")}),
    Panel("Waking, the last", "s", {"{{model}}": or_none("diptych_model_wake_seconds")}),
    Panel(
        "vLLM: requests",
        "short",
        {state: f"sum(vllm:num_requests_{state}{ENGINE})" for state in ("running", "waiting")},
    ),
    Panel("vLLM: key-value cache", "percentunit", {"{{ReplicaId}}": CACHE}),
    Panel("vLLM: found in its caches", "percentunit", {"prefix": hits("prefix_cache"), "pictures": hits("mm_cache")}),
    Panel("vLLM: first token", "s", percentiles("vllm:time_to_first_token_seconds", "model_name", ENGINE)),
    Panel("vLLM: between tokens", "s", percentiles("vllm:inter_token_latency_seconds", "model_name", ENGINE)),
    Panel("vLLM: preempted", "reqps", {"{{model_name}}": engine_rate("num_preemptions", "request_success")}),
    Panel("Serve: replicas that are healthy", "short", {"{{deployment}}": HEALTHY}),
    Panel("Serve: state (6: as wanted)", "short", {"{{deployment}}": SERVE_STATE}),
]
"""The panels about a model and its engine. `model_name` is vLLM's label for it: engines are started with our names."""

DASHBOARDS = {
    "fan-out": ("Diptych: fan-out", "task", "label_values(diptych_fan_outs_total, task)", FAN_OUT),
    "model": ("Diptych: a model", "model", "label_values(diptych_model_state, model)", A_MODEL),
}


def dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard as Grafana reads it."""
    title, variable, values, panels = DASHBOARDS[name]
    return {
        "uid": f"diptych-{name}",
        "title": title,
        "tags": ["diptych"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("namespace", "label_values(diptych_requests_running, namespace)"),
                _variable(variable, within(values)),
            ]
        },
        "panels": list(_panels(panels)),
    }


def _variable(name: str, values: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": values,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
        "sort": 1,
    }


def _panels(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    a_row = 24 // WIDTH
    for i, panel in enumerate(panels):
        yield {
            "id": i + 1,
            "title": panel.title,
            "type": "timeseries",
            "datasource": SOURCE,
            "gridPos": {"x": i % a_row * WIDTH, "y": i // a_row * HEIGHT, "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + j), "datasource": SOURCE, "expr": within(expression), "legendFormat": legend}
                for j, (legend, expression) in enumerate(panel.series.items())
            ],
        }


def expressions(simulated: bool = False, window: str = "1m") -> Iterator[tuple[str, str]]:
    """Yield (panel, expression) with all variables filled in. simulated: without the metrics of vLLM and of GPUs."""
    for name, (_, variable, _, panels) in DASHBOARDS.items():
        for panel in panels:
            for expression in panel.series.values():
                if not (simulated and any(part in expression for part in ("vllm:", "_energy_joules_"))):
                    filled = within(expression).replace("$namespace", ".*")
                    filled = filled.replace(f"${variable}", ".*").replace("$__rate_interval", window)
                    yield f"{name}: {panel.title}", filled


def text(name: str) -> str:
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text(name))
