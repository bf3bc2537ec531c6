"""The memory budget: order of grants, deadlines and limits."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from serve.errors import Overloaded, TooLarge
from serve.media.budget import MOST_WAITING, SMALL, Budget, container_limit, machine_memory

MB = 2**20


def soon(seconds: float = 0.02) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_leased_bytes_count_until_released() -> None:
    budget = Budget(100 * MB)
    with await budget.acquire(60 * MB) as lease:
        assert (lease.size, budget.held) == (60 * MB, 60 * MB)
        lease.shrink(20 * MB)
        assert budget.held == 20 * MB
        await lease.grow(50 * MB)
        assert (lease.size, budget.held) == (50 * MB, 50 * MB)
    lease.release()
    assert budget.held == 0


async def test_a_lease_that_was_released_does_not_grow() -> None:
    budget = Budget(100 * MB)
    lease = await budget.acquire(MB)
    lease.release()
    await lease.grow(5 * MB)
    assert budget.held == 0


@pytest.mark.parametrize(("size", "arriving"), [(91 * MB, False), (41 * MB, True), (500 * MB, True)])
async def test_lease_larger_than_the_budget_is_refused_at_once(size: int, arriving: bool) -> None:
    budget = Budget(100 * MB)
    with pytest.raises(TooLarge) as refused:
        await budget.acquire(size, param="image", arriving=arriving)
    assert (refused.value.status, refused.value.param, budget.refusals(), budget.held) == (413, "image", 1, 0)


async def test_largest_lease_can_be_acquired_and_a_byte_more_cannot() -> None:
    budget = Budget(100 * MB)
    for arriving in (True, False):
        (await budget.acquire(budget.largest(arriving=arriving), arriving=arriving)).release()
        with pytest.raises(TooLarge):
            await budget.acquire(budget.largest(arriving=arriving) + 1, arriving=arriving)


async def test_waiter_past_its_deadline_is_refused_as_overloaded() -> None:
    budget = Budget(100 * MB)
    lease = await budget.acquire(80 * MB)
    with pytest.raises(Overloaded) as refused:
        await budget.acquire(20 * MB, soon())
    assert (refused.value.status, budget.refusals(), budget.held) == (429, 1, 80 * MB)
    with pytest.raises(Overloaded):
        await budget.acquire(20 * MB, soon(-1))
    lease.release()
    assert budget.held == 0


async def test_lease_that_cannot_grow_keeps_its_size() -> None:
    budget = Budget(100 * MB)
    with await budget.acquire(50 * MB), await budget.acquire(30 * MB) as lease:
        with pytest.raises(Overloaded):
            await lease.grow(60 * MB, soon())
        assert (lease.size, budget.held) == (30 * MB, 80 * MB)
    assert budget.held == 0


async def test_leases_of_the_same_kind_are_granted_in_order() -> None:
    budget = Budget(100 * MB)
    first = await budget.acquire(80 * MB)
    order: list[str] = []

    async def want(name: str, size: int) -> None:
        with await budget.acquire(size):
            order.append(name)
            await asyncio.sleep(0)

    large = asyncio.create_task(want("large", 70 * MB))
    await asyncio.sleep(0)
    less = asyncio.create_task(want("less", 5 * MB))  # would fit, and waits its turn
    await asyncio.sleep(0)
    assert order == []
    first.release()
    await asyncio.gather(large, less)
    assert (order, budget.held) == (["large", "less"], 0)


async def test_cancelled_waiter_lets_the_next_waiter_in() -> None:
    budget = Budget(100 * MB)
    with await budget.acquire(50 * MB):
        large = asyncio.create_task(budget.acquire(80 * MB))
        await asyncio.sleep(0)
        less = asyncio.create_task(budget.acquire(30 * MB))
        await asyncio.sleep(0)
        large.cancel()
        assert (await asyncio.wait_for(less, 5)).size == 30 * MB
    assert budget.held == 30 * MB


async def test_waiter_cancelled_in_the_turn_of_its_grant_keeps_no_bytes() -> None:
    budget = Budget(100 * MB)
    first = await budget.acquire(80 * MB)
    waiting = asyncio.create_task(budget.acquire(30 * MB))
    await asyncio.sleep(0)
    first.release()  # grants it
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert budget.held == 0


async def test_too_long_a_queue_refuses_at_once() -> None:
    budget = Budget(100 * MB)
    with await budget.acquire(89 * MB):
        waiting = [asyncio.create_task(budget.acquire(3 * MB)) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await budget.acquire(3 * MB)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert budget.held == 0


async def test_arriving_bodies_leave_memory_for_decoding() -> None:
    budget = Budget(100 * MB)
    bodies = [await budget.acquire(10 * MB, soon(), arriving=True) for _ in range(4)]
    with pytest.raises(Overloaded):
        await budget.acquire(10 * MB, soon(), arriving=True)
    with await budget.acquire(50 * MB, soon()):  # each of them can still be decoded
        pass
    for body in bodies:
        body.release()
    assert budget.held == 0


async def test_small_leases_do_not_wait_behind_large_leases() -> None:
    budget = Budget(100 * MB)
    with await budget.acquire(85 * MB):
        large = asyncio.create_task(budget.acquire(40 * MB))
        await asyncio.sleep(0)
        with await budget.acquire(SMALL, soon()):
            assert not large.done()
    (await large).release()
    bodies = [await budget.acquire(10 * MB, arriving=True) for _ in range(4)]
    with await budget.acquire(SMALL, soon(), arriving=True):
        pass
    assert len(bodies) == 4


async def test_small_requests_arrive_while_large_images_are_decoded() -> None:
    budget = Budget(100 * MB)
    with await budget.acquire(45 * MB), await budget.acquire(45 * MB):
        small = [await budget.acquire(MB, soon(), arriving=True) for _ in range(4)]
        with await budget.acquire(MB, soon()):  # and are read
            pass
        for lease in small:
            lease.release()
    with await budget.acquire(30 * MB):  # a body beside one large picture
        (await budget.acquire(40 * MB, soon(), arriving=True)).release()


async def test_kept_part_of_a_body_still_counts_as_arrived() -> None:
    budget = Budget(100 * MB)
    body = await budget.acquire(40 * MB, arriving=True)
    await body.grow(80 * MB, soon())
    body.shrink(10 * MB)
    with await budget.acquire(30 * MB, soon(), arriving=True):
        with pytest.raises(Overloaded):
            await budget.acquire(5 * MB, soon(), arriving=True)
        body.release()
        (await budget.acquire(10 * MB, soon(), arriving=True)).release()


@pytest.mark.parametrize("seed", [3, 7, 11])
async def test_random_leases_leave_the_budget_empty(seed: int) -> None:
    """Leases grow, shrink, time out and are cancelled at random; the count ends at 0 and never exceeds the total."""
    draw = random.Random(seed)
    budget = Budget(100 * MB)

    async def use_lease() -> None:
        try:
            with await budget.acquire(
                draw.randrange(30 * MB), soon(draw.random() / 50), arriving=draw.random() < 0.5
            ) as lease:
                await asyncio.sleep(draw.random() / 200)
                await lease.grow(draw.randrange(60 * MB), soon(draw.random() / 50))
                assert budget.held <= budget.total
                lease.shrink(draw.randrange(30 * MB))
                await asyncio.sleep(draw.random() / 200)
        except Overloaded:
            pass

    tasks = [asyncio.create_task(use_lease()) for _ in range(200)]
    await asyncio.sleep(0.01)
    for task in tasks[::5]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}
    assert budget.held == 0
    (await budget.acquire(budget.largest(arriving=True), soon(), arriving=True)).release()


def group(root: Path, path: str, name: str, value: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value + "\n")


def limit(root: Path, lines: str) -> int | None:
    (root / "cgroup").write_text(lines)
    return container_limit(root / "cgroup", root / "sys")


def test_the_limit_of_a_version_2_group(tmp_path: Path) -> None:
    group(tmp_path / "sys", "pods/one", "memory.max", str(2048 * MB))
    assert limit(tmp_path, "0::/pods/one\n") == 2048 * MB


def test_the_least_limit_counts_also_of_groups_above(tmp_path: Path) -> None:
    group(tmp_path / "sys", "pods/one/init", "memory.max", "max")
    group(tmp_path / "sys", "pods/one", "memory.max", str(900 * MB))
    group(tmp_path / "sys", "pods", "memory.max", str(2048 * MB))
    assert limit(tmp_path, "0::/pods/one/init\n") == 900 * MB


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path / "sys", ".", "memory.max", str(512 * MB))
    assert limit(tmp_path, "0::/\n") == 512 * MB
    assert limit(tmp_path, "0::/kubepods/not/mounted/here\n") == 512 * MB


def test_the_limit_of_a_version_1_group(tmp_path: Path) -> None:
    group(tmp_path / "sys" / "memory", "docker/x", "memory.limit_in_bytes", str(768 * MB))
    group(tmp_path / "sys" / "memory", ".", "memory.limit_in_bytes", "9223372036854771712")
    assert limit(tmp_path, "12:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n") == 768 * MB


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert limit(tmp_path, "0::/\n") is None
    assert container_limit(tmp_path / "nothing", tmp_path) is None
    group(tmp_path / "sys", ".", "memory.max", "max")
    assert limit(tmp_path, "0::/\n") is None


def test_default_budget_fits_machine_and_container(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Budget.of_this_process(300).total == 300 * MB
    assert 0 < Budget.of_this_process().total < machine_memory()
    monkeypatch.setattr("serve.media.budget.container_limit", lambda: 2048 * MB)
    assert 1000 * MB < Budget.of_this_process().total < 1400 * MB
    assert Budget.of_replica().total == 768 * MB
    monkeypatch.setattr("serve.media.budget.container_limit", lambda: 2**62)  # version 1's word for none
    assert Budget.of_this_process().total <= machine_memory()


GROWING = """
from serve.media.budget import release_large_blocks

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

release_large_blocks()
before = held()
for _ in range(3):
    bodies = [bytearray() for _ in range(30)]
    for _ in range(6 * 16):
        for body in bodies:
            body += bytes(65536)
    del bodies, body
print(held() - before)
"""


@pytest.mark.slow
def test_memory_of_freed_large_bodies_returns_to_the_system() -> None:
    """180 MB in thirty bodies that grew side by side left 31 MB behind."""
    done = subprocess.run([sys.executable, "-c", GROWING], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 8 * 1024
