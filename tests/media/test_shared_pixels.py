"""Pixels shared by processes: equal for all of them, and freed when the processes end."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serve.errors import ServeError
from serve.media.shared_pixels import Handle, SharedPixels

SIZES = [(1, 1), (1, 16_384), (7, 3), (640, 481)]
OWNER = """
import sys, numpy as np
from serve.media.shared_pixels import SharedPixels
shared = SharedPixels.create(2000, 1000)
shared.pixels[:] = 7
print(*shared.handle(), flush=True)
sys.stdin.read()
"""
READER = """
import sys
from serve.media.shared_pixels import Handle, SharedPixels
pixels = SharedPixels.open(Handle(*map(int, sys.argv[1:]))).pixels
print(int(pixels.sum()), flush=True)
sys.stdin.read()
"""


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def resident_shared(pid: int | str = "self") -> int:
    """Return the bytes of memfds that a process has mapped and touched."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssShmem"))


def started(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stdin=-1, stdout=-1, text=True)


def ended(process: subprocess.Popen[str], how: signal.Signals) -> None:
    process.send_signal(how)
    process.communicate()


def filled(width: int, height: int) -> SharedPixels:
    shared = SharedPixels.create(width, height)
    shared.pixels[:] = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return shared


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_opened_and_adopted_pixels_are_equal_and_read_only(width: int, height: int) -> None:
    before = descriptors()
    shared = filled(width, height)
    wanted = shared.pixels.copy()
    opened = SharedPixels.open(shared.handle())
    adopted = SharedPixels.adopt(os.dup(shared.handle().fd), width, height)
    for other in (opened, adopted):
        assert np.array_equal(other.pixels, wanted) and other.pixels.shape == (height, width, 3)
        with pytest.raises(ValueError, match="read-only"):
            other.pixels[0, 0, 0] = 1
        other.close()
    shared.close()
    del shared, opened, adopted, other
    assert descriptors() == before


def test_array_stays_valid_after_close() -> None:
    shared = filled(300, 200)
    wanted, opened = shared.pixels.copy(), SharedPixels.open(shared.handle())
    seen = opened.pixels
    opened.close()
    shared.close()
    assert np.array_equal(seen, wanted)


def test_opened_pixels_can_be_closed_and_opened_again() -> None:
    shared = filled(30, 20)
    opened = SharedPixels.open(shared.handle())
    for _ in range(3):
        assert np.array_equal(opened.pixels, shared.pixels)
        opened.close()
    shared.close()
    with pytest.raises(ServeError, match="gone"):
        _ = opened.pixels


def test_handle_is_opened_on_first_use() -> None:
    before = descriptors()
    opened = SharedPixels.open(Handle(2**22 + 1, 3, 4, 8, 8))
    assert descriptors() == before and (opened.width, opened.height, opened.nbytes) == (8, 8, 192)
    with pytest.raises(ServeError, match="gone"):
        _ = opened.pixels


def test_a_descriptor_that_is_another_file_by_now_is_not_read() -> None:
    shared = filled(16, 16)
    handle = shared.handle()
    shared.close()
    other = SharedPixels.create(16, 16)  # takes the lowest free number, which is the same
    assert other.handle().fd == handle.fd
    with pytest.raises(ServeError, match="gone"):
        _ = SharedPixels.open(handle).pixels


@pytest.mark.parametrize("change", [{"width": 17}, {"height": 2**40}, {"inode": 1}, {"width": 0}, {"height": -16}])
def test_a_handle_that_does_not_fit_is_refused(change: dict[str, int]) -> None:
    shared, before = filled(16, 16), descriptors()
    with pytest.raises(ServeError, match="gone"):
        _ = SharedPixels.open(shared.handle()._replace(**change)).pixels
    assert descriptors() == before


def test_a_descriptor_that_is_no_sealed_memfd_is_refused_and_closed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0" * 192)
    before = descriptors()
    unsealable = os.memfd_create("x")
    os.ftruncate(unsealable, 192)
    short = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    for fd in (os.open(tmp_path / "file", os.O_RDWR), unsealable, short, os.pipe()[0]):
        with pytest.raises(ValueError, match="descriptor|memfd"):
            SharedPixels.adopt(fd, 8, 8)
    assert descriptors() == before + 1  # the pipe's other end


def test_memory_cannot_be_truncated() -> None:
    shared = filled(16, 16)
    for size in (0, 767, 10_000):
        with pytest.raises(OSError):
            os.ftruncate(shared.handle().fd, size)


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["owner", "reader"])
def test_nothing_stays_when_either_process_is_killed(killed: str) -> None:
    before, shared_before = descriptors(), resident_shared()
    owner = started(OWNER)
    assert owner.stdout is not None
    handle = Handle(*map(int, owner.stdout.readline().split()))
    opened = SharedPixels.open(handle)
    assert int(opened.pixels.sum()) == 2000 * 1000 * 3 * 7
    assert resident_shared() - shared_before >= 6_000_000
    if killed == "owner":
        ended(owner, signal.SIGKILL)
        assert int(opened.pixels.sum()) == 2000 * 1000 * 3 * 7  # a reader that has them keeps them
        with pytest.raises(ServeError, match="gone"):
            _ = SharedPixels.open(handle).pixels
    else:
        held = len(os.listdir(f"/proc/{owner.pid}/fd"))
        reader = started(READER, *map(str, handle))
        assert reader.stdout is not None and int(reader.stdout.readline()) == 2000 * 1000 * 3 * 7
        ended(reader, signal.SIGKILL)
        assert len(os.listdir(f"/proc/{owner.pid}/fd")) == held
    opened.close()
    ended(owner, signal.SIGKILL)
    assert resident_shared() - shared_before < 1_000_000 and descriptors() == before
