import pytest

from serve.engines.vllm import memory
from serve.engines.vllm.footprint import PROCESS, Footprint
from serve.errors import ModelError

GIB = 2**30


def held(token: int, context: int, weights: int = 0) -> Footprint:
    return Footprint(
        weights=weights,
        vision=0,
        adapters=0,
        activations=0,
        graphs=0,
        process=PROCESS,
        token=token,
        window_token=0,
        window=0,
        picture=0,
        context=context,
    )


def test_cache_is_small_for_a_toy_and_holds_a_whole_sequence_of_a_large_model() -> None:
    assert memory.kv_bytes(held(2 * 4 * 32 * 4, 256), 64) == 64 * 2**20
    token = 2 * 40 * 40 * 128 * 4
    assert memory.kv_bytes(held(token, 8192), 64) == token * (8192 + 128) > 4 * GIB


def test_too_little_memory_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = held(1, 256, weights=12 * GIB)
    wanted = 13 * GIB + PROCESS
    monkeypatch.setattr(memory, "available", lambda: 10 * GIB)
    with pytest.raises(
        ModelError, match=r"GiB wanted \(weights 12.0 GiB, key-value cache 1.0 GiB\), 10.0 GiB free"
    ) as caught:
        memory.check_memory("a-model", model, GIB)
    assert caught.value.code == "out_of_memory" and f"{wanted / GIB:.1f} GiB wanted" in caught.value.message
    monkeypatch.setattr(memory, "available", lambda: wanted)
    memory.check_memory("a-model", model, GIB)


def test_available_memory_is_positive() -> None:
    assert memory.available() > 2**20
