"""Decode images and videos off the event loop, counting their pixels against this process's memory budget."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from serve.errors import Unavailable
from serve.media import processes
from serve.media import video as videos
from serve.media.budget import Budget
from serve.media.image import Image, image_error
from serve.media.outline import QUICK_PIXELS, Outline, RejectedFile
from serve.media.processes import DecodeJob
from serve.media.shared_pixels import SharedPixels
from serve.media.video import Video

SMALL = QUICK_PIXELS
"""Images of up to this many pixels are worked on in the event loop: handing them to a thread takes longer."""
LONGEST_S = 60.0
"""Wall-clock seconds that decoding may take where the request's deadline is not sooner."""

T = TypeVar("T")


class MediaDecoder:
    """A decoder of images and videos within a memory budget; what does not fit waits, first come, first served."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget.of_this_process()

    @asynccontextmanager
    async def decode_image(self, image: Image, within_s: float | None = None) -> AsyncIterator[None]:
        """Decode an image, and hold its pixels until the block ends or `release_pixels` is called.

        within_s: seconds. Raises BadRequest or TooLarge where the file cannot be decoded, Overloaded where there is no
        memory for it in time, Unavailable where decoding does not end in time.
        """
        if not image.undecoded_pixels:
            yield
            return
        outline = image.outline
        if outline.quick:
            with await self.budget.acquire(3 * outline.area, _deadline(within_s), image.param) as lease:
                image.on_release(lease.release)
                _ = image.pixels
                yield
            return
        await self._decode_in_process(image, outline, within_s)
        try:
            yield
        finally:
            image.release_pixels()

    @asynccontextmanager
    async def decode_video(self, video: Video, within_s: float | None = None) -> AsyncIterator[None]:
        """Decode a video, and hold its frames until the block ends. Raises as `decode_image`.

        Raises Overloaded at once where many videos wait already.
        """
        if video.decoded:
            yield
            return
        deadline, job = _deadline(within_s), videos.decode_job(video)
        async with processes.queues().videos.take(deadline, video.param):
            await asyncio.get_running_loop().run_in_executor(processes.THREADS, video.compute_digest)
            lease = await self.budget.acquire(job.memory + job.output, deadline, video.param)
            try:
                reply, fd = await _before(processes.run_job(job, video.file), deadline, video.param, "video")
                videos.receive(video, reply, fd)
            except RejectedFile as rejected:
                lease.release()
                raise videos.video_error(rejected, video.param) from None
            except BaseException:
                lease.release()
                raise
        with lease:
            lease.shrink(video.frames.nbytes)
            yield

    async def _decode_in_process(self, image: Image, outline: Outline, within_s: float | None) -> None:
        deadline = _deadline(within_s)
        async with processes.queues().images.take(outline.cost_s, deadline, image.param):
            lease = await self.budget.acquire(outline.peak_bytes, deadline, image.param)
            try:
                shared = await _before(_decode_file(image.file, outline), deadline, image.param)
                lease.shrink(shared.nbytes)
            except RejectedFile as rejected:
                lease.release()
                raise image_error(rejected, image.param) from None
            except BaseException:
                lease.release()
                raise
        image.share(shared)
        image.on_release(lease.release)


async def compute_digest(image: Image) -> None:
    """Compute the digest of an image's file where it is not known yet, in a thread."""
    if image.digest is None and image.file:
        await asyncio.get_running_loop().run_in_executor(processes.THREADS, image.compute_digest)


def _deadline(within_s: float | None) -> float:
    """Return the event loop's time in `within_s` seconds, LONGEST_S at most."""
    return asyncio.get_running_loop().time() + (LONGEST_S if within_s is None else min(LONGEST_S, within_s))


async def _decode_file(file: bytes, outline: Outline) -> SharedPixels:
    """Decode a file in a process of its own. Raises RejectedFile."""
    output = 3 * outline.area
    job = DecodeJob("image", cpu_s=outline.cpu_limit_s, memory=outline.peak_bytes, output=output)
    reply, fd = await processes.run_job(job, file)
    return _adopt_pixels(fd, *reply["size"])


def _adopt_pixels(fd: int, width: int, height: int) -> SharedPixels:
    """Return the pixels in a memfd from a decoder process.

    Raises RejectedFile where their number is not width x height.
    """
    try:
        return SharedPixels.adopt(fd, width, height)
    except ValueError:
        raise RejectedFile("damaged") from None


async def _before(work: Awaitable[T], deadline: float, param: str, kind: str = "image") -> T:
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        message = f"The {kind} could not be decoded within the request's deadline."
        raise Unavailable(message, param=param, code="deadline_exceeded") from None
