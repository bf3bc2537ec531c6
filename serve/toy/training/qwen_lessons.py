"""Rectangles in pictures of any size and shape, requests to detect, and the true answers: lessons in Qwen's formats."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from serve.media.image import Image
from serve.models.contracts import QWEN2_5_VL, QWEN3_VL, Contract, Multiples
from serve.models.qwen_tasks import LOCATE
from serve.tasks.boxes import LabelledBox
from serve.toy import world

QUESTIONS = 2  # questions about each picture
FRESH = 20_000_000  # the first seed of scenes that training does not draw
SHORTEST, LONGEST = 56, 400  # sides of a picture in pixels, before it is resized
COLORS = ("red", "green", "blue", "yellow")
THING = "rectangle"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
BEFORE, AFTER = LOCATE.split("{}")
FRAGMENTS = [
    "user\n", "assistant\n", "\n", BEFORE, AFTER, ", ", '[{"bbox_2d": [', '], "label": "', '"}, {"bbox_2d": [', '"}]',
    "[]", *COLORS, f" {THING}",
]  # fmt: skip
"""Texts that are a token each; everything else is written in bytes, a digit a token."""


@dataclass(frozen=True)
class Format:
    """A toy's format. resized: how its processor resizes pictures; its factor is the side in pixels of the square that
    a token of the picture stands for. tower, steps: of the two phases."""

    resized: Multiples
    family: Contract
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tower: int = 300
    steps: int = 1200
    seed: int = 0

    @property
    def cell(self) -> int:
        return self.resized.factor

    @property
    def patch(self) -> int:
        return self.cell // 2

    @property
    def contract(self) -> Contract:
        """Return the family's contract, with the limits of the toy's pictures."""
        return dataclasses.replace(self.family, resized=self.family.resized and self.resized)


CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FORMATS = {
    "qwen2.5-vl": Format(Multiples(28, 4 * 28**2, 32 * 28**2), QWEN2_5_VL, *CLIP),
    "qwen3-vl": Format(Multiples(32, 4 * 32**2, 32 * 32**2), QWEN3_VL, (0.5,) * 3, (0.5,) * 3, seed=1),
}


def sized_scene(seed: int) -> world.Scene:
    """Return a plain scene of any size and aspect ratio with one or two rectangles, each of another colour."""
    rng = random.Random(f"qwen {seed}")
    width, height = (round(SHORTEST * (LONGEST / SHORTEST) ** rng.random()) for _ in range(2))
    colors = rng.sample(COLORS, 2)
    boxes: list[world.Box] = []
    for _ in colors:
        wide, high = (max(24 / side, rng.uniform(0.25, 0.7)) for side in (width, height))
        x, y = rng.uniform(0.01, 0.99 - wide), rng.uniform(0.01, 0.99 - high)
        box = (x, y, x + wide, y + high)
        if all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in boxes):
            boxes.append(box)
    shapes = tuple(world.Shape("square", color, box) for color, box in zip(colors, boxes, strict=False))
    return world.Scene(seed, (width, height), rng.choice(tuple(world.BACKGROUNDS)), shapes)


def questions(drawn: world.Scene, rng: random.Random, count: int) -> list[tuple[str, ...]]:
    """Draw the labels of some requests to detect: a thing that is there or, rarely, is not; sometimes all."""
    present = [shape.color for shape in drawn.shapes]
    absent = [color for color in COLORS if color not in present]
    requests: list[tuple[str, ...]] = []
    for _ in range(count):
        chance = rng.random()
        some = rng.sample(present, len(present)) if chance > 0.8 else [rng.choice(absent if chance < 0.1 else present)]
        requests.append(tuple(f"{color} {THING}" for color in some))
    return requests


def true_boxes(drawn: world.Scene, labels: Sequence[str]) -> list[LabelledBox]:
    """Return the boxes of things in pixels of the picture, in the order of their labels."""
    width, height = drawn.size
    return [
        LabelledBox(label=label, box=(x0 * width, y0 * height, x1 * width, y1 * height), score=1.0)
        for label in labels
        for x0, y0, x1, y1 in (shape.box for shape in drawn.shapes if label == f"{shape.color} {THING}")
    ]


def true_answer(drawn: world.Scene, labels: Sequence[str], contract: Contract) -> str:
    return contract.format([(each.label, each.box) for each in true_boxes(drawn, labels)], drawn.size)


@dataclass(frozen=True)
class DetectItem:
    """A request about a fresh scene. boxes: the true ones, with their labels, in pixels."""

    image: Image
    labels: tuple[str, ...]
    boxes: list[LabelledBox]


def detect_items(count: int) -> list[DetectItem]:
    """Draw requests about scenes that training does not draw, in pictures of any size."""
    rng, items = random.Random("fresh"), []
    for at in range(count):
        drawn = sized_scene(FRESH + at)
        (labels,) = questions(drawn, rng, 1)
        items.append(DetectItem(Image.of(world.draw(drawn)), labels, true_boxes(drawn, labels)))
    return items


def qwen_tokenizer() -> Any:
    """Return Qwen's kind of tokenizer: bytes, special tokens and FRAGMENTS."""
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    vocab = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in dict.fromkeys(FRAGMENTS)])
    return tokenizer


@dataclass(frozen=True)
class QwenBatch:
    """A step's pictures and questions. patches (N, 1176 or so), grids (B, 3) as the processor makes them. colors (C)
    of each cell, 0 for none; edges (C, 4) of its thing and places (C, 2) of its middle, 0 to 1 of the largest number of
    an answer. ids (B, L), positions (3, B, L), mask (B, 1, L, L), targets (B, L), -100 where none."""

    patches: Tensor
    grids: Tensor
    colors: Tensor
    edges: Tensor
    places: Tensor
    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor


class Maker:
    """Makes batches: the same for a step whenever it is made."""

    def __init__(self, format: Format, tokenizer: Any) -> None:
        self.format, self.tokenizer = format, tokenizer
        self.pad, self.end, self.picture = (
            tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>", "<|image_pad|>")
        )
        self.head = self._encode("<|im_start|>user\n<|vision_start|>")

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def batch(self, key: str, count: int) -> QwenBatch:
        rng = random.Random(f"{self.format.seed} {key}")
        # Pictures of like sizes, so that little is padded: of four times as many a quarter.
        several = sorted((sized_scene(rng.getrandbits(24) % FRESH) for _ in range(4 * count)), key=self._cell_count)
        quarter = rng.randrange(4)
        drawn = several[quarter * count : (quarter + 1) * count]
        cells = [self._cells(each) for each in drawn]
        return QwenBatch(
            torch.cat([self._patches(each) for each in drawn]),
            torch.tensor([(1, 2 * down, 2 * across) for across, down in map(self._grid, drawn)]),
            *(torch.from_numpy(np.concatenate(part)) for part in zip(*cells, strict=True)),
            *self._text(drawn, rng),
        )

    def _grid(self, drawn: world.Scene) -> tuple[int, int]:
        """Return how many cells the resized picture has across and down."""
        width, height = self.format.resized(*drawn.size)
        return width // self.format.cell, height // self.format.cell

    def _cell_count(self, drawn: world.Scene) -> int:
        across, down = self._grid(drawn)
        return across * down

    def _patches(self, drawn: world.Scene) -> Tensor:
        """Resize and cut a picture as the processor does: cells in rows, four patches each, the frame twice."""
        patch = self.format.patch
        picture = world.draw(drawn).resize(self.format.resized(*drawn.size), PIL.Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.asarray(picture, np.float32) / 255)
        values = (values - torch.tensor(self.format.mean)) / torch.tensor(self.format.std)
        down, across = picture.height // patch // 2, picture.width // patch // 2
        cut = values.view(down, 2, patch, across, 2, patch, 3).permute(0, 3, 1, 4, 6, 2, 5)
        return cut[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, 2, -1, -1).reshape(down * across * 4, -1)

    def _cells(self, drawn: world.Scene) -> tuple[np.ndarray, ...]:
        """Return the colours, edges and places of a picture's cells. A cell is of the thing that covers most of it, at
        least a quarter of it or of the thing."""
        across, down = self._grid(drawn)
        y, x = (part.ravel() for part in np.mgrid[:down, :across])
        best, colors = np.zeros(len(x)), np.zeros(len(x), np.int64)
        edges = np.zeros((len(x), 4), np.float32)
        pixels = self.format.family.scale is None
        unit = np.array([self.format.cell / LONGEST] * 2 if pixels else [1 / across, 1 / down])
        for shape in drawn.shapes:
            box = np.array(shape.box) * (across, down, across, down)
            wide = np.clip(np.minimum(x + 1, box[2]) - np.maximum(x, box[0]), 0, None)
            high = np.clip(np.minimum(y + 1, box[3]) - np.maximum(y, box[1]), 0, None)
            cover = wide * high / min(1.0, (box[2] - box[0]) * (box[3] - box[1]))
            here = (cover > best) & (cover > 0.25)
            best[here], colors[here], edges[here] = cover[here], 1 + COLORS.index(shape.color), box * np.tile(unit, 2)
        return colors, edges, ((np.stack([x, y], axis=1) + 0.5) * unit).astype(np.float32)

    def _text(self, drawn: Sequence[world.Scene], rng: random.Random) -> tuple[Tensor, ...]:
        rows = []
        for each in drawn:
            across, down = self._grid(each)
            start, count = len(self.head), down * across
            y, x = (part.ravel() + start for part in np.mgrid[:down, :across])
            ids = [*self.head, *[self.picture] * count]
            positions = np.concatenate([np.arange(start)[None].repeat(3, 0), [np.full(count, start), y, x]], axis=1)
            groups, answer = [0] * len(ids), [-100] * len(ids)
            for group, labels in enumerate(questions(each, rng, QUESTIONS), start=1):
                text = LOCATE.format(", ".join(labels))
                prompt = self._encode(f"<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n")
                reply = [*self._encode(true_answer(each, labels, self.format.contract)), self.end]
                ids += [*prompt, *reply[:-1]]
                places = start + max(down, across) + np.arange(len(prompt) + len(reply) - 1)
                positions = np.concatenate([positions, places[None].repeat(3, 0)], axis=1)
                groups += [group] * len(places)
                answer += [*[-100] * (len(prompt) - 1), *reply]
            rows.append((ids, positions, groups, answer))
        longest = max(len(row[0]) for row in rows)
        all_ids, targets, group_of = (torch.full((len(rows), longest), value) for value in (self.pad, -100, -1))
        all_positions = torch.zeros(3, len(rows), longest, dtype=torch.long)
        for at, row in enumerate(rows):
            size = len(row[0])
            all_ids[at, :size], group_of[at, :size] = torch.tensor(row[0]), torch.tensor(row[2])
            targets[at, :size] = torch.tensor(row[3])
            all_positions[:, at, :size] = torch.from_numpy(row[1])
        seen = (group_of[:, None, :] == 0) | (group_of[:, None, :] == group_of[:, :, None])
        return all_ids, all_positions, (seen & torch.ones(longest, longest, dtype=torch.bool).tril())[:, None], targets
