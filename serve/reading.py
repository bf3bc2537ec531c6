"""Pictures' pixels, read off the event loop: a few pictures at a time, and so many pixels in memory at once."""

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from serve.errors import Unavailable
from serve.image import Image

SMALL = 500_000
"""Pictures of so many pixels are read where they are: the way to a thread and back takes longer."""
MOST = 160_000_000
"""Pixels of larger ones that are in memory at once, at three bytes each; others wait as files."""
NICENESS = 10
"""Of the threads that read: whatever else the process has to do goes first."""

# While it is read a picture takes 10 to 18 bytes a pixel (12 megapixels: JPEG 115 MB, turned by its EXIF 161, WEBP
# 204), in so few threads that this adds up to little; Pillow lets go of the interpreter while it decodes. Not in a
# process with a cap on its memory, as films are: what a still takes is known from its header, which was checked. Also,
# starting a Python with Pillow costs 0.26 s of CPU and 36 MB through a pipe 0.04 s, when the JPEG itself costs 0.3 s.
_READERS = ThreadPoolExecutor(
    min(4, os.cpu_count() or 1),
    "read",
    initializer=lambda: os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS),
)


class Reading:
    """Who may have pixels in memory; those that do not fit wait in the order they came."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.held = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def read(self, image: Image, within_s: float | None = None) -> AsyncIterator[None]:
        """Its pixels are there for as long as this lasts, or until somebody who has seen them puts them away.

        Raises BadRequest where the file is damaged, Unavailable where its turn has not come in time.
        """
        pixels = image.left_to_read
        if pixels <= SMALL:
            _ = image.pixels
            yield
            return
        try:
            async with asyncio.timeout(within_s):
                await self._take(pixels)
        except TimeoutError:
            said = "Too many large images are being looked at."
            raise Unavailable(said, param=image.param, code="overloaded") from None
        image.held(functools.partial(self._give, pixels))
        try:
            await asyncio.get_running_loop().run_in_executor(_READERS, lambda: image.pixels)
            yield
        finally:
            image.put_away()

    async def _take(self, pixels: int) -> None:
        async with self._turn:
            while self.held and self.held + pixels > self.most:
                self._freed.clear()
                await self._freed.wait()
            self.held += pixels

    def _give(self, pixels: int) -> None:
        self.held -= pixels
        self._freed.set()
