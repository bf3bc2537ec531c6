"""What each replica answers to a broadcast of Ray Serve, as it comes: one that hangs holds up no other.

Ray 2.60 gathers all answers under one time limit, so that one late answer loses the others. The future that gathers
them knows each by itself, and the coroutine that waits for it is watched for that future.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any


async def each(results: Coroutine[Any, Any, list[Any]], within_s: float, take: Callable[[Any], None]) -> None:
    """Give every answer to `take` as it comes, within so many seconds; some are given twice.

    results: what `broadcast(...).results_async` gives, with no limit of its own. Raises what it raises as a whole; a
    replica that fails or is late just gives no answer.
    """

    def came(answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            take(answer.result())

    asking = asyncio.ensure_future(_Watched(results, came))
    try:
        await asyncio.wait({asking}, timeout=within_s)
        if asking.done():
            for answer in asking.result():
                take(answer)
    finally:
        asking.cancel()


class _Watched(Coroutine[Any, Any, list[Any]]):
    """A coroutine that runs as it would, while each future that it gathers reports when it is done."""

    def __init__(self, coroutine: Coroutine[Any, Any, list[Any]], done: Callable[[asyncio.Future[Any]], None]) -> None:
        self._coroutine = coroutine
        self._done = done

    def send(self, value: Any) -> Any:
        return self._watch(self._coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        return self._watch(self._coroutine.throw(*error))

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        return self._coroutine.__await__()

    def _watch(self, awaited: Any) -> Any:
        for answer in getattr(awaited, "_children", ()):  # of asyncio.gather's future
            answer.add_done_callback(self._done)
        return awaited
