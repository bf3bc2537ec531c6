"""A checkpoint's own files give its card, its limits and its template; missing and broken ones give nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import write_checkpoint

from serve.engines.checkpoint_facts import CheckpointFacts, read_facts

QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "text_config": {"max_position_embeddings": 262144, "dtype": "bfloat16", "model_type": "qwen3_vl_text"},
    "vision_config": {"patch_size": 16, "spatial_merge_size": 2},
}
PICTURES = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16, "merge_size": 2}
MERGES = "".join(f"a{at}: &a{at} {{<<: [{', '.join(9 * [f'*a{at - 1}'])}]}}\n" for at in range(1, 13))
"""Mappings that grow nine times with each, where they are joined."""
README = """---
license: apache-2.0
language:
- en
- de
base_model: Qwen/Qwen3-8B
pipeline_tag: image-text-to-text
---
# A model
license: none of this line is read
"""


def facts(folder: Path, config: dict[str, Any], readme: str = "", **files: Any) -> CheckpointFacts:
    write_checkpoint(folder, config, {"model.a": (3, 5), "lm_head.weight": (7, 2)}, **files)
    if readme:
        (folder / "README.md").write_text(readme)
    return read_facts(folder)


def test_published_files_give_every_fact(tmp_path: Path) -> None:
    read = facts(
        tmp_path,
        QWEN3,
        README,
        preprocessor_config=PICTURES,
        chat_template={"chat_template": "{% if enable_thinking %}<think>{% endif %}"},
        generation_config={"eos_token_id": [151645, 151643]},
        tokenizer_config={"added_tokens_decoder": {"151667": {"content": "<think>"}, "1": {}, "2": "x"}},
    )
    assert read == CheckpointFacts(
        architecture="Qwen3VLForConditionalGeneration",
        model_type="qwen3_vl",
        context=262144,
        parameters=29,
        dtype="bfloat16",
        takes_images=True,
        picture_pixels=(65536, 16777216),
        picture_unit=32,
        chat_template="{% if enable_thinking %}<think>{% endif %}",
        added_tokens=frozenset({"<think>"}),
        stop_token_ids=(151645, 151643),
        licence="apache-2.0",
        languages=("en", "de"),
        base_model="Qwen/Qwen3-8B",
        pipeline="image-text-to-text",
    )


def test_empty_folder_gives_no_fact(tmp_path: Path) -> None:
    assert read_facts(tmp_path) == read_facts(tmp_path / "missing") == CheckpointFacts()


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: other\nlicense_name: lfm1.0\n---\n", "lfm1.0"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit"),
        ("---\nlicense: {a: b}\n---\n", None),
        ("---\n: [\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("---\n" + "[" * 50_000 + "\n---\n", None),
        ("---\nlicense: mit\na: " + "[" * 600 + "]" * 600 + "\n---\n", None),
        ("---\nlicense: !!timestamp mit\n---\n", "mit"),
        ("---\na: !!int ''\nlicense: mit\n---\n", "mit"),
        (f"---\na0: &a0 {{k: v}}\n{MERGES}license: mit\n---\n", "mit"),
    ],
)
def test_readme_head_in_yaml_gives_the_licence(tmp_path: Path, readme: str, licence: str | None) -> None:
    assert facts(tmp_path, {}, readme).licence == licence


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        ({"model_type": "qwen3_vl"}, "causal"),
        ({"model_type": "gemma3"}, "picture"),
        ({"model_type": "gemma4", "text_config": {"use_bidirectional_attention": "vision"}}, "picture"),
        ({"model_type": "gemma4", "text_config": {"use_bidirectional_attention": None}}, "causal"),
        ({"model_type": "paligemma"}, "prompt"),
        ({"model_type": "x", "text_config": {"use_bidirectional_attention": True}}, "prompt"),
    ],
)
def test_attention_is_read_from_the_configuration(tmp_path: Path, config: dict[str, Any], attention: str) -> None:
    assert facts(tmp_path, config).attention == attention


def test_template_is_taken_from_where_transformers_looks(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    files = {"tokenizer_config": {"chat_template": named}}
    assert facts(tmp_path, {}, **files).chat_template == "d"
    (tmp_path / "processor_config.json").write_text(json.dumps({"chat_template": "p"}))
    assert read_facts(tmp_path).chat_template == "p"
    (tmp_path / "chat_template.jinja").write_text("j")
    assert read_facts(tmp_path).chat_template == "j"


def test_quantised_numbers_are_not_counted_as_parameters(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "awq"}}
    index: dict[str, Any] = {"weight_map": {}, "metadata": {}}
    assert facts(tmp_path, config).parameters is None
    index["metadata"]["total_parameters"] = 8_000_000_000
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    read = read_facts(tmp_path)
    assert (read.parameters, read.quantization) == (8_000_000_000, "awq")


def test_size_in_tokens_of_a_side_is_no_budget_of_pixels(tmp_path: Path) -> None:
    read = facts(tmp_path, {}, preprocessor_config={"size": {"shortest_edge": 336}, "patch_size": 14})
    assert read.picture_pixels is None and read.takes_images


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"text_config": {"layer_types": 5}}},
        {"config": {"text_config": {"max_position_embeddings": 10**400}}},
        {"tokenizer_config": {"chat_template": [{"name": [1], "template": "a"}]}},
        {"model.safetensors.index": {"metadata": {"total_parameters": 10**400}}},
    ],
)
def test_value_of_a_wrong_kind_is_as_a_missing_value(tmp_path: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert read_facts(tmp_path) == CheckpointFacts()


def test_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").symlink_to("/dev/zero")
    assert read_facts(tmp_path) == CheckpointFacts()


@pytest.mark.parametrize("content", ["[]", "{", '"text"', "null", "[" * 100_000, "\udcff"])
def test_broken_file_is_as_a_missing_file(tmp_path: Path, content: str) -> None:
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    assert read_facts(tmp_path) == CheckpointFacts()
