"""A config becomes one application for the gateways and one for each model or group; `diptych deploy` sends them."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from served import listening

from deployments import deploy
from deployments.applications import APP, applications
from deployments.args import Args
from deployments.config import ConfigError, parse_config, read_config, serve_config

MODELS: list[dict[str, Any]] = [
    {"name": "toy-llava", "replicas": 2, "weight": 3, "required": True, "drain_s": 5},
    {"name": "mine", "base": "toy-llava", "adapter": "/models/mine", "weight": 2},
    {"name": "toy-paligemma", "autoscaling": {"max_replicas": 3}},
    {"name": "toy-llava-b", "group": "card"},
    {"name": "toy-paligemma-b", "group": "card"},
    {"remote": "http://127.0.0.1:1/v1", "model": "elsewhere"},
]
GATEWAY = {"listen": {"port": 8000}, "cors": ["https://a.example"], "replicas": 2, "num_cpus": 2, "leave_s": 1}


def generated(models: list[dict[str, Any]] = MODELS, **gateway: Any) -> dict[str, dict[str, Any]]:
    args = {"models": models, "groups": {"card": {"awake": 1}}, "gateway": {**GATEWAY, **gateway}}
    return {application["name"]: application for application in applications(Args.model_validate(args))}


def written(**more: Any) -> str:
    args = {"models": MODELS, "groups": {"card": {"awake": 1}}, "gateway": GATEWAY}
    return yaml.dump({"applications": [{"import_path": APP, "args": args}], **more})


def test_args_of_an_application_start_its_processes_anew_and_the_rest_changes_in_place() -> None:
    apps = generated()
    prefixes = {name: app["route_prefix"] for name, app in apps.items()}
    assert prefixes == {"diptych": "/", "toy-llava": None, "toy-paligemma": None, "group card": None}
    base, adapter = apps["toy-llava"]["args"]["models"]
    assert base == {"name": "toy-llava", "drain_s": 5} and adapter["name"] == "mine" and "weight" not in adapter
    (scaled,) = apps["toy-llava"]["deployments"]
    assert (scaled["num_replicas"], scaled["graceful_shutdown_timeout_s"]) == (2, 7)
    optional = generated([{**MODELS[0], "required": False}, *MODELS[1:]])["toy-llava"]["deployments"][0]
    assert (optional["autoscaling_config"]["min_replicas"], optional["autoscaling_config"]["max_replicas"]) == (0, 2)
    assert "initial_replicas" not in optional["autoscaling_config"] and "num_replicas" not in optional
    (scaled,) = apps["toy-paligemma"]["deployments"]
    assert "num_replicas" not in scaled and scaled["autoscaling_config"]["max_replicas"] == 3
    group = apps["group card"]
    assert [entry["name"] for entry in group["args"]["models"]] == ["toy-llava-b", "toy-paligemma-b"]
    assert group["args"]["groups"] == {"card": {"awake": 1}}
    gateways = apps["diptych"]
    assert gateways["args"] == {"listen": {"port": 8000}, "num_cpus": 2}
    (scaled,) = gateways["deployments"]
    assert scaled["num_replicas"] == 2 and scaled["user_config"]["args"]["gateway"]["cors"] == ["https://a.example"]
    assert [entry["name"] for entry in scaled["user_config"]["args"]["models"]][-1] == "elsewhere"


@pytest.mark.parametrize(
    ("changed", "gateway", "anew"),
    [
        ({"weight": 5, "replicas": 3, "max_ongoing_requests": 9}, {"max_body_mb": 3}, set()),
        ({"engine": {"max_num_seqs": 8}}, {}, {"toy-llava"}),
        ({}, {"listen": {"port": 8001}}, {"diptych"}),
        ({}, {"max_replicas_per_node": 1}, {"diptych"}),
        ({"group": "card", "replicas": 1}, {}, {"toy-llava", "group card"}),
    ],
)
def test_change_starts_only_the_processes_of_its_application_anew(
    changed: dict[str, Any], gateway: dict[str, Any], anew: set[str]
) -> None:
    before, after = generated(), generated([{**MODELS[0], **changed}, *MODELS[1:]], **gateway)
    same = {name for name in before if name in after and before[name]["args"] == after[name]["args"]}
    assert (before.keys() | after.keys()) - same == anew


def test_applications_of_a_config_are_read_as_the_config_is() -> None:
    text = written(proxy_location="Disabled", logging_config={"encoding": "JSON"})
    whole = serve_config(text, "c")
    assert whole["proxy_location"] == "Disabled" and len(whole["applications"]) == 4
    again = yaml.safe_dump(whole)
    assert parse_config(again, "c") == parse_config(text, "c") and serve_config(again, "c") == whole
    whole["applications"][1]["args"]["models"][0]["drain_s"] = 6
    with pytest.raises(ConfigError, match="do not go together: write them again"):
        parse_config(yaml.safe_dump(whole), "c")
    del whole["applications"][0]
    with pytest.raises(ConfigError):
        parse_config(yaml.safe_dump(whole), "c")


def test_environment_of_a_written_application_is_that_of_every_one_for_serve() -> None:
    environment = {"env_vars": {"HF_TOKEN": "t"}}
    config = yaml.safe_load(written())
    config["applications"][0]["runtime_env"] = environment
    whole = serve_config(yaml.safe_dump(config), "c")
    assert [app["runtime_env"] for app in whole["applications"]] == [environment] * 4
    assert serve_config(yaml.safe_dump(whole), "c") == whole
    whole["applications"][1]["runtime_env"] = {}
    with pytest.raises(ConfigError, match="do not go together"):
        parse_config(yaml.safe_dump(whole), "c")
    config["applications"][0]["deployments"] = [{"name": "gateway", "num_replicas": 3}]
    with pytest.raises(ConfigError, match="applications: deployments: it has no effect"):
        parse_config(yaml.safe_dump(config), "c")


def test_deploy_prints_the_config_that_ray_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(written())
    assert deploy.main([str(file), "--print"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# Made of c.yaml by `diptych deploy --print`: ")
    (tmp_path / "made.yaml").write_text(printed)
    assert read_config(tmp_path / "made.yaml") == read_config(file)
    assert deploy.main([str(tmp_path / "none"), "--print"]) == 1
    assert "cannot be read" in capsys.readouterr().err


class Dashboard:
    """Ray's, as far as `diptych deploy` uses it. states: of the applications, at each look after the config came."""

    def __init__(self, *states: dict[str, tuple[str, str]]) -> None:
        self.states = list(states)
        self.put: dict[str, Any] | None = None
        self.before: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/serve/applications/"
        if request.method == "PUT":
            self.put = json.loads(request.content)
            return httpx.Response(200)
        if self.put is None:
            apps = {app["name"]: {"status": "RUNNING", "deployed_app_config": app} for app in self.before}
        else:
            states = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            apps = {name: {"status": status, "message": message} for name, (status, message) in states.items()}
        return httpx.Response(200, json={"applications": apps})


@pytest.mark.parametrize("failed", [False, True])
def test_deploy_names_changes_and_follows_their_progress(
    failed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "EVERY_S", 0.0)
    config = serve_config(written(), "c")
    others = {name: ("RUNNING", "") for name in ("diptych", "toy-llava", "group card")}
    last = ("DEPLOY_FAILED", "Traceback\n  ValueError: no such thing") if failed else ("RUNNING", "")
    ray = Dashboard({**others, "toy-paligemma": ("DEPLOYING", "")}, {**others, "toy-paligemma": last})
    gateways, llava, _, paligemma = json.loads(json.dumps(config["applications"]))
    gateways["deployments"][0]["user_config"]["args"]["gateway"]["cors"] = []
    llava["args"]["models"][0]["drain_s"] = 9
    paligemma["deployments"] = llava["deployments"]  # a fixed number of replicas
    ray.before = [gateways, llava, paligemma, {**llava, "name": "old"}]
    client = httpx.Client(base_url="http://ray", transport=httpx.MockTransport(ray))
    assert deploy.follow(client, config, dry_run=True) == 0 and ray.put is None
    anew = [f"{name}: its processes are replaced" for name in ("toy-llava", "toy-paligemma")]
    plan = ["diptych: changes in place", anew[0], "group card: is added", anew[1], "old: is removed"]
    assert capsys.readouterr().out.splitlines() == plan
    assert deploy.follow(client, config, dry_run=False) == int(failed) and ray.put == config
    end = "deploy failed: ValueError: no such thing" if failed else "running"
    assert capsys.readouterr().out.splitlines()[-1] == f"toy-paligemma: {end}"


def test_deploy_ends_where_another_config_removes_an_application(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "EVERY_S", 0.0)
    states = {name: ("DEPLOYING", "") for name in ("diptych", "toy-llava", "group card", "toy-paligemma")}
    ray = Dashboard(states, {name: state for name, state in states.items() if name != "toy-llava"})
    client = httpx.Client(base_url="http://ray", transport=httpx.MockTransport(ray))
    assert deploy.follow(client, serve_config(written(), "c"), dry_run=False) == 1
    assert capsys.readouterr().err == "diptych: Ray was sent another config meanwhile, without toy-llava.\n"


@pytest.mark.parametrize("address", ["http://[::1", "no-url", "page"])
def test_deploy_says_in_a_line_that_no_dashboard_of_rays_answers(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(written())
    with listening(page) as url:
        assert deploy.main([str(file), "--address", url if address == "page" else address]) == 1
    assert "does not answer: " in (printed := capsys.readouterr().err) and printed.count("\n") == 1


async def page(scope: Any, receive: Any, send: Any) -> None:
    """Answer as a proxy that wants a login."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"<html>Log in</html>"})
