"""Images of all shapes are padded and resized as the processor does it."""

import contextlib
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest

from serve.engines.base import Prompt
from serve.engines.vllm import multimodal
from serve.engines.vllm.torchvision import repair
from serve.errors import BadRequest
from serve.media.decoding import SMALL
from serve.media.geometry import Padded, pad_to_square, padding
from serve.media.image import Image
from serve.media.video import Video
from serve.models.contracts import QWEN2_5_VL, Multiples
from serve.models.family import refuse_oblong
from serve.models.llava import PAD_COLOUR, pad

pytestmark = pytest.mark.filterwarnings("ignore")

# width, height: ordinary, thin both ways, to 1:3000, tiny and enlarged, odd, the processor's own size, square
SHAPES = [
    *((1200, 900), (901, 1203), (3000, 1), (1, 3000), (2999, 7), (5, 2741), (1600, 1200), (31, 17), (3, 2), (2, 1)),
    *((1, 1), (1, 2), (336, 112), (112, 336), (112, 112), (800, 800), (113, 111), (2048, 640), (700, 1500)),
]


@pytest.fixture(scope="module")
def clip() -> Any:
    repair()
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor


@pytest.fixture(scope="module")
def siglip() -> Any:
    repair()
    from transformers import SiglipImageProcessor

    return SiglipImageProcessor


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def squared(pixels: np.ndarray) -> PIL.Image.Image:
    """LLaVA's own padding, at full size."""
    height, width = pixels.shape[:2]
    side = max(width, height)
    square = PIL.Image.new("RGB", (side, side), PAD_COLOUR)
    square.paste(PIL.Image.fromarray(pixels), ((side - width) // 2, (side - height) // 2))
    return square


def values(processor: Any, picture: Any) -> np.ndarray:
    return processor(images=[picture], return_tensors="np")["pixel_values"][0]


@pytest.mark.slow
@pytest.mark.parametrize("size", [56, 112, 336])
def test_a_padded_image_has_the_values_of_the_full_square_bit_by_bit(clip: Any, size: int) -> None:
    processor = clip(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    resizer = multimodal.Resizer.of(processor)
    assert resizer is not None and (resizer.height, resizer.width, resizer.stretches) == (size, size, False)
    for width, height in SHAPES:
        pixels = noise(width, height)
        image = pad(Image(pixels))
        assert resizer.applies_to(image) and tuple(resizer(image).shape) == (3, size, size)
        assert (values(processor, resizer(image)) == values(processor, squared(pixels))).all(), (width, height)


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(112, 112), (448, 448), (90, 40)])
def test_a_stretched_image_has_the_processors_values_bit_by_bit(siglip: Any, sides: tuple[int, int]) -> None:
    processor = siglip(size={"height": sides[0], "width": sides[1]})
    resizer = multimodal.Resizer.of(processor)
    assert resizer is not None and (resizer.height, resizer.width, resizer.stretches) == (*sides, True)
    for width, height in SHAPES:
        pixels = noise(width, height)
        expected = values(processor, PIL.Image.fromarray(pixels))
        assert (values(processor, resizer(Image(pixels))) == expected).all(), (width, height)


@pytest.mark.slow
def test_processor_that_does_more_than_resize_has_no_resizer(clip: Any) -> None:
    from transformers import LlavaImageProcessor, LlavaNextImageProcessor, LlavaOnevisionImageProcessor

    tiling = [LlavaNextImageProcessor(), LlavaOnevisionImageProcessor(), LlavaImageProcessor(do_pad=True)]
    cropping = clip(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56})
    assert [multimodal.Resizer.of(processor) for processor in [*tiling, cropping, clip(do_resize=False), None]] == [
        None
    ] * 6
    resizer = multimodal.Resizer.of(clip(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}))
    assert (
        resizer is not None
        and not resizer.applies_to(Image(noise(80, 60)))
        and resizer.applies_to(Image(noise(60, 60)))
    )


@contextlib.contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Assert the peak memory of numpy arrays in a block. torch's are of the same size, or of the result's."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(16_384, 1), (1, 16_384), (16_384, 200), (150, 16_000), (9_000, 1_000)])
def test_the_longest_images_cost_a_few_megabytes(clip: Any, width: int, height: int) -> None:
    resizer = multimodal.Resizer.of(clip(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}))
    assert resizer is not None
    image = Padded(Image(np.zeros((height, width, 3), np.uint8)), PAD_COLOUR)
    with at_most(25):
        assert tuple(resizer(image).shape) == (3, 336, 336)
    # Families that cut tiles get a square of bounded size; the picture keeps its shape in it.
    with at_most(32 + 4 * 3 * width * height / 2**20):
        assert image.pixels.shape == (2304, 2304, 3)


def test_slowness_depends_on_the_number_of_pixels() -> None:
    def slow(image: Image) -> bool:
        return multimodal.is_slow(Prompt("a", image))

    assert not slow(Image(noise(640, 480))) and not slow(pad_to_square(Image(noise(640, 480)), PAD_COLOUR))
    assert slow(pad_to_square(Image(noise(1500, 1)), PAD_COLOUR)) and not slow(Image(noise(1500, 1)))
    assert slow(Image(noise(1000, 501))) and not multimodal.is_slow(Prompt("a", None))
    frames = np.zeros((8, 300, 300, 3), np.uint8)
    assert frames.size // 3 > SMALL
    assert multimodal.is_slow(Prompt("a", None, video=Video(frames, tuple(map(float, range(8))), 8.0)))
    assert not multimodal.is_slow(Prompt("a", None, video=Video(frames[:2], (0.0, 1.0), 2.0)))


@pytest.mark.slow
def test_small_images_are_left_to_the_processor_and_large_ones_resized(clip: Any) -> None:
    resizer = multimodal.Resizer.of(clip(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}))

    def shape(image: Image) -> tuple[int, ...]:
        return tuple(multimodal.multimodal_input(Prompt("a", image), resizer)["multi_modal_data"]["image"][0].shape)

    assert shape(pad(Image(noise(60, 40)))) == (3, 60, 60)
    assert shape(pad(Image(noise(1000, 40)))) == (3, 56, 56)
    assert shape(Image(noise(1000, 600))) == (3, 600, 1000)  # not square: the processor would crop it


@pytest.mark.slow
def test_sizes_that_pixels_of_a_resized_picture_count_are_the_processors() -> None:
    """Qwen2.5-VL's limits, Qwen3-VL's, and narrow ones; sides from a pixel on."""
    repair()
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = np.random.default_rng(1)
    sides = np.exp(rng.uniform(0, np.log(9000), (10_000, 2))).astype(int).tolist()
    limits = [QWEN2_5_VL.resized, Multiples(32, 65_536, 16_777_216), Multiples(28, 4 * 28**2, 1280 * 28**2)]
    refused = 0
    for at, (width, height) in enumerate(sides):
        resized = limits[at % len(limits)]
        assert resized is not None
        image = Image(np.broadcast_to(np.uint8(0), (height, width, 3)))
        try:
            high, wide = smart_resize(height, width, resized.factor, resized.least, resized.most)
        except ValueError:
            refused += 1
            with pytest.raises(BadRequest, match="too oblong"):
                refuse_oblong(image)
        else:
            assert resized(width, height) == (wide, high), (width, height)
            assert refuse_oblong(image) is image
    assert refused > 500


@pytest.mark.slow
def test_place_in_a_padded_square_is_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    repair()
    import torch
    from transformers.models.llava import image_processing_llava

    margins: list[list[int]] = []
    pad_with = lambda image, padding, fill: margins.append(padding)  # noqa: E731
    monkeypatch.setattr(image_processing_llava, "tvF", SimpleNamespace(pad=pad_with))
    processor = image_processing_llava.LlavaImageProcessor()
    sides = np.random.default_rng(2).integers(1, 2304, (10_000, 2)).tolist()  # a larger picture is made smaller first
    sides = [(width, height) for width, height in sides if width != height]
    for width, height in sides:
        processor.pad_to_square(torch.empty((3, height, width), device="meta"), PAD_COLOUR)
        side, left, top = padding(width, height)
        assert margins.pop() == [left, top, side - width - left, side - height - top], (width, height)
    assert len(sides) > 9_900
