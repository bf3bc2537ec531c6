"""Images and videos pickled for another process: as a handle, a file or pixels."""

import gc
import io
import os
import pickle
from typing import Any

import numpy as np
import PIL.Image
import pytest

from serve.errors import ServeError
from serve.media.image import INLINE_BYTES, Image, undecoded_image
from serve.media.shared_pixels import SharedPixels, pickling_for
from serve.media.video import Video


def picture(width: int, height: int, *, noise: bool = False) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if not noise:
        pixels[:] = (10, 200, 30)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def shared(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> SharedPixels:
    memory = SharedPixels.create(pixels.shape[1], pixels.shape[0])
    memory.pixels[:] = pixels
    return memory


def pickled(thing: object, *, peer_opens_handles: bool) -> tuple[bytes, list[Any]]:
    buffers: list[Any] = []
    with pickling_for(peer_opens_handles=peer_opens_handles):
        return pickle.dumps(thing, protocol=5, buffer_callback=buffers.append), buffers


def size(data: bytes, buffers: list[Any]) -> int:
    return len(data) + sum(buffer.raw().nbytes for buffer in buffers)


def test_shared_image_is_pickled_as_a_handle_or_as_its_file_by_peer() -> None:
    file = picture(1000, 900)
    image = undecoded_image(file, "mask")
    wanted = image.pixels
    image.share(shared(wanted))
    assert image.undecoded_pixels == 0 and (image.width, image.height) == (1000, 900)
    for peer, most in ((True, 500), (False, len(file) + 500)):
        data, buffers = pickled(image, peer_opens_handles=peer)
        assert size(data, buffers) < most
        back: Image = pickle.loads(data, buffers=buffers)
        assert (back.width, back.height, back.param, back.digest) == (1000, 900, "mask", image.digest)
        assert np.array_equal(back.pixels, wanted)


@pytest.mark.parametrize(("width", "height", "noise"), [(2, 2, True), (700, 700, False), (1000, 501, True)])
def test_pixels_are_pickled_where_few_or_smaller_than_the_file(width: int, height: int, noise: bool) -> None:
    image = undecoded_image(picture(width, height, noise=noise))
    image.share(shared(image.pixels))
    data, buffers = pickled(image, peer_opens_handles=False)
    assert sum(buffer.raw().nbytes for buffer in buffers) == width * height * 3
    assert width * height * 3 <= INLINE_BYTES or len(picture(width, height, noise=noise)) > width * height * 3
    assert np.array_equal(pickle.loads(data, buffers=buffers).pixels, image.pixels)


def test_undecoded_image_is_pickled_as_its_file() -> None:
    image = undecoded_image(picture(30, 20))
    for peer in (True, False):
        data, buffers = pickled(image, peer_opens_handles=peer)
        assert not buffers and pickle.loads(data).undecoded_pixels == 600


def test_released_image_closes_its_memory_and_is_decoded_from_its_file() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    image = undecoded_image(picture(1000, 700))
    image.share(shared(np.zeros((700, 1000, 3), np.uint8)))
    data, _ = pickled(image, peer_opens_handles=True)
    image.release_pixels()
    assert image.undecoded_pixels == 700_000 and (image.width, image.height) == (1000, 700)
    assert len(os.listdir("/proc/self/fd")) <= before  # a thread that an earlier test left may close one meanwhile
    late: Image = pickle.loads(data)
    with pytest.raises(ServeError, match="gone"):
        _ = late.pixels
    assert tuple(image.pixels[0, 0]) == (10, 200, 30)


def test_frames_of_a_video_are_pickled_as_a_handle_or_as_pixels() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)
    film = Video.sharing(shared(frames.reshape(200, 60, 3)), (0.0, 1.0, 2.0, 3.0, 4.0), 5.0)
    for peer in (True, False):
        data, buffers = pickled(film, peer_opens_handles=peer)
        assert (size(data, buffers) < 500) == peer
        back: Video = pickle.loads(data, buffers=buffers)
        assert np.array_equal(back.frames, frames) and (back.times, back.seconds) == (film.times, 5.0)
        assert np.array_equal(back.sample(2).frames, frames[[0, 4]])
