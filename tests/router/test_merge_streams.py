"""Several streams as one: order, ends, errors, the deadline, and that leaving closes them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from serve.router.merge_streams import Ended, ManyStreams, OneStream, merge_streams

Step = float | str | Exception


class Script:
    """A stream that follows a script: a number waits, a text is an item, an exception is raised."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.is_closed = False

    async def stream(self) -> AsyncGenerator[str, None]:
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, str):
                    yield step
                else:
                    await asyncio.sleep(step)
        finally:
            self.is_closed = True


async def merged(scripts: Sequence[Script], within_s: float = 5.0) -> list[tuple[int, Any]]:
    end = asyncio.get_running_loop().time() + within_s
    async with aclosing(merge_streams([script.stream() for script in scripts], end)) as streams:
        return [pair async for pair in streams]


async def test_items_come_in_the_order_of_their_arrival() -> None:
    pairs = await merged([Script("a", 0.05, "c"), Script(0.02, "b")])
    assert [(index, item) for index, item in pairs if isinstance(item, str)] == [(0, "a"), (1, "b"), (0, "c")]
    assert [index for index, item in pairs if item == Ended()] == [1, 0]


@pytest.mark.parametrize("others", [0, 2])
async def test_error_ends_its_own_stream_only(others: int) -> None:
    error = ValueError("broken")
    pairs = await merged([Script("a", error), *(Script(0.02, "b") for _ in range(others))])
    assert [item for index, item in pairs if index == 0] == ["a", Ended(error)]
    assert [item for index, item in pairs if index] == ["b"] * others + [Ended()] * others


@pytest.mark.parametrize("others", [0, 2])
async def test_deadline_cuts_streams_that_go_on(others: int) -> None:
    scripts = [Script("a", 30.0), *(Script("b") for _ in range(others))]
    pairs = await merged(scripts, within_s=0.05)
    (text, end) = (item for index, item in pairs if index == 0)
    assert text == "a" and isinstance(end, Ended) and isinstance(end.error, TimeoutError)
    assert [item for index, item in pairs if index] == ["b"] * others + [Ended()] * others
    assert all(script.is_closed for script in scripts)


@pytest.mark.parametrize("count", [1, 2])
async def test_close_closes_all_streams(count: int) -> None:
    scripts = [Script("a", 0.001, "b", 30.0) for _ in range(count)]
    streams = merge_streams([script.stream() for script in scripts])
    indexes = {(await anext(streams))[0] for _ in range(2 * count)}
    await streams.aclose()
    assert indexes == set(range(count)) and all(script.is_closed for script in scripts)


@pytest.mark.parametrize("count", [1, 2])
async def test_cancelled_reader_closes_all_streams(count: int) -> None:
    scripts = [Script("a", 30.0) for _ in range(count)]
    reader = asyncio.create_task(merged(scripts))
    await asyncio.sleep(0.02)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert all(script.is_closed for script in scripts)


async def test_single_stream_starts_no_task() -> None:
    before = asyncio.all_tasks()
    streams = merge_streams([Script("a").stream()])
    assert isinstance(streams, OneStream) and [item async for _, item in streams] == ["a", Ended()]
    assert asyncio.all_tasks() == before
    many = merge_streams([Script("a").stream(), Script("b").stream()])
    assert isinstance(many, ManyStreams)
    await many.aclose()
