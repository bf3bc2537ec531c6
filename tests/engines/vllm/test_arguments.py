"""vLLM's arguments: ours by kind of machine, and what a deployment sets instead."""

import json
from pathlib import Path

from serve.engines.vllm.arguments import arguments


def test_a_deployments_argument_wins_over_ours(tmp_path: Path) -> None:
    deployment = {"compilation_config": {"cudagraph_mode": "NONE"}, "mm_processor_cache_gb": 8}
    chosen = arguments(tmp_path, {}, deployment, is_prefix_lm=False, cpu=False)
    assert chosen["compilation_config"] == deployment["compilation_config"] and chosen["mm_processor_cache_gb"] == 8


def test_batch_size_is_set_on_a_cpu_and_left_to_vllm_on_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 1, "hidden_size": 64}}))
    on_cpu = arguments(tmp_path, {"max_model_len": 256}, {}, is_prefix_lm=False, cpu=True)
    on_gpu = arguments(tmp_path, {"max_model_len": 256}, {}, is_prefix_lm=False, cpu=False)
    assert on_cpu["max_num_seqs"] == 64 and "compilation_config" not in on_cpu
    assert "max_num_seqs" not in on_gpu and "compilation_config" not in on_gpu
