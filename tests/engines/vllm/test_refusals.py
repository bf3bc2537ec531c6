"""Checkpoints that would be served wrongly are refused in a sentence, by their files alone."""

from dataclasses import replace
from typing import Any

import pytest

from serve.engines.checkpoint_facts import CheckpointFacts
from serve.engines.vllm.refusals import FALLBACKS, WRONG_IN_VLLM, why_refused

GOOD = CheckpointFacts(model_type="some_vl", takes_images=True, chat_template="{{ messages }}")


def why(facts: CheckpointFacts = GOOD, *, cpu: bool = True, **chosen: Any) -> str:
    sentence = why_refused(facts, chosen, cpu=cpu, native=True)
    assert sentence is None or sentence.endswith(".")
    return str(sentence)


def test_ordinary_checkpoint_is_not_refused() -> None:
    assert why() == why(cpu=False) == "None"


@pytest.mark.parametrize("kind", WRONG_IN_VLLM)
def test_kind_that_vllm_serves_wrongly_is_refused_everywhere(kind: str) -> None:
    facts = replace(GOOD, model_type=kind)
    assert why(facts).startswith(f"{kind}: vLLM 0.32") and why(facts, cpu=False) == why(facts)


def test_pictures_that_attend_both_ways_are_refused_on_a_processor_but_gemmas() -> None:
    facts = replace(GOOD, attention="picture", model_type="molmo2")
    assert "molmo2: its pictures attend both ways" in why(facts)
    assert why(facts, cpu=False) == "None"
    assert why(replace(facts, model_type="gemma3")) == why(replace(facts, model_type="gemma4")) == "None"


def test_prompt_that_attends_both_ways_is_refused() -> None:
    assert "done for PaliGemma alone" in why(replace(GOOD, attention="prompt"), cpu=False)


def test_checkpoint_without_pictures_is_refused() -> None:
    assert why(replace(GOOD, takes_images=False)).startswith("It takes no pictures")


def test_missing_template_is_refused_unless_given() -> None:
    facts = replace(GOOD, chat_template=None)
    assert "`chat_template: FILE`" in why(facts)
    assert why_refused(facts, {}, cpu=True, template=True, native=True) is None
    assert why(replace(facts, model_type=FALLBACKS[0])) == "None"


def test_code_of_its_own_is_refused_unless_allowed_or_not_needed() -> None:
    facts = replace(GOOD, remote_code=True)
    refused = str(why_refused(facts, {}, cpu=True, native=False))
    assert "trust_remote_code" in refused and "revision" in refused
    assert why_refused(facts, {"trust_remote_code": True}, cpu=True, native=False) is None
    assert why_refused(facts, {}, cpu=True, native=True) is None


def test_linear_attention_needs_bfloat16_on_a_processor() -> None:
    facts = replace(GOOD, linear_attention=True)
    assert "dtype: bfloat16" in why(facts)
    assert why(facts, dtype="bfloat16") == why(facts, cpu=False) == "None"


@pytest.mark.parametrize(
    ("method", "dtype", "message"),
    [
        ("fp8", "bfloat16", "(fp8), and vLLM 0.32 has no kernel"),
        ("awq", "float32", "bfloat16 alone"),
        ("gptq", "float32", "bfloat16 alone"),
        ("awq", "bfloat16", "None"),
    ],
)
def test_quantised_weights_without_a_kernel_are_refused(method: str, dtype: str, message: str) -> None:
    facts = replace(GOOD, quantization=method)
    assert message in why(facts, dtype=dtype)
    assert why(facts, cpu=False) == "None"
