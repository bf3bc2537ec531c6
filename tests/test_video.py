"""Films from outside: what is taken, what is refused, and which frames a model sees."""

import numpy as np
import pytest

from serve.video import Video


def film(count: int) -> Video:
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(3, 2).repeat(3, 3)
    return Video(frames, tuple(at / 10 for at in range(count)), count / 10)


@pytest.mark.parametrize(
    ("total", "count", "kept"),
    [(9, 3, [0, 4, 8]), (32, 8, [0, 4, 8, 13, 17, 22, 26, 31]), (3, 8, [0, 1, 2]), (5, 1, [0])],
)
def test_a_sample_is_evenly_spaced_and_keeps_its_times(total: int, count: int, kept: list[int]) -> None:
    sampled = film(total).sample(count)
    assert sampled.frames[:, 0, 0, 0].tolist() == kept
    assert sampled.times == tuple(at / 10 for at in kept)
    assert sampled.seconds == total / 10
    assert (sampled.width, sampled.height) == (3, 2)
