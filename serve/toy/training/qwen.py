"""Train a toy that detects in Qwen's formats: `python -m serve.toy.training.qwen qwen2.5-vl`, or `qwen3-vl`.

The first has Qwen2.5-VL's architecture and writes boxes in pixels of the picture that it gets, whatever its size and
shape; the second has Qwen3-VL's and writes thousandths. Both answer the prompt that the families are asked, in JSON
with a label, a digit a token. They are the tests' own and know nothing but rectangles of four colours.

First the tower learns to label each cell of the picture, then all of it answers questions, several packed behind one
picture: each sees the picture and itself, as in a causal model. Training that was stopped continues from its last
state, at most two minutes back; `--minutes 3` stops it. At the end the checkpoint is written in the published layout,
to build/toy/NAME.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve.engines.base import Generation
from serve.engines.checkpoint_facts import read_facts
from serve.engines.vllm.multimodal import picture_limits
from serve.engines.vllm.torchvision import repair
from serve.errors import ParseError
from serve.media.geometry import iou
from serve.models import MODELS
from serve.models.base import Checkpoint, Model, with_limits
from serve.models.qwen_tasks import LOCATE
from serve.tasks.boxes import DetectResult
from serve.tasks.detect import DetectRequest
from serve.toy.training import qwen_lessons as lessons
from serve.toy.training.lessons import WORK
from serve.toy.training.muon import Muon
from serve.toy.training.nets import sinusoids
from serve.toy.training.qwen_lessons import FORMATS, Maker, QwenBatch

SAVE_EVERY_S, LOG_EVERY = 120, 25
IMAGES = 24
"""Pictures of a step."""
WIDTH, TOWER_WIDTH, LAYERS, TOWER_LAYERS = 96, 64, 4, 3
ENTRIES = {"qwen2.5-vl": "qwen2.5-vl-3b", "qwen3-vl": "qwen3-vl-2b"}
"""The catalogue's model in whose place a toy stands."""
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '" + IMAGE + "' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
).replace("\n", "\\n")


def build_model(name: str, tokenizer: Any) -> Any:
    """Return the untrained model, with transformers' own classes."""
    import transformers

    token = tokenizer.convert_tokens_to_ids
    kinds = ("image_pad", "video_pad", "vision_start", "vision_end")
    tokens = {f"{kind.removesuffix('_pad')}_token_id": token(f"<|{kind}|>") for kind in kinds}
    text: dict[str, Any] = dict(
        hidden_size=WIDTH, intermediate_size=192, num_hidden_layers=LAYERS, num_attention_heads=3,
        num_key_value_heads=1, vocab_size=(len(tokenizer) + 15) // 16 * 16, max_position_embeddings=1024,
        bos_token_id=None, eos_token_id=token("<|im_end|>"), pad_token_id=token("<|endoftext|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    vision: dict[str, Any] = dict(
        depth=TOWER_LAYERS, hidden_size=TOWER_WIDTH, out_hidden_size=WIDTH, num_heads=2, intermediate_size=128,
        patch_size=FORMATS[name].patch, spatial_merge_size=2, temporal_patch_size=2,
    )  # fmt: skip
    if name == "qwen2.5-vl":
        # The base is small, as positions are: by Qwen's own the last angles would not tell fourteen cells apart.
        text["rope_parameters"] = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10.0}
        vision |= {"window_size": 112, "fullatt_block_indexes": [1, 2]}
        config, kind = transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration
    else:
        rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 100.0}
        text |= {"head_dim": 32, "rope_parameters": rope}
        vision |= {"num_position_embeddings": 256, "deepstack_visual_indexes": [1]}
        config, kind = transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration
    model = kind(config(text_config=text, vision_config=vision, **tokens, tie_word_embeddings=True))
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
    return model


class QwenTrainer:
    """A training run: `run`, then `export`."""

    def __init__(self, name: str, scale: float, work: Path) -> None:
        self.name, self.format, self.state = name, FORMATS[name], work / f"{name}.pt"
        work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.format.seed)
        self.tokenizer = lessons.qwen_tokenizer()
        self.model = build_model(name, self.tokenizer)
        self.maker = Maker(self.format, self.tokenizer)
        # Read labels of cells out of the tower's features, and places out of the second layer; not exported.
        self.probe = nn.Linear(WIDTH, len(lessons.COLORS) + 1 + 4)
        self.placed = nn.Linear(WIDTH, 6 * sinusoids(torch.zeros(1)).shape[-1])
        self.steps = [max(2, round(steps * scale)) for steps in (self.format.tower, self.format.steps)]
        named = [*self.model.named_parameters(), ("probe", self.probe.weight), ("probe.bias", self.probe.bias)]
        named += [("placed", self.placed.weight), ("placed.bias", self.placed.bias)]
        deep = [part for name, part in named if part.ndim == 2 and (".layers." in name or ".blocks." in name)]
        known = set(map(id, deep))
        rest = [part for _, part in named if id(part) not in known]
        self.optimizers = (
            Muon([{"params": deep, "weight_decay": 0.05}]),
            torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
        )
        self.done = 0

    def run(self, minutes: float) -> bool:
        """Train for that long at most. Returns whether training is done."""
        if self.state.exists():
            self._load()
        saved = began = time.monotonic()
        self.model.train()
        while self.done < sum(self.steps):
            if time.monotonic() - began > 60 * minutes:
                self._save()
                return False
            step, tower = self.done, self.done < self.steps[0]
            batch = self.maker.batch(f"{step}", IMAGES)
            at, all_of_it = (step, self.steps[0]) if tower else (step - self.steps[0], self.steps[1])
            fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * at / all_of_it))
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = (3e-3 if tower else 2.5e-3) * min(1.0, (at + 1) / min(100, all_of_it)) * fall
                optimizer.zero_grad(set_to_none=True)
            loss, summary = self.loss(batch, tower)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in self.optimizers:
                parts = [part for group in optimizer.param_groups for part in group["params"]]
                nn.utils.clip_grad_norm_(parts, 1.0)
                optimizer.step()
            self.done += 1
            if step % LOG_EVERY == 0 or self.done == sum(self.steps):
                print(f"{'tower' if tower else 'answers'} {step} {time.monotonic() - began:.0f}s {summary}", flush=True)
            if time.monotonic() - saved > SAVE_EVERY_S or self.done == sum(self.steps):
                saved = time.monotonic()
                self._save()
        return True

    def loss(self, batch: QwenBatch, tower: bool) -> tuple[Tensor, str]:
        """Return the loss and its parts as text. tower: of the labels of cells alone."""
        seen = self.model.model.get_image_features(batch.patches, batch.grids, return_dict=True)
        read = self.probe(torch.cat(list(seen.pooler_output))).float()
        colors, edges = read.split([len(lessons.COLORS) + 1, 4], dim=-1)
        there = batch.colors > 0
        away = 10 * (batch.edges - batch.places.repeat(1, 2))
        parts = {"colors": _balanced(colors, batch.colors)}
        parts["edges"] = F.smooth_l1_loss(edges[there], away[there], beta=0.3)
        cells = torch.stack(list(parts.values())).sum()
        summary = " ".join(f"{name} {part.item():.3f}" for name, part in parts.items())
        if tower:
            return cells, summary
        out = self.model.model(
            input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False,
            image_grid_thw=batch.grids, mm_encoder_outputs={"image": seen}, output_hidden_states=True,
        )  # fmt: skip
        read = self.placed(out.hidden_states[2][batch.ids == self.maker.picture]).float()
        true = sinusoids(torch.cat([batch.places, batch.edges], dim=1)).flatten(1)
        own = true.shape[1] // 3
        places = F.mse_loss(read[:, :own], true[:, :own]) + F.mse_loss(read[there, own:], true[there, own:])
        kept = batch.targets >= 0
        log = self.model.lm_head(out.last_hidden_state[kept]).float().log_softmax(-1)
        answers = -log.gather(-1, batch.targets[kept][:, None]).mean()
        right = (log.argmax(-1) == batch.targets[kept]).float().mean()
        summary = f"answers {answers.item():.3f} tokens {100 * right.item():.0f}% places {places.item():.3f} {summary}"
        return answers + 2 * places + 0.3 * cells, summary

    def _save(self) -> None:
        parts = {"model": self.model, "probe": self.probe, "placed": self.placed}
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        state |= {"done": self.done, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}
        new = self.state.with_suffix(".new")
        torch.save(state, new)
        new.replace(self.state)

    def _load(self) -> None:
        state = torch.load(self.state)
        for name, part in {"model": self.model, "probe": self.probe, "placed": self.placed}.items():
            part.load_state_dict(state[name])
        for optimizer, known in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        self.done = state["done"]

    def export(self, folder: Path) -> None:
        """Write the folder that transformers and vLLM read, weights in bfloat16."""
        import transformers

        third = self.name == "qwen3-vl"
        limits = {"shortest_edge": self.format.resized.least, "longest_edge": self.format.resized.most}
        images = transformers.Qwen2VLImageProcessor(
            size=limits, patch_size=self.format.patch, merge_size=2, image_mean=list(self.format.mean),
            image_std=list(self.format.std),
        )  # fmt: skip
        videos = transformers.Qwen3VLVideoProcessor if third else transformers.Qwen2VLVideoProcessor
        kind = transformers.Qwen3VLProcessor if third else transformers.Qwen2_5_VLProcessor
        processor = kind(images, self.tokenizer, videos(patch_size=self.format.patch), chat_template=TEMPLATE)
        self.model.eval()
        copy = build_model(self.name, self.tokenizer)
        copy.load_state_dict(self.model.state_dict())
        copy.generation_config.eos_token_id = self.maker.end
        copy.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)
        whole = json.loads((folder / "processor_config.json").read_text())
        parts = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
        for part, file in parts.items():
            values = {"processor_class": whole["processor_class"], **whole.pop(part)}
            (folder / file).write_text(json.dumps(values, indent=2) + "\n")
        (folder / "processor_config.json").write_text(json.dumps(whole, indent=2) + "\n")


def _balanced(logits: Tensor, true: Tensor) -> Tensor:
    """Return the cross-entropy of labels of cells; all cells without an object count as much as all others."""
    losses = F.cross_entropy(logits, true, reduction="none")
    there = (true > 0).float()
    return (losses * there).sum() / there.sum().clamp(min=1) + (losses * (1 - there)).mean()


def as_served(name: str, folder: Path) -> Model:
    """Return the catalogue's model with a toy's checkpoint, and its boxes by the limits of the toy's files."""
    known = MODELS[ENTRIES[name]]
    model = dataclasses.replace(known, checkpoint=Checkpoint(str(folder)))
    return with_limits(model, picture_limits(read_facts(folder), None))


@torch.no_grad()
def measure(name: str, folder: Path, count: int) -> str:
    """Return how many true boxes of fresh scenes transformers finds with a checkpoint, and how many others."""
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    detect = as_served(name, folder).skills["detect"]
    overlaps: list[float] = []
    others = unread = 0
    for item in lessons.detect_items(count):
        request = DetectRequest(image=item.image, labels=list(item.labels))
        prompt = LOCATE.format(", ".join(item.labels))
        inputs = processor(
            text=f"<|im_start|>user\n{IMAGE}{prompt}<|im_end|>\n<|im_start|>assistant\n", images=item.image.pil(),
            return_tensors="pt",
        )  # fmt: skip
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=128)[0, inputs["input_ids"].shape[1] :]
        try:
            result = detect.parse([Generation(processor.decode(tokens, skip_special_tokens=True))], request)
        except ParseError:
            result, unread = DetectResult(boxes=[]), unread + 1
        assert isinstance(result, DetectResult)
        by_label = {box.label: box.box for box in result.boxes}
        overlaps += [
            iou(np.array([by_label.get(box.label, (0, 0, 0, 0))]), np.array([box.box]))[0, 0] for box in item.boxes
        ]
        others += len(result.boxes) - len(by_label.keys() & {box.label for box in item.boxes})
    hits = sum(overlap >= 0.5 for overlap in overlaps)
    mean = f"mean IoU {sum(overlaps) / len(overlaps):.2f}"
    return f"{hits} of {len(overlaps)} boxes found, {mean}, {others} others, {unread} of {count} replies not read"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("toy", choices=sorted(FORMATS))
    parser.add_argument("--steps-scale", type=float, default=1.0, help="0.01 tries everything out")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training in this sitting")
    parser.add_argument("--work", type=Path, default=WORK, help="state, and the checkpoint")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="of a trained one, what it finds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repair()
    if options.measure is not None:
        print(measure(options.toy, options.measure, 200))
        return
    trainer = QwenTrainer(options.toy, options.steps_scale, options.work)
    if trainer.run(options.minutes):
        trainer.export(options.work / options.toy)
        print(f"exported to {options.work / options.toy}", flush=True)


if __name__ == "__main__":
    main()
