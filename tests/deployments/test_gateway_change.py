"""A gateway's config changes, while its keys do, and to one that cannot be used."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lazy_module import LazyModule

from deployments.args import Args

gateways = LazyModule("deployments.gateway")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # it imports Ray


async def test_keys_that_change_while_a_new_config_waits_hold_with_the_new_config() -> None:
    keys = ["old"]
    old, new = (Args.model_validate({"models": [{"name": name}]}) for name in ("toy-llava", "toy-paligemma"))

    def create_app(args: Args) -> tuple[Args, str]:
        return args, keys[0]

    async def change_keys() -> None:
        keys[0] = "new"
        gateways.Gateway._renew_app(gateway)

    gateway = SimpleNamespace(
        _pools={},
        _args=old,
        _app=gateways.SwappableApp(create_app(old)),
        _awaited=set(),
        _budget=SimpleNamespace(resize=lambda size: None),
        _create_app=create_app,
        _wait_for_quotas=change_keys,
        server=None,
    )
    await gateways.Gateway._apply(gateway, {"args": new.model_dump(mode="json", exclude_unset=True)})
    assert gateway._app.app == (gateway._args, "new") and list(gateway._args.models_by_name) == ["toy-paligemma"]


def config(folder: Path, *models: str, **gateway: Any) -> dict[str, Any]:
    kept = {"batches": str(folder / "batches"), "request_log": {"file": str(folder / "requests.jsonl")}}
    adapters = {"folder": str(folder / "adapters"), "file": str(folder / "adapters.json")}
    entries = [{"name": name, "max_loras": 1} for name in models]
    return {"args": {"models": entries, "gateway": {**kept, "adapters": adapters, **gateway}}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"batches": "FILE/batches"},
        {"results": "FILE/results.db"},
        {"arena": "FILE/votes.db"},
        {"usage_file": "FILE/usage.db"},
        {"request_log": {"file": "FILE/requests.jsonl"}},
        {"adapters": {"folder": "/adapters", "file": "FILE/adapters.json"}},
        {"keys_file": "FILE/keys"},
    ],
)
async def test_config_that_cannot_be_used_leaves_all_of_the_former_one_at_work(
    wrong: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object) -> dict[str, str]:
        return {}

    monkeypatch.setattr("deployments.gateway.bind_to_loopback", lambda: None)
    monkeypatch.setattr(gateways.processes, "warm", lambda: None)
    monkeypatch.setattr(gateways.serve_status, "deployment", lambda name, application: None)  # there is no Ray
    monkeypatch.setattr(gateways.serve_status, "hindrances", nothing)
    monkeypatch.setattr(gateways.ServeDiscovery, "find", nothing)
    (tmp_path / "adapters").mkdir()
    gateway = gateways.Gateway.__mro__[1](None)  # without the wrapper that Serve's ingress puts around it
    await gateway.reconfigure(config(tmp_path, "toy-llava", "toy-paligemma"))
    app, adapters, batches, log = gateway._app.app, gateway._adapters, gateway._batches, gateway._request_log
    pools = dict(gateway._pools)
    (tmp_path / "FILE").write_text("no folder")
    elsewhere = {
        "batches": str(tmp_path / "other"),
        "request_log": {"file": str(tmp_path / "other.jsonl")},
        "adapters": None,
    }
    if "request_log" in wrong:  # the last to be opened, once the loader that stays has seen the new config
        del elsewhere["adapters"]
    broken = json.loads(json.dumps({**elsewhere, **wrong}).replace("FILE", str(tmp_path / "FILE")))
    await gateway.reconfigure(config(tmp_path, "toy-paligemma", **broken))
    assert str(tmp_path / "FILE") in (await gateway.refusal() or "")
    assert b"diptych_config_refused 1.0" in gateway._metrics.text()
    await asyncio.sleep(0.1)
    assert gateway._app.app is app and gateway._batches is batches and gateway._request_log is log
    assert not batches._running.done() and not log._closed.is_set() and not adapters._keeping.done()
    assert list(adapters._config.models_by_name) == list(adapters.pools) == ["toy-llava", "toy-paligemma"]
    assert gateway._pools == pools and not any(pool._replicas._closed for pool in pools.values())
    await gateway.reconfigure(config(tmp_path, "toy-paligemma"))
    assert await gateway.refusal() is None and gateway._app.app is not app
    assert b"diptych_config_refused 0.0" in gateway._metrics.text()
    await gateway.__del__()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
