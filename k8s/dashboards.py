"""`python -m k8s.dashboards`: writes the Grafana dashboards of the monitoring component.

A panel is its title, its unit and its expressions; all that Grafana wants beside is the same for each. What is written
is checked in, and a test holds it against this file.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "components" / "monitoring" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT = 8, 8


class Panel(NamedTuple):
    """unit: Grafana's name of it. series: legend -> expression."""

    title: str
    unit: str
    series: dict[str, str]


def quantile(share: float, histogram: str, by: str, where: str = "") -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({histogram}_bucket{where}[$__rate_interval])))"


def mean(histogram: str, by: str, where: str = "") -> str:
    total, count = (f"sum by ({by}) (rate({histogram}_{end}{where}[$__rate_interval]))" for end in ("sum", "count"))
    return f"{total} / {count}"


def rate(counter: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({counter}{where}[$__rate_interval]))"


def engine_rate(counter: str, beside: str) -> str:
    """Of a vLLM counter, 0 until it first counts: Ray exports none before. beside: one that counts as soon as asked."""
    counted, asked = (rate(f"ray_vllm_{one}_total", "model_name", ENGINE) for one in (counter, beside))
    return f"({counted} or 0 * {asked})"


def hits(cache: str) -> str:
    asked = f"{cache}_queries"
    return f"{engine_rate(f'{cache}_hits', asked)} / {rate(f'ray_vllm_{asked}_total', 'model_name', ENGINE)}"


TASK, MODEL = '{task=~"$task"}', '{model=~"$model"}'
ENGINE = '{model_name=~"$model"}'

FAN_OUT = [
    Panel("Fan-outs by outcome", "reqps", {"{{outcome}}": rate("diptych_fan_outs_total", "outcome", TASK)}),
    Panel("Models asked by a fan-out, mean", "short", {"{{task}}": mean("diptych_fan_out_models", "task", TASK)}),
    Panel(
        "Columns, first word",
        "s",
        {
            "p50 {{model}}": quantile(0.5, "diptych_first_word_seconds", "model", TASK),
            "p95 {{model}}": quantile(0.95, "diptych_first_word_seconds", "model", TASK),
        },
    ),
    Panel(
        "Columns, whole",
        "s",
        {
            "p50 {{model}}": quantile(0.5, "diptych_reply_seconds", "model", TASK),
            "p95 {{model}}": quantile(0.95, "diptych_reply_seconds", "model", TASK),
        },
    ),
    Panel("Columns by status", "reqps", {"{{model}} {{status}}": rate("diptych_replies_total", "model, status", TASK)}),
    Panel("Merging, p95", "s", {"{{task}}": quantile(0.95, "diptych_merge_seconds", "task", TASK)}),
    Panel("Agreement, mean", "percentunit", {"{{task}}": mean("diptych_agreement", "task", TASK)}),
    Panel("Requests by status", "reqps", {"{{route}} {{status}}": rate("diptych_requests_total", "route, status")}),
    Panel("Requests, p95", "s", {"{{route}}": quantile(0.95, "diptych_request_seconds", "route")}),
    Panel("Clients who left", "reqps", {"{{route}}": rate("diptych_clients_left_total", "route")}),
    Panel("Requests under way", "short", {"{{instance}}": "sum by (instance) (diptych_requests_running)"}),
    Panel("Models that can answer", "short", {"{{model}}": 'max by (model) (diptych_model_state{state="ready"})'}),
    Panel("Gateways", "short", {"gateways": "count(diptych_requests_running)"}),
    Panel(
        "Memory held for requests",
        "bytes",
        {
            "held {{instance}}": "max by (instance) (diptych_memory_held_bytes)",
            "budget {{instance}}": "max by (instance) (diptych_memory_budget_bytes)",
        },
    ),
    Panel("Refused for memory", "reqps", {"{{instance}}": rate("diptych_memory_refusals_total", "instance")}),
    Panel("Event loop, longest lag", "s", {"{{instance}}": "max by (instance) (diptych_event_loop_lag_seconds)"}),
]
"""What a fan-out is like: the tasks' side."""

ORPHANS = f"{rate('ray_diptych_orphans_total', 'model', MODEL)} or 0 * max by (model) (diptych_model_state{MODEL})"
"""Ray exports a counter from its first count on; till then it is 0."""

A_MODEL = [
    Panel("Replies by status", "reqps", {"{{status}}": rate("diptych_replies_total", "status", MODEL)}),
    Panel(
        "First word",
        "s",
        {
            f"p{share * 100:g}": quantile(share, "diptych_first_word_seconds", "model", MODEL)
            for share in (0.5, 0.95, 0.99)
        },
    ),
    Panel(
        "Whole reply",
        "s",
        {f"p{share * 100:g}": quantile(share, "diptych_reply_seconds", "model", MODEL) for share in (0.5, 0.95, 0.99)},
    ),
    Panel("Errors by code", "reqps", {"{{code}}": rate("diptych_reply_errors_total", "code", MODEL)}),
    Panel("Asked and not answered", "short", {"{{model}}": f"sum by (model) (diptych_model_requests{MODEL})"}),
    Panel("Broken off for a gateway that is gone", "reqps", {"{{model}}": ORPHANS}),
    Panel(
        "Event loop, longest lag",
        "s",
        {"{{ReplicaId}}": f"max by (ReplicaId) (ray_diptych_event_loop_lag_seconds{MODEL})"},
    ),
    Panel("Tokens", "short", {"{{kind}} a second": rate("diptych_tokens_total", "kind", MODEL)}),
    Panel("State", "short", {"{{state}}": f"max by (state) (diptych_model_state{MODEL})"}),
    Panel(
        "vLLM: requests",
        "short",
        {
            "running": f"sum(ray_vllm_num_requests_running{ENGINE})",
            "waiting": f"sum(ray_vllm_num_requests_waiting{ENGINE})",
        },
    ),
    Panel(
        "vLLM: key-value cache",
        "percentunit",
        {"{{ReplicaId}}": f"max by (ReplicaId) (ray_vllm_kv_cache_usage_perc{ENGINE})"},
    ),
    Panel(
        "vLLM: found in its caches",
        "percentunit",
        {"prefix": hits("prefix_cache"), "pictures": hits("mm_cache")},
    ),
    Panel(
        "vLLM: first token",
        "s",
        {"p95": quantile(0.95, "ray_vllm_time_to_first_token_seconds", "model_name", ENGINE)},
    ),
    Panel(
        "vLLM: between tokens",
        "s",
        {"p95": quantile(0.95, "ray_vllm_inter_token_latency_seconds", "model_name", ENGINE)},
    ),
    Panel("vLLM: preempted", "reqps", {"{{model_name}}": engine_rate("num_preemptions", "request_success")}),
    Panel(
        "Serve: replicas that are healthy",
        "short",
        {"{{deployment}}": 'sum by (deployment) (ray_serve_deployment_replica_healthy{deployment=~"$model"})'},
    ),
]
"""What a model is like, and the engine under it. With the model as vLLM calls it: engines are told our names."""

DASHBOARDS = {
    "fan-out": ("Diptych: fan-out", "task", "label_values(diptych_fan_outs_total, task)", FAN_OUT),
    "model": ("Diptych: a model", "model", "label_values(diptych_model_state, model)", A_MODEL),
}


def dashboard(name: str) -> dict[str, Any]:
    """One dashboard, as Grafana reads it."""
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
                {
                    "name": variable,
                    "type": "query",
                    "datasource": SOURCE,
                    "query": values,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                    "refresh": 2,
                    "sort": 1,
                },
            ]
        },
        "panels": list(_panels(panels)),
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
                {"refId": chr(ord("A") + j), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
                for j, (legend, expression) in enumerate(panel.series.items())
            ],
        }


def expressions(simulated: bool = False, window: str = "1m") -> Iterator[tuple[str, str]]:
    """Every panel's expressions with all variables filled in, by dashboard and title. simulated: without vLLM's."""
    for name, (_, variable, _, panels) in DASHBOARDS.items():
        for panel in panels:
            for expression in panel.series.values():
                if not (simulated and "ray_vllm" in expression):
                    filled = expression.replace(f"${variable}", ".*").replace("$__rate_interval", window)
                    yield f"{name}: {panel.title}", filled


def text(name: str) -> str:
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text(name))
