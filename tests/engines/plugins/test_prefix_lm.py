import types

import pytest
from checkpoint_files import write_checkpoint

from serve.engines.plugins import prefix_lm
from serve.engines.vllm.arguments import arguments
from serve.errors import ModelError


def test_request_in_prefill_has_its_prompt_as_a_span_and_one_in_decoding_has_none() -> None:
    assert prefix_lm.prompt_spans([True, False, True], [20, 1, 30], [20, 57, 30]) == [[(0, 20)], [], [(0, 30)]]


def test_a_prompt_begun_elsewhere_is_refused() -> None:
    with pytest.raises(prefix_lm.SpanCut, match="1 of 2 requests"):
        prefix_lm.prompt_spans([True, True], [20, 8], [20, 24])


def pieces(spans: list[tuple[int, int]], query: int, end: int) -> list[tuple[int, int, bool]] | None:
    """Return the tokens of each piece of one request's step, those after it, and whether it is causal."""
    cut = prefix_lm.cut_at_spans([spans], [query], [end])
    return None if cut is None else [row[1:] for row in cut]


def test_request_is_cut_at_its_pictures() -> None:
    two = [(4, 10), (12, 20)]
    text, span = True, False
    assert pieces(two, 25, 25) == [(4, 21, text), (6, 15, span), (2, 13, text), (8, 5, span), (5, 0, text)]
    assert pieces(two, 20, 20) == [(4, 16, text), (6, 10, span), (2, 8, text), (8, 0, span)]  # a step ends with one
    assert pieces(two, 19, 25) == [(4, 15, span), (2, 13, text), (8, 5, span), (5, 0, text)]  # six come from a cache
    assert pieces([(0, 30)], 30, 30) == [(30, 0, span)]  # PaliGemma's prompt
    assert pieces([(0, 30)], 42, 42) == [(30, 12, span), (12, 0, text)]
    assert pieces(two, 5, 25) is None and pieces(two, 4, 4) is None and pieces([], 25, 25) is None
    assert prefix_lm.cut_at_spans([[], two, []], [1, 20, 3], [57, 20, 3]) == [
        (0, 1, 0, text), (1, 4, 16, text), (1, 6, 10, span), (1, 2, 8, text), (1, 8, 0, span), (2, 3, 0, text)
    ]  # fmt: skip


@pytest.mark.parametrize(("query", "end"), [(6, 6), (15, 15), (1, 5)])
def test_half_a_picture_is_refused(query: int, end: int) -> None:
    with pytest.raises(prefix_lm.SpanCut, match="computed alone"):
        prefix_lm.cut_at_spans([[(4, 10), (12, 20)]], [query], [end])


def test_step_ends_before_a_picture_too_long_for_the_rest() -> None:
    two = [(4, 10), (12, 20)]
    ends = [prefix_lm.before_cut(two, 0, new) for new in range(26)]
    assert ends == [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 10, 11, 12, 12, 12, 12, 12, 12, 12, 12, 20, 21, 22, 23, 24, 25]
    assert prefix_lm.before_cut(two, 4, 5) == 0 and prefix_lm.before_cut(two, 4, 6) == 6  # it begins the step
    assert prefix_lm.before_cut(two, 6, 2) == 0 and prefix_lm.before_cut(two, 6, 4) == 4  # a cache has two of it


def test_preempted_request_computes_its_prompt_and_its_reply_in_separate_steps() -> None:
    assert prefix_lm.within_prompt(prompt=30, computed=0, new=30) == 30
    assert prefix_lm.within_prompt(prompt=30, computed=0, new=42) == 30  # 12 words said before it was preempted
    assert prefix_lm.within_prompt(prompt=30, computed=30, new=12) == 12
    assert prefix_lm.within_prompt(prompt=30, computed=57, new=1) == 1
    assert prefix_lm.within_prompt(prompt=30, computed=0, new=0) == 0  # no room in this step: it waits


@pytest.mark.parametrize(("computed", "new"), [(0, 16), (16, 14), (16, 26)])
def test_half_a_prompt_is_refused(computed: int, new: int) -> None:
    with pytest.raises(prefix_lm.SpanCut):
        prefix_lm.within_prompt(prompt=30, computed=computed, new=new)


def config(attention: str = "prompt", **changes: object) -> types.SimpleNamespace:
    """Return the part of a vLLM configuration that the guard reads: safe values with the changes."""
    gemma3 = types.SimpleNamespace(mm_tokens_per_image=256)
    gemma4 = types.SimpleNamespace(vision_config=types.SimpleNamespace(default_output_length=280))
    safe = {
        "max_num_batched_tokens": 2048,
        "max_model_len": 1024,
        "hf_text_config": types.SimpleNamespace(sliding_window=changes.get("window", 1024)),
        "hf_config": gemma4 if changes.get("gemma4") else gemma3,
        "multimodal_config": types.SimpleNamespace(mm_processor_kwargs=changes.get("kwargs")),
        "architectures": ["PaliGemmaForConditionalGeneration" if attention == "prompt" else "Another"],
        "is_mm_prefix_lm": attention != "causal",
        **prefix_lm.SAFE_ARGS[attention],
        **changes,
    }
    part = types.SimpleNamespace(**safe)
    return types.SimpleNamespace(
        scheduler_config=part, cache_config=part, model_config=part, use_v2_model_runner=changes.get("v2", False)
    )


def test_the_safe_arguments_pass() -> None:
    prefix_lm.refuse(config(), cpu=True)
    # prompts longer than a window are read
    prefix_lm.refuse(config(max_model_len=8192, max_num_batched_tokens=8192), cpu=True)
    prefix_lm.refuse(config("picture", window=256), cpu=True)
    prefix_lm.refuse(config("picture", gemma4=True), cpu=True)
    prefix_lm.refuse(config("causal", enable_chunked_prefill=True), cpu=True)
    assert [prefix_lm.attention_of(config(kind)) for kind in prefix_lm.SAFE_ARGS] == list(prefix_lm.SAFE_ARGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler_cls": None}, "scheduler_cls"),
        ({"long_prefill_token_threshold": 24}, "long_prefill"),
        ({"disable_chunked_mm_input": False}, "disable_chunked_mm_input"),
        ({"window": 255}, "at most 255 tokens, .* and has 256"),
        ({"gemma4": True, "window": 279}, "has 280"),
        ({"gemma4": True, "kwargs": {"max_soft_tokens": 1120}}, "has 1120: lower max_soft_tokens"),
        ({"gemma4": True, "kwargs": {"images_kwargs": {"max_soft_tokens": 1120}}}, "has 1120"),
    ],
)
def test_picture_that_would_be_read_wrongly_is_refused_on_a_processor(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prefix_lm.refuse(config("picture", **changes), cpu=True)
    prefix_lm.refuse(config("picture", **changes), cpu=False)  # vLLM's own kernels take the window off one side


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
        prefix_lm.refuse(config(**{name: value}), cpu=False)


@pytest.mark.parametrize("name", prefix_lm.SAFE_ARGS["prompt"])
def test_safe_argument_of_a_prefix_lm_cannot_be_overridden(tmp_path, name: str) -> None:
    with pytest.raises(ModelError, match=name) as caught:
        arguments(tmp_path, {}, {name: "something else"}, is_prefix_lm=True, cpu=False)
    assert caught.value.code == "unsafe_argument"
    assert arguments(tmp_path, {}, {name: "something else"}, is_prefix_lm=False, cpu=False)[name] == "something else"


def test_on_a_gpu_a_prefix_lm_gets_the_kernel_that_takes_flags(tmp_path) -> None:
    assert arguments(tmp_path, {}, {}, is_prefix_lm=True, cpu=False)["attention_backend"] == "TRITON_ATTN"
    assert "attention_backend" not in arguments(tmp_path, {}, {}, is_prefix_lm=False, cpu=False)


@pytest.mark.parametrize("cpu", [True, False])
def test_pictures_that_attend_both_ways_get_a_scheduler_that_cuts_none(tmp_path, cpu: bool) -> None:
    write_checkpoint(tmp_path, {"model_type": "gemma3"}, {"w": (2,)})
    room = {"max_model_len": 64, "kv_cache_memory_bytes": 1 << 20} if cpu else {}
    chosen = arguments(tmp_path, {}, room, is_prefix_lm=False, cpu=cpu)
    assert chosen.items() >= prefix_lm.SAFE_ARGS["picture"].items() and "enable_prefix_caching" not in chosen
    with pytest.raises(ModelError, match="scheduler_cls"):
        arguments(tmp_path, {}, {**room, "scheduler_cls": None}, is_prefix_lm=False, cpu=cpu)
