"""Memory that is computed from headers, against what vLLM printed for published models, and against what it needs.

Shapes and parameters are written from memory of the public files, the hub being out of reach; looked up were the
parameters of LLaVA-v1.6 (its catalogue entry) and Qwen3-VL-8B (a copy of its index). Start-up logs of vLLM check them:
- Qwen2.5-VL-7B on an L4, vLLM 0.9: a log in a published guide to serving it by KServe ("Bring-Your-Own-Model").
- Qwen2.5-VL-3B, vLLM 0.11: the log of Ray Data's published example of batch inference with images.
- LLaVA-v1.6-Mistral-7B on an A100 of 80 GB, vLLM 0.10.2: a log that its user published.
- Qwen3-VL-8B, a vLLM of April 2026: a log in a public repository. Its GPU, not named, has 48 GB by its sums.
- Gemma 3 27B on four GPUs: vllm-project/vllm#15676.

The recipe: vllm-project/recipes, models/OpenGVLab/InternVL3_5-8B.yaml.
"""

from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import decoder, filled, write_checkpoint

from serve.engines.description import Description, read
from serve.engines.vllm.footprint import GIB, Footprint, Settings, footprint, picture_tokens, requests_at_once, settings

CLIP = {
    "model_type": "clip_vision_model",
    "image_size": 336,
    "patch_size": 14,
    "hidden_size": 1024,
    "intermediate_size": 4096,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "image_size": 896,
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
}
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def tower(config: dict[str, Any], prefix: str = "vision_tower.") -> dict[str, tuple[int, ...]]:
    return {f"{prefix}layers.0.mlp.fc1.weight": (config["intermediate_size"], config["hidden_size"])}


def qwen2_5_vl(folder: Path, total: int, inner: int, layers: int, heads: int, **sizes: Any) -> Description:
    """Describe a Qwen2.5-VL of `total` parameters. sizes: the other arguments of `decoder`."""
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_size": heads * 128,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": sizes["kv_heads"],
        "vocab_size": sizes["vocabulary"],
        "max_position_embeddings": 128000,
        "tie_word_embeddings": sizes.get("tied", False),
        "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "patch_size": 14, "spatial_merge_size": 2},
    }
    shapes = decoder(
        "model.", layers=layers, hidden=heads * 128, inner=inner, heads=heads, width=128, biases=True, **sizes
    )
    shapes["visual.blocks.0.mlp.up_proj.weight"] = (3420, 1280)
    whole = filled(shapes, "visual.merger.rest", total)
    return read(write_checkpoint(folder, config, whole, preprocessor_config={"max_pixels": 12845056}))


def qwen2_5_vl_7b(folder: Path) -> Description:
    return qwen2_5_vl(folder, 8_292_166_656, inner=18944, layers=28, heads=28, kv_heads=4, vocabulary=152064)


def qwen2_5_vl_3b(folder: Path) -> Description:
    return qwen2_5_vl(folder, 3_754_622_976, inner=11008, layers=36, heads=16, kv_heads=2, vocabulary=151936, tied=True)


def qwen3_vl_8b(folder: Path) -> Description:
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "text_config": {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
        },
        "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16, "spatial_merge_size": 2},
    }
    shapes = decoder(
        "model.language_model.",
        layers=36,
        hidden=4096,
        inner=12288,
        heads=32,
        kv_heads=8,
        width=128,
        vocabulary=151936,
        head_norms=True,
    )
    whole = filled(shapes, "model.visual.merger.rest", 8_767_123_696)
    return read(write_checkpoint(folder, config, whole, preprocessor_config={"size": {"longest_edge": 16777216}}))


def llava_next_mistral(folder: Path) -> Description:
    config = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": GRIDS,
        "text_config": {
            "model_type": "mistral",
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 8,
            "vocab_size": 32064,
        },
        "vision_config": CLIP,
    }
    shapes = decoder(
        "language_model.model.", layers=32, hidden=4096, inner=14336, heads=32, kv_heads=8, width=128, vocabulary=32064
    )
    return read(write_checkpoint(folder, config, filled({**shapes, **tower(CLIP)}, "vision_tower.rest", 7_566_747_648)))


def gemma_3_27b(folder: Path) -> Description:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "sliding_window": 1024,
            "sliding_window_pattern": 6,
        },
        "vision_config": SIGLIP,
    }
    shapes = decoder(
        "language_model.model.",
        layers=62,
        hidden=5376,
        inner=21504,
        heads=32,
        kv_heads=16,
        width=128,
        vocabulary=262208,
        tied=True,
        head_norms=True,
    )
    return read(
        write_checkpoint(folder, config, filled({**shapes, **tower(SIGLIP)}, "vision_tower.rest", 27_432_406_640))
    )


def internvl3_5_8b(folder: Path) -> Description:
    vision = {"image_size": 448, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096}
    config = {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "max_dynamic_patch": 12,
        "use_thumbnail": True,
        "llm_config": {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
        },
        "vision_config": vision,
    }
    shapes = decoder(
        "language_model.model.",
        layers=36,
        hidden=4096,
        inner=12288,
        heads=32,
        kv_heads=8,
        width=128,
        vocabulary=151936,
        head_norms=True,
    )
    return read(
        write_checkpoint(
            folder, config, filled({**shapes, **tower(vision, "vision_model.")}, "mlp1.rest", 8_528_318_464)
        )
    )


def on_gpu(description: Description, gpu: float = 80 * GIB, **chosen: Any) -> Footprint:
    return footprint(description, settings(chosen, description, int(gpu)))


@pytest.mark.parametrize(
    ("model", "gibibytes", "gpus"),
    [
        (qwen2_5_vl_7b, 15.6271, 1),
        (qwen2_5_vl_3b, 7.1550, 1),
        (llava_next_mistral, 14.0786, 1),
        (qwen3_vl_8b, 16.78, 1),
        (gemma_3_27b, 13.1665, 4),
    ],
)
def test_weights_are_within_four_percent_of_those_that_vllm_loaded(
    tmp_path: Path, model: Any, gibibytes: float, gpus: int
) -> None:
    assert on_gpu(model(tmp_path), tensor_parallel_size=gpus).weights / GIB == pytest.approx(gibibytes, rel=0.04)


@pytest.mark.parametrize(
    ("model", "gibibytes", "tokens"),
    [
        (qwen2_5_vl_7b, 1.81, 33_824),
        (qwen2_5_vl_3b, 9.26, 269_568),
        (llava_next_mistral, 59212694937 / GIB, 451_744),
        (qwen3_vl_8b, 22.46, 163_568),
    ],
)
def test_token_takes_as_much_of_the_cache_as_vllm_reported(
    tmp_path: Path, model: Any, gibibytes: float, tokens: int
) -> None:
    assert gibibytes * GIB / on_gpu(model(tmp_path)).token == pytest.approx(tokens, rel=0.005)


def test_activations_and_graphs_are_near_those_that_vllm_measured(tmp_path: Path) -> None:
    held = on_gpu(llava_next_mistral(tmp_path), max_num_batched_tokens=16384, max_num_seqs=256, max_model_len=4096)
    assert held.activations / GIB == pytest.approx(1.97, rel=0.1)
    # vLLM 0.10 recorded 67 graphs in 0.67 GiB; 0.32 records 86 at these settings
    assert held.graphs / GIB == pytest.approx(0.67 * 86 / 67, rel=0.1)


@pytest.mark.parametrize(
    ("model", "gpu", "part", "chosen", "gibibytes"),
    [
        (qwen2_5_vl_7b, 22.05, 0.9, {"max_model_len": 2048, "enforce_eager": True}, 1.81),
        (
            qwen3_vl_8b,
            47.4,
            0.85,
            {"max_model_len": 4096, "max_num_seqs": 5, "enforce_eager": True, "max_num_batched_tokens": 8192},
            22.46,
        ),
        (
            llava_next_mistral,
            79.19,
            0.9,
            {"max_model_len": 4096, "max_num_seqs": 256, "enforce_eager": True, "max_num_batched_tokens": 16384},
            55.15,
        ),
    ],
)
def test_room_for_keys_and_values_is_near_the_room_that_vllm_reported(
    tmp_path: Path, model: Any, gpu: float, part: float, chosen: dict[str, Any], gibibytes: float
) -> None:
    """Count no graphs: these versions counted graphs after the cache."""
    description = model(tmp_path)
    if model is qwen3_vl_8b:  # its user allowed 1,003,520 pixels
        description = Description(description.config, {"size": {"longest_edge": 1003520}}, description.tensors)
    held = on_gpu(description, gpu * GIB, **chosen)
    assert (part * gpu * GIB - held.fixed) / GIB == pytest.approx(gibibytes, abs=0.02 * gpu * part)
    assert part * gpu * GIB - held.fixed < gibibytes * GIB * 1.02  # never more than there is


def test_internvl_needs_the_card_that_the_recipe_names(tmp_path: Path) -> None:
    held = on_gpu(internvl3_5_8b(tmp_path), 24e9, max_model_len=4096)
    assert 0.92 * 19e9 * 0.95 < held.least < 24e9 * 0.92  # 19 GB by its recipe, a gpu of 20 GB or more in its words


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (qwen2_5_vl_7b, 16_384),
        (llava_next_mistral, 576 + 48 * 48 + 48),  # five such fit vLLM's 16,384, as its log says
        (gemma_3_27b, 256),
        (internvl3_5_8b, 13 * 256),
    ],
)
def test_largest_picture_has_the_tokens_of_its_family(tmp_path: Path, model: Any, tokens: int) -> None:
    assert picture_tokens(model(tmp_path)) == tokens


def test_window_bounds_the_cache_of_sliding_layers(tmp_path: Path) -> None:
    held = on_gpu(gemma_3_27b(tmp_path), max_model_len=32768)
    assert held.token == 2 * 62 * 16 * 128 * 2
    assert held.cache(32768) == pytest.approx(held.token * (32768 * 10 / 62 + 1024 * 52 / 62), rel=1e-6)


def test_float32_checkpoint_takes_two_bytes_a_weight_on_a_card_and_four_on_a_processor(tmp_path: Path) -> None:
    shapes = {
        "language_model.model.layers.0.self_attn.k_proj.weight": (64, 64),
        "vision_tower.layers.0.fc1.weight": (128, 64),
    }
    description = read(write_checkpoint(tmp_path, {"text_config": {"hidden_size": 64}}, shapes, kind="F32"))
    half = footprint(description, Settings(gpu=True, dtype="auto", context=64, step_tokens=64, requests=8))
    on_cpu = footprint(description, Settings(gpu=False, dtype="float32", context=64, step_tokens=64, requests=8))
    assert (half.weights, on_cpu.weights, half.vision) == (2 * 64 * 192, 4 * 64 * 192, 2 * 64 * 128)


def test_quantised_weights_keep_their_bytes(tmp_path: Path) -> None:
    shapes = {"language_model.model.layers.0.self_attn.k_proj.weight": (64, 64)}
    description = read(write_checkpoint(tmp_path, {"text_config": {"hidden_size": 64}}, shapes, kind="F8_E4M3"))
    assert on_gpu(description).weights == 64 * 64


def test_requests_held_follow_from_the_cache(tmp_path: Path) -> None:
    held = on_gpu(llava_next_mistral(tmp_path), max_model_len=4096)
    pictures, whole = requests_at_once(held, 100 * held.cache(4096))
    assert whole == 100 and pictures == 100 * 4096 // (2928 + 256)
