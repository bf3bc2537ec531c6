"""What the toys are trained on: scenes as their family sees them, a label for every patch, and packs of questions."""

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from serve.media.geometry import pad_to_square
from serve.media.image import Image
from serve.models.llava import PAD_COLOUR
from serve.toy import questions, world
from serve.toy.questions import Question
from serve.toy.training import nets, prompts, tokenizer
from serve.toy.world import Box, Scene

HELD_OUT = 10_000_000
"""Scenes of seeds from here on are never trained on."""
TEXT_TOKENS = 144
KIND_SHARES = {
    "exists": 30, "color": 15, "shape": 14, "count_kind": 14, "where": 13, "count": 8, "background": 6,
}  # fmt: skip
CLASSES = {"shape": 6, "color": 7, "joint": 31, "background": 3, "text": len(world.WORDS) + 2, "tens": 11, "ones": 11}
"""What one linear layer must read from a patch in vision training; 0 stands for none. Edges come on top."""


def view(picture: PIL.Image.Image, family: str, side: int = nets.SIDE) -> PIL.Image.Image:
    """The square picture the tower gets: stretched (PaliGemma), or padded to a square first (LLaVA)."""
    if family == "llava":
        picture = PIL.Image.fromarray(pad_to_square(Image.of(picture), PAD_COLOUR).pixels)
    return picture.resize((side, side), PIL.Image.Resampling.BICUBIC)


def scene(seed: int) -> Scene:
    """Training scenes: more text than the world has, since reading is learnt last."""
    return world.scene(seed, text=random.Random(f"text {seed}").random() < 0.6)


@dataclass
class Corpus:
    """`images` (N, 3, side, side) and `labels` (N, patches, 7 as in CLASSES), both uint8; `edges` (N, patches, 4)."""

    family: str
    start: int
    images: np.ndarray
    labels: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(cls, family: str, start: int, count: int, work: Path, side: int = nets.SIDE) -> "Corpus":
        """Scenes of seeds start .. start + count, from the cache in `work` or drawn now."""
        stem = work / f"{family}-{start}-{count}{f'-{side}' * (side != nets.SIDE)}"
        paths = [stem.with_suffix(f".{name}.npy") for name in ("images", "labels", "edges")]
        if not all(path.exists() for path in paths):
            work.mkdir(parents=True, exist_ok=True)
            corpus = cls._drawn(family, start, count, side)
            for path, array in zip(paths, (corpus.images, corpus.labels, corpus.edges), strict=True):
                np.save(path, array)
        images, labels, edges = (np.load(path, mmap_mode="r") for path in paths)
        return cls(family, start, images, labels, edges)

    @classmethod
    def _drawn(cls, family: str, start: int, count: int, side: int) -> "Corpus":
        patches = (side // nets.PATCH) ** 2
        images = np.empty((count, 3, side, side), np.uint8)
        labels = np.zeros((count, patches, len(CLASSES)), np.uint8)
        edges = np.zeros((count, patches, 4), np.float32)
        for i in range(count):
            what = scene(start + i)
            scale = random.Random(f"scale {start + i}").choice((0.8, 1.0, 1.0, 1.25, 1.5))
            images[i] = np.asarray(view(world.draw(what, scale), family, side)).transpose(2, 0, 1)
            labels[i], edges[i] = patch_labels(what, family, side // nets.PATCH)
        return cls(family, start, images, labels, edges)

    def pixels(self, rows: np.ndarray) -> Tensor:
        mean, std = (nets.CLIP_MEAN, nets.CLIP_STD) if self.family == "llava" else ((0.5,) * 3, (0.5,) * 3)
        raw = torch.from_numpy(self.images[rows]).float()
        return (raw / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def patch_labels(what: Scene, family: str, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (grid², 7) and edges (grid², 4) of the thing that covers most of each patch, a quarter of it or more."""
    labels = np.zeros((grid**2, len(CLASSES)), np.uint8)
    edges = np.zeros((grid**2, 4), np.float32)
    labels[:, 3] = list(world.BACKGROUNDS).index(what.background)
    boxes: list[Box] = [shape.box for shape in what.shapes]
    if what.text_box is not None:
        boxes.append(what.text_box)
    if family == "llava":
        boxes = [prompts.padded(box, what.size) for box in boxes]
    x0, y0, x1, y1 = np.array(boxes).T[:, :, None] * grid
    cell = np.arange(grid)
    wide = np.clip(np.minimum(x1, cell + 1) - np.maximum(x0, cell), 0, 1)
    high = np.clip(np.minimum(y1, cell + 1) - np.maximum(y0, cell), 0, 1)
    cover = (high[:, :, None] * wide[:, None, :]).reshape(len(boxes), -1)
    owner, most = cover.argmax(0), cover.max(0)
    for index, box in enumerate(boxes):
        mine = (owner == index) & (most > min(0.25, 0.9 * cover[index].max()))
        if index < len(what.shapes):
            kind, color = (
                world.SHAPES.index(what.shapes[index].kind),
                list(world.COLORS).index(what.shapes[index].color),
            )
            labels[mine, 0], labels[mine, 1], labels[mine, 2] = kind + 1, color + 1, 1 + kind * 6 + color
            edges[mine] = box
        elif what.text.isdigit():
            labels[mine, 4] = len(world.WORDS) + 1
            labels[mine, 5], labels[mine, 6] = int(what.text[0]) + 1, int(what.text[1]) + 1
        else:
            labels[mine, 4] = world.WORDS.index(what.text) + 1
    return labels, edges


def asked(
    what: Scene, family: str, rng: random.Random, segment: bool = False, absent: float = 0.0, counting: float = 0.0
) -> list[Question]:
    """Different questions about one scene in random order, each in a way somebody might ask it.

    segment: masks too. absent: the share of detect and segment questions that ask for what is not there. counting: the
    share of vqa questions made to count the things of one shape, half of them one that is there several times.
    """
    found: dict[str, Question] = {}
    found["caption"] = Question("caption", "caption", "", questions.caption(what))
    if what.text or rng.random() < 0.1:
        found["ocr"] = Question("ocr", "ocr", "", what.text or "nothing")
    for _ in range(6):
        kind = rng.choices(tuple(KIND_SHARES), weights=tuple(KIND_SHARES.values()))[0]
        one = None
        if counting and rng.random() < counting:
            kind = "count_kind"
            one = questions.repeats(what, rng) if rng.random() < 0.5 else None
        one = one or questions.vqa(what, kind, rng)
        if one is not None:
            found[one.text] = Question("vqa", kind, questions.as_typed(one.text, rng), one.answer)
    for task in ("detect",) * 3 + ("segment",) * (3 * segment):
        one = _located(task, what, family, rng, absent)
        if one is not None:
            found[task + one.text] = one
    if family == "llava":
        said = questions.chat(what, rng)
        found["chat"] = Question("chat", said.kind, questions.as_typed(said.text, rng), said.answer)
    order = list(found.values())
    rng.shuffle(order)
    return order


def _located(task: str, what: Scene, family: str, rng: random.Random, absent: float) -> Question | None:
    if absent and rng.random() < absent:
        return questions.absent(what, rng, task)
    single = family == "llava"
    known = questions.phrases(what, unique=single)
    if not known:
        return None
    some = rng.sample(known, min(len(known), 1 if single else rng.choices((1, 2, 3), weights=(5, 4, 2))[0]))
    one = (questions.detect if task == "detect" else questions.segment)(what, some)
    if rng.random() < 0.1:  # "a red circle", "the red circle": the answer repeats what was asked
        words = {phrase: rng.choice((questions.article(phrase), f"the {phrase}")) for phrase in some}
        boxes = tuple((words[phrase], box) for phrase, box in one.boxes)
        one = Question(task, one.kind, " ; ".join(words[phrase] for phrase in some), boxes=boxes)
    return one


Row = tuple[int, list[tuple[Question, tuple[int, int]]]]


@dataclass
class Packed:
    """B rows of questions, T tokens each. `picture` (B,) is what a row is about; of its tokens those of `keep` (B, A)
    must say `target`; `weight` is how much that counts (0: padding), `group` which of `kinds` it belongs to."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    picture: Tensor
    keep: Tensor
    target: Tensor
    weight: Tensor
    group: Tensor
    kinds: list[str]


class Packer:
    """Packs questions behind the picture they share, or (`exact`) one question behind each picture."""

    def __init__(self, family: str, first_loc: int = prompts.FIRST_LOC, side: int = nets.SIDE) -> None:
        self.family, self.first_loc = family, first_loc
        self.tokens = tokenizer.build(family)
        self.encode = functools.lru_cache(maxsize=100_000)(self._encode)
        self.head = self.encode("<s>USER: ") if family == "llava" else ()
        self.prefix = len(self.head) + (side // nets.PATCH) ** 2

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokens.encode(text, add_special_tokens=False).ids)

    def pair(self, question: Question, size: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of prompt and answer."""
        if self.family == "llava":
            asking, answer = prompts.llava(question, size)
            return self.encode(f"\n{asking} ASSISTANT:"), (*self.encode(f" {answer}"), *self.encode("</s>"))
        asking, answer = prompts.paligemma(question, self.first_loc)
        return self.encode(f"<bos>{asking}\n"), (*self.encode(answer), *self.encode("<eos>"))

    def length(self, question: Question, size: tuple[int, int]) -> int:
        return sum(map(len, self.pair(question, size)))

    def pack(self, lists: list[Row], limit: int, exact: bool = False) -> Packed:
        """`lists`: each row's picture, and its questions with that picture's size; those past `limit` are left out."""
        rows: list[list[tuple[str, tuple[int, ...], tuple[int, ...]]]] = []
        for _, one in lists:
            row, used = [], 0
            for question, size in one:
                asking, answer = self.pair(question, size)
                if used + len(asking) + len(answer) - 1 <= limit:
                    used += len(asking) + len(answer) - 1
                    row.append((question.kind, asking, answer))
            rows.append(row)
        longest = max(sum(len(p) + len(a) - 1 for _, p, a in row) for row in rows)
        total, batch = self.prefix + longest, len(rows)
        most = max(sum(len(a) for _, _, a in row) for row in rows)
        ids = np.zeros((batch, longest), np.int64)
        positions = np.tile(np.arange(total), (batch, 1))
        owner = np.full((batch, total), -1)
        owner[:, : self.prefix] = 0
        prompt = np.zeros((batch, total), bool)
        prompt[:, : self.prefix] = True
        keep, target, group = (np.zeros((batch, most), np.int64) for _ in range(3))
        weight = np.zeros((batch, most), np.float32)
        kinds: list[str] = []
        for b, row in enumerate(rows):
            at, said = 0, 0
            for number, (kind, asking, answer) in enumerate(row, start=1):
                end = at + len(asking) + len(answer) - 1  # the end token is only said, never read
                ids[b, at:end] = (*asking, *answer[:-1])
                here = slice(self.prefix + at, self.prefix + end)
                positions[b, here] = self.prefix + np.arange(end - at)
                owner[b, here] = number
                prompt[b, self.prefix + at : self.prefix + at + len(asking)] = True
                spoken = slice(said, said + len(answer))
                keep[b, spoken] = self.prefix + at + len(asking) - 1 + np.arange(len(answer))
                target[b, spoken] = answer
                # The first token decides the most; without its full weight short answers win over long ones.
                weight[b, spoken] = len(answer) ** -0.5
                weight[b, said] = 1.0
                group[b, spoken] = len(kinds)
                kinds.append(kind)
                at, said = end, said + len(answer)
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
        )

    def _mask(self, owner: np.ndarray, prompt: np.ndarray, exact: bool) -> np.ndarray:
        """(B, T, T) to be added to scores: a question sees the picture and itself. PaliGemma's pictures and prompts are
        read in both directions; in a pack the picture, being shared, cannot see the prompts, which `exact` mends."""
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
