"""vLLM says what transformers says: the same prompt tokens, the same probabilities, the same words.

Also when requests arrive while others speak, and when they are preempted; and not without the plugin, nor with any
argument that the plugin refuses: those tests show that the parity tests would notice.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from inprocess import Said, engine

from serve.engines import prefix_lm
from serve.engines.base import Prompt

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

TOYS = Path(__file__).parents[2] / "serve" / "toy"
CASES = ["tiny llava", "tiny paligemma", "tiny paligemma2", "toy llava", "toy paligemma"]
CLOSE = 1e-4
TOY_PROMPTS = {
    "llava": ["What color is the circle?", "How many shapes are there?", "Describe the image.", "Is there a square?"],
    "paligemma": ["caption en", "answer en what color is the circle?", "detect circle ; square", "ocr", "detect star"],
}


@dataclasses.dataclass
class Case:
    folder: Path
    prefix: bool
    prompts: list[Prompt]
    context: int

    @functools.cached_property
    def reference(self) -> Any:
        from serve.engines.transformers import TransformersEngine

        reference = TransformersEngine(str(self.folder))
        reference.load()
        return reference


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @functools.cache
    def make(name: str) -> Case:
        kind, family = name.split()
        pictures = checkpoints.pictures(20)
        if kind == "tiny":
            folder = checkpoints.make(family, tmp_path_factory.mktemp("checkpoints") / family)
            texts = checkpoints.prompts(family, 20)
            return Case(folder, family != "llava", list(map(Prompt, texts, pictures)), 128)
        folder = TOYS / family
        texts = (TOY_PROMPTS[family] * 20)[:20]
        if family == "llava":
            texts = [f"USER: <image>\n{text} ASSISTANT:" for text in texts]
        return Case(folder, family != "llava", list(map(Prompt, texts, pictures)), 256)

    return make


def differences(case: Case, said: list[Said]) -> tuple[int, float, int]:
    """Prompts with equal token ids; the largest difference over the first tokens' top 20; equal greedy replies."""
    ids, worst, greedy = 0, 0.0, 0
    for prompt, vllm in zip(case.prompts, said, strict=True):
        logprobs = case.reference.logprobs(prompt, vllm.reply[:-1])
        ids += case.reference.prompt_ids(prompt) == vllm.prompt
        worst = max(worst, *(abs(float(logprobs[0, token]) - value) for token, value in vllm.first.items()))
        greedy += logprobs.argmax(-1).tolist() == vllm.reply  # each token the likeliest after the ones before it
    return ids, worst, greedy


def agree(case: Case, said: list[Said], plain: list[Said]) -> bool:
    """Whether replies under load are those that were given without."""
    return all(
        one.reply == other.reply
        and all(abs(one.first[t] - other.first.get(t, one.first[t])) < CLOSE for t in one.first)
        for one, other in zip(said, plain, strict=False)
    )


@pytest.mark.parametrize("name", CASES)
def test_vllm_says_what_transformers_says(
    name: str, case: Callable[[str], Case], capsys: pytest.CaptureFixture[str]
) -> None:
    this = case(name)
    with engine(this.folder, this.prefix, max_model_len=this.context) as vllm:
        plain = vllm.say(this.prompts)
        staggered = vllm.say(this.prompts[:16], every=3)
    ids, worst, greedy = differences(this, plain)
    few = 2 + 16 * (this.context // 32 // 4)  # enough for four or five whole requests
    with engine(
        this.folder, this.prefix, max_model_len=this.context, block_size=32, num_gpu_blocks_override=few
    ) as vllm:
        preempted = vllm.say(this.prompts[:16], tokens=48)
        preemptions = vllm.preemptions
    cut = [dataclasses.replace(said, reply=said.reply[:32]) for said in preempted]
    with capsys.disabled():
        print(
            f"\n{name:16} | ids {ids}/20 | top-20 log-prob error {worst:.1e} | 32 greedy tokens {greedy}/20 | "
            f"16 staggered {'equal' if agree(this, staggered, plain) else 'DIFFERENT'} | "
            f"{preemptions} preemptions {'equal' if agree(this, cut, plain) else 'DIFFERENT'}"
        )
    assert (ids, greedy) == (20, 20)
    assert worst < CLOSE
    assert agree(this, staggered, plain)
    assert preemptions >= 5
    assert agree(this, cut, plain)


UNSAFE: dict[str, dict[str, Any]] = {
    "enable_chunked_prefill": {"enable_chunked_prefill": True, "max_num_batched_tokens": 32, "max_num_seqs": 16},
    "enable_prefix_caching": {"enable_prefix_caching": True, "block_size": 32},
    "long_prefill_token_threshold": {"long_prefill_token_threshold": 24},
    "scheduler_cls": {"scheduler_cls": None, "block_size": 32, "num_gpu_blocks_override": 18},
}


@pytest.mark.parametrize("unsafe", ["no plugin", *UNSAFE])
def test_without_the_plugin_or_with_an_unsafe_argument_it_says_something_else(
    unsafe: str, case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    this = case("tiny paligemma")
    if unsafe == "no plugin":
        monkeypatch.setattr(prefix_lm, "concerns", lambda config: False)
    # The guards are what is left out here.
    monkeypatch.setattr(prefix_lm, "refuse", lambda config: None)
    monkeypatch.setattr(prefix_lm, "within_prompt", lambda prompt, computed, new: new)
    monkeypatch.setattr(prefix_lm, "flags", lambda prefilling, query_lens, seq_lens: (~prefilling).int())
    monkeypatch.setattr(prefix_lm, "SAFE_ARGS", {**prefix_lm.SAFE_ARGS, **UNSAFE.get(unsafe, {})})
    prompts = this.prompts
    if unsafe == "enable_prefix_caching":  # one picture, two texts that start alike
        start = " ".join(sorted(checkpoints.WORDS.split()))  # in an order that the tokenizer does not know
        prompts = [Prompt(f"{start} {end}", this.prompts[0].image) for end in ("red", "blue", "cat", "dog") * 5]
    with engine(this.folder, True, max_model_len=this.context, **UNSAFE.get(unsafe, {})) as vllm:
        said = vllm.say(prompts[:16], tokens=48, every=1 if unsafe == "enable_prefix_caching" else 0)
    ids, worst, greedy = differences(dataclasses.replace(this, prompts=prompts[:16]), said)
    with capsys.disabled():
        print(f"\n{unsafe:28} | ids {ids}/16 | log-prob error {worst:.1e} | 48 greedy tokens {greedy}/16")
    assert ids == 16
    assert greedy < 16


@pytest.mark.parametrize("unsafe", UNSAFE)
def test_an_unsafe_argument_is_refused_by_name(
    unsafe: str, case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    this = case("tiny paligemma")
    monkeypatch.setattr(prefix_lm, "SAFE_ARGS", prefix_lm.SAFE_ARGS | UNSAFE[unsafe])
    with pytest.raises(ValueError, match=unsafe), engine(this.folder, True, **UNSAFE[unsafe]):
        pass
