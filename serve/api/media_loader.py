"""Fetches and decodes a request's image or video, once for all models."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve.accounting import current_account
from serve.api.metrics import Metrics
from serve.api.rate_limiter import RateLimiter
from serve.limits import LIMITS
from serve.media import decoding
from serve.media.budget import Budget, Lease
from serve.media.decoding import MediaDecoder
from serve.media.fetch.fetcher import Fetcher
from serve.media.image import MAX_BYTES, Image, image_error
from serve.media.outline import RejectedFile
from serve.media.video import Video
from serve.router.route import Deadline
from serve.tasks.request import Request


def check_pixels(image: Image) -> None:
    """Raise TooLarge naming the field of an image whose file is there and that exceeds a limit of its key."""
    outline, megapixels = image.outline, LIMITS.get().max_image_megapixels
    if outline.area > megapixels * 1e6:
        raise image_error(RejectedFile("pixels", (outline.width, outline.height)), image.param, megapixels)


class MediaLoader:
    """Fetches and decodes the images and videos of requests, within the gateway's memory budget.

    It counts them in the metrics, and against the limit of their key.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        budget: Budget,
        metrics: Metrics | None = None,
        rate_limiter: RateLimiter | None = None,
    ) -> None:
        self.fetcher = fetcher
        self.budget = budget
        self.metrics = metrics or Metrics()
        self.rate_limiter = rate_limiter or RateLimiter()
        self.decoder = MediaDecoder(budget)

    async def fetch(self, image: Image, deadline: Deadline) -> Lease:
        """Fetch the image's file and compute its digest. Return the lease on the file's memory.

        Raises BadRequest or TooLarge naming the field, Unavailable, Overloaded where the budget has no room, and
        TooMany where the key has no pictures left.
        """
        await self._count_picture()
        lease = Lease(self.budget)
        try:
            if image.url is not None:
                image.set_file(await self.fetcher.fetch(image.url, image.param, MAX_BYTES, deadline.left(), lease))
            check_pixels(image)
            await decoding.compute_digest(image)
            if (contents := current_account().contents) is not None:
                contents.add_picture(image.digest)
        except BaseException:
            lease.release()
            raise
        return lease

    @asynccontextmanager
    async def decoded_video(self, video: Video, deadline: Deadline) -> AsyncIterator[None]:
        """Decode a video for use in the block. Raises as `decode_video`, Unavailable past the deadline, and TooMany."""
        await self._count_picture()
        async with self.decoder.decode_video(video, deadline.left()):
            deadline.check()
            yield

    @asynccontextmanager
    async def with_pixels(self, request: Request, deadline: Deadline) -> AsyncIterator[None]:
        """Fetch and decode the request's image or video for use in the block.

        Raises as `fetch`, and Unavailable past the deadline.
        """
        deadline.check()
        if request.video is not None:
            async with self.decoded_video(request.video, deadline):
                request.image = request.video.first_frame()
                yield
            return
        async with self.decoded_image(request.image, deadline):
            yield

    async def _count_picture(self) -> None:
        if key := current_account().key:
            await self.rate_limiter.take_picture(key, LIMITS.get())
        self.metrics.count_picture()

    @asynccontextmanager
    async def decoded_image(self, image: Image, deadline: Deadline) -> AsyncIterator[None]:
        """Fetch and decode an image for use in the block. Raises as `fetch`, and Unavailable past the deadline."""
        with await self.fetch(image, deadline):
            async with self.decoder.decode_image(image, deadline.left()):
                deadline.check()
                yield
