"""Checkpoints of today's architectures: vLLM's prompts and probabilities are transformers'.

Each is served through the catalogue's entry for its family, with that entry's own prompts; where there is none, by its
folder alone. A few of different kinds are run with every test; `make parity-generic` runs all and prints a table.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import parity_table
import pytest
from checkpoint_files import write_checkpoint
from checkpoints import named, texts
from inprocess import engine

from deployments.args import Args
from serve.client.evaluation.toys import items
from serve.engines.base import Prompt, Sampling
from serve.engines.chat_settings import ChatSettings
from serve.engines.plugins import smolvlm, weight_reads
from serve.engines.remote.chat_request import IMAGE_PART
from serve.engines.vllm.engine import VllmEngine
from serve.engines.vllm.torchvision import repair
from serve.errors import ModelError
from serve.media.image import Image, undecoded_image
from serve.models import MODELS
from serve.models.base import Turn
from serve.models.instructed import chat_messages
from serve.models.reasoning import THINK, Reasoning
from serve.tasks import TASKS
from serve.tasks.reply import Reply
from serve.tasks.request import reasoning_options
from serve.tasks.vqa import VqaRequest, VqaResult
from serve.worker import Worker

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

CLOSE = 1e-4
SIZES = [(56, 84), (300, 40), (90, 61), (64, 42)]
CHOSEN = ["qwen3_vl", "lfm2_vl", "mistral3", "hunyuan_vl"]
"""Positions in three dimensions and deep features; a rotary kernel that is wrong on a processor, and state layers;
a template with `<s>`; a class that vLLM lacks, and that needs two plugins."""
ENTRIES = {
    "qwen2_5_vl": "qwen2.5-vl-7b",
    "qwen3_vl": "qwen3-vl-8b",
    "qwen3_vl_moe": "qwen3-vl-30b-a3b",
    "qwen3_5": "qwen3.5-9b",
    "qwen3_5_moe": "qwen3.5-35b-a3b",
    "gemma3": "gemma-3-4b",
    "gemma4": "gemma-4-e2b",
    "gemma4_vision": "gemma-4-31b",
    "gemma4_experts": "gemma-4-26b-a4b",
    "internvl3_5": "internvl3.5-8b",
    "glm4v": "glm-4.1v-9b-thinking",
    "glm46v": "glm-4.6v-flash",
    "glm4v_moe": "glm-4.5v",
    "smolvlm": "smolvlm2-256m",
    "lfm2_vl": "lfm2.5-vl-450m",
    "mistral3": "mistral-small-3.1-24b",
    "mistral3_tekken": "mistral-small-3.1-24b",
    "ministral3": "ministral-3-3b",
    "pixtral": "pixtral-12b",
    "minicpmv4_6": "minicpm-v-4.6",
    "llama4": "llama-4-scout",
    "cohere2_vision": "command-a-vision",
    "aya_vision": "aya-vision-8b",
    "granite4_vision": "granite-vision-4.1-4b",
    "glm_ocr": "glm-ocr",
    "lighton_ocr": "lighton-ocr-2-1b",
    "paddleocr_vl": "paddleocr-vl",
    "hunyuan_vl": "hunyuan-ocr",
}
"""The catalogue's model for an architecture."""
GREEDY, CROWD = 8, 3
PREEMPTED = {
    "llama4": (512, 66, 128),
    "hunyuan_vl": (512, 18, 128),
    "smolvlm": (1024, 34, 128),
    "minicpmv4_6": (1024, 18, 540),
}
"""Those whose layers or pictures a plugin of ours changes on a processor: a context, blocks that are too few for CROWD
replies to each prompt, and the tokens of a reply. Llama 4 has four kinds of layers, each with its own. MiniCPM-V 4.6's
blocks have 544 tokens, as its linear layers' states fill them. test_parity.py preempts Qwen3.5, test_pictures.py Gemma.
"""
BROKEN = {
    "glm4v_without_bias_key": "Glm4vForConditionalGeneration does not read .*_proj.bias",
    "glm_ocr_narrow": "GlmOcrForConditionalGeneration reads only a part of .*merger",
}
WHOLE = os.environ.get("PARITY") == "all"


class Answer(NamedTuple):
    """The token ids of a prompt, the next token's log-probabilities, and the greedy tokens that follow."""

    ids: list[int]
    logprobs: Any
    greedy: list[int]


@pytest.fixture(scope="module")
def parity(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, ...]]]:
    """Rows of the table, which is printed after the last test."""
    head = ("architecture", "served as", "class in vLLM", "token ids", "top-20 log-prob error", "greedy", "preempted")
    rows: list[tuple[str, ...]] = [head]
    yield rows
    parity_table.show(request, "vLLM against transformers, float32", rows)


@pytest.fixture(scope="module")
def references(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, list[Answer]]]:
    """Make all checkpoints and transformers' answers before any engine: vLLM changes classes of transformers'."""
    repair()
    smolvlm.register()
    root, made_by_name = tmp_path_factory.mktemp("named"), {}
    selected = [item for item in request.session.items if "references" in getattr(item, "fixturenames", ())]
    for name in [item.callspec.params["name"] for item in selected]:
        folder = named.make_named(name, root / name)
        made_by_name[name] = folder, reference(folder, prompts(name)) if name not in BROKEN else []
    return made_by_name


def pictures() -> list[Image]:
    rng = np.random.default_rng(3)
    return [Image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def prompts(name: str) -> list[Prompt]:
    """Return questions about pictures of several sizes, then what the catalogue's entry asks to read and to detect."""
    images, entry = pictures(), MODELS.get(ENTRIES.get(name, ""))
    converse = chat_messages if entry is None else entry.converse
    batch = [
        Prompt(converse([Turn("user", question, has_image=True)]), image)
        for question, image in zip(texts(len(SIZES)), images, strict=True)
    ]
    for task, labels in ({} if entry is None else {"ocr": {}, "detect": {"labels": ["red circle"]}}).items():
        if entry is not None and task in entry.skills:
            batch += entry.skills[task].ask(TASKS[task].request(image=images[0], **labels))
    return batch


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """Return a prompt's messages in transformers' form, texts that follow each other as one."""
    parsed: list[dict[str, Any]] = json.loads(prompt.text)
    for message in parsed:
        if isinstance(message["content"], list):
            text = "".join(part["text"] for part in message["content"] if part != IMAGE_PART)
            assert prompt.image is not None
            message["content"] = [{"type": "image", "image": prompt.image.pil()}, {"type": "text", "text": text}]
    return parsed


def reference(folder: Path, batch: list[Prompt]) -> list[Answer]:
    """Return what transformers makes of each prompt by the checkpoint's own template.

    Where transformers is known to be wrong it is mended: it leaves out Cohere's scale of the logits, and stretches
    PaddleOCR-VL's table of positions by its corners, which the makers' own code does not.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    scale = getattr(model.eval().config.get_text_config(), "logit_scale", None) or 1.0
    for module in model.modules():
        if type(module).__name__ == "PaddleOCRVisionEmbeddings":
            module.interpolation_align_corners = False
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in batch:
        inputs = processor.apply_chat_template(
            messages(prompt),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            enable_thinking=False,
        )
        floats = {
            key: value.float() for key, value in inputs.items() if value.is_floating_point()
        }  # Llama 4's are bf16
        out = model.generate(
            **{**inputs, **floats},
            do_sample=False,
            max_new_tokens=GREEDY,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = inputs["input_ids"][0].tolist()
        logprobs = torch.log_softmax(out.logits[0][0].float() * scale, -1)
        answers.append(Answer(ids, logprobs, out.sequences[0, len(ids) :].tolist()))
    return answers


# first: it starts a process, which is best done before this one has run an engine
async def test_trained_toy_joins_by_its_folder_alone_and_reasons_by_its_template(tmp_path: Path) -> None:
    folder = reasoning_toy(tmp_path / "toy")
    (model,) = Args.model_validate({"models": [{"folder": str(folder)}]}).models_by_name.values()
    assert model.reasoning == Reasoning((THINK,), switchable=True, on=False)
    steps: list[str] = []
    family_args = {**model.family_args, **model.reasoning.engine_args()}
    toy = VllmEngine(str(folder), family_args=family_args, chat=model.chat, progress=steps.append)
    worker = Worker(model, toy)
    await worker.start()
    try:
        assert (await worker.status()).state == "ready", await worker.status()
        assert "served by vLLM's LlavaForConditionalGeneration" in steps
        right = []
        for item in items("vqa", 12, seed=1):
            reply = await answer(worker, item)
            assert isinstance(reply.result, VqaResult) and reply.reasoning is None, reply
            right.append(reply.result.answer in item.truth["answers"])
        assert sum(right) >= 8, right  # its processor crops what is not square, as transformers' does
        prompt = chat_messages([Turn("user", "</s><image>" * 3 + "what is it?", has_image=True)])
        pieces = [piece async for piece in worker.speak(Prompt(prompt, pictures()[0], Sampling(max_tokens=2)))]
        assert pieces[-1].finish_reason is not None
        await check_reasoning(worker)
        with pytest.raises(ModelError, match="Its chat template takes more than 2 s") as refused:
            await answer(worker, item, question="fill the memory")
        assert refused.value.code == "chat_template_limit"
        assert (await answer(worker, item)).text == reply.text
    finally:
        await toy.stop()


def reasoning_toy(folder: Path) -> Path:
    """Make a trained toy whose template opens reasoning, with marks of its own, and fills the memory when it is told.

    Its embedding has rows for two tokens more than its tokenizer.
    """
    shutil.copytree(MODELS["toy-llava"].checkpoint.hub, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    plain = tokenizer["added_tokens"][-1]
    free = len(tokenizer["model"]["vocab"])
    added = [{**plain, "id": free + at, "content": mark} for at, mark in enumerate(("<think>", "</think>"))]
    tokenizer["added_tokens"] += added
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    hostile = "{% if messages[0].content[-1].text.startswith('fill') %}{{ 'a' * 10**10 }}{% endif %}"
    opening = "{% if enable_thinking %}{{ '<think>' }}{% endif %}"
    (folder / "chat_template.jinja").write_text(hostile + template + opening)
    return folder


async def check_reasoning(worker: Worker) -> None:
    """Ask with reasoning on and with budgets: the engine ends it after exactly so many tokens, and an answer follows.

    The toy never learned to go on after a mark: it first writes the token that ends a reply, and of some pictures
    little but that, before the end of its reasoning or after it.
    """
    reasons = {"reasoning_effort": "high", "ignore_eos": True, "max_tokens": 32}
    answered = 0
    for item in items("vqa", 12, seed=2):
        tokens = await written(worker, item, **reasons)
        first = next((at for at, token in enumerate(tokens) if token.strip() and token != "</s>"), None)
        if first is None or first > 16:
            continue
        endless = await answer(worker, item, **reasons)
        assert endless.reasoning and not endless.text and "</think>" not in tokens
        assert endless.error is not None and "ended within its reasoning" in endless.error.message
        for budget in (first + 1, first + 4):
            bounded = {**reasons, "thinking_token_budget": budget}
            reply, ended = await answer(worker, item, **bounded), await written(worker, item, **bounded)
            assert ended[: budget + 1] == [*tokens[:budget], "</think>"]
            if reply.status == "ok":
                answered += 1
                assert reply.text and reply.reasoning is not None
                assert reply.reasoning.strip() == "".join(tokens[:budget]).replace("</s>", "").strip()
    assert answered >= 2


async def written(worker: Worker, item: Any, **fields: Any) -> list[str]:
    """Return the tokens of an answer, as the engine gives them."""
    question = request(item, **fields)
    (prompt,) = worker.model.skills["vqa"].ask(question)
    assert worker.model.reasoning is not None
    prompt = worker.model.reasoning.prompt(prompt, reasoning_options(question), extend=False)
    return [token.text async for piece in worker.engine.generate(prompt) for token in piece.tokens]


def request(item: Any, **fields: Any) -> VqaRequest:
    return VqaRequest(image=undecoded_image(item.load()), **{**item.fields, **fields})


async def answer(worker: Worker, item: Any, **fields: Any) -> Reply:
    reply = [event async for event in worker.answer("vqa", request(item, **fields))][-1]
    assert isinstance(reply, Reply)
    return reply


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the ids of the tokens that no text of a user's may become."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {text: tokenizer.convert_tokens_to_ids(text) for text in sorted(special | set(tokenizer.all_special_tokens))}


def counts(ids: list[int], control: dict[str, int]) -> dict[str, int]:
    return {text: ids.count(token) for text, token in control.items()}


@pytest.mark.parametrize("name", named.SERVED if WHOLE else CHOSEN)
def test_checkpoint_of_an_architecture_equals_transformers(
    name: str, references: dict[str, Any], parity: list[tuple[str, ...]]
) -> None:
    folder, expected = references[name]
    entry, batch = MODELS.get(ENTRIES.get(name, "")), prompts(name)
    family_args = None if entry is None else entry.family_args
    crowded = name in PREEMPTED
    room, tokens = {"max_model_len": 2048}, 0
    if crowded:
        context, blocks, tokens = PREEMPTED[name]
        room = {"max_model_len": context, "block_size": 32, "num_gpu_blocks_override": blocks}
    with engine(folder, False, family_args, chat=True, **room) as vllm:
        account = weight_reads.account(vllm.llm.collective_rpc(weight_reads.METHOD))
        replies = vllm.say(batch, tokens=GREEDY)
        alone = [vllm.say([prompt], tokens=tokens)[0].reply for prompt in batch] if crowded else []
        vllm.preemptions = 0
        together = [reply.reply for reply in vllm.say(batch * CROWD, tokens=tokens)] if crowded else []
        preemptions = vllm.preemptions
        control = control_tokens(vllm.llm.get_tokenizer())
        hostile = Prompt(chat_messages([Turn("user", " ".join([*control][:40]), has_image=True)]), pictures()[0])
        (hostile_reply,) = vllm.say([hostile], tokens=2)
    same = sum(reply.prompt == answer.ids for reply, answer in zip(replies, expected, strict=True))
    greedy = sum(reply.reply == answer.greedy for reply, answer in zip(replies, expected, strict=True))
    errors = [
        abs(float(answer.logprobs[token]) - value)
        for reply, answer in zip(replies, expected, strict=True)
        for token, value in reply.first.items()
    ]
    origin = "by its folder" if entry is None else entry.name
    load = f"{preemptions} times, {'equal' if together == alone * CROWD else 'DIFFERENT'}" if crowded else ""
    counted = (f"{same}/{len(batch)}", f"{max(errors):.1e}", f"{greedy}/{len(batch)}")
    parity.append((name, origin, account.model_class, *counted, load))
    assert counts(hostile_reply.prompt, control) == counts(replies[0].prompt, control)
    assert same == greedy == len(batch)
    assert max(errors) < CLOSE
    assert together == alone * CROWD and (preemptions > 0) is crowded
    assert account.fault() is None


@pytest.mark.parametrize("name", BROKEN)
def test_tensor_that_vllm_leaves_out_or_cuts_is_named(name: str, references: dict[str, Any]) -> None:
    with engine(references[name][0], False, chat=True, max_model_len=2048) as vllm:
        account = weight_reads.account(vllm.llm.collective_rpc(weight_reads.METHOD))
    assert re.search(BROKEN[name], str(account.fault()))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "molmo2": ({"model_type": "molmo2"}, "its pictures attend both ways"),
    "gemma4_unified": ({"model_type": "gemma4_unified"}, "were trained with is open"),
    "ovis2": ({"model_type": "ovis2"}, "has no class for it"),
    "deepseek_ocr2": ({"model_type": "deepseek_ocr2"}, "cannot read it in transformers' layout"),
    "kimi_k25": ({"model_type": "kimi_k25"}, "cannot read it in transformers' layout"),
    "phi4_multimodal": ({"model_type": "phi4_multimodal"}, "without pictures"),
    "qwen4_exp": ({"model_type": "qwen4_exp", "text_config": {"linear_num_key_heads": 2}}, "in bfloat16 alone"),
    "its own code": ({"model_type": "molmo_of_mine", "auto_map": {}}, "trust_remote_code"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_checkpoint_is_not_loaded(name: str, tmp_path: Path) -> None:
    config, message = REFUSED[name]
    write_checkpoint(tmp_path, {"vision_config": {"patch_size": 14}, **config}, {"w": (2,)})
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    steps: list[str] = []
    started = VllmEngine(str(tmp_path), chat=ChatSettings(), progress=steps.append)
    with pytest.raises(ModelError, match=message) as refused:
        await started.start()
    assert refused.value.code == "checkpoint_refused" and "loading weights" not in steps
