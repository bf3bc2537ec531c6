import types

import numpy as np
import pytest

from serve.engines.plugins import prefix_lm
from serve.engines.vllm.arguments import arguments
from serve.errors import ModelError


class Tensor(np.ndarray):
    """numpy with the one method of torch that the plugin calls."""

    def int(self) -> np.ndarray:
        return self.astype(np.int32)


def row(*values: object) -> Tensor:
    return np.array(values).view(Tensor)


def test_requests_in_prefill_are_not_causal_and_in_decoding_are() -> None:
    flags = prefix_lm.flags(row(True, False, True), row(20, 1, 30), row(20, 57, 30))
    assert list(flags) == [0, 1, 0]


def test_step_without_prefill_has_no_flags() -> None:
    assert prefix_lm.flags(row(False, False), row(1, 1), row(20, 57)) is None
    assert prefix_lm.flags(None, row(1), row(1)) is None


def test_a_prompt_begun_elsewhere_is_refused() -> None:
    with pytest.raises(prefix_lm.PromptCut, match="1 of 2 requests"):
        prefix_lm.flags(row(True, True), row(20, 8), row(20, 24))


def test_preempted_request_computes_its_prompt_and_its_reply_in_separate_steps() -> None:
    assert prefix_lm.within_prompt(prompt=30, computed=0, new=30) == 30
    assert prefix_lm.within_prompt(prompt=30, computed=0, new=42) == 30  # 12 words said before it was preempted
    assert prefix_lm.within_prompt(prompt=30, computed=30, new=12) == 12
    assert prefix_lm.within_prompt(prompt=30, computed=57, new=1) == 1
    assert prefix_lm.within_prompt(prompt=30, computed=0, new=0) == 0  # no room in this step: it waits


@pytest.mark.parametrize(("computed", "new"), [(0, 16), (16, 14), (16, 26)])
def test_half_a_prompt_is_refused(computed: int, new: int) -> None:
    with pytest.raises(prefix_lm.PromptCut):
        prefix_lm.within_prompt(prompt=30, computed=computed, new=new)


def config(**changes: object) -> types.SimpleNamespace:
    """Return the part of a vLLM configuration that the guard reads: safe values with the changes."""
    safe = {
        "enable_chunked_prefill": False,
        "enable_prefix_caching": False,
        "long_prefill_token_threshold": 0,
        "max_num_batched_tokens": 2048,
        "max_model_len": 1024,
        "scheduler_cls": prefix_lm.SCHEDULER,
        "hf_text_config": types.SimpleNamespace(sliding_window=4096),
        "architectures": ["PaliGemmaForConditionalGeneration"],
        **changes,
    }
    part = types.SimpleNamespace(**safe)
    return types.SimpleNamespace(
        scheduler_config=part, cache_config=part, model_config=part, use_v2_model_runner=changes.get("v2", False)
    )


def test_the_safe_arguments_pass() -> None:
    prefix_lm.refuse(config())
    prefix_lm.refuse(config(max_model_len=8192, max_num_batched_tokens=8192))  # prompts longer than a window are read
    assert prefix_lm.concerns(config()) and not prefix_lm.concerns(config(architectures=["LlavaForConditionalGen"]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_chunked_prefill", True),
        ("enable_prefix_caching", True),
        ("long_prefill_token_threshold", 24),
        ("max_num_batched_tokens", 512),
        ("scheduler_cls", None),
        ("v2", True),
    ],
)
def test_each_unsafe_argument_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match="V2_MODEL_RUNNER" if name == "v2" else name):
        prefix_lm.refuse(config(**{name: value}))


@pytest.mark.parametrize("name", prefix_lm.SAFE_ARGS)
def test_safe_argument_of_a_prefix_lm_cannot_be_overridden(tmp_path, name: str) -> None:
    with pytest.raises(ModelError, match=name) as caught:
        arguments(tmp_path, {}, {name: "something else"}, is_prefix_lm=True, cpu=False)
    assert caught.value.code == "unsafe_argument"
    assert arguments(tmp_path, {}, {name: "something else"}, is_prefix_lm=False, cpu=False)[name] == "something else"


def test_on_a_gpu_a_prefix_lm_gets_the_kernel_that_takes_flags(tmp_path) -> None:
    assert arguments(tmp_path, {}, {}, is_prefix_lm=True, cpu=False)["attention_backend"] == "TRITON_ATTN"
    assert "attention_backend" not in arguments(tmp_path, {}, {}, is_prefix_lm=False, cpu=False)
