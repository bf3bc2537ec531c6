"""A request's picture, brought from wherever it is: from its URL once, and read once, whoever is asked about it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve.fetch.fetcher import Fetcher
from serve.image import MAX_BYTES, Image
from serve.reading import Reading
from serve.tasks.base import Request


class Pictures:
    """What one gateway fetches and holds."""

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher
        self.reading = Reading()

    async def fetch(self, image: Image, within_s: float) -> None:
        """Have its file here. Raises BadRequest or TooLarge naming the field, Unavailable."""
        if image.url is not None:
            file = await self.fetcher.fetch(image.url, image.param, MAX_BYTES, within_s)
            await asyncio.to_thread(image.arrive, file)

    @asynccontextmanager
    async def shown(self, request: Request) -> AsyncIterator[Request]:
        """The request with its picture here and read; its deadline is nearer by what that took. Raises as `fetch`."""
        image, left_s = request.image, request.deadline_s
        if image.url is not None:
            began = time.monotonic()
            await self.fetch(image, left_s)
            left_s = max(0.001, round(left_s - (time.monotonic() - began), 3))
            request = request.model_copy(update={"deadline_s": left_s})
        async with self.reading.read(image, left_s):
            yield request
