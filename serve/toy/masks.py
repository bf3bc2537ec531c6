"""Which pixels of a picture one shape's ink covers: the truth that masks are learnt from and measured against."""

import numpy as np
from PIL import Image, ImageDraw

from serve.media.masks import Mask
from serve.toy import world
from serve.toy.world import Scene, Shape


def mask(scene: Scene, shape: Shape, size: tuple[int, int]) -> Mask:
    """The ink of `shape` in the picture of `scene` at this width and height: bool [height, width].

    Shapes never overlap in a scene, so what is drawn is what is seen. Raises ValueError for a shape of another scene.
    """
    if shape not in scene.shapes:
        raise ValueError(f"the scene of seed {scene.seed} has no {shape.name} there")
    return drawn(shape, size)


def drawn(shape: Shape, size: tuple[int, int]) -> Mask:
    """The same without its scene."""
    canvas = Image.new("L", size)
    world.paint(ImageDraw.Draw(canvas), shape, size, 255)
    return np.asarray(canvas) > 0
