"""The example scenes that the page and the README show: `python -m serve.toy.training.album` draws them again.

Their seeds are outside the training set. `scenes.json` beside the images has the true contents of each.
"""

import json
from pathlib import Path

from PIL import Image, ImageOps

from serve.toy import questions, world

HERE = Path(__file__).parents[1] / "scenes"
SEEDS = {
    "three": 30001805,
    "stop": 30000877,
    "number": 30001554,
    "circles": 30000964,
    "night": 30001856,
    "portrait": 30000357,
}
LONG_SIDE, SMALL = 640, (168, 126)


def picture(scene: world.Scene) -> Image.Image:
    """Draw a scene with 640 pixels on the long side, scaled down from three times that size for smooth edges."""
    scale = LONG_SIDE / max(scene.size)
    size = round(scene.size[0] * scale), round(scene.size[1] * scale)
    return world.draw(scene, 3 * scale).resize(size, Image.Resampling.LANCZOS)


def truth(scene: world.Scene, size: tuple[int, int]) -> dict[str, object]:
    """Return the contents of a scene for scenes.json, with boxes in pixels of an image of this width and height."""
    width, height = size
    shapes = []
    for shape in scene.shapes:
        x0, y0, x1, y1 = shape.box
        box = [round(v, 1) for v in (x0 * width, y0 * height, x1 * width, y1 * height)]
        shapes.append({"label": shape.name, "box": box})
    contents = {"background": scene.background, "text": scene.text, "shapes": shapes}
    return {"seed": scene.seed, "width": width, "height": height, "caption": questions.caption(scene), **contents}


def thumbnail(image: Image.Image) -> Image.Image:
    """Return the image for a button on the page: its middle, 168 x 126 pixels in 32 colours (two kilobytes)."""
    return ImageOps.fit(image, SMALL, Image.Resampling.LANCZOS).quantize(32)


def main() -> None:
    (HERE / "small").mkdir(parents=True, exist_ok=True)
    contents = {}
    for name, seed in SEEDS.items():
        scene = world.scene(seed)
        image = picture(scene)
        image.save(HERE / f"{name}.png", optimize=True)
        thumbnail(image).save(HERE / "small" / f"{name}.png", optimize=True)
        contents[f"{name}.png"] = truth(scene, image.size)
    (HERE / "scenes.json").write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
