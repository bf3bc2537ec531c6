"""A request's image or film: fetched once and decoded once, however many models are asked about it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve.media import decoding
from serve.media.budget import Budget, Lease
from serve.media.decoding import MediaDecoder
from serve.media.fetch.fetcher import Fetcher
from serve.media.image import MAX_BYTES, Image
from serve.media.video import Video
from serve.router.deadline import Deadline
from serve.tasks.base import Request


class Pictures:
    """Fetches and decodes what requests show, counted against the budget of one gateway."""

    def __init__(self, fetcher: Fetcher, budget: Budget) -> None:
        self.fetcher = fetcher
        self.budget = budget
        self.decoder = MediaDecoder(budget)

    async def fetch(self, image: Image, deadline: Deadline) -> Lease:
        """Fetch the image's file and note its digest. Return the lease on what was fetched.

        Raises BadRequest or TooLarge naming the field, Unavailable, Overloaded where the budget has no room for it.
        """
        lease = Lease(self.budget)
        try:
            if image.url is not None:
                image.set_file(await self.fetcher.fetch(image.url, image.param, MAX_BYTES, deadline.left(), lease))
            await decoding.compute_digest(image)
        except BaseException:
            lease.release()
            raise
        return lease

    @asynccontextmanager
    async def watched(self, video: Video, deadline: Deadline) -> AsyncIterator[None]:
        """Have a film decoded. Raises as `MediaDecoder.decode_video`, and Unavailable where the deadline passes."""
        async with self.decoder.decode_video(video, deadline.left()):
            deadline.check()
            yield

    @asynccontextmanager
    async def with_pixels(self, request: Request, deadline: Deadline) -> AsyncIterator[None]:
        """Have the request's image or film fetched and decoded, for as long as this lasts.

        Raises as `fetch`, and Unavailable where the deadline passes.
        """
        deadline.check()
        if request.video is not None:
            async with self.watched(request.video, deadline):
                request.image = request.video.first_frame()
                yield
            return
        async with self.read(request.image, deadline):
            yield

    @asynccontextmanager
    async def read(self, image: Image, deadline: Deadline) -> AsyncIterator[None]:
        """Have an image fetched and decoded. Raises as `fetch`, and Unavailable where the deadline passes."""
        with await self.fetch(image, deadline):
            async with self.decoder.decode_image(image, deadline.left()):
                deadline.check()
                yield
