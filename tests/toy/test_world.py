import json
import random
import subprocess
import sys

import pytest
from PIL import Image

from serve.toy import world
from serve.toy.training import album

SEEDS = range(300)


def test_seed_determines_scene_and_image():
    assert world.scene(7) == world.scene(7)
    assert world.draw(world.scene(7)).tobytes() == world.draw(world.scene(7)).tobytes()
    assert world.scene(7) != world.scene(8)


def test_scenes_have_every_shape_colour_and_size():
    scenes = [world.scene(seed) for seed in SEEDS]
    assert {len(scene.shapes) for scene in scenes} == {1, 2, 3}
    assert {shape.kind for scene in scenes for shape in scene.shapes} == set(world.SHAPES)
    assert {shape.color for scene in scenes for shape in scene.shapes} == set(world.COLORS)
    assert {scene.background for scene in scenes} == set(world.BACKGROUNDS)
    assert {scene.size for scene in scenes} == set(world.CANVASES)
    assert 0.3 < sum(bool(scene.text) for scene in scenes) / len(scenes) < 0.5


@pytest.mark.parametrize("text", [None, True, False])
def test_text_can_be_required_or_excluded(text):
    written = {bool(world.scene(seed, text=text).text) for seed in SEEDS}
    assert written == ({True, False} if text is None else {text})


def test_boxes_lie_on_the_canvas_and_do_not_overlap():
    for scene in map(world.scene, SEEDS):
        boxes = [shape.box for shape in scene.shapes] + ([scene.text_box] if scene.text_box else [])
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_shapes_are_sorted_from_left_to_right():
    for scene in map(world.scene, SEEDS):
        assert all(a.center[0] <= b.center[0] + 0.02 for a, b in zip(scene.shapes, scene.shapes[1:], strict=False))


@pytest.mark.parametrize("scale", [1.0, pytest.param(2.5, marks=pytest.mark.slow)])
def test_boxes_are_the_bounds_of_the_drawn_pixels(scale):
    """Check that all pixels but the background lie within the boxes and reach their edges."""
    for seed in range(60):
        scene = world.scene(seed)
        picture = world.draw(scene, scale)
        width, height = picture.size
        ground = picture.getpixel((0, 0))
        boxes = [shape.box for shape in scene.shapes] + ([scene.text_box] if scene.text_box else [])
        for x0, y0, x1, y1 in boxes:
            crop = (round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height))
            if (x0, y0, x1, y1) != scene.text_box:  # letters have margins of their own
                inside = picture.crop(crop)
                inked = [pixel != ground for pixel in inside.get_flattened_data()]
                columns = [any(inked[x :: inside.width]) for x in range(inside.width)]
                assert columns.index(True) <= 2 * scale and columns[::-1].index(True) <= 2 * scale, seed
            picture.paste(ground, [crop[0] - 3, crop[1] - 3, crop[2] + 3, crop[3] + 3])
        assert len(set(picture.get_flattened_data())) == 1, f"pixels outside every box of scene {seed}"


def test_colours_contrast_with_every_background():
    for color in world.COLORS.values():
        for ground in world.BACKGROUNDS.values():
            assert sum(abs(a - b) for a, b in zip(color, ground, strict=True)) > 125


def test_words_name_no_shape_and_no_colour():
    assert not {word.lower() for word in world.WORDS} & ({*world.SHAPES, *world.COLORS})
    assert all(2 <= len(word) <= 5 and word.isupper() for word in world.WORDS)
    assert len(set(world.WORDS)) == 24


@pytest.mark.slow
def test_scenes_are_drawn_without_torch():
    code = (
        "import sys, serve.toy.world, serve.toy.questions, serve.toy.training.prompts; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_corners_stay_in_their_box():
    rng = random.Random(0)
    for kind in world.SHAPES:
        box = (rng.uniform(0, 0.3), rng.uniform(0, 0.3), rng.uniform(0.5, 1), rng.uniform(0.5, 1))
        for x, y in world.corners(kind, box):
            assert box[0] - 1e-9 <= x <= box[2] + 1e-9 and box[1] - 1e-9 <= y <= box[3] + 1e-9


def test_shipped_images_match_their_list():
    listed = json.loads((album.HERE / "scenes.json").read_text())
    assert {path.name for path in album.HERE.glob("*.png")} == set(listed) == {f"{name}.png" for name in album.SEEDS}
    for name, seed in album.SEEDS.items():
        with Image.open(album.HERE / f"{name}.png") as picture:
            assert listed[f"{name}.png"] == album.truth(world.scene(seed), picture.size)
            assert max(picture.size) == album.LONG_SIDE
