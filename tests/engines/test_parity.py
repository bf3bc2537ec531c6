"""vLLM says what transformers says: the same prompt tokens, the same probabilities, the same words.

For every architecture, with pictures and films of all shapes; also when requests arrive while others speak, and when
they are preempted. And not without the plugin, nor with any argument that the plugin refuses: those tests show that
the parity tests would notice. One table is printed at the end.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from inprocess import Said, engine

from serve.engines import prefix_lm
from serve.engines.base import Prompt
from serve.image import Image
from serve.models import llava, paligemma
from serve.models.base import Turn

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

CLOSE = 1e-4
TOYS = Path(__file__).parents[2] / "serve" / "toy"
TOY_PROMPTS = {
    "llava": ["What color is the circle?", "How many shapes are there?", "Describe the image.", "Is there a square?"],
    "paligemma": ["caption en", "answer en what color is the circle?", "detect circle ; square", "ocr", "detect star"],
}
NAMES = {
    "llava": "LLaVA-1.5",
    "llava_next_mistral": "LLaVA-NeXT, Mistral",
    "llava_next_vicuna": "LLaVA-NeXT, Vicuna",
    "llava_onevision": "LLaVA-OneVision",
    "llava_next_video": "LLaVA-NeXT-Video",
    "paligemma": "PaliGemma",
    "paligemma2": "PaliGemma 2",
    "paligemma2_window": "PaliGemma 2, prompt > window",
}
CASES = [*NAMES, *(f"toy {path.parent.name}" for path in sorted(TOYS.glob("*/config.json")))]
TAKES = {"llava_onevision": {"image": 1, "video": 1}, "llava_next_video": {"image": 0, "video": 1}}


@dataclasses.dataclass
class Case:
    """A checkpoint and what it is asked, by what it is shown: "image" or "video"."""

    name: str
    folder: Path
    prefix: bool
    asked: Mapping[str, list[Prompt]]
    context: int
    family: Mapping[str, Any]
    prepare: Callable[[Image], Image]

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt for prompts in self.asked.values() for prompt in prompts]

    @functools.cached_property
    def reference(self) -> Any:
        from serve.engines.transformers import TransformersEngine

        reference = TransformersEngine(str(self.folder), prepare=self.prepare)
        reference.load()
        return reference


def tiny(family: str, folder: Path) -> Case:
    """20 pictures, six of them odd, and eight films, as far as the family takes them."""
    takes = TAKES.get(family, {"image": 1})
    context = 128 if family in ("llava", "paligemma", "paligemma2", "paligemma2_window") else 256
    texts = checkpoints.prompts(family, 20)
    asked = {}
    if takes["image"]:
        shown = [*checkpoints.pictures(14), *checkpoints.odd_pictures()]
        asked["image"] = list(map(Prompt, texts, shown))
    if takes.get("video"):
        asked["video"] = [
            Prompt(text.replace("<image>", "<video>"), None, video=film)
            for text, film in zip(texts, checkpoints.films(8), strict=False)
        ]
    prepare = llava.prepare if family == "llava" else paligemma.prepare
    checkpoints.make(family, folder, context)
    return Case(
        NAMES[family],
        folder,
        family.startswith("paligemma"),
        asked,
        context,
        {"limit_mm_per_prompt": takes},
        prepare,
    )


def toy(name: str) -> Case:
    folder = TOYS / name
    family = json.loads((folder / "config.json").read_text())["model_type"]
    texts = (TOY_PROMPTS[family] * 20)[:20]
    if family == "llava":
        texts = [llava.converse([Turn("user", text, pictured=True)]) for text in texts]
    shown = [*checkpoints.pictures(14), *checkpoints.odd_pictures()]
    prepare = llava.prepare if family == "llava" else paligemma.prepare
    asked = {"image": list(map(Prompt, texts, shown))}
    return Case(f"toy {name}", folder, family == "paligemma", asked, 256, {}, prepare)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @functools.cache
    def make(name: str) -> Case:
        kind, _, rest = name.partition(" ")
        return toy(rest) if kind == "toy" else tiny(name, tmp_path_factory.mktemp("checkpoints") / name)

    return make


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, ...]]]:
    """Rows to be printed together when the last test is done."""
    rows: list[tuple[str, ...]] = []
    yield rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\nvLLM against transformers, float32")
        for row in rows:
            print(" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


@pytest.fixture(scope="module")
def parity(table: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    table.append(("architecture", "token ids", "top-20 log-prob error", "32 greedy", "staggered", "preempted"))
    return table


def differences(case: Case, prompts: Sequence[Prompt], said: Sequence[Said]) -> tuple[int, float, int]:
    """Prompts with equal token ids; the largest difference over the first tokens' top 20; equal greedy replies."""
    ids, worst, greedy = 0, 0.0, 0
    for prompt, vllm in zip(prompts, said, strict=True):
        logprobs = case.reference.logprobs(prompt, vllm.reply[:-1])
        ids += case.reference.prompt_ids(prompt) == vllm.prompt
        worst = max(worst, *(abs(float(logprobs[0, token]) - value) for token, value in vllm.first.items()))
        greedy += logprobs.argmax(-1).tolist() == vllm.reply  # each token the likeliest after the ones before it
    return ids, worst, greedy


def agree(said: Sequence[Said], plain: Sequence[Said]) -> bool:
    """Whether replies under load begin as those that were given without."""
    return all(
        one.reply[: len(other.reply)] == other.reply
        and all(abs(one.first[t] - other.first.get(t, one.first[t])) < CLOSE for t in one.first)
        for one, other in zip(said, plain, strict=True)
    )


@pytest.mark.parametrize("name", CASES)
def test_vllm_says_what_transformers_says(
    name: str, case: Callable[[str], Case], parity: list[tuple[str, ...]]
) -> None:
    this = case(name)
    prompts = [dataclasses.replace(p, image=p.image and this.prepare(p.image)) for p in this.prompts]
    crowded = this.prefix or name == "llava"  # what is causal needs no scheduler of ours: one of them will do
    kinds = 2 if "paligemma2" in name else 1  # of layers, sliding and not, each with blocks of its own
    few = 2 + 16 * kinds * (this.context // 32 // 4)  # enough for four whole requests, not for sixteen
    room = {"block_size": 32, "num_gpu_blocks_override": few} if crowded else {}
    with engine(this.folder, this.prefix, this.family, max_model_len=this.context, **room) as vllm:
        plain = [said for at in range(0, len(prompts), 4) for said in vllm.say(prompts[at : at + 4])]
        assert vllm.preemptions == 0
        staggered = vllm.say(prompts[-16:], every=3, tokens=32)
        vllm.preemptions = 0
        preempted = vllm.say(prompts[-16:], tokens=48) if crowded else []
        preemptions = vllm.preemptions
    rows, at = [], 0
    for shown, asked in this.asked.items():
        ids, worst, greedy = differences(this, asked, plain[at : at + len(asked)])
        at += len(asked)
        rows.append((ids, worst, greedy, len(asked)))
        parity.append(
            (
                this.name if shown == "image" else f"{this.name}, video",
                f"{ids}/{len(asked)}",
                f"{worst:.1e}",
                f"{greedy}/{len(asked)}",
                "equal" if agree(staggered, plain[-16:]) else "DIFFERENT",
                f"{preemptions} times, {'equal' if agree(preempted, plain[-16:]) else 'DIFFERENT'}" if crowded else "",
            )
        )
    assert all(ids == greedy == count for ids, _, greedy, count in rows)
    assert max(worst for _, worst, _, _ in rows) < CLOSE
    assert agree(staggered, plain[-16:])
    if crowded:
        assert preemptions >= 5
        assert agree(preempted, plain[-16:])


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
    this = case("paligemma")
    if unsafe == "no plugin":
        monkeypatch.setattr(prefix_lm, "concerns", lambda config: False)
    # The guards are what is left out here.
    monkeypatch.setattr(prefix_lm, "refuse", lambda config: None)
    monkeypatch.setattr(prefix_lm, "within_prompt", lambda prompt, computed, new: new)
    monkeypatch.setattr(prefix_lm, "flags", lambda prefilling, query_lens, seq_lens: (~prefilling).int())
    monkeypatch.setattr(prefix_lm, "SAFE_ARGS", {**prefix_lm.SAFE_ARGS, **UNSAFE.get(unsafe, {})})
    prompts = this.prompts[:16]
    if unsafe == "enable_prefix_caching":  # one picture, two texts that start alike
        start = " ".join(sorted(checkpoints.WORDS.split()))  # in an order that the tokenizer does not know
        prompts = [Prompt(f"{start} {end}", this.prompts[0].image) for end in ("red", "blue", "cat", "dog") * 4]
    with engine(this.folder, True, max_model_len=this.context, **UNSAFE.get(unsafe, {})) as vllm:
        said = vllm.say(prompts, tokens=48, every=1 if unsafe == "enable_prefix_caching" else 0)
    ids, worst, greedy = differences(this, prompts, said)
    with capsys.disabled():
        print(f"\n{unsafe:28} | ids {ids}/16 | log-prob error {worst:.1e} | 48 greedy tokens {greedy}/16")
    assert ids == 16
    assert greedy < 16


@pytest.mark.parametrize("unsafe", UNSAFE)
def test_an_unsafe_argument_is_refused_by_name(
    unsafe: str, case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    this = case("paligemma")
    monkeypatch.setattr(prefix_lm, "SAFE_ARGS", prefix_lm.SAFE_ARGS | UNSAFE[unsafe])
    with pytest.raises(ValueError, match=unsafe), engine(this.folder, True, **UNSAFE[unsafe]):
        pass
