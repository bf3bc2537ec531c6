"""A gateway's config changes while its keys do."""

from types import SimpleNamespace

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
    await gateways.Gateway._change(gateway, {"args": new.model_dump(mode="json", exclude_unset=True)})
    assert gateway._app.app == (gateway._args, "new") and list(gateway._args.models_by_name) == ["toy-paligemma"]
