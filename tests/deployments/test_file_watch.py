"""A watched file: changes call the function, and errors do not end the watching."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from deployments.file_watch import watch_file

LOOK_S = 0.01


@contextlib.asynccontextmanager
async def watching(file: Path, act: Callable[[], None]) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(watch_file(lambda: file, act, LOOK_S))
    await asyncio.sleep(10 * LOOK_S)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> bool:
    for _ in range(1000):
        if condition():
            return True
        await asyncio.sleep(LOOK_S)
    return False


async def test_each_change_is_acted_on_once(tmp_path: Path) -> None:
    file, seen = tmp_path / "keys", list[str]()
    file.write_text("a")
    async with watching(file, lambda: seen.append(file.read_text() if file.exists() else "gone")):
        for text in ("b", "", "c"):
            file.write_text(text)
            assert await until(lambda: seen[-1:] == [text])  # noqa: B023 (it is asked at once)
        file.unlink()
        assert await until(lambda: seen[-1:] == ["gone"])
        assert seen == ["b", "", "c", "gone"] or seen == ["b", "", "", "c", "gone"]  # a write may be seen half done


async def test_wrong_content_is_logged_and_watching_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, acted = tmp_path / "keys", list[int]()
    file.write_text("a")

    def act() -> None:
        acted.append(1)
        if len(acted) == 1:
            raise ValueError("no key")

    async with watching(file, act) as task:
        with caplog.at_level(logging.ERROR):
            file.write_text("b")
            assert await until(lambda: len(acted) == 1)
        await asyncio.sleep(10 * LOOK_S)
        assert len(acted) == 1
        file.write_text("cc")
        assert await until(lambda: len(acted) == 2) and not task.done()
    assert "the old one is kept" in caplog.text


@pytest.mark.parametrize("error", [OSError("locked"), KeyError("a bug"), RuntimeError("x")])
async def test_content_that_could_not_be_taken_over_is_tried_again(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    file, acted = tmp_path / "keys", list[int]()
    file.write_text("a")

    def act() -> None:
        acted.append(1)
        if len(acted) < 4:
            raise error

    async with watching(file, act):
        file.write_text("b")
        assert await until(lambda: len(acted) == 4)
        await asyncio.sleep(10 * LOOK_S)
    assert len(acted) == 4 and caplog.text.count("it is tried again") == 1


async def test_missing_file_is_not_acted_on() -> None:
    acted: list[int] = []
    task = asyncio.create_task(watch_file(lambda: None, lambda: acted.append(1), LOOK_S))
    await asyncio.sleep(10 * LOOK_S)
    task.cancel()
    assert not acted
