"""Train a toy from nothing: `python -m serve.toy.training.train llava`, or another of recipes.py.

About an hour on one CPU core.

Phases, counted in steps, so that a busy machine changes the time and not the result: the tower learns to name what
is in each patch; then come the questions, packed for LLaVA, one by one with the exact mask for PaliGemma. Stopped and
started again it goes on where it was.
"""

import argparse
import math
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve.toy.training import corpus, nets, tokenizer
from serve.toy.training.corpus import CLASSES, Corpus, Packed, Packer
from serve.toy.training.muon import Muon
from serve.toy.training.recipes import RECIPES, Phase, Recipe

WORK = Path.home() / ".cache" / "diptych" / "toy"
SCENES, TEST_SCENES = 60_000, 512
SAVE_EVERY_S, TEST_EVERY = 120, 250


class Trainer:
    def __init__(self, name: str, scale: float, work: Path, device: str) -> None:
        recipe = RECIPES[name]
        family = recipe.family
        torch.manual_seed(recipe.seed)
        self.family, self.seed, self.device = family, recipe.seed, device
        self.phases = [replace(phase, steps=max(2, round(phase.steps * scale))) for phase in recipe.phases]
        places = tokenizer.coordinates(family, recipe.first_loc)
        self.first_loc = recipe.first_loc
        self.net = structured(recipe, recipe.phases[0].side)
        self.net.to(device)
        # Thrown away after training: what the tower has to be able to say about each patch.
        self.probe = nn.Linear(nets.VISION, sum(CLASSES.values()) + 8 * nets.WAVES).to(device)
        nn.init.normal_(self.probe.weight, std=0.02)
        self.near = torch.arange(tokenizer.size(family), device=device).repeat(2, 1)
        tokens = list(places)
        self.near[0, tokens[1:]] = torch.tensor(tokens[:-1], device=device)
        self.near[1, tokens[:-1]] = torch.tensor(tokens[1:], device=device)
        self.places = torch.full((tokenizer.size(family),), -1.0, device=device)
        self.places[tokens] = torch.tensor(list(places.values()), device=device)
        self.count, self.work = max(200, round(SCENES * min(1.0, scale))), work
        self._show(recipe.phases[0].side)
        self.state = work / f"{name}.pt"
        self.done = (0, 0)

    def _show(self, side: int) -> None:
        """Pictures of this side from now on; the optimizers start anew, since a tower that grew has other places."""
        embeddings = self.net.vision_tower.vision_model.embeddings
        if side != embeddings.grid * nets.PATCH:
            embeddings.grow(side)
        self.side = side
        self.packer = Packer(self.family, self.first_loc, side)
        matrices, rest = self._groups()
        self.optimizers = (Muon(matrices), torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), fused=True))
        self.train = Corpus.of(self.family, 0, self.count, self.work, side)
        self.test = Corpus.of(self.family, corpus.HELD_OUT, TEST_SCENES, self.work, side)

    def _groups(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The matrices inside layers, and everything else; each with the tower apart, which learns at its own rate."""
        parts: dict[tuple[bool, bool], list[nn.Parameter]] = {(m, v): [] for m in (True, False) for v in (True, False)}
        for name, part in [*self.net.named_parameters(), *self.probe.named_parameters(prefix="vision_probe")]:
            parts["layers" in name and part.ndim == 2, name.startswith("vision")].append(part)
        matrices, rest = (
            [{"params": parts[matrix, v], "vision": v, "weight_decay": decay} for v in (True, False)]
            for matrix, decay in ((True, 0.05), (False, 0.0))
        )
        return matrices, rest

    def run(self) -> None:
        if self.state.exists():
            self._load()
        saved = began = time.monotonic()
        for index, phase in enumerate(self.phases):
            if index < self.done[0]:
                continue
            if phase.side != self.side:
                self._show(phase.side)
            for step in range(self.done[1] if index == self.done[0] else 0, phase.steps):
                said = self._step(index, phase, step)
                self.done = (index, step + 1)
                if step % 25 == 0 or step == phase.steps - 1:
                    print(f"{phase.name} {step}/{phase.steps} {time.monotonic() - began:.0f}s {said}", flush=True)
                if step % TEST_EVERY == TEST_EVERY - 1 or step == phase.steps - 1:
                    print(f"  held out: {self.tested(phase)}", flush=True)
                if time.monotonic() - saved > SAVE_EVERY_S:
                    saved = time.monotonic()
                    self._save()
        self._save()

    def _step(self, index: int, phase: Phase, step: int) -> str:
        rise = min(1.0, (step + 1) / min(100, phase.steps))
        fall = phase.floor + (1 - phase.floor) * 0.5 * (1 + math.cos(math.pi * step / phase.steps))
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = (phase.vision_rate if group["vision"] else phase.rate) * rise * fall
        rng = random.Random(f"{self.seed} {index} {step}")
        rows = np.array(sorted(rng.sample(range(len(self.train.images)), phase.pictures)))
        features = self.net.features(self.train.pixels(rows).to(self.device))
        side, said = self.patch_loss(features, self.train, rows)
        loss = side
        if phase.name != "vision":
            packs = self.packs(self.train, rows, phase, step, rng)
            spoken = self.spoken_loss(features, packs)
            loss = spoken + 0.2 * side
            said = f"answers {spoken.item():.3f} questions {sum(len(packed.kinds) for packed in packs)} {said}"
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([part for group in groups for part in group["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return said

    def patch_loss(self, features: Tensor, from_: Corpus, rows: np.ndarray) -> tuple[Tensor, str]:
        read = self.probe(features)
        labels = torch.from_numpy(from_.labels[rows]).long().to(self.device)
        parts: dict[str, Tensor] = {}
        at = 0
        for index, (name, classes) in enumerate(CLASSES.items()):
            true = labels[..., index].flatten()
            losses = F.cross_entropy(read[..., at : at + classes].flatten(0, 1), true, reduction="none")
            at += classes
            there = (true > 0).float()
            # Things cover a tenth of the patches; written words a twentieth: patches that have none count as one class.
            parts[name] = losses.mean() if name == "background" else (
                (losses * there).sum() / there.sum().clamp(min=1) + (losses * (1 - there)).mean()
            )  # fmt: skip
        edges = torch.from_numpy(from_.edges[rows]).to(self.device)
        objects = labels[..., 0] > 0
        parts["edges"] = F.mse_loss(read[..., at:][objects], nets.waves(edges[objects]).flatten(1))
        scale = {"edges": 8.0, "background": 0.3, "text": 0.7, "tens": 0.4, "ones": 0.4, "joint": 0.6}
        total = torch.stack([scale.get(name, 0.5) * part for name, part in parts.items()]).sum()
        return total, " ".join(f"{name} {part.item():.3f}" for name, part in parts.items())

    def packs(self, from_: Corpus, rows: np.ndarray, phase: Phase, step: int, rng: random.Random) -> list[Packed]:
        """One pack of all, or, where each question stands alone, a short and a long one: less padding to compute."""
        lists: list[corpus.Row] = []
        single, absent = phase.questions, phase.absent if step >= phase.steps // 2 else 0.0
        for number, row in enumerate(rows):
            what = corpus.scene(from_.start + int(row))
            some = corpus.asked(what, self.family, rng, phase.segment, absent, phase.counting)
            found = [(question, what.size) for question in some]
            if not single:
                lists.append((number, found))
            else:  # every picture fills its share of rows
                lists += [(number, [found[i] if i < len(found) else rng.choice(found)]) for i in range(single)]
        if not single:
            return [self.packer.pack(lists, corpus.TEXT_TOKENS)]
        lists.sort(key=lambda row: self.packer.length(*row[1][0]))
        cut = 2 * len(lists) // 3
        return [self.packer.pack(some, corpus.TEXT_TOKENS, exact=True) for some in (lists[:cut], lists[cut:])]

    def answers(self, features: Tensor, packed: Packed) -> Tensor:
        """Logits (B, A, V) of the kept rows."""
        image = self.net.image(features)[packed.picture.to(self.device)]
        head = torch.tensor(self.packer.head, dtype=torch.long, device=self.device).expand(len(image), -1)
        x = torch.cat([self.net.embed(head), image, self.net.embed(packed.ids.to(self.device))], dim=1)
        positions, mask, keep = (part.to(self.device) for part in (packed.positions, packed.mask, packed.keep))
        return self.net.logits(self.net.text(x, positions, mask, keep))

    def spoken_loss(self, features: Tensor, packs: list[Packed]) -> Tensor:
        losses = []
        for packed in packs:
            log = self.answers(features, packed).log_softmax(-1)
            target, weight = packed.target.to(self.device), packed.weight.to(self.device)
            exact = log.gather(-1, target[..., None])[..., 0]
            near = log.gather(-1, self.near[:, target].movedim(0, -1)).mean(-1)
            # A place one bin off is nearly right; for any other token `near` is the token itself.
            losses.append(-((0.78 * exact + 0.22 * near) * weight).sum())
        return torch.stack(losses).sum() / sum(packed.weight.sum().item() for packed in packs)

    @torch.no_grad()
    def tested(self, phase: Phase) -> str:
        rows = np.arange(TEST_SCENES if phase.name == "vision" else 256)
        features = torch.cat([self.net.features(self.test.pixels(some).to(self.device)) for some in np.split(rows, 8)])
        text = self.patch_loss(features, self.test, rows)[1]
        if phase.name == "vision":
            return text
        hits: dict[str, list[float]] = {}
        for index, some in enumerate(np.split(rows, 8)):
            for packed in self.packs(self.test, some, phase, phase.steps, random.Random(f"test {index}")):
                best = self.answers(features[some], packed).argmax(-1).cpu()
                where = self.places.cpu()[packed.target]
                off = (self.places.cpu()[best] - where).abs()
                right = (best == packed.target) | ((where >= 0) & (off < 0.04))
                for group, kind in enumerate(packed.kinds):
                    mine = (packed.group == group) & (packed.weight > 0)
                    hits.setdefault(kind, []).append(right[mine].all().item())
        found = " ".join(f"{kind} {100 * sum(some) / len(some):.0f}" for kind, some in sorted(hits.items()))
        return f"{found} | {text}"

    def _save(self) -> None:
        state = {"net": self.net.state_dict(), "probe": self.probe.state_dict(), "done": self.done, "side": self.side}
        new = self.state.with_suffix(".new")
        torch.save({**state, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}, new)
        new.replace(self.state)

    def _load(self) -> None:
        state = torch.load(self.state, map_location=self.device)
        side = state.get("side", nets.SIDE)
        if side != self.side:
            self._show(side)
        self.net.load_state_dict(state["net"])
        self.probe.load_state_dict(state["probe"])
        for optimizer, known in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        self.done = state["done"]


def structured(recipe: Recipe, side: int) -> nets.Net:
    """A new net whose place tokens are made of waves. Places never said and padding rows stay zero."""
    family = recipe.family
    tokens = tokenizer.build(family)
    places = tokenizer.coordinates(family, recipe.first_loc)
    unused = set(range(tokens.get_vocab_size(), tokenizer.size(family)))
    if family == "paligemma":
        vocabulary = tokens.get_vocab()
        unused |= {index for token, index in vocabulary.items() if token.startswith("<loc")} - set(places)
    net = nets.Net(family, tokenizer.size(family), recipe.size, side)
    language = net.language_model
    std = (2 * nets.WAVES) ** -0.5 * (0.08 if net.gemma else 0.5)
    language.model.embed_tokens.structure(places, sorted(unused), std)
    if language.lm_head is not None:
        language.lm_head.structure(places, sorted(unused), 0.02)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("toy", choices=sorted(RECIPES))
    parser.add_argument("--steps-scale", type=float, default=1.0, help="0.01 tries everything out in a minute")
    parser.add_argument("--work", type=Path, default=WORK, help="drawn scenes and state")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    Trainer(options.toy, options.steps_scale, options.work, options.device).run()


if __name__ == "__main__":
    main()
