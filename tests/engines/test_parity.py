"""vLLM against transformers: equal prompt tokens, probabilities and replies. On a GPU in bfloat16 as well.

For every architecture, with images and videos of many shapes, also when requests arrive while others are generated, and
when they are preempted. Further tests show that the parity tests would notice the lack of the plugin and each argument
that the plugin refuses. A table is printed at the end.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import checkpoints
import parity_table
import pytest
from inprocess import CLOSE, DEVICE, DTYPES, SLACK, Generated, engine
from parity_table import record

from serve.engines.base import Prompt
from serve.engines.plugins import prefix_lm
from serve.models import MODELS
from serve.models.base import Model, Turn

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

ROUNDED = 3
"""How many times transformers' own error of bfloat16 the error of vLLM in bfloat16 may be."""
TOY_PROMPTS = {
    "llava": ["What color is the circle?", "How many shapes are there?", "Describe the image.", "Is there a square?"],
    "paligemma": ["caption en", "answer en what color is the circle?", "detect circle ; square", "ocr", "detect star"],
}
NAMES = {
    "llava": "LLaVA-1.5",
    "llava_next_mistral": "LLaVA-NeXT, Mistral",
    "llava_next_vicuna": "LLaVA-NeXT, Vicuna",
    "llava_onevision": "LLaVA-OneVision",
    "llava_onevision_tied": "LLaVA-OneVision, tied words",
    "llava_next_video": "LLaVA-NeXT-Video",
    "paligemma": "PaliGemma",
    "paligemma2": "PaliGemma 2",
    "paligemma2_window": "PaliGemma 2, prompt > window",
}
CHATS = {
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL with experts",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5 with experts",
}
"""Families whose prompts are messages. `make parity` runs them all."""
CHOSEN = ("qwen2_5_vl", "qwen3_5")
"""Those of every test run: of each family one that test_named.py does not run; a plugin of ours."""
WHOLE = os.environ.get("PARITY") == "all"
TOYS = ["toy-llava", "toy-paligemma"]
CASES = [(name, dtype) for dtype in DTYPES for name in (*NAMES, *(TOYS if DEVICE == "cpu" else []))]
CASES += [(name, "float32") for name in CHATS if WHOLE or (name in CHOSEN and DEVICE == "cpu")]
GRAPHS = ("paligemma", "bfloat16")
"""On a GPU the one case with compiled layers and CUDA graphs, as served: they take most of a minute."""
CROWDED = [
    *(name for name in NAMES if "paligemma" in name),
    "llava",
    "llava_onevision",
    "qwen3_5",
    *TOYS,
]  # what is causal needs no scheduler of ours


@dataclasses.dataclass
class Case:
    """A checkpoint, the catalogue's model that defines how it is served, and its prompts by "image" or "video"."""

    name: str
    folder: Path
    model: Model
    prompts_by_kind: Mapping[str, list[Prompt]]
    context: int

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt for prompts in self.prompts_by_kind.values() for prompt in prompts]

    @functools.cached_property
    def reference(self) -> Any:
        return self.loaded("float32")

    def loaded(self, dtype: str) -> Any:
        from reference.transformers_engine import TransformersEngine

        reference = TransformersEngine(
            str(self.folder),
            prepare=self.model.prepare,
            device=DEVICE,
            dtype=dtype,
            chat=self.model.chat is not None,
        )
        reference.load()
        return reference

    @functools.cached_property
    def rounding(self) -> float:
        """Return the largest error of transformers in bfloat16, among the likeliest 20 first tokens of some prompts."""
        rounded, worst = self.loaded("bfloat16"), 0.0
        for prompt in self.prompts[:8]:
            exact = self.reference.logprobs(prompt)[0]
            top = exact.topk(20).indices
            worst = max(worst, float((exact[top] - rounded.logprobs(prompt)[0, top]).abs().max()))
        return worst


def tiny(family: str, folder: Path) -> Case:
    """Make a case with 20 images, six of them odd, and eight videos, as far as the family takes them."""
    model, by_kind = checkpoints.published(family), {}
    if model.images:
        images = [*checkpoints.pictures(14), *checkpoints.odd_pictures()]
        by_kind["image"] = list(map(Prompt, checkpoints.prompts(family, 20), images))
    if model.videos:
        texts = checkpoints.prompts(family, 8, filmed=True)
        films = checkpoints.films(8)
        by_kind["video"] = [Prompt(text, None, video=film) for text, film in zip(texts, films, strict=True)]
    context = 512 if model.chat else 128 if model.prefix_lm or family == "llava" else 256
    return Case({**NAMES, **CHATS}[family], checkpoints.make(family, folder, context), model, by_kind, context)


def toy(name: str) -> Case:
    model = MODELS[name]
    texts = TOY_PROMPTS["paligemma" if model.prefix_lm else "llava"] * 5
    images = [*checkpoints.pictures(14), *checkpoints.odd_pictures()]
    prompts = [Prompt(model.converse([Turn("user", t, True)]), image) for t, image in zip(texts, images, strict=False)]
    return Case(name, Path(model.checkpoint.hub), model, {"image": prompts}, model.family_args["max_model_len"])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @functools.cache
    def make(name: str) -> Case:
        return toy(name) if name in TOYS else tiny(name, tmp_path_factory.mktemp("checkpoints") / name)

    return make


@pytest.fixture(scope="module", autouse=True)
def printed_table(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the table after the last test."""
    yield
    parity_table.show(request, f"vLLM against transformers on {DEVICE}", parity_table.rows)


def differences(
    case: Case, prompts: Sequence[Prompt], replies: Sequence[Generated], slack: float = SLACK
) -> tuple[int, float, int]:
    """Count prompts with equal token ids and equal greedy replies; between them the largest error of the first tokens'
    top 20 log-probabilities. slack: how much less likely than the likeliest a greedy token may be."""
    from reference.transformers_engine import says

    ids, worst, greedy = 0, 0.0, 0
    for prompt, vllm in zip(prompts, replies, strict=True):
        logprobs = case.reference.logprobs(prompt, vllm.reply[:-1])
        ids += case.reference.prompt_ids(prompt) == vllm.prompt
        worst = max(worst, *(abs(float(logprobs[0, token]) - value) for token, value in vllm.first.items()))
        greedy += says(logprobs, vllm.reply, slack)
    return ids, worst, greedy


def agree(
    case: Case,
    prompts: Sequence[Prompt],
    loaded: Sequence[Generated],
    plain: Sequence[Generated],
    bound: float,
    slack: float,
) -> bool:
    """Return whether replies under load begin as those without load.

    On a GPU the kernels round by the size of a batch, so there they are held against the reference.
    """
    if not loaded:
        return True
    if DEVICE == "cuda":
        ids, worst, greedy = differences(case, prompts, loaded, slack)
        return ids == greedy == len(prompts) and worst < bound
    return all(
        busy.reply[: len(idle.reply)] == idle.reply
        and all(abs(busy.first[t] - idle.first.get(t, busy.first[t])) < bound for t in busy.first)
        for busy, idle in zip(loaded, plain, strict=True)
    )


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_vllm_equals_transformers(name: str, dtype: str, case: Callable[[str], Case]) -> None:
    this = case(name)
    bound, slack = (CLOSE, SLACK) if dtype == "float32" else (ROUNDED * this.rounding, 2 * ROUNDED * this.rounding)
    prompts = [dataclasses.replace(p, image=p.image and this.model.prepare(p.image)) for p in this.prompts]
    crowded = name in CROWDED
    kinds = 2 if "paligemma2" in name else 1  # of layers, sliding and not, each with blocks of its own
    used = 256 if name in TOYS else this.context
    few = 2 + 4 * kinds * (used // 32)  # enough for four whole requests, not for sixteen
    room = {"block_size": 32, "num_gpu_blocks_override": few} if crowded else {}
    graphs = DEVICE == "cuda" and (name, dtype) == GRAPHS
    given = {"max_model_len": this.context, "dtype": dtype, **room, **({"enforce_eager": False} if graphs else {})}
    chat = this.model.chat is not None
    with engine(this.folder, this.model.prefix_lm, this.model.family_args, chat=chat, **given) as vllm:
        runner = vllm.runner
        plain = [reply for at in range(0, len(prompts), 4) for reply in vllm.say(prompts[at : at + 4])]
        assert vllm.preemptions == 0
        staggered = vllm.say(prompts[-16:], every=3, tokens=32)
        vllm.preemptions = 0
        preempted = vllm.say(prompts[-16:], tokens=48) if crowded else []
        preemptions = vllm.preemptions
        drawn = vllm.say(prompts[-2:], tokens=4, top_p=0.9)  # FlashInfer's sampler, where it is on, begins here
    last = this.prompts[-16:]
    loads = [agree(this, last, replies, plain[-16:], bound, slack) for replies in (staggered, preempted)]
    outcomes = ["equal" if load else "DIFFERENT" for load in loads]
    rows, at = [], 0
    for kind, asked_prompts in this.prompts_by_kind.items():
        ids, worst, greedy = differences(this, asked_prompts, plain[at : at + len(asked_prompts)], slack)
        at += len(asked_prompts)
        rows.append((ids, worst, greedy, len(asked_prompts)))
        record(
            (
                this.name if kind == "image" else f"{this.name}, video",
                f"{dtype}, CUDA graphs" if graphs else dtype,
                runner,
                f"{ids}/{len(asked_prompts)}",
                f"{worst:.1e}" + (f" of {bound:.1e}" if dtype == "bfloat16" else ""),
                f"{greedy}/{len(asked_prompts)}",
                outcomes[0],
                f"{preemptions} times, {outcomes[1]}" if crowded else "",
            )
        )
    assert all(ids == greedy == count for ids, _, greedy, count in rows)
    assert max(worst for _, worst, _, _ in rows) < bound
    assert all(loads) and [len(reply.reply) for reply in drawn] == [4] * len(drawn)
    if crowded:
        assert preemptions >= 4


UNSAFE: dict[str, dict[str, Any]] = {
    "enable_chunked_prefill": {"enable_chunked_prefill": True, "max_num_batched_tokens": 32, "max_num_seqs": 16},
    "enable_prefix_caching": {"enable_prefix_caching": True, "block_size": 32},
    "long_prefill_token_threshold": {"long_prefill_token_threshold": 24},
    "scheduler_cls": {"scheduler_cls": None, "block_size": 32, "num_gpu_blocks_override": 18},
}


def make_unsafe(monkeypatch: pytest.MonkeyPatch, unsafe: str) -> None:
    """Take unsafe arguments for safe ones."""
    prompt = {**prefix_lm.SAFE_ARGS["prompt"], **UNSAFE.get(unsafe, {})}
    monkeypatch.setattr(prefix_lm, "SAFE_ARGS", {**prefix_lm.SAFE_ARGS, "prompt": prompt})


@pytest.mark.parametrize("unsafe", ["no plugin", "no second look", *UNSAFE])
def test_replies_differ_without_the_plugin_or_with_an_unsafe_argument(
    unsafe: str, case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    this = case("paligemma2_window" if unsafe == "no second look" else "paligemma")
    if unsafe == "no plugin":
        monkeypatch.setattr(prefix_lm, "attention_of", lambda config: "causal")
    if unsafe == "no second look":  # of the sliding layers, whose window the prompts are longer than
        monkeypatch.setattr(prefix_lm, "window", lambda config: None)
    # The guards are what is left out here.
    monkeypatch.setattr(prefix_lm, "refuse", lambda config, cpu: None)
    monkeypatch.setattr(prefix_lm, "within_prompt", lambda prompt, computed, new: new)
    spans = lambda prefilling, query_lens, seq_lens: [  # noqa: E731
        [(0, end)] if new else [] for new, end in zip(prefilling, seq_lens, strict=True)
    ]
    monkeypatch.setattr(prefix_lm, "prompt_spans", spans)
    make_unsafe(monkeypatch, unsafe)
    prompts = this.prompts[:16]
    if unsafe == "enable_prefix_caching":  # one picture, two texts that start alike
        start = " ".join(sorted(checkpoints.WORDS.split()))  # in an order that the tokenizer does not know
        prompts = [Prompt(f"{start} {end}", this.prompts[0].image) for end in ("red", "blue", "cat", "dog") * 4]
    given = {"max_model_len": this.context, "dtype": "float32", **UNSAFE.get(unsafe, {})}
    with engine(this.folder, True, **given) as vllm:
        replies = vllm.say(prompts, tokens=48, every=1 if unsafe == "enable_prefix_caching" else 0)
    ids, worst, greedy = differences(this, prompts, replies)
    record((f"{this.name}, {unsafe}", "float32", "", f"{ids}/16", f"{worst:.1e}", f"{greedy}/16"))
    assert ids == 16
    assert greedy < 16


@pytest.mark.parametrize("unsafe", UNSAFE)
def test_an_unsafe_argument_is_refused_by_name(
    unsafe: str, case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    this = case("paligemma")
    make_unsafe(monkeypatch, unsafe)
    with pytest.raises(ValueError, match=unsafe), engine(this.folder, True, **UNSAFE[unsafe]):
        pass
