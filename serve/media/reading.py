"""Pictures' pixels and films' frames, decoded off the event loop within what this process may hold of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from serve.errors import Unavailable
from serve.media import processes
from serve.media import video as films
from serve.media.budget import Budget
from serve.media.image import Image, refusal
from serve.media.outline import QUICK_PIXELS, Outline, Refused
from serve.media.processes import Job
from serve.media.shared_pixels import SharedPixels
from serve.media.video import Video

SMALL = QUICK_PIXELS
"""Pictures of so many pixels are worked on where they are: the way to a thread and back takes longer."""
LONGEST_S = 60.0
"""What decoding may take by the clock, where no request's deadline says less."""

T = TypeVar("T")


class Reading:
    """Who may have pixels in memory; those that do not fit wait in the order they came."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget.of_this_process()

    @asynccontextmanager
    async def read(self, image: Image, within_s: float | None = None) -> AsyncIterator[None]:
        """Its pixels are there for as long as this lasts, or until somebody who has seen them puts them away.

        Raises BadRequest or TooLarge where the file cannot be decoded, Overloaded where its turn has not come in time,
        Unavailable where the time is over before it is decoded.
        """
        if not image.left_to_read:
            yield
            return
        found = image.outline
        if found.quick:
            with await self.budget.acquire(3 * found.area, _deadline(within_s), image.param) as lease:
                image.held(lease.release)
                _ = image.pixels
                yield
            return
        await self._decode(image, found, within_s)
        try:
            yield
        finally:
            image.put_away()

    @asynccontextmanager
    async def watch(self, video: Video, within_s: float | None = None) -> AsyncIterator[None]:
        """A film's frames are there for as long as this lasts. Raises as `read`; Overloaded at once where many wait."""
        if video.decoded:
            yield
            return
        deadline, order = _deadline(within_s), films.job(video)
        async with processes.lanes().films.take(deadline, video.param):
            lease = await self.budget.acquire(order.memory + order.output, deadline, video.param)
            try:
                reply, fd = await _in_time(processes.run(order, video.file), deadline, video.param, "video")
                films.receive(video, reply, fd)
            except Refused as refused:
                lease.release()
                raise films.refusal(refused, video.param) from None
            except BaseException:
                lease.release()
                raise
        with lease:
            lease.shrink(video.frames.nbytes)
            yield

    async def _decode(self, image: Image, found: Outline, within_s: float | None) -> None:
        deadline = _deadline(within_s)
        async with processes.lanes().pictures.take(found.cost_s, deadline, image.param):
            lease = await self.budget.acquire(found.peak_bytes, deadline, image.param)
            try:
                shared = await _in_time(_pixels(image.file, found), deadline, image.param)
                lease.shrink(shared.nbytes)
            except Refused as refused:
                lease.release()
                raise refusal(refused, image.param) from None
            except BaseException:
                lease.release()
                raise
        image.share(shared)
        image.held(lease.release)


async def name(image: Image) -> None:
    """Have the digest of its file."""
    if image.digest is None and image.file:
        await asyncio.get_running_loop().run_in_executor(processes.THREADS, image.name)


def _deadline(within_s: float | None) -> float:
    """A time of the event loop."""
    return asyncio.get_running_loop().time() + (LONGEST_S if within_s is None else min(LONGEST_S, within_s))


async def _pixels(file: bytes, found: Outline) -> SharedPixels:
    """The file's pixels. Raises Refused."""
    output = 3 * found.area
    job = Job("image", cpu_s=found.cpu_limit_s, memory=found.peak_bytes, output=output)
    said, fd = await processes.run(job, file)
    return adopted(fd, *said["size"])


def adopted(fd: int, width: int, height: int) -> SharedPixels:
    """The pixels in a memfd that a media process made. Raises Refused where there are not as many as it says."""
    try:
        return SharedPixels.adopt(fd, width, height)
    except ValueError:
        raise Refused("damaged") from None


async def _in_time(work: Awaitable[T], deadline: float, param: str, kind: str = "image") -> T:
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        said = f"The {kind} could not be decoded within the request's deadline."
        raise Unavailable(said, param=param, code="deadline_exceeded") from None
