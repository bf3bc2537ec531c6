"""The plugin for oneDNN's product. That it serves Llama 4 and HunyuanVL is test_named.py's."""

import pytest

from serve.engines.plugins import contiguous_inputs
from serve.engines.vllm.torchvision import repair

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


def test_product_takes_inputs_of_any_stride_and_vllm_alone_does_not() -> None:
    repair()
    import torch
    from vllm import _custom_ops

    contiguous_inputs.register()
    stock = getattr(_custom_ops.onednn_mm, "__wrapped__", None)
    contiguous_inputs.register()  # a second time changes nothing
    assert stock is not None and _custom_ops.onednn_mm.__wrapped__ is stock
    weight, permuted = torch.randn(4, 6), torch.randn(6, 5).t()
    handler = _custom_ops.create_onednn_mm(weight.t(), 32)
    assert torch.allclose(_custom_ops.onednn_mm(handler, permuted, None), permuted @ weight.t(), atol=1e-5)
    with pytest.raises(RuntimeError, match="stride"):
        stock(handler, permuted, None)
