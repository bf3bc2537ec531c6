"""Scenes that tell coordinate contracts apart: pictures of several sizes and shapes with known boxes."""

import random
from dataclasses import dataclass

from PIL import Image

from serve.toy.world import Scene, draw, scene

SCALES = (2.05, 2.6, 3.13, 4.2)
"""A picture's sides over those of `world.CANVASES`. At these, sides are no multiples of a processor's patches, and
none is near 1,000 pixels: there pixels and thousandths would be the same numbers."""
RATIOS = ((168, 224), (224, 168), (168, 224), (224, 168), (224, 224))
"""The canvases by turns. Squares are few, since a square padded to a square is unchanged."""


@dataclass(frozen=True)
class ProbeScene:
    """A scene to be drawn at a scale. boxes: each shape's name and box (x0, y0, x1, y1 in pixels), in random order, so
    that the order of the names does not tell where the shapes are. A name occurs once."""

    scene: Scene
    scale: float
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...]

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height in pixels."""
        width, height = self.scene.size
        return round(width * self.scale), round(height * self.scale)

    def draw(self) -> Image.Image:
        return draw(self.scene, self.scale)


def probe_scenes(seed: int, count: int = 20) -> list[ProbeScene]:
    """Return scenes of two or three shapes without words, the same for a seed on every machine."""
    rng = random.Random(f"probe {seed}")
    scenes: list[ProbeScene] = []
    while len(scenes) < count:
        drawn = scene(rng.randrange(2**32), text=False)
        names = [shape.name for shape in drawn.shapes]
        if drawn.size != RATIOS[len(scenes) % len(RATIOS)] or len(names) < 2 or len(set(names)) < len(names):
            continue
        scale = SCALES[len(scenes) % len(SCALES)]
        width, height = (round(side * scale) for side in drawn.size)
        boxes = [
            (shape.name, (x0 * width, y0 * height, x1 * width, y1 * height))
            for shape in drawn.shapes
            for x0, y0, x1, y1 in [shape.box]
        ]
        rng.shuffle(boxes)
        scenes.append(ProbeScene(drawn, scale, tuple(boxes)))
    return scenes
