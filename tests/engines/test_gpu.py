"""What an engine is set up with by card: arithmetic over a checkpoint's shape, with no card and no weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve.engines.arguments import arguments
from serve.engines.gpu import requests

GIB = 1 << 30
LLAVA_7B = {
    "text_config": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096},
    "vision_config": {"image_size": 336, "patch_size": 14},
}
PALIGEMMA_448 = {
    "text_config": {"num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256},
    "vision_config": {"image_size": 448, "patch_size": 14},
}


def checkpoint(folder: Path, config: dict[str, Any], weights: int) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write((2).to_bytes(8, "little") + b"{}")
        file.truncate(weights)  # the rest is a hole, which takes no room on the disk
    return folder


def test_a_llava_is_bound_by_its_keys_and_values(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, LLAVA_7B, 14_126_854_144)
    each = 2 * 32 * 4096 * 2 * (576 + 256)  # 436 MB
    held = requests(folder, {}, 80 * GIB)
    assert held * each < 0.92 * 80 * GIB - 2 * GIB - 14_126_854_144 < (held + 1) * each
    assert requests(folder, {}, 24 * GIB) < held / 5


def test_a_paligemma_is_bound_by_the_most_that_makes_sense(tmp_path: Path) -> None:
    assert requests(checkpoint(tmp_path, PALIGEMMA_448, 5_850_000_000), {}, 80 * GIB) == 512


def test_a_share_of_a_card_takes_less_and_more_cards_more(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, LLAVA_7B, 14_126_854_144)
    whole = requests(folder, {}, 80 * GIB)
    assert requests(folder, {"gpu_memory_utilization": 0.45}, 80 * GIB) < whole / 2
    assert requests(folder, {"tensor_parallel_size": 2}, 80 * GIB) > 2 * whole


def test_a_card_that_is_too_small_leaves_the_refusal_to_vllm(tmp_path: Path) -> None:
    assert requests(checkpoint(tmp_path, LLAVA_7B, 14_126_854_144), {}, 12 * GIB) == 8


@pytest.mark.parametrize(("given", "last"), [({}, 143), ({"max_num_seqs": 20}, 20), ({"max_num_seqs": 1}, 1)])
def test_graphs_reach_the_largest_batch_and_no_further(tmp_path: Path, given: dict[str, Any], last: int) -> None:
    folder = checkpoint(tmp_path, LLAVA_7B, 14_126_854_144)
    chosen = arguments(folder, {}, given, is_prefix_lm=False, cpu=False, card=80 * GIB)
    sizes = chosen["compilation_config"]["cudagraph_capture_sizes"]
    assert sizes == sorted(set(sizes)) and sizes[-1] == chosen["max_num_seqs"] == last


def test_a_deployment_has_the_last_word(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, LLAVA_7B, 14_126_854_144)
    own = {"compilation_config": {"cudagraph_mode": "NONE"}, "mm_processor_cache_gb": 8}
    chosen = arguments(folder, {}, own, is_prefix_lm=False, cpu=False, card=80 * GIB)
    assert chosen["compilation_config"] == own["compilation_config"] and chosen["mm_processor_cache_gb"] == 8


def test_on_a_cpu_no_card_is_asked(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, PALIGEMMA_448, 1000)
    chosen = arguments(folder, {"max_model_len": 256}, {}, is_prefix_lm=False, cpu=True)
    assert chosen["max_num_seqs"] == 64 and "compilation_config" not in chosen
