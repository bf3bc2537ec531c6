"""Looks at a file again and again, and acts when it changes: a mounted Secret changes under a process."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


async def watch(file: Callable[[], Path | None], act: Callable[[], None], every_s: float) -> None:
    """Call `act` whenever the content of `file()` changes, or the file goes or comes; never ends by itself.

    Whatever `act` raises is logged, and watching goes on.
    """
    seen = await asyncio.to_thread(_content, file())
    while True:
        await asyncio.sleep(every_s)
        now = await asyncio.to_thread(_content, file())
        if now == seen:
            continue
        seen = now
        try:
            act()
        except Exception:
            log.exception("the change of %s cannot be used; what was before it counts on", file())


def _content(file: Path | None) -> bytes | None:
    with contextlib.suppress(OSError):
        return file.read_bytes() if file is not None else None
    return None
