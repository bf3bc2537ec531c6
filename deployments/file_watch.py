"""Watches a file by polling it: a mounted Secret, for example, changes under a running process."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


async def watch_file(file: Callable[[], Path | None], act: Callable[[], None], every_s: float) -> None:
    """Call `act` whenever the content of `file()` changes, or the file appears or vanishes; never return.

    Whatever `act` raises is logged, and watching goes on. A ValueError is the content's fault; after anything else, as
    a database that is locked, `act` is called again until it succeeds.
    """
    content, failed = await asyncio.to_thread(_content, file()), False
    while True:
        await asyncio.sleep(every_s)
        now = await asyncio.to_thread(_content, file())
        if now == content and not failed:
            continue
        content, before, failed = now, failed, False
        try:
            act()
        except ValueError:
            log.exception("the new content of %s cannot be used; the old one is kept", file())
        except Exception:
            failed = True
            if not before:
                log.exception("the new content of %s could not be taken over; it is tried again", file())


def _content(file: Path | None) -> bytes | None:
    with contextlib.suppress(OSError):
        return file.read_bytes() if file is not None else None
    return None
