"""serve.engines.shared_context: concurrent users share a context, whichever of them leaves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from serve.engines.shared_context import SharedContexts


class Work:
    """A context that takes until `let_go` is set to open, and counts."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.opened = self.open = self.cancelled = 0
        self.let_go = asyncio.Event()
        self.fails = fails

    @contextlib.asynccontextmanager
    async def make(self) -> AsyncIterator[str]:
        self.opened += 1
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails is not None:
            raise self.fails
        self.open += 1
        try:
            yield "made"
        finally:
            self.open -= 1


async def use(contexts: SharedContexts[str], work: Work, key: str = "a", stay: asyncio.Event | None = None) -> str:
    async with contexts.share(key, work.make) as shared:
        value = await shared.value()
        assert work.open == 1
        if stay is not None:
            await stay.wait()
        return value


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("users", [1, 2, 32])
async def test_context_is_opened_once_and_closed_after_the_last_user(users: int) -> None:
    contexts, work, stay = SharedContexts[str](), Work(), asyncio.Event()
    tasks = [asyncio.create_task(use(contexts, work, stay=stay if at else None)) for at in range(users)]
    await turns()
    work.let_go.set()
    await turns()
    assert (work.opened, work.open, len(contexts)) == ((1, 1, 1) if users > 1 else (1, 0, 0))
    stay.set()
    assert await asyncio.gather(*tasks) == ["made"] * users
    await turns()
    assert (work.opened, work.open, len(contexts)) == (1, 0, 0)


async def test_each_key_has_its_context_and_a_later_use_opens_again() -> None:
    contexts, first, other = SharedContexts[str](), Work(), Work()
    first.let_go.set()
    other.let_go.set()
    await asyncio.gather(use(contexts, first), use(contexts, other, "b"))
    await turns()
    await use(contexts, first)
    assert (first.opened, other.opened) == (2, 1)


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_cancelled_user_does_not_affect_the_others(leaver: int) -> None:
    contexts, work = SharedContexts[str](), Work()
    tasks = [asyncio.create_task(use(contexts, work)) for _ in range(3)]
    await turns()
    tasks[leaver].cancel()
    await turns()
    assert tasks[leaver].cancelled() and work.cancelled == 0
    work.let_go.set()
    stayed = [task for at, task in enumerate(tasks) if at != leaver]
    assert await asyncio.gather(*stayed) == ["made", "made"]
    await turns()
    assert (work.opened, work.open, len(contexts)) == (1, 0, 0)


async def test_when_all_are_cancelled_the_work_is_too() -> None:
    contexts, work = SharedContexts[str](), Work()
    tasks = [asyncio.create_task(use(contexts, work)) for _ in range(3)]
    await turns()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await turns()
    assert (work.opened, work.cancelled, work.open, len(contexts)) == (1, 1, 0, 0)
    assert len(asyncio.all_tasks()) == 1


async def test_failure_to_open_is_raised_to_all_users_and_not_kept() -> None:
    contexts, work = SharedContexts[str](), Work(ValueError("damaged"))
    work.let_go.set()
    errors = await asyncio.gather(*(use(contexts, work) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in errors] == ["damaged"] * 3 and work.opened == 1
    work.fails = None
    assert await use(contexts, work) == "made"
    await turns()
    assert len(contexts) == 0 and len(asyncio.all_tasks()) == 1


async def test_context_without_a_request_for_its_value_is_not_opened() -> None:
    contexts, work = SharedContexts[str](), Work()
    async with contexts.share("a", work.make):
        pass
    assert (work.opened, len(contexts)) == (0, 0)
