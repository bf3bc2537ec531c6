"""The example scenes that the page and the README show: `python -m serve.toy.training.album` draws them again.

Their seeds are beyond all that training sees. `scenes.json` beside the pictures says what is truly in each.
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


def picture(what: world.Scene) -> Image.Image:
    """640 pixels on the long side, drawn three times as large first, for smooth edges."""
    scale = LONG_SIDE / max(what.size)
    size = round(what.size[0] * scale), round(what.size[1] * scale)
    return world.draw(what, 3 * scale).resize(size, Image.Resampling.LANCZOS)


def truth(what: world.Scene, size: tuple[int, int]) -> dict[str, object]:
    """What is in a scene; boxes in pixels of a picture of this size."""
    width, height = size
    shapes = []
    for shape in what.shapes:
        x0, y0, x1, y1 = shape.box
        box = [round(v, 1) for v in (x0 * width, y0 * height, x1 * width, y1 * height)]
        shapes.append({"label": shape.name, "box": box})
    found = {"background": what.background, "text": what.text, "shapes": shapes}
    return {"seed": what.seed, "width": width, "height": height, "caption": questions.caption(what), **found}


def small(drawn: Image.Image) -> Image.Image:
    """The picture as a button on the page shows it: 168 x 126 pixels, its middle, in 32 colours (two kilobytes)."""
    return ImageOps.fit(drawn, SMALL, Image.Resampling.LANCZOS).quantize(32)


def main() -> None:
    (HERE / "small").mkdir(parents=True, exist_ok=True)
    found = {}
    for name, seed in SEEDS.items():
        what = world.scene(seed)
        drawn = picture(what)
        drawn.save(HERE / f"{name}.png", optimize=True)
        small(drawn).save(HERE / "small" / f"{name}.png", optimize=True)
        found[f"{name}.png"] = truth(what, drawn.size)
    (HERE / "scenes.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
