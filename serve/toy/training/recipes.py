"""The size, seed and training phases of each toy. Two of a family differ, so that their errors do too."""

from dataclasses import dataclass, replace
from typing import Literal

from serve.toy.training.nets import SIDE, TextSize, VisionSize
from serve.toy.training.prompts import FIRST_LOC, LOC_STEP

Family = Literal["llava", "paligemma"]


@dataclass(frozen=True)
class Phase:
    """A part of the training with one kind of batch. Rates warm up, then fall as a cosine to `floor` times the peak.

    images: per step. questions: per image, one by one; 0 packs all questions of an image. vqa, detect, segment: how
    many of each task are drawn for an image, of which those that fit are asked. absent: the share of detect and segment
    questions about a thing that is not there, in the second half of the phase (sooner, the model learns to answer
    nothing). side: of the square image in pixels; where it grows, the position embeddings are stretched, as
    PaliGemma's were between its stages (arXiv 2407.07726, section 3.2). written: pictures of text alone per step,
    beside `images`, never the same twice: reading is learnt from more of them than there are scenes. fresh: whether
    scenes are drawn anew for each step (6.5 ms a scene) rather than taken from a corpus that is drawn once.
    """

    name: str
    steps: int
    images: int
    rate: float
    vision_rate: float
    questions: int = 0
    floor: float = 0.05
    vqa: int = 8
    detect: int = 3
    segment: int = 0
    absent: float = 0.0
    side: int = SIDE
    written: int = 0
    fresh: bool = False


@dataclass(frozen=True)
class Recipe:
    """A toy's training. first_loc, loc_step: the lowest of the `<loc>` tokens that a PaliGemma toy uses, and how far
    apart they are; toys with different ones round boxes differently. begins_with: the tower, or the toy of the same
    sizes or with fewer text layers, whose weights it begins with. tower: whether only its vision tower is trained, on
    scenes as one family sees them and as the other, by turns, for several toys to begin with."""

    family: Family
    phases: tuple[Phase, ...]
    seed: int = 0
    size: TextSize = TextSize()
    first_loc: int = FIRST_LOC
    loc_step: int = LOC_STEP
    vision: VisionSize = VisionSize()
    begins_with: str | None = None
    tower: bool = False

    @property
    def side(self) -> int:
        """Return the side in pixels of the square image that the trained toy takes."""
        return self.phases[-1].side


TOWER = Recipe(
    "paligemma",
    (Phase("vision", 6000, 64, 0.0, 2.5e-3, floor=0.05, written=16),),
    tower=True,
)
_WORDED = Phase("worded", 7000, 32, 1.2e-3, 3e-4, floor=0.02, fresh=True)
_LLAVA_ASKED = replace(_WORDED, name="asked", steps=14000, rate=1.5e-3, vision_rate=4e-4)
_FINE = Phase("fine", 14000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=3, absent=0.1, fresh=True)
_PALIGEMMA_ASKED = Phase("asked", 20000, 32, 2e-3, 5e-4, floor=0.3, segment=3, fresh=True)
_FINER = replace(_FINE, name="finer", steps=10000)
_BALANCED = replace(_LLAVA_ASKED, name="balanced", steps=12000)
_PALIGEMMA_BALANCED = replace(_PALIGEMMA_ASKED, name="balanced", steps=12000)
_FINEST = replace(_FINE, name="finest", steps=6000)
_LLAVA_SHORT = replace(_LLAVA_ASKED, name="short", steps=13000, vqa=10, detect=1)
_PALIGEMMA_SHORT = replace(_PALIGEMMA_ASKED, name="short", steps=18000, vqa=10, detect=2, segment=1)
_SHORT_FINE = replace(_FINE, name="short fine", steps=6000, vqa=10, detect=2, segment=2)
_LLAVA_LISTED = replace(_LLAVA_SHORT, name="listed", steps=10000)
_PALIGEMMA_LISTED = replace(
    _PALIGEMMA_SHORT, name="listed", steps=9000, detect=3, segment=2, rate=1e-3, vision_rate=2.5e-4
)
_LISTED_FINE = replace(_SHORT_FINE, name="listed fine", steps=3500, detect=3, rate=5e-4, vision_rate=1.5e-4)
"""The last phases, which the second toy of each family has as well."""
_LLAVA = Recipe(
    "llava",
    (
        Phase("packed", 9000, 32, 2e-3, 6e-4, floor=0.02, fresh=True),
        Phase("further", 15000, 32, 2e-3, 5e-4, floor=0.02, fresh=True),
        Phase("longer", 24000, 32, 2e-3, 5e-4, floor=0.02, fresh=True),
        Phase("last", 28000, 32, 2e-3, 5e-4, floor=0.02, fresh=True),
        Phase("named", 14000, 32, 1.5e-3, 4e-4, floor=0.02, fresh=True),
        Phase("counted", 14000, 32, 1.5e-3, 4e-4, floor=0.02, fresh=True),
        _WORDED,
        _LLAVA_ASKED,
        _BALANCED,
        _LLAVA_SHORT,
        _LLAVA_LISTED,
    ),
    begins_with="tower",
)
_PALIGEMMA = replace(
    _LLAVA,
    family="paligemma",
    phases=(
        Phase("packed", 5000, 32, 2e-3, 6e-4, floor=0.3, segment=3, fresh=True),
        Phase("exact", 5000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=3, absent=0.05, fresh=True),
        Phase("further", 6500, 32, 2e-3, 5e-4, floor=0.3, segment=3, fresh=True),
        Phase("settled", 8000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=3, absent=0.05, fresh=True),
        Phase("longer", 11500, 32, 2e-3, 5e-4, floor=0.3, segment=3, fresh=True),
        Phase("finished", 9500, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=3, absent=0.05, fresh=True),
        Phase("more", 14000, 32, 2e-3, 5e-4, floor=0.3, segment=3, fresh=True),
        Phase("last", 14000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=3, absent=0.05, fresh=True),
        Phase("named", 14000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=3, absent=0.05, fresh=True),
        Phase("joined", 14000, 24, 1e-3, 3e-4, questions=4, floor=0.02, segment=3, absent=0.05, fresh=True),
        Phase("heads", 14000, 32, 2e-3, 5e-4, floor=0.3, segment=3, fresh=True),
        _FINE,
        _PALIGEMMA_ASKED,
        _FINER,
        _PALIGEMMA_BALANCED,
        _FINEST,
        _PALIGEMMA_SHORT,
        _SHORT_FINE,
        _PALIGEMMA_LISTED,
        _LISTED_FINE,
    ),
)
RECIPES = {
    "llava": _LLAVA,
    "llava-b": replace(
        _LLAVA,
        phases=(
            replace(_LLAVA_ASKED, steps=8000, side=176),
            replace(_BALANCED, steps=8000, side=176),
            replace(_LLAVA_SHORT, steps=12000, side=176),
            replace(_LLAVA_LISTED, side=176),
        ),
        seed=1,
        begins_with="llava",
    ),
    "paligemma": _PALIGEMMA,
    "paligemma-b": replace(
        _PALIGEMMA,
        phases=(
            Phase("packed", 6000, 32, 2e-3, 4e-4, floor=0.3, segment=3, side=176, fresh=True),
            replace(_FINE, steps=7000, side=176),
            replace(_PALIGEMMA_ASKED, steps=8000, side=176),
            replace(_FINER, steps=6000, side=176),
            replace(_PALIGEMMA_BALANCED, side=176),
            replace(_FINEST, side=176),
            replace(_PALIGEMMA_SHORT, side=176),
            replace(_SHORT_FINE, side=176),
            replace(_PALIGEMMA_LISTED, side=176),
            replace(_LISTED_FINE, side=176),
        ),
        seed=1,
        size=TextSize(layers=6),
        first_loc=0,
        begins_with="paligemma",
    ),
}
ALL = RECIPES | {"tower": TOWER}
