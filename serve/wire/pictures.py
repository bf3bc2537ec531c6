"""A request's picture, brought from wherever it is: from its URL once, and read once, whoever is asked about it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve import reading
from serve.deadline import Deadline
from serve.fetch.fetcher import Fetcher
from serve.image import MAX_BYTES, Image
from serve.reading import Reading
from serve.tasks.base import Request
from serve.video import Video


class Pictures:
    """What one gateway fetches and holds."""

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher
        self.reading = Reading()

    async def fetch(self, image: Image, deadline: Deadline) -> None:
        """Have its file here, with its digest. Raises BadRequest or TooLarge naming the field, Unavailable."""
        if image.url is not None:
            image.arrive(await self.fetcher.fetch(image.url, image.param, MAX_BYTES, deadline.left()))
        await reading.name(image)

    @asynccontextmanager
    async def watched(self, video: Video, deadline: Deadline) -> AsyncIterator[None]:
        """A film with its frames here. Raises as `Reading.watch`, and Unavailable where the deadline passes."""
        async with self.reading.watch(video, deadline.left()):
            deadline.check()
            yield

    @asynccontextmanager
    async def shown(self, request: Request, deadline: Deadline) -> AsyncIterator[Request]:
        """The request with its picture here and read. Raises as `fetch`, and Unavailable where the deadline passes."""
        deadline.check()
        if request.video is not None:
            async with self.watched(request.video, deadline):
                request.image = request.video.still()
                yield request
            return
        await self.fetch(request.image, deadline)
        async with self.reading.read(request.image, deadline.left()):
            deadline.check()
            yield request
