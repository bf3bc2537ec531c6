"""Varied scenes: what they hold, and that boxes and masks are those of the drawn pixels."""

import functools
from collections import Counter

import numpy as np
import pytest

from serve.toy.varied import scenes
from serve.toy.varied.names import GROUNDS, PALETTE, SHAPE_OTHERS, STYLE_OTHERS, WRITTEN


@functools.cache
def drawn_scenes():
    return [scenes.varied_scene(seed) for seed in range(250)]


@pytest.mark.slow
def test_seed_determines_scene_and_picture():
    assert scenes.varied_scene(7) == drawn_scenes()[7] != drawn_scenes()[8]
    assert scenes.render(drawn_scenes()[7]).tobytes() == scenes.render(scenes.varied_scene(7)).tobytes()


def test_scenes_have_every_colour_shape_style_background_and_number_of_things():
    things = [thing for scene in drawn_scenes() for thing in scene.things]
    assert {thing.color for thing in things} == set(PALETTE) and len(PALETTE) >= 12
    assert {thing.kind for thing in things} == set(SHAPE_OTHERS) and len(SHAPE_OTHERS) >= 10
    assert {thing.style for thing in things} == set(STYLE_OTHERS)
    assert {scene.background for scene in drawn_scenes()} == set(GROUNDS)
    assert {scene.texture for scene in drawn_scenes()} == {"plain", "graded", "noisy"}
    assert set(Counter(len(scene.things) for scene in drawn_scenes())) == set(range(1, 9))


def test_pictures_are_small_and_large_wide_and_high():
    assert (
        min(min(scene.size) for scene in drawn_scenes()) < 64 and max(max(scene.size) for scene in drawn_scenes()) > 400
    )
    assert all(scenes.SIDES[0] <= min(scene.size) and max(scene.size) <= scenes.SIDES[1] for scene in drawn_scenes())
    ratios = [scene.size[0] / scene.size[1] for scene in drawn_scenes()]
    assert min(ratios) < 0.5 and max(ratios) > 2


def test_boxes_lie_inside_and_things_are_sorted():
    for scene in drawn_scenes():
        boxes = [thing.box for thing in scene.things] + ([scene.writing.box] if scene.writing else [])
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        assert sorted(scene.order) == list(range(len(scene.things)))


@pytest.mark.slow
def test_masks_are_the_drawn_pixels_and_fill_their_boxes():
    overlapping = 0
    for scene in drawn_scenes()[:80]:
        if scene.texture != "plain" or scene.writing:
            continue
        picture = np.asarray(scenes.render(scene)).astype(int)
        drawn = (picture != picture[0, 0]).any(-1)
        owners = scenes.owner_map(scene, scene.size)
        inside = np.zeros_like(drawn)
        for index, thing in enumerate(scene.things):
            mask = scenes.seen_mask(scene, index, scene.size)
            assert not (mask & inside).any()
            inside |= mask
            if thing.style == "filled":
                assert drawn[mask].all() and len(np.unique(picture[mask], axis=0)) == 1
            else:
                assert 0.2 < drawn[mask].mean() < 1
            rows, columns = np.nonzero(mask)
            width, height = scene.size
            bounds = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            true = (thing.box[0] * width, thing.box[1] * height, thing.box[2] * width, thing.box[3] * height)
            assert bounds == pytest.approx(true, abs=2.1), (scene.seed, thing)
            overlapping += thing.box != thing.frame
        assert not (drawn & ~inside).any() and (owners > 0).sum() == inside.sum()
    assert overlapping > 0


def test_hidden_part_of_a_thing_is_bounded():
    for scene in [scene for scene in drawn_scenes() if any(thing.box != thing.frame for thing in scene.things)][:20]:
        for index, thing in enumerate(scene.things):
            seen, alone = scenes.seen_mask(scene, index, (300, 300)), scenes.silhouette(thing, (300, 300))
            assert seen.sum() > (scenes.LEAST_SEEN - 0.05) * alone.sum()


def test_writing_stands_out_and_stays_inside_its_box():
    written = [scenes.varied_scene(seed, writing=True) for seed in range(60)]
    texts = {scene.writing.text for scene in written}
    assert all(text.isdigit() or text.upper() in WRITTEN for text in texts)
    assert any(text.isdigit() for text in texts) and any(text.isupper() for text in texts)
    for scene in written[:20]:
        bare = scenes.render(scenes.VariedScene(**{**vars(scene), "writing": None}))
        ink = (np.asarray(bare).astype(int) != np.asarray(scenes.render(scene))).any(-1)
        x0, y0, x1, y1 = scene.writing.box
        width, height = scene.size
        rows, columns = np.nonzero(ink)
        assert x0 * width - 2 <= columns.min() and columns.max() <= x1 * width + 2
        assert y0 * height - 2 <= rows.min() and rows.max() <= y1 * height + 2
    assert not any(scenes.varied_scene(seed, writing=False).writing for seed in range(20))


def test_font_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(scenes, "_font_path", lambda name: None)
    scenes._font.cache_clear()
    with pytest.raises(ValueError, match="font 'serif' is not here: install matplotlib"):
        scenes.varied_scene(0, writing=True, fonts=("serif",))


def test_unknown_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown shape 'spiral'"):
        scenes.outline("spiral")


@pytest.mark.parametrize("kind", SHAPE_OTHERS)
def test_every_shape_fills_its_frame(kind):
    thing = scenes.Thing(kind, "red", "filled", (0.1, 0.2, 0.9, 0.7), (255, 0, 0), (0.1, 0.2, 0.9, 0.7))
    rows, columns = np.nonzero(scenes.silhouette(thing, (200, 200)))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == pytest.approx((20, 40, 180, 140), abs=1)
