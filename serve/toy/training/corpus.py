"""Training data of the toys: scenes as each family sees them, a label for every patch, and packed questions."""

import functools
import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from serve.media.geometry import pad_to_square
from serve.media.image import Image
from serve.models.llava import PAD_COLOUR
from serve.toy.questions import Question
from serve.toy.training import lessons, nets, prompts, tokenizer
from serve.toy.varied.names import PALETTE, SHAPE_OTHERS
from serve.toy.varied.scenes import VariedScene
from serve.toy.world import Box

HELD_OUT = 10_000_000
"""The first seed of the scenes that are never trained on."""


def view(picture: PIL.Image.Image, family: str, side: int = nets.SIDE) -> PIL.Image.Image:
    """Return the square image that the vision tower gets: stretched (PaliGemma), or padded first (LLaVA)."""
    if family == "llava":
        picture = PIL.Image.fromarray(pad_to_square(Image.of(picture), PAD_COLOUR).pixels)
    return picture.resize((side, side), PIL.Image.Resampling.BICUBIC)


def view_of(family: str, seed: int) -> str:
    """Return the family whose square image of a scene is taken: of `either`, one for even seeds, one for odd."""
    return family if family != "either" else ("llava", "paligemma")[seed % 2]


def normalized(images: np.ndarray, family: str) -> Tensor:
    """Return uint8 images (B, 3, side, side) as a tower takes them."""
    mean, std = (nets.CLIP_MEAN, nets.CLIP_STD) if family == "llava" else ((0.5,) * 3, (0.5,) * 3)
    return (torch.from_numpy(images).float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@dataclass
class Corpus:
    """Scenes as arrays: uint8 images (N, 3, side, side), uint8 labels (N, patches, classes), edges (N, patches,
    4)."""

    family: str
    start: int
    images: np.ndarray
    labels: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(cls, family: str, start: int, count: int, work: Path, side: int = nets.SIDE) -> "Corpus":
        """Load the scenes of seeds start .. start + count from the cache in `work`, or draw them."""
        # pictures of scenes that a seed no longer gives must not meet new questions
        ends = repr([lessons.training_scene(start), lessons.training_scene(start + count - 1)])
        name = f"{family}-{start}-{count}-{side}-{hashlib.sha256(ends.encode()).hexdigest()[:8]}"
        paths = [work / f"{name}.{part}.npy" for part in ("images", "labels", "edges")]
        if not all(path.exists() for path in paths):
            work.mkdir(parents=True, exist_ok=True)
            cls._draw(family, start, count, side, paths)
        images, labels, edges = (np.load(path, mmap_mode="r") for path in paths)
        return cls(family, start, images, labels, edges)

    @classmethod
    def _draw(cls, family: str, start: int, count: int, side: int, paths: Sequence[Path]) -> None:
        """Draw scenes straight into files: images, labels and edges. Sixty thousand do not fit into memory twice."""
        patches = (side // nets.PATCH) ** 2
        kinds: tuple[tuple[tuple[int, ...], type], ...] = (
            ((3, side, side), np.uint8),
            ((patches, len(lessons.CLASSES)), np.uint8),
            ((patches, 4), np.float32),
        )
        new_paths = [path.with_suffix(".new") for path in paths]  # a run that is stopped leaves no half file behind
        images, labels, edges = (
            np.lib.format.open_memmap(path, "w+", dtype, (count, *shape))  # type: ignore[no-untyped-call]
            for path, (shape, dtype) in zip(new_paths, kinds, strict=True)
        )
        for i in range(count):
            scene = lessons.training_scene(start + i)
            images[i], labels[i], edges[i] = drawn(scene, view_of(family, start + i), side, start + i)
        for array in (images, labels, edges):
            array.flush()
        for new, path in zip(new_paths, paths, strict=True):
            new.replace(path)

    def pixels(self, rows: np.ndarray) -> Tensor:
        return normalized(self.images[rows], self.family)


def drawn(scene: VariedScene, family: str, side: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return the square image of a scene (3, side, side), its patches' labels and edges."""
    picture = lessons.draw_softened(scene, random.Random(f"scale {seed}"))
    image = np.asarray(view(picture, family, side)).transpose(2, 0, 1)
    return image, *lessons.patch_labels(scene, family, side // nets.PATCH)


ATTRIBUTES = (*SHAPE_OTHERS, *PALETTE)
SET = len(ATTRIBUTES) + 1


def as_set(things: Sequence[tuple[str, str]]) -> list[float]:
    """Return which shapes and colours some things have, as 0 and 1, and how many they are: SET numbers."""
    there = {name for thing in things for name in thing}
    return [*(float(name in there) for name in ATTRIBUTES), float(len(things))]


_BOX = re.compile(r"(?:<loc\d{4}>){4}|^ \[")
"""Where a box begins in an answer."""
Row = tuple[int, list[tuple[Question, tuple[int, int]]]]
"""The index of an image in the batch, and questions about it, each with the image's width and height."""


@dataclass
class Packed:
    """A batch of B rows of questions, T tokens each.

    ids (B, T) without the image tokens; positions (B, prefix + T); mask (B, prefix + T, prefix + T), added to attention
    scores; picture (B,), the index of the row's image. keep (B, A): positions whose next token is trained, to be
    `target` (B, A) with `weight` (B, A; 0 for padding); group (B, A): the question's index in `kinds`. phrases (K, 2):
    row and position of the last tokens of phrases that mean one thing, with its box in `boxes` (K, 4). pairs (J,):
    the index in `phrases` of each phrase that follows another one in its question. names (M, 2): row and position of
    the tokens before the names of single things in answers, and before boxes, with their boxes in `named_boxes` (M, 4).
    verdicts (V, 3): of questions with two such phrases that are answered by yes or no the row and the positions of the
    last tokens of the second phrase and of the prompt; yes (V,): 1 or 0. counted (C, 3):
    row and position of the last tokens of phrases, and how many things each means. about (N, 2): row and position of
    the last tokens of prompts whose answers are about some things; sets (N, SET): which shapes and colours these have,
    as 0 and 1, and how many they are.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    picture: Tensor
    keep: Tensor
    target: Tensor
    weight: Tensor
    group: Tensor
    kinds: list[str]
    phrases: Tensor
    boxes: Tensor
    pairs: Tensor
    names: Tensor
    named_boxes: Tensor
    verdicts: Tensor
    yes: Tensor
    counted: Tensor
    about: Tensor
    sets: Tensor


class Packer:
    """A tokenizer of rows: an image with several questions, or (`exact`) with one question and its exact mask."""

    def __init__(
        self,
        family: str,
        first_loc: int = prompts.FIRST_LOC,
        side: int = nets.SIDE,
        step: int = prompts.LOC_STEP,
    ) -> None:
        self.family, self.first_loc, self.step = family, first_loc, step
        self.tokens = tokenizer.build_tokenizer(family)
        self._encoded = functools.lru_cache(maxsize=100_000)(self._encode)
        self.head = self.encode("<s>USER: ") if family == "llava" else ()
        self._separators = [*self.encode(" ;"), *self.encode(","), *self.encode(" and")]
        self.prefix = len(self.head) + (side // nets.PATCH) ** 2

    def _encode(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return a text's token ids, and where in it each token ends."""
        encoding = self.tokens.encode(text, add_special_tokens=False)
        return tuple(encoding.ids), tuple(end for _, end in encoding.offsets)

    def encode(self, text: str) -> tuple[int, ...]:
        return self._encoded(text)[0]

    def prompt(self, question: Question, size: tuple[int, int]) -> tuple[str, str]:
        """Return prompt and answer as text. size: the image's width and height."""
        if self.family == "llava":
            asking, answer = prompts.llava(question, size)
            return f"\n{asking} ASSISTANT:", f" {answer}"
        asking, answer = prompts.paligemma(question, self.first_loc, self.step)
        return f"<bos>{asking}\n", answer

    def pair(self, question: Question, size: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the token ids of prompt and answer."""
        asking, answer = self.prompt(question, size)
        return self.encode(asking), (*self.encode(answer), *self.encode("</s>" if self.family == "llava" else "<eos>"))

    def meant(self, question: Question, size: tuple[int, int]) -> list[tuple[int, Box]]:
        """Return the index in the prompt of the last token of each phrase that means one thing, and its box as the
        tower's square has it. A phrase that was typed otherwise is left out."""
        if not question.meant:
            return []
        asking = self.prompt(question, size)[0]
        ends = self._ends(asking, [phrase for phrase, _ in question.meant])
        return sorted((ends[phrase], self._squared(box, size)) for phrase, box in question.meant if phrase in ends)

    def counted(self, question: Question, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the index in the prompt of the last token of each phrase, and how many things it means. A phrase that
        was typed otherwise, or twice, is left out."""
        if not question.counts:
            return []
        asking = self.prompt(question, size)[0]
        ends = self._ends(asking, [phrase for phrase, _ in question.counts if asking.lower().count(phrase) == 1])
        return [(ends[phrase], count) for phrase, count in question.counts if phrase in ends]

    def _ends(self, asking: str, texts: Sequence[str]) -> dict[str, int]:
        """Return the index of the token with which each of these texts ends, where it is in the prompt."""
        ends = self._encoded(asking)[1]
        last = {text: at + len(text) for text in texts if (at := asking.lower().find(text)) >= 0}
        return {text: ends.index(end) for text, end in last.items() if end in ends}

    def named(self, question: Question, size: tuple[int, int]) -> list[tuple[int, Box]]:
        """Return the index in the answer of the first token of each single thing's name and of each box, and the box as
        the tower's square has it."""
        if not question.named and not question.boxes:
            return []
        answer = self.prompt(question, size)[1]
        ends = [0, *self._encoded(answer)[1]]
        # a word's token begins with the space before it
        before = [max(0, answer.index(question.answer) + at - 1) for at, _ in question.named]
        before += [match.start() for match in _BOX.finditer(answer)] if question.boxes else []
        boxes = [self._squared(box, size) for _, box in (*question.named, *question.boxes)]
        return [(ends.index(at), box) for at, box in zip(before, boxes, strict=True) if at in ends]

    def _squared(self, box: Box, size: tuple[int, int]) -> Box:
        return prompts.padded(box, size) if self.family == "llava" else box

    def length(self, question: Question, size: tuple[int, int]) -> int:
        return sum(map(len, self.pair(question, size)))

    def pack(self, lists: list[Row], limit: int, exact: bool = False) -> Packed:
        """Tokenize rows. limit: the most tokens of a row's questions; those that do not fit are left out."""
        rows: list[list[tuple[Question, tuple[int, int], tuple[int, ...], tuple[int, ...]]]] = []
        for _, row_questions in lists:
            row, used = [], 0
            for question, size in row_questions:
                asking, answer = self.pair(question, size)
                if used + len(asking) + len(answer) - 1 <= limit:
                    used += len(asking) + len(answer) - 1
                    row.append((question, size, asking, answer))
            rows.append(row)
        longest = max(sum(len(p) + len(a) - 1 for *_, p, a in row) for row in rows)
        total, batch = self.prefix + longest, len(rows)
        most = max(sum(len(a) for *_, a in row) for row in rows)
        ids = np.zeros((batch, longest), np.int64)
        positions = np.tile(np.arange(total), (batch, 1))
        owner = np.full((batch, total), -1)
        owner[:, : self.prefix] = 0
        prompt = np.zeros((batch, total), bool)
        prompt[:, : self.prefix] = True
        keep, target, group = (np.zeros((batch, most), np.int64) for _ in range(3))
        weight = np.zeros((batch, most), np.float32)
        kinds: list[str] = []
        phrases, names = list[tuple[int, int]](), list[tuple[int, int]]()
        boxes, named_boxes = list[Box](), list[Box]()
        pairs: list[int] = []
        verdicts, yes = list[tuple[int, int, int]](), list[bool]()
        counted, about, sets = list[tuple[int, int, int]](), list[tuple[int, int]](), list[list[float]]()
        for b, row in enumerate(rows):
            at, filled = 0, 0
            for number, (question, size, asking, answer) in enumerate(row, start=1):
                meant, named = self.meant(question, size), self.named(question, size)
                phrases += [(b, self.prefix + at + index) for index, _ in meant]
                pairs += range(len(boxes) + 1, len(boxes) + len(meant))
                boxes += [box for _, box in meant]
                names += [(b, self.prefix + at + len(asking) - 1 + index) for index, _ in named]
                named_boxes += [box for _, box in named]
                counted += [
                    (b, self.prefix + at + index, count) for index, count in self.counted(question, size)
                ]  # fmt: skip
                if question.about is not None:
                    about.append((b, self.prefix + at + len(asking) - 1))
                    sets.append(as_set(question.about))
                verdict = question.answer.lower().partition(",")[0]
                if len(meant) == 2 and verdict in ("yes", "no"):
                    verdicts.append((b, self.prefix + at + meant[1][0], self.prefix + at + len(asking) - 1))
                    yes.append(verdict == "yes")
                end = at + len(asking) + len(answer) - 1  # the end token is a target only, never an input
                ids[b, at:end] = (*asking, *answer[:-1])
                here = slice(self.prefix + at, self.prefix + end)
                positions[b, here] = self.prefix + np.arange(end - at)
                owner[b, here] = number
                prompt[b, self.prefix + at : self.prefix + at + len(asking)] = True
                targets = slice(filled, filled + len(answer))
                keep[b, targets] = self.prefix + at + len(asking) - 1 + np.arange(len(answer))
                target[b, targets] = answer
                weight[b, targets] = self.weights(answer, [index for index, _ in named])
                group[b, targets] = len(kinds)
                kinds.append(question.kind)
                at, filled = end, filled + len(answer)
        return Packed(
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            mask=torch.from_numpy(self._mask(owner, prompt, exact)),
            picture=torch.tensor([picture for picture, _ in lists]),
            keep=torch.from_numpy(keep),
            target=torch.from_numpy(target),
            weight=torch.from_numpy(weight),
            group=torch.from_numpy(group),
            kinds=kinds,
            phrases=torch.tensor(phrases, dtype=torch.long).view(-1, 2),
            boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            pairs=torch.tensor(pairs, dtype=torch.long),
            names=torch.tensor(names, dtype=torch.long).view(-1, 2),
            named_boxes=torch.tensor(named_boxes, dtype=torch.float32).view(-1, 4),
            verdicts=torch.tensor(verdicts, dtype=torch.long).view(-1, 3),
            yes=torch.tensor(yes, dtype=torch.float32),
            counted=torch.tensor(counted, dtype=torch.long).view(-1, 3),
            about=torch.tensor(about, dtype=torch.long).view(-1, 2),
            sets=torch.tensor(sets, dtype=torch.float32).view(-1, SET),
        )

    def weights(self, answer: tuple[int, ...], starts: Sequence[int]) -> np.ndarray:
        """Return how much each token of an answer weighs in the loss.

        starts: where in it names of things and boxes begin. The first token decides the rest; without its full weight
        the model prefers short answers. In a list these decide, too: which thing comes next, and whether another one
        does, so separators and the end have full weight.
        """
        weights = np.full(len(answer), len(answer) ** -0.5, np.float32)
        weights[[0, *starts]] = 1.0
        if starts:
            weights[np.isin(answer, self._separators)] = weights[-1] = 1.0
        return weights

    def _mask(self, owner: np.ndarray, prompt: np.ndarray, exact: bool) -> np.ndarray:
        """Return the attention mask (B, T, T), added to scores: a question sees the image and itself. For PaliGemma
        image and prompt attend in both directions; a shared image cannot see the prompts, unless `exact`."""
        query, key = owner[:, :, None], owner[:, None, :]
        past = np.tri(owner.shape[1], dtype=bool)[None]
        if self.family == "llava":
            seen = ((key == 0) | (key == query)) & past
        elif exact:
            seen = (key >= 0) & (prompt[:, None, :] | past)
        else:
            seen = (key == 0) | ((key == query) & (prompt[:, None, :] | past))
        seen |= np.eye(owner.shape[1], dtype=bool)[None]
        return np.where(seen, 0.0, -1e9).astype(np.float32)
