"""True masks of the shapes in a scene, to train on and to measure against."""

import numpy as np
from PIL import Image, ImageDraw

from serve.media.masks import Mask
from serve.toy import world
from serve.toy.world import Scene, Shape


def mask(scene: Scene, shape: Shape, size: tuple[int, int]) -> Mask:
    """Return the pixels that a shape covers in the image of its scene: bool [height, width]. size: width, height.

    Shapes of a scene never overlap, so none hides a part of another. Raises ValueError for a shape of another scene.
    """
    if shape not in scene.shapes:
        raise ValueError(f"the scene of seed {scene.seed} has no {shape.name} there")
    return shape_mask(shape, size)


def shape_mask(shape: Shape, size: tuple[int, int]) -> Mask:
    """Return the pixels that a shape covers, bool [height, width]. size: width, height."""
    canvas = Image.new("L", size)
    world.paint(ImageDraw.Draw(canvas), shape, size, 255)
    return np.asarray(canvas) > 0
