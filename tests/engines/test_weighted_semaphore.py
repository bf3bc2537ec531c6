import asyncio

import pytest

from serve.engines.weighted_semaphore import WeightedSemaphore


class Holder:
    """Holds units from `begin` to `end`."""

    def __init__(self, semaphore: WeightedSemaphore, units: int) -> None:
        self.has_begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._hold(semaphore, units))

    async def _hold(self, semaphore: WeightedSemaphore, units: int) -> None:
        async with semaphore.take(units):
            self.has_begun.set()
            await self.may_end.wait()


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_holders_wait_while_their_units_are_taken() -> None:
    semaphore = WeightedSemaphore(10)
    holders = [Holder(semaphore, units) for units in (6, 4, 3)]
    await turns()
    assert [holder.has_begun.is_set() for holder in holders] == [True, True, False]
    holders[1].may_end.set()
    await turns()
    assert holders[2].has_begun.is_set() and semaphore.taken == 9
    for holder in holders:
        holder.may_end.set()
    await asyncio.gather(*(holder.task for holder in holders))
    assert semaphore.taken == 0


async def test_more_units_than_the_size_are_granted_alone() -> None:
    semaphore = WeightedSemaphore(10)
    first, large = Holder(semaphore, 1), Holder(semaphore, 25)
    await turns()
    assert not large.has_begun.is_set()
    first.may_end.set()
    await turns()
    later = Holder(semaphore, 1)
    await turns()
    assert large.has_begun.is_set() and not later.has_begun.is_set()
    large.may_end.set()
    later.may_end.set()
    await asyncio.gather(first.task, large.task, later.task)


async def test_zero_units_are_granted_without_waiting() -> None:
    semaphore = WeightedSemaphore(1)
    holder = Holder(semaphore, 1)
    await turns()
    async with semaphore.take(0):
        assert semaphore.taken == 1
    holder.may_end.set()
    await holder.task


@pytest.mark.parametrize("is_waiting", [True, False])
async def test_a_cancelled_holder_leaves_nothing_taken(is_waiting: bool) -> None:
    semaphore = WeightedSemaphore(1)
    holder, waiting = Holder(semaphore, 1), Holder(semaphore, 1)
    await turns()
    leaving = waiting if is_waiting else holder
    leaving.task.cancel()
    await asyncio.wait([leaving.task])
    remaining = holder if is_waiting else waiting
    remaining.may_end.set()
    await asyncio.wait_for(remaining.task, 5)
    assert semaphore.taken == 0
