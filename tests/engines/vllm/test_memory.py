import json
from pathlib import Path

import pytest

from serve.engines.vllm import memory
from serve.errors import ModelError

GIB = 2**30


def folder(tmp_path: Path, **text: int) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text}))
    return tmp_path


def test_cache_is_small_for_a_toy_and_holds_a_whole_sequence_of_a_large_model(tmp_path: Path) -> None:
    toy = folder(tmp_path, num_hidden_layers=4, num_attention_heads=5, num_key_value_heads=1, head_dim=32)
    assert memory.kv_bytes(toy, {"max_model_len": 256, "max_num_seqs": 64, "dtype": "float32"}) == 64 * 2**20
    big = folder(tmp_path, num_hidden_layers=40, num_attention_heads=40, hidden_size=5120)
    sequence = 2 * 40 * 40 * 128 * 4 * (8192 + 128)
    assert memory.kv_bytes(big, {"max_model_len": 8192, "max_num_seqs": 64, "dtype": "float32"}) == sequence > 4 * GIB


def test_too_little_memory_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(6 * GIB)  # a hole: nothing is written
    chosen = {"dtype": "float32", "kv_cache_memory_bytes": GIB}
    monkeypatch.setattr(memory, "available", lambda: 10 * GIB)
    with pytest.raises(ModelError, match=r"14.0 GiB wanted \(weights 12.0 GiB.*10.0 GiB free") as caught:
        memory.check_memory(tmp_path, chosen)
    assert caught.value.code == "out_of_memory"
    monkeypatch.setattr(memory, "available", lambda: 15 * GIB)
    memory.check_memory(tmp_path, chosen)


def test_available_memory_is_positive() -> None:
    assert memory.available() > 2**20
