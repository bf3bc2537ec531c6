"""Finds the replicas of one deployment through Ray Serve's handle of it.

Ray 2.60 gathers the answers to a broadcast under one time limit, so that one late answer loses the others. The future
that gathers them holds each of them, and the coroutine that awaits it is watched for that future.

This file imports no Ray, which takes seconds: the handle and the exceptions that it raises are given.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from deployments.routing.replicas import Address


class ServeDiscovery:
    """Gets the addresses of a deployment's replicas through Serve's handle.

    unreachable: what the handle raises where there is no replica, or none can be reached. within_s: seconds in which
    replicas must answer a search.
    """

    def __init__(self, handle: Any, unreachable: tuple[type[Exception], ...] = (), within_s: float = 5.0) -> None:
        self._handle = handle
        self._unreachable: tuple[type[Exception], ...] = (OSError, *unreachable)
        self._within_s = within_s

    async def find(self, report: Callable[[Address], None]) -> None:
        """Call `report` with each replica's address as it answers, with some twice. A hanging one delays no other."""

        def take(answer: Any) -> None:
            if isinstance(answer, Address):
                report(answer)

        with contextlib.suppress(*self._unreachable):
            answers = self._handle.broadcast("address").results_async(return_exceptions=True)
            await each_answer(answers, self._within_s, take)

    async def wake(self) -> None:
        """Queue a call on the handle, which makes Serve start a replica of a model that it scaled to zero."""
        with contextlib.suppress(*self._unreachable):
            await self._handle.address.remote()


async def each_answer(answers: Coroutine[Any, Any, list[Any]], within_s: float, take: Callable[[Any], None]) -> None:
    """Call `take` with each answer to a broadcast as it comes, for at most `within_s` seconds; with some twice.

    answers: what `broadcast(...).results_async` returns, without a time limit. A replica that fails or is late gives no
    answer. Raises what `answers` raises as a whole.
    """

    def done(answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            take(answer.result())

    gathering = asyncio.ensure_future(_Watched(answers, done))
    try:
        await asyncio.wait({gathering}, timeout=within_s)
        if gathering.done():
            for answer in gathering.result():
                take(answer)
    finally:
        gathering.cancel()


class _Watched(Coroutine[Any, Any, list[Any]]):
    """A coroutine that wraps another, and calls `done` with each future that the other gathers."""

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
