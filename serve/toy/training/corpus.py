"""Training data of the toys: scenes as each family sees them, a label for every patch, and packed questions."""

import functools
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from serve.toy.training import varied_lessons as varied
from serve.toy.training.tokenizer import World
from serve.toy.varied.names import with_article
from serve.toy.world import Box, Scene

HELD_OUT = 10_000_000
"""The first seed of the scenes that are never trained on."""
TEXT_TOKENS = 144
KIND_SHARES = {
    "exists": 30, "color": 15, "shape": 14, "count_kind": 14, "where": 13, "count": 8, "background": 6,
}  # fmt: skip
CLASSES = {"shape": 6, "color": 7, "joint": 31, "background": 3, "text": len(world.WORDS) + 2, "tens": 11, "ones": 11}
"""Labels of a patch and their numbers of classes, 0 being none, for the linear probe of vision training."""


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


def training_scene(seed: int) -> Scene:
    """Return the training scene of a seed. More of them have text than in `world.scene`, as reading is learnt last."""
    return world.scene(seed, text=random.Random(f"text {seed}").random() < 0.6)


@dataclass
class Corpus:
    """Scenes as arrays: uint8 images (N, 3, side, side), uint8 labels (N, patches, the world's classes), edges (N,
    patches, 4)."""

    family: str
    start: int
    lessons: "Lessons"
    images: np.ndarray
    labels: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(
        cls, family: str, start: int, count: int, work: Path, side: int = nets.SIDE, world_name: World = "first"
    ) -> "Corpus":
        """Load the scenes of seeds start .. start + count from the cache in `work`, or draw them."""
        lessons = LESSONS[world_name]
        name = f"{family}-{start}-{count}{f'-{side}' * (side != nets.SIDE)}"
        if world_name == "varied":  # pictures of scenes that a seed no longer gives must not meet new questions
            ends = repr([lessons.scene(start), lessons.scene(start + count - 1)])
            name = f"varied-{name}-{hashlib.sha256(ends.encode()).hexdigest()[:8]}"
        paths = [work / f"{name}.{part}.npy" for part in ("images", "labels", "edges")]
        if not all(path.exists() for path in paths):
            work.mkdir(parents=True, exist_ok=True)
            cls._draw(family, start, count, side, lessons, paths)
        images, labels, edges = (np.load(path, mmap_mode="r") for path in paths)
        return cls(family, start, lessons, images, labels, edges)

    @classmethod
    def _draw(cls, family: str, start: int, count: int, side: int, lessons: "Lessons", paths: Sequence[Path]) -> None:
        """Draw scenes straight into files: images, labels and edges. Sixty thousand do not fit into memory twice."""
        patches = (side // nets.PATCH) ** 2
        kinds: tuple[tuple[tuple[int, ...], type], ...] = (
            ((3, side, side), np.uint8),
            ((patches, len(lessons.classes)), np.uint8),
            ((patches, 4), np.float32),
        )
        new_paths = [path.with_suffix(".new") for path in paths]  # a run that is stopped leaves no half file behind
        images, labels, edges = (
            np.lib.format.open_memmap(path, "w+", dtype, (count, *shape))  # type: ignore[no-untyped-call]
            for path, (shape, dtype) in zip(new_paths, kinds, strict=True)
        )
        for i in range(count):
            scene = lessons.scene(start + i)
            images[i], labels[i], edges[i] = drawn(lessons, scene, view_of(family, start + i), side, start + i)
        for array in (images, labels, edges):
            array.flush()
        for new, path in zip(new_paths, paths, strict=True):
            new.replace(path)

    def pixels(self, rows: np.ndarray) -> Tensor:
        return normalized(self.images[rows], self.family)


def drawn(lessons: "Lessons", scene: Any, family: str, side: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return the square image of a scene (3, side, side), its patches' labels and edges."""
    picture = lessons.draw(scene, random.Random(f"scale {seed}"))
    image = np.asarray(view(picture, family, side)).transpose(2, 0, 1)
    return image, *lessons.labels(scene, family, side // nets.PATCH)


def patch_labels(scene: Scene, family: str, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (grid², 7) and edges (grid², 4) of the object that covers most of a patch, at least a quarter."""
    labels = np.zeros((grid**2, len(CLASSES)), np.uint8)
    edges = np.zeros((grid**2, 4), np.float32)
    labels[:, 3] = list(world.BACKGROUNDS).index(scene.background)
    boxes: list[Box] = [shape.box for shape in scene.shapes]
    if scene.text_box is not None:
        boxes.append(scene.text_box)
    if family == "llava":
        boxes = [prompts.padded(box, scene.size) for box in boxes]
    x0, y0, x1, y1 = np.array(boxes).T[:, :, None] * grid
    cell = np.arange(grid)
    wide = np.clip(np.minimum(x1, cell + 1) - np.maximum(x0, cell), 0, 1)
    high = np.clip(np.minimum(y1, cell + 1) - np.maximum(y0, cell), 0, 1)
    cover = (high[:, :, None] * wide[:, None, :]).reshape(len(boxes), -1)
    owner, most = cover.argmax(0), cover.max(0)
    for index, box in enumerate(boxes):
        covered = (owner == index) & (most > min(0.25, 0.9 * cover[index].max()))
        if index < len(scene.shapes):
            kind, color = (
                world.SHAPES.index(scene.shapes[index].kind),
                list(world.COLORS).index(scene.shapes[index].color),
            )
            labels[covered, 0], labels[covered, 1], labels[covered, 2] = kind + 1, color + 1, 1 + kind * 6 + color
            edges[covered] = box
        elif scene.text.isdigit():
            labels[covered, 4] = len(world.WORDS) + 1
            labels[covered, 5], labels[covered, 6] = int(scene.text[0]) + 1, int(scene.text[1]) + 1
        else:
            labels[covered, 4] = world.WORDS.index(scene.text) + 1
    return labels, edges


def training_questions(
    scene: Scene, family: str, rng: random.Random, segment: bool = False, absent: float = 0.0, counting: float = 0.0
) -> list[Question]:
    """Return different questions about a scene in random order, with varied spelling.

    segment: whether to ask for masks. absent: the share of detect and segment questions about an absent thing.
    counting: the share of vqa questions that count shapes of one kind, half of them a kind that occurs several times.
    """
    chosen: dict[str, Question] = {}
    chosen["caption"] = Question("caption", "caption", "", questions.caption(scene))
    if scene.text or rng.random() < 0.1:
        chosen["ocr"] = Question("ocr", "ocr", "", scene.text or "nothing")
    for _ in range(6):
        kind = rng.choices(tuple(KIND_SHARES), weights=tuple(KIND_SHARES.values()))[0]
        question = None
        if counting and rng.random() < counting:
            kind = "count_kind"
            question = questions.repeats(scene, rng) if rng.random() < 0.5 else None
        question = question or questions.vqa(scene, kind, rng)
        if question is not None:
            chosen[question.text] = Question("vqa", kind, questions.as_typed(question.text, rng), question.answer)
    for task in ("detect",) * 3 + ("segment",) * (3 * segment):
        question = _locate(task, scene, family, rng, absent)
        if question is not None:
            chosen[task + question.text] = question
    if family == "llava":
        question = questions.chat(scene, rng)
        chosen["chat"] = Question("chat", question.kind, questions.as_typed(question.text, rng), question.answer)
    order = list(chosen.values())
    rng.shuffle(order)
    return order


def draw_scaled(scene: Scene, rng: random.Random) -> PIL.Image.Image:
    return world.draw(scene, rng.choice((0.8, 1.0, 1.0, 1.25, 1.5)))


@dataclass(frozen=True)
class Lessons:
    """A world as training data. classes: the labels of a patch, 0 being none where `dense` does not name them; scene:
    of a seed; draw: its picture; labels: of its patches (family, grid); questions: about it (family, rng, phase
    settings), each with the size that boxes of it are padded from; written: a scene of text alone, of a seed."""

    classes: Mapping[str, int]
    dense: frozenset[str]
    scene: Callable[[int], Any]
    draw: Callable[[Any, random.Random], PIL.Image.Image]
    labels: Callable[[Any, str, int], tuple[np.ndarray, np.ndarray]]
    questions: Callable[..., list[Question]]
    text_tokens: int
    written: Callable[[int], Any] | None = None


LESSONS: Mapping[str, Lessons] = {
    "first": Lessons(
        CLASSES, frozenset({"background"}), training_scene, draw_scaled, patch_labels, training_questions, TEXT_TOKENS
    ),
    "varied": Lessons(
        varied.CLASSES, varied.DENSE, varied.varied_training_scene, varied.draw_softened, varied.varied_patch_labels,
        varied.varied_questions, varied.TEXT_TOKENS, varied.written_training_scene,
    ),
}  # fmt: skip
"""Both worlds by name."""


def _locate(task: str, scene: Scene, family: str, rng: random.Random, absent: float) -> Question | None:
    if absent and rng.random() < absent:
        return questions.absent(scene, rng, task)
    single = family == "llava"
    known = questions.phrases(scene, unique=single)
    if not known:
        return None
    some = rng.sample(known, min(len(known), 1 if single else rng.choices((1, 2, 3), weights=(5, 4, 2))[0]))
    question = (questions.detect if task == "detect" else questions.segment)(scene, some)
    if rng.random() < 0.1:  # "a red circle", "the red circle": the answer repeats the phrase as asked
        renamed = {phrase: rng.choice((with_article(phrase), f"the {phrase}")) for phrase in some}
        boxes = tuple((renamed[phrase], box) for phrase, box in question.boxes)
        question = Question(task, question.kind, " ; ".join(renamed[phrase] for phrase in some), boxes=boxes)
    return question


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
    the tokens before the names of single things in answers, with their boxes in `named_boxes` (M, 4).
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


class Packer:
    """A tokenizer of rows: an image with several questions, or (`exact`) with one question and its exact mask."""

    def __init__(
        self,
        family: str,
        first_loc: int = prompts.FIRST_LOC,
        side: int = nets.SIDE,
        world_name: World = "first",
        step: int = prompts.LOC_STEP,
    ) -> None:
        self.family, self.first_loc, self.step = family, first_loc, step
        self.tokens = tokenizer.build_tokenizer(family, world_name)
        self.encode = functools.lru_cache(maxsize=100_000)(self._encode)
        self.head = self.encode("<s>USER: ") if family == "llava" else ()
        self.prefix = len(self.head) + (side // nets.PATCH) ** 2

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokens.encode(text, add_special_tokens=False).ids)

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
        ends = [end for _, end in self.tokens.encode(asking, add_special_tokens=False).offsets]
        located = []
        for phrase, box in question.meant:
            at = asking.lower().find(phrase)
            if at >= 0 and at + len(phrase) in ends:
                located.append((ends.index(at + len(phrase)), self._squared(box, size)))
        return sorted(located)

    def named(self, question: Question, size: tuple[int, int]) -> list[tuple[int, Box]]:
        """Return the index in the answer of the first token of each single thing's name, and the thing's box as the
        tower's square has it."""
        if not question.named:
            return []
        answer = self.prompt(question, size)[1]
        ends = [0, *(end for _, end in self.tokens.encode(answer, add_special_tokens=False).offsets)]
        # a word's token begins with the space before it
        before = [max(0, answer.index(question.answer) + at - 1) for at, _ in question.named]
        boxes = [self._squared(box, size) for _, box in question.named]
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
        for b, row in enumerate(rows):
            at, filled = 0, 0
            for number, (question, size, asking, answer) in enumerate(row, start=1):
                meant, named = self.meant(question, size), self.named(question, size)
                phrases += [(b, self.prefix + at + index) for index, _ in meant]
                pairs += range(len(boxes) + 1, len(boxes) + len(meant))
                boxes += [box for _, box in meant]
                names += [(b, self.prefix + at + len(asking) - 1 + index) for index, _ in named]
                named_boxes += [box for _, box in named]
                end = at + len(asking) + len(answer) - 1  # the end token is a target only, never an input
                ids[b, at:end] = (*asking, *answer[:-1])
                here = slice(self.prefix + at, self.prefix + end)
                positions[b, here] = self.prefix + np.arange(end - at)
                owner[b, here] = number
                prompt[b, self.prefix + at : self.prefix + at + len(asking)] = True
                targets = slice(filled, filled + len(answer))
                keep[b, targets] = self.prefix + at + len(asking) - 1 + np.arange(len(answer))
                target[b, targets] = answer
                # The first token decides the rest; without its full weight the model prefers short answers.
                weight[b, targets] = len(answer) ** -0.5
                weight[b, filled] = 1.0
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
        )

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
