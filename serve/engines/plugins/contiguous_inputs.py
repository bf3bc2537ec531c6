"""A vLLM plugin that gives oneDNN's matrix product, which vLLM uses on a processor, inputs that lie row by row.

vLLM 0.32 hands it what a model has permuted, as Llama 4 and HunyuanVL do with a picture's patches. oneDNN then raises
"Expected a.stride(-1) == 1 to be true, but got false", and the first picture ends the engine with all its requests.
"""

import functools
from typing import Any


def register() -> None:
    """Register the plugin: the entry point `vllm.general_plugins`. It may be called several times."""
    from vllm import _custom_ops

    stock = _custom_ops.onednn_mm
    if getattr(stock, "takes_any_stride", False):
        return

    @functools.wraps(stock)
    def product(handler: Any, x: Any, bias: Any = None) -> Any:
        return stock(handler, x if x.stride(-1) == 1 else x.contiguous(), bias)

    product.takes_any_stride = True  # type: ignore[attr-defined]
    _custom_ops.onednn_mm = product
