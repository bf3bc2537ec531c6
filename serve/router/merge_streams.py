"""Merges several streams into one, in the order of arrival: streams of models, of choices or of prompts."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Ended(NamedTuple):
    """The end of a stream. error: the exception that it raised; TimeoutError where the deadline cut it."""

    error: BaseException | None = None


class OneStream(Generic[T]):
    """A single stream, which needs no task and no queue.

    Like ManyStreams it is an iterator: a generator would add a step for every item.
    """

    def __init__(self, stream: AsyncGenerator[T, None], deadline: float | None) -> None:
        self._stream = stream
        self._deadline = deadline
        self._ended = False

    def __aiter__(self) -> "OneStream[T]":
        return self

    async def __anext__(self) -> tuple[int, T | Ended]:
        if self._ended:
            raise StopAsyncIteration
        error: Exception | None = None
        try:
            async with asyncio.timeout_at(self._deadline):
                return 0, await anext(self._stream)
        except StopAsyncIteration:
            pass
        except Exception as failure:  # any exception: the reader decides what to do with it
            error = failure
        self._ended = True
        return 0, Ended(error)

    async def aclose(self) -> None:
        await self._stream.aclose()


class ManyStreams(Generic[T]):
    """Several streams, each read into one queue by a task of its own. What a reply may be long bounds the queue."""

    def __init__(self, streams: Sequence[AsyncGenerator[T, None]], deadline: float | None) -> None:
        self._queue: asyncio.Queue[tuple[int, T | Ended]] = asyncio.Queue()
        self._unended = len(streams)
        self._late = False
        self._tasks = [asyncio.create_task(self._read(index, stream)) for index, stream in enumerate(streams)]
        for index, task in enumerate(self._tasks):
            task.add_done_callback(partial(self._end, index))
        loop = asyncio.get_running_loop()
        self._timer = None if deadline is None else loop.call_at(deadline, self._cut)

    def __aiter__(self) -> "ManyStreams[T]":
        return self

    async def __anext__(self) -> tuple[int, T | Ended]:
        if not self._unended:
            raise StopAsyncIteration
        index, item = await self._queue.get()
        if isinstance(item, Ended):
            self._unended -= 1
        return index, item

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, index: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async for item in stream:
                self._queue.put_nowait((index, item))
        finally:
            await stream.aclose()

    def _end(self, index: int, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            error: BaseException | None = TimeoutError() if self._late else asyncio.CancelledError()
        else:
            error = task.exception()
        self._queue.put_nowait((index, Ended(error)))

    def _cut(self) -> None:
        self._late = True
        for task in self._tasks:
            task.cancel()


def merge_streams(
    streams: Sequence[AsyncGenerator[T, None]], deadline: float | None = None
) -> OneStream[T] | ManyStreams[T]:
    """Iterate over (index of the stream, its next item), with one (index, Ended) for each stream.

    deadline: a time of the event loop, at which streams that have not ended are cut. `aclose` closes every stream.
    """
    return OneStream(streams[0], deadline) if len(streams) == 1 else ManyStreams(streams, deadline)
