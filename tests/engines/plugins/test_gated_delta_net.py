"""The plugin's guards; that it computes what transformers does is test_parity.py's."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from serve.engines.plugins import gated_delta_net
from serve.engines.vllm.arguments import environment

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


def test_layer_in_bfloat16_is_left_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(False)
    import torch

    plugin: Any = importlib.import_module("serve.engines.plugins.gated_delta_net_vllm")
    calls: list[tuple[Any, ...]] = []
    context = SimpleNamespace(no_compile_layers={"layer": SimpleNamespace(prefix="layer")}, attn_metadata={})
    monkeypatch.setattr(plugin, "stock", lambda *given: calls.append(given))
    monkeypatch.setattr(plugin, "get_forward_context", lambda: context)
    inputs = torch.zeros(1, 4, dtype=torch.bfloat16)
    plugin.attend(inputs, inputs, inputs, inputs, "layer")
    assert len(calls) == 1
    with pytest.raises(KeyError):  # it looks for the layer's step
        plugin.attend(inputs.float(), inputs, inputs, inputs, "layer")


def test_platform_other_than_a_processor_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(False)
    from vllm.platforms import current_platform

    replaced: list[str] = []
    monkeypatch.setattr(importlib, "import_module", replaced.append)
    gated_delta_net.register()
    assert replaced == ["serve.engines.plugins.gated_delta_net_vllm"]
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    gated_delta_net.register()
    assert len(replaced) == 1
