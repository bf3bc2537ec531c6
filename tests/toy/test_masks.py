import numpy as np
import pytest

from serve.toy import masks, world


@pytest.mark.parametrize("scale", [1.0, 2.0, pytest.param(2.5, marks=pytest.mark.slow)])
def test_masks_cover_exactly_the_drawn_pixels(scale):
    for seed in range(40):
        scene = world.scene(seed, text=False)
        picture = np.asarray(world.draw(scene, scale)).astype(int)
        covered = [masks.mask(scene, shape, (picture.shape[1], picture.shape[0])) for shape in scene.shapes]
        ground = picture[~np.any(covered, axis=0)]
        assert (ground == ground[0]).all(), f"pixels outside the masks of scene {seed}"
        for mask in covered:
            assert mask.shape == picture.shape[:2] and mask.dtype == bool
            assert (picture[mask] == picture[mask][0]).all() and (picture[mask][0] != ground[0]).any()


def test_mask_fills_its_box():
    scene = world.scene(3)
    for shape in scene.shapes:
        rows, columns = np.nonzero(masks.mask(scene, shape, (400, 300)))
        x0, y0, x1, y1 = shape.box
        bounds = (columns.min() / 400, rows.min() / 300, (columns.max() + 1) / 400, (rows.max() + 1) / 300)
        assert bounds == pytest.approx((x0, y0, x1, y1), abs=0.01)


def test_shape_of_another_scene_is_refused():
    with pytest.raises(ValueError, match="scene of seed 3 has no"):
        masks.mask(world.scene(3), world.scene(4).shapes[0], (224, 224))
