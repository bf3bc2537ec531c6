"""Scenes of any size and shape, requests to detect, and the true answers: what toys in Qwen's formats learn from."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from serve.media.geometry import iou
from serve.media.image import Image
from serve.models.contracts import QWEN3_VL, Contract
from serve.models.qwen_tasks import LOCATE
from serve.tasks.boxes import LabelledBox
from serve.toy import world
from serve.toy.questions import matching

QUESTIONS = 4  # questions about each picture
FRESH = 20_000_000  # the first seed of scenes that training does not draw
CELLS = 14  # the most of a picture's side
SHORTEST, LONGEST = 56, 400  # sides of a picture in pixels
PIXELS = Contract("pixels", scale=None)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
BEFORE, AFTER = LOCATE.split("{}")
FRAGMENTS = [
    "user\n", "assistant\n", "\n", BEFORE, AFTER, ", ", '[{"bbox_2d": [', '], "label": "', '"}, {"bbox_2d": [', '"}]',
    "[]", *world.COLORS, *world.SHAPES, *(f" {kind}" for kind in world.SHAPES),
]  # fmt: skip
"""Texts that are a token each; everything else is written in bytes, a digit a token."""


@dataclass(frozen=True)
class Format:
    """A toy's format. cell: the side in pixels of the square that a token of the picture stands for. tower, steps: of
    the two phases."""

    cell: int
    contract: Contract
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tower: int = 500
    steps: int = 1500
    seed: int = 0

    @property
    def patch(self) -> int:
        return self.cell // 2


CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FORMATS = {
    "qwen2.5-vl": Format(28, PIXELS, *CLIP),
    "qwen3-vl": Format(32, QWEN3_VL, (0.5,) * 3, (0.5,) * 3, seed=1),
}


def sized_scene(seed: int, cell: int = 1) -> world.Scene:
    """Return a scene of any size and aspect ratio, its sides multiples of `cell`, with one to three shapes."""
    rng = random.Random(f"qwen {seed}")
    while True:
        # Small pictures more often: they cost least.
        sides = [SHORTEST * (LONGEST / SHORTEST) ** (rng.random() ** 2) for _ in range(2)]
        width, height = (min(CELLS, max(2, round(side / cell))) * cell if cell > 1 else round(side) for side in sides)
        short = min(width, height)
        boxes: list[world.Box] = []
        for _ in range(rng.randint(1, 3)):
            side = max(20.0, short * rng.uniform(0.28, 0.6))
            x, y = rng.uniform(1, width - 1 - side), rng.uniform(1, height - 1 - side)
            box = (x, y, x + side, y + side)
            if all(box[2] + 2 < b[0] or b[2] + 2 < box[0] or box[3] + 2 < b[1] or b[3] + 2 < box[1] for b in boxes):
                boxes.append(box)
        if boxes:
            break
    shapes = []
    for x0, y0, x1, y1 in sorted(boxes, key=lambda b: b[0] + b[2]):
        kind, color = rng.choice(world.SHAPES), rng.choice(tuple(world.COLORS))
        points = world.corners(kind, (x0 / width, y0 / height, x1 / width, y1 / height))
        xs, ys = zip(*points, strict=True)
        shapes.append(world.Shape(kind, color, (min(xs), min(ys), max(xs), max(ys))))
    return world.Scene(seed, (width, height), rng.choice(tuple(world.BACKGROUNDS)), tuple(shapes))


def questions(drawn: world.Scene, rng: random.Random, count: int) -> list[tuple[str, ...]]:
    """Draw the labels of some requests to detect: names and kinds that are there or not, sometimes two together."""
    names = [shape.name for shape in drawn.shapes]
    present = sorted({*names, *(shape.kind for shape in drawn.shapes)})
    requests: list[tuple[str, ...]] = []
    for _ in range(count):
        chance = rng.random()
        if chance < 0.15:
            requests.append((f"{rng.choice(tuple(world.COLORS))} {rng.choice(world.SHAPES)}",))
        elif chance < 0.35 and len(set(names)) > 1:
            requests.append(tuple(rng.sample(sorted(set(names)), 2)))
        else:
            requests.append((rng.choice(present),))
    return requests


def true_answer(drawn: world.Scene, labels: Sequence[str], contract: Contract) -> str:
    """Write the true answer: boxes by label, then from left to right."""
    width, height = drawn.size
    shapes = [
        (label, [value * side for value, side in zip(shape.box, (width, height, width, height), strict=True)])
        for label in labels
        for shape in matching(drawn, label)
    ]
    return contract.format(shapes, drawn.size)


@dataclass(frozen=True)
class DetectItem:
    """A request about a fresh scene. boxes: the true ones, with their labels, in pixels."""

    image: Image
    labels: tuple[str, ...]
    boxes: list[LabelledBox]


def detect_items(count: int, seed: int = 0) -> list[DetectItem]:
    """Draw requests about scenes that training does not draw, in pictures of any size."""
    rng = random.Random(f"fresh {seed}")
    items = []
    for at in range(count):
        drawn = sized_scene(FRESH + seed + at)
        (labels,) = questions(drawn, rng, 1)
        width, height = drawn.size
        boxes = [
            LabelledBox(label=label, box=(x0 * width, y0 * height, x1 * width, y1 * height), score=1.0)
            for label in labels
            for x0, y0, x1, y1 in (shape.box for shape in matching(drawn, label))
        ]
        items.append(DetectItem(Image.of(world.draw(drawn)), labels, boxes))
    return items


def found_boxes(boxes: Sequence[LabelledBox], true: Sequence[LabelledBox], least: float = 0.5) -> int:
    """Return how many true boxes were found: each by a box of its label that overlaps it by `least`, each box once."""
    left, count = list(boxes), 0
    for box in true:
        near = [
            each
            for each in left
            if each.label == box.label and iou(np.array([each.box]), np.array([box.box]))[0, 0] >= least
        ]
        if near:
            left.remove(near[0])
            count += 1
    return count


def draw_sized(drawn: world.Scene, rng: random.Random) -> PIL.Image.Image:
    """Draw a scene at its size, every other time from another size, as a processor resizes pictures."""
    if rng.random() < 0.5:
        return world.draw(drawn)
    return world.draw(drawn, rng.uniform(0.8, 1.6)).resize(drawn.size, PIL.Image.Resampling.BICUBIC)


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
    """A step's pictures and questions. patches (N, 1176 or so), grids (B, 3) as the processor makes them. kinds,
    colors (C) of each cell, 0 for none; edges (C, 4) of its object and places (C, 2) of itself, in cells. ids (B, L),
    positions (3, B, L), mask (B, 1, L, L), targets (B, L), -100 where none."""

    patches: Tensor
    grids: Tensor
    kinds: Tensor
    colors: Tensor
    edges: Tensor
    places: Tensor
    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor


def _cells_of(drawn: world.Scene) -> int:
    return drawn.size[0] * drawn.size[1]


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
        cell = self.format.cell
        # Pictures of like sizes, so that little is padded: of four times as many a quarter.
        several = sorted((sized_scene(rng.getrandbits(48), cell) for _ in range(4 * count)), key=_cells_of)
        quarter = rng.randrange(4)
        drawn = several[quarter * count : (quarter + 1) * count]
        cells = [self._cells(each) for each in drawn]
        return QwenBatch(
            torch.cat([self._patches(draw_sized(each, rng)) for each in drawn]),
            torch.tensor([(1, 2 * each.size[1] // cell, 2 * each.size[0] // cell) for each in drawn]),
            *(torch.from_numpy(np.concatenate(part)) for part in zip(*cells, strict=True)),
            *self._text(drawn, rng),
        )

    def _patches(self, picture: PIL.Image.Image) -> Tensor:
        """Cut a picture as the families' processor does: cells in rows, four patches each, the frame twice."""
        patch = self.format.patch
        values = torch.from_numpy(np.asarray(picture, np.float32) / 255)
        values = (values - torch.tensor(self.format.mean)) / torch.tensor(self.format.std)
        down, across = picture.height // patch // 2, picture.width // patch // 2
        cut = values.view(down, 2, patch, across, 2, patch, 3).permute(0, 3, 1, 4, 6, 2, 5)
        return cut[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, 2, -1, -1).reshape(down * across * 4, -1)

    def _cells(self, drawn: world.Scene) -> tuple[np.ndarray, ...]:
        """Return the kinds, colours, edges and places of a picture's cells. A cell is of the object that covers most
        of it, at least a quarter of it or of the object."""
        across, down = drawn.size[0] // self.format.cell, drawn.size[1] // self.format.cell
        y, x = (part.ravel() for part in np.mgrid[:down, :across])
        best, kinds, colors = np.zeros(len(x)), np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
        edges = np.zeros((len(x), 4), np.float32)
        for shape in drawn.shapes:
            box = np.array(shape.box) * (across, down, across, down)
            wide = np.clip(np.minimum(x + 1, box[2]) - np.maximum(x, box[0]), 0, None)
            high = np.clip(np.minimum(y + 1, box[3]) - np.maximum(y, box[1]), 0, None)
            cover = wide * high / min(1.0, (box[2] - box[0]) * (box[3] - box[1]))
            here = (cover > best) & (cover > 0.25)
            best[here], kinds[here] = cover[here], 1 + world.SHAPES.index(shape.kind)
            colors[here], edges[here] = 1 + list(world.COLORS).index(shape.color), box
        return kinds, colors, edges, np.stack([x, y], axis=1).astype(np.float32)

    def _text(self, drawn: Sequence[world.Scene], rng: random.Random) -> tuple[Tensor, ...]:
        rows = []
        for each in drawn:
            down, across = each.size[1] // self.format.cell, each.size[0] // self.format.cell
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
