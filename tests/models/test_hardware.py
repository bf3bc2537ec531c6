import pytest

from serve.models import MODELS
from serve.models.hardware import CacheShape, hardware

LLAMA_7B = CacheShape(layers=32, heads=32, width=128)


def test_cache_holds_keys_and_values_of_every_layer() -> None:
    assert LLAMA_7B.gigabytes(4096, 2) == pytest.approx(2 * 32 * 32 * 128 * 2 * 4096 / 1e9)


def test_smallest_gpus_that_hold_weights_and_cache_are_named() -> None:
    assert hardware(7_063_427_072, LLAMA_7B, 4096).startswith("1 GPU of 24 GB (computed: 14.1 GB of weights")
    assert hardware(72_000_000_000, LLAMA_7B, 4096).startswith("4 GPUs of 80 GB, tensor_parallel_size 4 (computed")


def test_laptop_is_enough_for_small_models_only() -> None:
    on_laptop = {name for name, model in MODELS.items() if "laptop's CPU will do" in model.card.hardware}
    assert {"llava-onevision-qwen2-0.5b-ov", "paligemma-3b-mix-448", "paligemma2-3b-mix-448"} <= on_laptop
    assert on_laptop.isdisjoint({"llava-1.5-7b", "paligemma2-10b-mix-448", "llava-v1.6-34b"})


def test_published_model_card_names_a_gpu_as_computed() -> None:
    for model in MODELS.values():
        if model.engine == "vllm" and not model.card.toy:
            assert "GPU" in model.card.hardware and "computed" in model.card.hardware, model.name
