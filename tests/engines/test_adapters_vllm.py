"""Adapters in vLLM against merged weights in transformers, in one batch with their base."""

import asyncio
import dataclasses
import gc
import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import loras
import pytest
from inprocess import CLOSE, DEVICE, SLACK, Generated, _generated, engine
from parity_table import record
from reference.transformers_engine import TransformersEngine, says

from serve.engines import adapters
from serve.engines.adapters import Adapter, fit
from serve.engines.base import Prompt, Sampling
from serve.engines.vllm.engine import VllmEngine
from serve.errors import ModelError

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]
MANY = 8


def together(llm: Any, prompts: list[Prompt], lora: Any) -> tuple[list[Generated], list[Generated]]:
    """Generate 24 greedy tokens for each prompt with the base and with the adapter, all in one batch."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=20, detokenize=False)
    core, done = llm.llm_engine, {}
    for i, prompt in enumerate(prompts):
        for name, request in (("base", None), ("lora", lora)):
            inputs = {"prompt": prompt.text, "multi_modal_data": {"image": prompt.image.pil()}}
            core.add_request(f"{name} {i}", inputs, params, lora_request=request)
    while core.has_unfinished_requests():
        done.update({output.request_id: _generated(output) for output in core.step() if output.finished})
    return [done[f"base {i}"] for i in range(len(prompts))], [done[f"lora {i}"] for i in range(len(prompts))]


def agreement(folder: Path, prompts: list[Prompt], replies: list[Generated]) -> tuple[int, float, int]:
    """Compare with transformers.

    Returns the number of prompts with equal ids, the largest error of the first token's top-20 log-probabilities, and
    the number of equal greedy replies.
    """
    reference = TransformersEngine(str(folder), device=DEVICE)
    reference.load()
    ids, worst, greedy = 0, 0.0, 0
    for prompt, reply in zip(prompts, replies, strict=True):
        logprobs = reference.logprobs(prompt, reply.reply[:-1])
        ids += reference.prompt_ids(prompt) == reply.prompt
        worst = max(worst, *(abs(float(logprobs[0, token]) - value) for token, value in reply.first.items()))
        greedy += says(logprobs, reply.reply, SLACK)
    return ids, worst, greedy


@pytest.mark.parametrize(
    ("family", "parts", "newer"),
    [
        ("llava", [loras.LANGUAGE], True),
        ("paligemma", [loras.LANGUAGE, loras.TOWER], True),
    ],
    ids=["llava", "paligemma with its tower, saved by transformers 5"],
)
def test_adapter_equals_its_merged_weights(
    family: str, parts: list[Any], newer: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    is_prefix_lm = family.startswith("paligemma")
    context = 512 if "next" in family else 128
    base = checkpoints.make(family, tmp_path / "published", context)
    if loras.TOWER in parts:
        base = loras.saved_by_transformers_5(base, tmp_path / "own")
    folder = loras.make(base, tmp_path / "lora", *parts, newer=newer)
    fitted = fit(Adapter("mine", str(folder)), base)
    prompts = list(map(Prompt, checkpoints.prompts(family, MANY), checkpoints.pictures(MANY)))
    with engine(base, is_prefix_lm, adapters=[fitted], max_model_len=context, dtype="float32") as vllm:
        from vllm.lora.request import LoRARequest

        lora = LoRARequest("mine", 1, str(folder))
        vllm.llm.llm_engine.add_lora(lora)
        as_base, as_lora = together(vllm.llm, prompts, lora)
    of_base, of_lora = agreement(base, prompts, as_base), agreement(folder / "merged", prompts, as_lora)
    changed = sum(plain.reply != adapted.reply for plain, adapted in zip(as_base, as_lora, strict=True))
    with capsys.disabled():
        print(
            f"\n{family:18} base {of_base} adapter {of_lora} (ids, log-prob error, greedy of {MANY}); changed {changed}"
        )
    for part, (ids, worst, greedy) in (("base", of_base), ("adapter", of_lora)):
        record((f"{family}, LoRA, its {part}", "float32", "", f"{ids}/{MANY}", f"{worst:.1e}", f"{greedy}/{MANY}"))
    for ids, worst, greedy in (of_base, of_lora):
        assert (ids, greedy) == (MANY, MANY)
        assert worst < CLOSE
    assert changed > MANY / 2


def speakable(folder: Path) -> Path:
    """Change a checkpoint so that it never generates a token that only pads its vocabulary, of which vLLM dies."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    named = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    weights["language_model.lm_head.weight"][named:] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


async def test_adapters_that_fail_come_or_go_leave_their_base_and_other_adapters_working(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that only vLLM finds, with our check disabled, is raised when the adapter is loaded."""
    base = speakable(checkpoints.make("llava", tmp_path / "base"))
    good = loras.make(base, tmp_path / "good", loras.LANGUAGE)
    loras.make(base, tmp_path / "other", loras.LANGUAGE, seed=4)
    (tmp_path / "cut").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "cut" / file).write_bytes((good / file).read_bytes()[:-10])
    shutil.copytree(good, tmp_path / "dora", ignore=shutil.ignore_patterns("merged"))
    config = tmp_path / "dora" / "adapter_config.json"
    config.write_text(config.read_text().replace('"bias"', '"use_dora": true, "bias"'))
    monkeypatch.setattr(adapters, "HARMLESS", adapters.HARMLESS | {"use_dora"})
    names = ["good", "cut", "missing", "dora", "other"]
    static = [Adapter(name, str(tmp_path / name)) for name in names]
    vllm = VllmEngine(str(base), adapters=static, further_adapters=1, further_rank=8)
    await vllm.start()
    try:
        prompt = Prompt(checkpoints.prompts("llava", 1)[0], checkpoints.pictures(1)[0], Sampling(24, ignore_eos=True))

        async def generate(adapter: str | None) -> str:
            with_adapter = dataclasses.replace(prompt, adapter=adapter)
            return "".join([piece.text async for piece in vllm.generate(with_adapter)])

        texts = await asyncio.gather(*map(generate, [None, "good", "other", None]))
        assert texts[0] == texts[3] and len(set(texts)) == 3
        for name, message in (
            ("cut", "The adapter cut cannot be used"),
            ("missing", "There is no folder .*missing"),
            ("dora", "The adapter dora could not be loaded: .*DoRA"),
        ):
            with pytest.raises(ModelError, match=message):
                await vllm.check_adapter(name)
            with pytest.raises(ModelError, match=message):
                await generate(name)
        await vllm.check_adapter("good")
        assert await generate(None) == texts[0]
        added = tmp_path / "added"  # one after the other at the same path, of which the prefix cache must know nothing
        for weights, text in (("good", texts[1]), ("other", texts[2])):
            shutil.copytree(tmp_path / weights, added, dirs_exist_ok=True)
            plain = asyncio.create_task(generate(None))
            name = await vllm.add_adapter(Adapter("added", str(added)))
            assert await asyncio.gather(*map(generate, [name, None, "good"])) == [text, texts[0], texts[1]]
            assert await plain == texts[0]
            await vllm.remove_adapter(name)
            with pytest.raises(ModelError, match="There is no adapter"):
                await generate(name)
        small = loras.make(checkpoints.make("paligemma", tmp_path / "small"), tmp_path / "foreign", loras.LANGUAGE)
        for folder, message in (
            (small, "The adapter late cannot be used: its base has no layer|its .* is made for a layer of"),
            (tmp_path / "cut", "The adapter late cannot be used"),
            (tmp_path / "dora", "The adapter late could not be loaded: .*DoRA"),
        ):
            with pytest.raises(ModelError, match=message):
                await vllm.add_adapter(Adapter("late", str(folder)))
        vllm.further_rank = 1
        with pytest.raises(ModelError, match="its rank 4 is larger than its base's max_lora_rank, 1"):
            await vllm.add_adapter(Adapter("late", str(added)))
        assert await asyncio.gather(*map(generate, [None, "good", "other"])) == texts[:3]
    finally:
        await vllm.stop()
        gc.collect()
