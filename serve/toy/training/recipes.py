"""The size, seed and training phases of each toy. Two of a family differ, so that their errors do too."""

from dataclasses import dataclass, replace
from typing import Literal

from serve.toy.training.nets import SIDE, TextSize, VisionSize
from serve.toy.training.tokenizer import World

Family = Literal["llava", "paligemma"]


@dataclass(frozen=True)
class Phase:
    """A part of the training with one kind of batch. Rates warm up, then fall as a cosine to `floor` times the peak.

    images: per step. questions: per image, one by one; 0 packs all questions of an image. segment: whether masks are
    asked for. absent: the share of detect and segment questions about a thing that is not there, in the second half of
    the phase (sooner, the model learns to answer nothing). counting: the share of vqa questions that count shapes of
    one kind. side: of the square image in pixels; where it grows, the position embeddings are stretched, as PaliGemma's
    were between its stages (arXiv 2407.07726, section 3.2). written: pictures of text alone per step, beside `images`,
    never the same twice: reading is learnt from more of them than there are scenes. fresh: whether scenes are drawn
    anew for each step (6.5 ms a scene) rather than taken from a corpus that is drawn once.
    """

    name: str
    steps: int
    images: int
    rate: float
    vision_rate: float
    questions: int = 0
    floor: float = 0.05
    segment: bool = False
    absent: float = 0.0
    counting: float = 0.0
    side: int = SIDE
    written: int = 0
    fresh: bool = False


@dataclass(frozen=True)
class Recipe:
    """A toy's training. first_loc, loc_step: the lowest of the `<loc>` tokens that a PaliGemma toy uses, and how far
    apart they are; toys with different ones round boxes differently. world: what it is trained on. begins_with: the
    tower, or the toy of the same sizes, whose weights it begins with. tower: whether only its vision tower is trained,
    on scenes as one family sees them and as the other, by turns, for several toys to begin with."""

    family: Family
    phases: tuple[Phase, ...]
    seed: int = 0
    size: TextSize = TextSize()
    first_loc: int = 8
    loc_step: int = 16
    vision: VisionSize = VisionSize()
    world: World = "first"
    begins_with: str | None = None
    tower: bool = False

    @property
    def side(self) -> int:
        """Return the side in pixels of the square image that the trained toy takes."""
        return self.phases[-1].side


RECIPES = {
    "llava": Recipe(
        "llava",
        (
            Phase("vision", 1800, 80, 0.0, 3e-3, floor=0.2),
            Phase("packed", 1150, 32, 2.5e-3, 8e-4, floor=0.02),
        ),
    ),
    "llava-b": Recipe(
        "llava",
        (
            Phase("vision", 1800, 80, 0.0, 3e-3, floor=0.2),
            Phase("packed", 1150, 32, 2.5e-3, 8e-4, floor=0.02),
        ),
        seed=1,
    ),
    "paligemma": Recipe(
        "paligemma",
        (
            Phase("vision", 1800, 80, 0.0, 3e-3, floor=0.2),
            Phase("exact", 1600, 24, 2e-3, 5e-4, questions=4, floor=0.02),
            Phase("masks", 260, 24, 8e-4, 2e-4, questions=4, floor=0.02, segment=True, absent=0.05),
            Phase("counts", 180, 24, 5e-4, 1.2e-4, questions=4, floor=0.02, segment=True, absent=0.05, counting=0.7),
            Phase("repeats", 150, 24, 5e-4, 1.2e-4, questions=4, floor=0.02, segment=True, absent=0.05, counting=0.7),
        ),
    ),
    "paligemma-b": Recipe(
        "paligemma",
        (
            Phase("vision", 1400, 80, 0.0, 3e-3, floor=0.2),
            Phase("exact", 850, 24, 2.2e-3, 6e-4, questions=4, floor=0.02, segment=True),
            Phase("again", 430, 24, 1.6e-3, 4e-4, questions=4, floor=0.02, segment=True),
            Phase("counts", 280, 24, 1.2e-3, 3e-4, questions=4, floor=0.02, segment=True, counting=0.7),
            Phase("repeats", 170, 24, 1e-3, 2.5e-4, questions=4, floor=0.02, segment=True, counting=0.7),
            Phase("finer", 500, 24, 1e-3, 6e-4, questions=4, floor=0.02, segment=True, counting=0.4, side=144),
            Phase("settled", 900, 24, 1.2e-3, 4e-4, questions=4, floor=0.02, segment=True, counting=0.3, side=144),
        ),
        seed=1,
        size=TextSize(width=128, mlp=448, heads=4),
        first_loc=0,
    ),
}

_TOWER = VisionSize(width=192, mlp=768, layers=4)
VARIED_TOWER = Recipe(
    "paligemma",
    (Phase("vision", 6000, 64, 0.0, 2.5e-3, floor=0.05, side=160, written=16),),
    vision=_TOWER,
    world="varied",
    tower=True,
)
_LLAVA = Recipe(
    "llava",
    (
        Phase("packed", 9000, 32, 2e-3, 6e-4, floor=0.02, side=160, fresh=True),
        Phase("further", 15000, 32, 2e-3, 5e-4, floor=0.02, side=160, fresh=True),
        Phase("longer", 24000, 32, 2e-3, 5e-4, floor=0.02, side=160, fresh=True),
        Phase("last", 28000, 32, 2e-3, 5e-4, floor=0.02, side=160, fresh=True),
        Phase("named", 14000, 32, 1.5e-3, 4e-4, floor=0.02, side=160, fresh=True),
    ),
    size=TextSize(width=192, mlp=576, heads=6),
    vision=_TOWER,
    world="varied",
    begins_with="varied-tower",
)
_PALIGEMMA = replace(
    _LLAVA,
    family="paligemma",
    phases=(
        Phase("packed", 5000, 32, 2e-3, 6e-4, floor=0.3, segment=True, side=160, fresh=True),
        Phase("exact", 5000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=True, absent=0.05, side=160, fresh=True),
        Phase("further", 6500, 32, 2e-3, 5e-4, floor=0.3, segment=True, side=160, fresh=True),
        Phase(
            "settled", 8000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=True, absent=0.05, side=160, fresh=True
        ),
        Phase("longer", 11500, 32, 2e-3, 5e-4, floor=0.3, segment=True, side=160, fresh=True),
        Phase(
            "finished", 9500, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=True, absent=0.05, side=160, fresh=True
        ),
        Phase("more", 14000, 32, 2e-3, 5e-4, floor=0.3, segment=True, side=160, fresh=True),
        Phase("last", 14000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=True, absent=0.05, side=160, fresh=True),
        Phase("named", 14000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=True, absent=0.05, side=160, fresh=True),
        Phase(
            "joined", 14000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=True, absent=0.05, side=160, fresh=True
        ),
    ),
    loc_step=8,
    first_loc=4,
)
VARIED = {
    "varied-llava": _LLAVA,
    "varied-llava-b": replace(
        _LLAVA,
        phases=(replace(_LLAVA.phases[-1], steps=9000, side=176),),
        seed=1,
        begins_with="varied-llava",
    ),
    "varied-paligemma": _PALIGEMMA,
    "varied-paligemma-b": replace(
        _PALIGEMMA,
        phases=(replace(_PALIGEMMA.phases[-1], steps=9000, side=176),),
        seed=1,
        first_loc=0,
        begins_with="varied-paligemma",
    ),
}
"""Toys of varied scenes: not yet shipped. They will take the names of the first four, without `varied-`."""
ALL = RECIPES | VARIED | {"varied-tower": VARIED_TOWER}
