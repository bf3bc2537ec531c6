"""Train a toy from nothing: `python -m serve.toy.training.train llava`, or another of recipes.py.

It takes hours on a CPU core (serve/toy/NOTES.md).

Phases are counted in steps, so that a busy machine changes the time and not the result. First the vision tower learns
to label each patch; then come questions, packed for LLaVA, one by one with the exact mask for PaliGemma. Training that
was stopped, in whatever way, continues from its last state, at most two minutes back, when it is started again. At the
end the checkpoint is written beside the state, to build/toy/NAME. Where there is no state, training begins with the
weights in started/, if the toy has some. All begin with one tower, which is trained first, and the second of a
family with the first.

Two cores train one net by `torchrun --nproc-per-node 2 -m serve.toy.training.train tower`.
"""

import argparse
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from serve.toy.training import corpus, lessons, nets, tokenizer, towers
from serve.toy.training.corpus import Corpus, Packed, Packer
from serve.toy.training.lessons import WORK
from serve.toy.training.muon import Muon
from serve.toy.training.probes import TEXT_WEIGHTS, PatchProbe, TextProbes
from serve.toy.training.recipes import ALL, Phase, Recipe
from serve.toy.varied.scenes import VariedScene

STARTED = Path(__file__).with_name("started")
"""Weights of toys whose training takes several sittings on several machines, in half precision (`--keep`)."""
SCENES, TEST_SCENES = 60_000, 512
FRESH = 1_000_000
"""The first seed of the scenes that are drawn for one step alone; each phase of a seed begins with another multiple."""
SAVE_EVERY_S, TEST_EVERY = 120, 250
CPU = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Batch:
    """A step's pixels (B, 3, side, side), the labels and edges of their patches, and questions; none for the tower."""

    pixels: Tensor
    labels: np.ndarray
    edges: np.ndarray
    packs: list[Packed]

    @staticmethod
    def unchanged(batch: "Batch") -> "Batch":
        return batch


class Trainer:
    """A training run. half: whether products of matrices are computed in bfloat16. workers: processes that make the
    batches ahead of time; 0 makes them in between, which takes a twentieth of the time on a CPU and most on a GPU.
    Several processes of torch.distributed share the pictures of each step."""

    def __init__(self, name: str, scale: float, work: Path, device: str, half: bool = False, workers: int = 0) -> None:
        self.recipe, self.workers = ALL[name], workers
        recipe = self.recipe
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.half = half
        family = recipe.family
        torch.manual_seed(recipe.seed)
        self.family, self.seed, self.device = family, recipe.seed, device
        self.seen_by = "either" if recipe.tower else family
        self.phases = [replace(phase, steps=max(2, round(phase.steps * scale))) for phase in recipe.phases]
        places = tokenizer.coordinates(family, recipe.first_loc, recipe.loc_step)
        self.tokens = tokenizer.tokens_of(family)
        self.net = new_net(recipe, recipe.phases[0].side)
        self.net.to(device)
        self.probe = PatchProbe(recipe.vision.width).to(device)
        self.image_probe = PatchProbe(recipe.size.width).to(device)
        self.text_probes = TextProbes(recipe.size.width).to(device)
        self.near = torch.arange(tokenizer.size(family), device=device).repeat(2, 1)
        tokens = list(places)
        self.near[0, tokens[1:]] = torch.tensor(tokens[:-1], device=device)
        self.near[1, tokens[:-1]] = torch.tensor(tokens[1:], device=device)
        self.places = torch.full((tokenizer.size(family),), -1.0, device=device)
        self.places[tokens] = torch.tensor(list(places.values()), device=device)
        # fewer scenes than this, for a shorter training, and the tower learns their words by heart (NOTES.md)
        self.count, self.work = max(200, min(SCENES, round(20 * SCENES * scale))), work
        self._corpora: dict[tuple[int, int], Corpus] = {}
        self._set_side(recipe.phases[0].side)
        self.state, self.started = work / f"{name}.pt", STARTED / f"{name}.pt"
        self.done = (0, 0)

    def _set_side(self, side: int) -> None:
        """Train on images of this side from now on, with new optimizers: the position embeddings are new tensors."""
        embeddings = self.net.vision_tower.vision_model.embeddings
        if side != embeddings.grid * nets.PATCH:
            embeddings.grow(side)
        self.side = side
        recipe = self.recipe
        self.packer = Packer(self.family, recipe.first_loc, side, recipe.loc_step)
        matrices, rest = self._groups()
        adam = torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), fused=True)
        self.optimizers = (Muon(matrices, half=self.half), adam)

    @property
    def train(self) -> Corpus:
        return self._corpus(0, self.count)

    @property
    def test(self) -> Corpus:
        return self._corpus(corpus.HELD_OUT, TEST_SCENES)

    def _corpus(self, start: int, count: int) -> Corpus:
        key = (start, self.side)
        if key not in self._corpora:
            self._corpora[key] = Corpus.of(self.seen_by, start, count, self.work, self.side)
        return self._corpora[key]

    def _groups(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return parameter groups of the matrices inside layers, and of the rest. The vision tower has its own groups,
        for its own learning rate."""
        parts: dict[tuple[bool, bool], list[nn.Parameter]] = {(m, v): [] for m in (True, False) for v in (True, False)}
        named = [*self.net.named_parameters(), *self.probe.named_parameters(prefix="vision_probe")]
        named += self.image_probe.named_parameters(prefix="image_probe")
        named += self.text_probes.named_parameters(prefix="text_probes")
        for name, part in named:
            parts["layers" in name and part.ndim == 2, name.startswith("vision")].append(part)
        matrices, rest = (
            [{"params": parts[matrix, v], "vision": v, "weight_decay": decay} for v in (True, False)]
            for matrix, decay in ((True, 0.05), (False, 0.0))
        )
        return matrices, rest

    def run(self) -> None:
        self._wait_for_scenes(self.phases[0])
        if self.state.exists():
            self._load(self.state)
        elif self.started.exists():
            self._load(self.started)
            print(f"begun with {self.started}, after phase {self.done[0]} of {len(self.phases)}", flush=True)
        elif self.recipe.begins_with is not None:
            self._begin_with(self.recipe.begins_with)
        saved = began = time.monotonic()
        for index, phase in enumerate(self.phases):
            if index < self.done[0]:
                continue
            if phase.side != self.side:
                self._set_side(phase.side)
            self._wait_for_scenes(phase)
            first = self.done[1] if index == self.done[0] else 0
            batches = DataLoader(
                Batches(self, index), batch_size=None, sampler=range(first, phase.steps), num_workers=self.workers,
                collate_fn=Batch.unchanged,  # type: ignore[arg-type]  # without batch_size it gets one item
            )  # fmt: skip
            for step, batch in enumerate(batches, start=first):
                losses = self._step(phase, step, batch)
                self.done = (index, step + 1)
                if self.rank:
                    continue
                if step % 25 == 0 or step == phase.steps - 1:
                    print(f"{phase.name} {step}/{phase.steps} {time.monotonic() - began:.0f}s {losses}", flush=True)
                if step % TEST_EVERY == TEST_EVERY - 1 or step == phase.steps - 1:
                    print(f"  held out: {self.held_out_accuracy(phase)}", flush=True)
                if time.monotonic() - saved > SAVE_EVERY_S:
                    saved = time.monotonic()
                    self._save()
        if not self.rank:
            self._save()

    def _wait_for_scenes(self, phase: Phase) -> None:
        """Draw in the first of several processes what all of them read."""
        if self.ranks > 1:
            if not self.rank:
                _ = self.test if phase.fresh else (self.test, self.train)
            dist.barrier()

    def _begin_with(self, name: str) -> None:
        """Take over the weights of a trained tower or toy. Raises SystemExit where it was not trained."""
        file = next((file for file in (self.work / f"{name}.pt", STARTED / f"{name}.pt") if file.exists()), None)
        if file is None:
            raise SystemExit(f"Train {name} first: its weights are neither in {self.work} nor in {STARTED}.")
        state = torch.load(file, map_location=self.device)
        if ALL[name].tower:
            towers.take_over(self.net, self.probe, state, np.array(self.test.images[:64]))
        else:
            self._load_weights(state)

    def batch(self, index: int, step: int) -> Batch:
        """Make the batch of a step, the same whenever and wherever it is made."""
        phase = self.phases[index]
        rng = random.Random(f"{self.seed} {index} {step}")
        if phase.fresh:
            seeds = self._share(FRESH * (index + 1 + 100 * self.seed) + step * phase.images, phase.images)
            pixels, labels, edges = self._draw(lessons.training_scene, seeds)
        else:
            rows = np.array(sorted(rng.sample(range(len(self.train.images)), phase.images))[self.rank :: self.ranks])
            seeds = [self.train.start + int(row) for row in rows]
            pixels, labels, edges = self.train.pixels(rows), self.train.labels[rows], self.train.edges[rows]
        packs = [] if phase.name == "vision" else self.packs(seeds, phase, step, rng)
        if phase.written:
            more = self._draw(lessons.written_training_scene, self._share(step * phase.written, phase.written))
            pixels = torch.cat([pixels, more[0]])
            labels, edges = np.concatenate([labels, more[1]]), np.concatenate([edges, more[2]])
        return Batch(pixels, labels, edges, packs)

    def _share(self, first: int, count: int) -> Sequence[int]:
        """Return this process's part of `count` seeds."""
        return range(first + self.rank, first + count, self.ranks)

    def _draw(self, scene: Callable[[int], VariedScene], seeds: Sequence[int]) -> tuple[Tensor, np.ndarray, np.ndarray]:
        drawn = [corpus.drawn(scene(seed), corpus.view_of(self.seen_by, seed), self.side, seed) for seed in seeds]
        images, labels, edges = map(np.stack, zip(*drawn, strict=True))
        return corpus.normalized(images, self.seen_by), labels, edges

    def _step(self, phase: Phase, step: int, batch: Batch) -> str:
        rise = min(1.0, (step + 1) / min(100, phase.steps))
        fall = phase.floor + (1 - phase.floor) * 0.5 * (1 + math.cos(math.pi * step / phase.steps))
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = (phase.vision_rate if group["vision"] else phase.rate) * rise * fall
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.half):
            features = self.net.features(batch.pixels.to(self.device))
            patch_loss, losses = self.probe.loss(features, batch.labels, batch.edges)
            loss = patch_loss
            if batch.packs:
                image = self.net.image(features)
                answer_loss, read = self.answer_loss(image, batch.packs)
                image_loss = self.image_loss(image, batch)
                read_loss = torch.stack([TEXT_WEIGHTS[name] * part for name, part in read.items()]).sum()
                loss = answer_loss + 0.2 * (patch_loss + image_loss) + read_loss
                count = sum(len(packed.kinds) for packed in batch.packs)
                parts = " ".join(f"{name} {part.item():.3f}" for name, part in {"answers": answer_loss, **read}.items())
                losses = f"{parts} image {image_loss.item():.3f} questions {count} {losses}"
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.ranks > 1:
            self._average_gradients()
        nn.utils.clip_grad_norm_([part for group in groups for part in group["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return losses

    def _average_gradients(self) -> None:
        parts = [part for module in self._modules().values() for part in module.parameters()]
        gradients = [part.grad for part in parts if part.grad is not None]
        total = nn.utils.parameters_to_vector(gradients)
        dist.all_reduce(total)
        nn.utils.vector_to_parameters(total / self.ranks, gradients)

    def packs(self, seeds: Sequence[int], phase: Phase, step: int, rng: random.Random) -> list[Packed]:
        """Tokenize questions about the scenes of these seeds: in one batch, or, one question a row, in a short and a
        long one, which need less padding."""
        lists: list[corpus.Row] = []
        single, absent = phase.questions, phase.absent if step >= phase.steps // 2 else 0.0
        for number, seed in enumerate(seeds):
            scene = lessons.training_scene(seed)
            chosen = lessons.training_questions(
                scene, self.family, rng, vqa=phase.vqa, detect=phase.detect, segment=phase.segment, absent=absent
            )
            sized = [(question, scene.size) for question in chosen]
            if not single:
                lists.append((number, sized))
            else:  # every image has `single` rows
                lists += [(number, [sized[i] if i < len(sized) else rng.choice(sized)]) for i in range(single)]
        if not single:
            return [self.packer.pack(lists, lessons.TEXT_TOKENS)]
        lists.sort(key=lambda row: self.packer.length(*row[1][0]))
        cut = 2 * len(lists) // 3
        return [self.packer.pack(some, lessons.TEXT_TOKENS, exact=True) for some in (lists[:cut], lists[cut:])]

    def answer_states(self, image: Tensor, packed: Packed) -> tuple[Tensor, list[Tensor]]:
        """Return the text model's last states (B, A, width) at the positions in `packed.keep`, and those of all
        positions after each layer but the last. image: embeddings of pictures (N, P, width)."""
        image = image[packed.picture.to(self.device)]
        head = torch.tensor(self.packer.head, dtype=torch.long, device=self.device).expand(len(image), -1)
        x = torch.cat([self.net.embed(head), image, self.net.embed(packed.ids.to(self.device))], dim=1)
        positions, mask, keep = (part.to(self.device) for part in (packed.positions, packed.mask, packed.keep))
        return self.net.text(x, positions, mask, keep)

    def answer_loss(self, image: Tensor, packs: list[Packed]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted cross-entropy of the answers, and the losses of the probes of the text model."""
        losses, read = [], []
        for packed in packs:
            trained = packed.weight > 0  # the rest is padding, of logits for thousands of tokens
            states, between = self.answer_states(image, packed)
            read.append(between)
            log = self.net.logits(states[trained]).float().log_softmax(1)
            target, weight = packed.target[trained].to(self.device), packed.weight[trained].to(self.device)
            right = log.gather(1, torch.stack([target, *self.near[:, target]], dim=1))
            # A coordinate one bin off is nearly right; for any other token `near` is the token itself.
            share = torch.tensor([0.78, 0.11, 0.11], device=self.device)
            losses.append(-((right @ share) * weight).sum())
        total = sum(packed.weight.sum().item() for packed in packs)
        return torch.stack(losses).sum() / total, self.text_probes.losses(read, packs)

    def image_loss(self, image: Tensor, batch: Batch) -> Tensor:
        """Return the loss of the patches' labels as they are read from their embeddings, (B, P, width).

        No answer can be learnt from what the projector drops: LLaVA's dropped textures, letters and neighbours, and
        both LLaVAs called each background plain (NOTES.md, 2026-11-30).
        """
        return self.image_probe.loss(F.rms_norm(image, image.shape[-1:]), batch.labels, batch.edges)[0]

    @torch.no_grad()
    def held_out_accuracy(self, phase: Phase) -> str:
        rows = np.arange(TEST_SCENES if phase.name == "vision" else 256)
        features = torch.cat([self.net.features(self.test.pixels(some).to(self.device)) for some in np.split(rows, 8)])
        text = self.probe.loss(features, self.test.labels[rows], self.test.edges[rows])[1]
        if phase.name == "vision":
            return text
        hits: dict[str, list[float]] = {}
        for index, some in enumerate(np.split(rows, 8)):
            seeds, image = [self.test.start + int(row) for row in some], self.net.image(features[some])
            for packed in self.packs(seeds, phase, phase.steps, random.Random(f"test {index}")):
                best = self.net.logits(self.answer_states(image, packed)[0]).argmax(-1).cpu()
                true = self.places.cpu()[packed.target]
                off = (self.places.cpu()[best] - true).abs()
                right = (best == packed.target) | ((true >= 0) & (off < 0.04))
                for group, kind in enumerate(packed.kinds):
                    answer = (packed.group == group) & (packed.weight > 0)
                    hits.setdefault(kind, []).append(right[answer].all().item())
        accuracy = " ".join(f"{kind} {100 * sum(some) / len(some):.0f}" for kind, some in sorted(hits.items()))
        return f"{accuracy} | {text}"

    def _save(self) -> None:
        state = {**{name: part.state_dict() for name, part in self._modules().items()}, **self._about()}
        self.work.mkdir(parents=True, exist_ok=True)
        new = self.state.with_suffix(".new")
        torch.save({**state, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}, new)
        new.replace(self.state)

    def keep(self, share: float = 1.0) -> None:
        """Write the weights of the last state, from which any clone begins the phase that was under way.

        share: of these in a mean with those that were kept before, of the same words. After a short phase the mean
        knows more than either (NOTES.md, 2026-11-30).
        """
        self._load(self.state)
        index, step = self.done
        self.done = (index + 1, 0) if step == self.phases[index].steps else (index, 0)
        state = {
            name: {key: part.half() for key, part in module.state_dict().items()}
            for name, module in self._modules().items()
        }
        if share < 1:
            before = torch.load(self.started)
            assert before["tokens"] == self.tokens, "embeddings of other words have other places"
            for name, parts in state.items():
                for key, known in before.get(name, {}).items():
                    parts[key] = torch.lerp(known.float(), parts[key].float(), share).half()
        if self.recipe.tower:  # a tower's net has a text model that was not trained
            state["net"] = {key: part for key, part in state["net"].items() if key.startswith("vision_tower")}
        self.started.parent.mkdir(exist_ok=True)
        torch.save({**state, **self._about()}, self.started)

    def _modules(self) -> dict[str, nn.Module]:
        """Return what is trained, by its name in a saved state."""
        return {"net": self.net, "probe": self.probe, "image_probe": self.image_probe, "text_probes": self.text_probes}

    def _about(self) -> dict[str, Any]:
        """Return what belongs to saved weights: how far they are trained, and what their shapes come from."""
        return {"done": self.done, "side": self.side, "tokens": self.tokens}

    def _load(self, file: Path) -> None:
        state = torch.load(file, map_location=self.device)
        self._load_weights(state)
        # where words, labels or a probe were added since, moments have other shapes, and begin anew
        same = state.get("tokens") == self.tokens and len(state["probe"]["bias"]) == len(self.probe.bias)
        if same and all(
            state.get(name, {}).keys() == part.state_dict().keys() for name, part in self._modules().items()
        ):
            for optimizer, known in zip(self.optimizers, state.get("optimizers", ()), strict="optimizers" in state):
                optimizer.load_state_dict(known)
        self.done = state["done"]

    def _load_weights(self, state: dict[str, Any]) -> None:
        side = state.get("side", nets.SIDE)
        if side != self.side:
            self._set_side(side)
        net = {key: self._by_token(key, part, state.get("tokens")) for key, part in state["net"].items()}
        net = deepened(net, self.net)
        self.net.load_state_dict(net, strict=not self.recipe.tower)
        self.probe.take_over(state["probe"])
        if "text_probes" in state and not self.recipe.tower:
            self.text_probes.load_state_dict(state["text_probes"], strict=False)
        if "image_probe" in state and not self.recipe.tower:
            self.image_probe.take_over(state["image_probe"])

    def _by_token(self, key: str, part: Tensor, known: list[str] | None) -> Tensor:
        """Return a table of embeddings by this vocabulary. Words that the state's lacked are untrained."""
        if known is None or known == self.tokens or not key.endswith(("embed_tokens.weight", "lm_head.weight")):
            return part
        rows: Tensor = self.net.state_dict()[key].clone()
        at = {token: index for index, token in enumerate(known)}
        pairs = [(index, at[token]) for index, token in enumerate(self.tokens) if token in at]
        mine, theirs = zip(*pairs, strict=True)
        rows[list(mine)] = part[list(theirs)].to(rows.dtype)
        return rows


class Batches(Dataset[Batch]):
    """The batches of a phase by step."""

    def __init__(self, trainer: Trainer, index: int) -> None:
        self.trainer, self.index = trainer, index

    def __getitem__(self, step: int) -> Batch:
        return self.trainer.batch(self.index, step)


def new_net(recipe: Recipe, side: int) -> nets.Net:
    """Make an untrained net with sinusoidal coordinate tokens. Unused `<loc>` tokens and padding rows stay zero."""
    family = recipe.family
    tokens = tokenizer.build_tokenizer(family)
    places = tokenizer.coordinates(family, recipe.first_loc, recipe.loc_step)
    rows = tokenizer.size(family)
    unused = set(range(tokens.get_vocab_size(), rows))
    if family == "paligemma":
        vocabulary = tokens.get_vocab()
        unused |= {index for token, index in vocabulary.items() if token.startswith("<loc")} - set(places)
    net = nets.Net(family, rows, recipe.size, side, recipe.vision)
    language = net.language_model
    std = (2 * nets.FREQUENCIES) ** -0.5 * (0.08 if net.gemma else 0.5)
    language.model.embed_tokens.structure(places, sorted(unused), std)
    if language.lm_head is not None:
        language.lm_head.structure(places, sorted(unused), 0.02)
    return net


def deepened(known: dict[str, Tensor], net: nets.Net) -> dict[str, Tensor]:
    """Return the weights of a net with fewer text layers as those of `net`, which then computes the same: each layer
    that is new follows one of the later known ones, before the last, and adds nothing."""
    prefix = "language_model.model.layers."
    layers = {int(key.removeprefix(prefix).split(".")[0]) for key in known if key.startswith(prefix)}
    more = net.size.layers - len(layers)
    if not layers or not more:
        return known
    last = max(layers)
    places = {layer: layer + max(0, min(more, layer - last + more)) for layer in layers}
    weights = {key: torch.zeros_like(part) if key.endswith(("o_proj.weight", "down_proj.weight")) else part
               for key, part in net.state_dict().items()}  # fmt: skip
    for key, part in known.items():
        layer, dot, rest = key.removeprefix(prefix).partition(".")
        weights[f"{prefix}{places[int(layer)]}{dot}{rest}" if key.startswith(prefix) else key] = part
    return weights


def fast_in_half() -> bool:
    """Return whether this machine multiplies matrices in bfloat16 faster than in float32: a GPU, or a CPU that has
    instructions for it. A step of llava: 2.6 s in place of 4.0 (AMD EPYC with avx512_bf16)."""
    return torch.cuda.is_available() or not {"amx_bf16", "avx512_bf16"}.isdisjoint(CPU.read_text().split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("toy", choices=sorted(ALL))
    parser.add_argument("--steps-scale", type=float, default=1.0, help="0.01 tries everything out in a minute")
    parser.add_argument("--work", type=Path, default=WORK, help="drawn scenes and state")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches ahead, for a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--half", action=argparse.BooleanOptionalAction, default=fast_in_half(), help="products in bfloat16"
    )
    parser.add_argument("--keep", action="store_true", help=f"write the state's weights to {STARTED.name}/, and stop")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of these in a mean with those kept before, with --keep"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if "RANK" in os.environ:
        dist.init_process_group()
    trainer = Trainer(options.toy, options.steps_scale, options.work, options.device, options.half, options.workers)
    if options.keep:
        trainer.keep(options.share)
        return
    trainer.run()
    if trainer.rank or trainer.recipe.tower:
        return
    from serve.toy.training.export import export  # imports this module

    export(trainer.net, options.toy, options.work / options.toy)
    print(f"exported to {options.work / options.toy}", flush=True)


if __name__ == "__main__":
    main()
