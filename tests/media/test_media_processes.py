"""serve.media.processes: each file in a process of its own, which ends with its limits, its request or its parent."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from running import alive

from serve.engines.vllm.process_tree import descendants
from serve.errors import Overloaded, Unavailable
from serve.media import processes
from serve.media import video as films
from serve.media.decoder import NICENESS
from serve.media.outline import Refused, outline
from serve.media.processes import Job, Lanes, Queue, Seats, Zygote, processors
from serve.media.shared_pixels import SharedPixels
from tests.filmed import blinking
from tests.media.test_image import quarters, saved

PATIENCE_S = 120.0  # media processes stand behind whatever else this machine has to do
ROOT = Path(__file__).parents[2]
PICTURE = saved(quarters(400, 300), "PNG")
SLOW = saved(  # a quarter of a second of work
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 4), dtype=np.uint8)),
    "WEBP",
    lossless=True,
    quality=0,
    method=0,
)

LONG = films.unread(blinking(75))


def job(data: bytes, **limits: Any) -> Job:
    found = outline(data)
    made = Job("image", cpu_s=found.cpu_limit_s, memory=found.peak_bytes, output=3 * found.area)
    return replace(made, **limits)


@pytest.fixture
def zygote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zygote]:
    """One of the test's own. It leaves neither a process nor a descriptor behind."""
    before, own = set(os.listdir("/proc/self/fd")), Zygote()
    monkeypatch.setattr(processes, "ZYGOTE", own)
    yield own
    running = descendants([own.pid]) if own.pid is not None else []
    own.close()
    assert not any(alive(process) for process in running)
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 4  # an event loop's own


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def children(zygote: Zygote) -> list[int]:
    assert zygote.pid is not None
    return descendants([zygote.pid])[1:]


async def decoded(data: bytes, **limits: Any) -> SharedPixels:
    said, fd = await processes.run(job(data, **limits), data)
    return SharedPixels.adopt(fd, *said["size"])


@contextlib.asynccontextmanager
async def decoding(zygote: Zygote, data: bytes = SLOW) -> AsyncIterator[asyncio.Task[SharedPixels]]:
    """A file that is being decoded by a process."""
    work = asyncio.create_task(decoded(data, cpu_s=60))
    await until(lambda: zygote.pid is not None and children(zygote))
    yield work
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def test_pixels_come_back_in_shared_memory(zygote: Zygote) -> None:
    for _ in range(20):
        shared = await decoded(PICTURE)
        assert (shared.pixels == np.asarray(quarters(400, 300))).all()
        shared.close()
    await until(lambda: not children(zygote))


async def test_many_at_once_get_each_its_own(zygote: Zygote) -> None:
    files = [saved(PIL.Image.new("RGB", (300 + at, 200), (at, 0, 0)), "PNG") for at in range(24)]
    replies = await asyncio.gather(*map(decoded, files))
    assert [(one.width, int(one.pixels[0, 0, 0])) for one in replies] == [(300 + at, at) for at in range(24)]
    for shared in replies:
        shared.close()


async def test_a_file_that_cannot_be_decoded_is_refused_with_the_reason(zygote: Zygote) -> None:
    for data, why in ((PICTURE[:-60], "damaged"), (b"no picture" * 10, "format")):
        with pytest.raises(Refused) as caught:
            await processes.run(job(PICTURE), data)
        assert caught.value.why == why


async def test_one_that_takes_too_long_is_ended_and_said_to(zygote: Zygote) -> None:
    with pytest.raises(Refused) as caught:
        await processes.run(replace(films.job(LONG), cpu_s=1), LONG.file)
    assert caught.value.why == "slow"


async def test_one_that_takes_too_much_memory_is_ended_and_said_to(zygote: Zygote) -> None:
    with pytest.raises(Refused) as caught:
        await decoded(saved(quarters(4000, 3000), "PNG"), memory=20 * 2**20)
    assert caught.value.why == "memory"


async def test_one_that_writes_too_much_is_ended(zygote: Zygote) -> None:
    with pytest.raises(Refused):
        await decoded(PICTURE, output=1000)


async def test_a_child_that_is_killed_is_tried_again_once(zygote: Zygote) -> None:
    async with decoding(zygote) as work:
        os.kill(children(zygote)[0], signal.SIGKILL)
        shared = await asyncio.wait_for(work, PATIENCE_S)
        assert shared.width == 1500
        shared.close()


async def test_a_file_whose_process_is_killed_each_time_is_told_to_come_again(zygote: Zygote) -> None:
    async with decoding(zygote) as work:
        for _ in range(processes.TRIES):
            await until(lambda: children(zygote))
            killed = children(zygote)[0]
            os.kill(killed, signal.SIGKILL)
            await until(lambda killed=killed: killed not in children(zygote))  # type: ignore[misc]
        with pytest.raises(Unavailable):
            await asyncio.wait_for(work, PATIENCE_S)


async def test_one_that_crashes_costs_one_file(zygote: Zygote) -> None:
    async with decoding(zygote) as work:
        os.kill(children(zygote)[0], signal.SIGSEGV)
        with pytest.raises(Refused) as caught:
            await asyncio.wait_for(work, PATIENCE_S)
        assert caught.value.why == "damaged"
    (await decoded(PICTURE)).close()


async def test_when_the_zygote_is_killed_another_one_does_its_work(zygote: Zygote) -> None:
    async with decoding(zygote) as work:
        first, child = zygote.pid, children(zygote)[0]
        assert first is not None
        os.kill(first, signal.SIGKILL)
        shared = await asyncio.wait_for(work, PATIENCE_S)
        assert shared.width == 1500 and zygote.pid != first
        shared.close()
        await until(lambda: not alive(child))
    (await decoded(PICTURE)).close()


async def test_whoever_does_not_wait_any_more_ends_the_process(zygote: Zygote) -> None:
    async with decoding(zygote) as work:
        child = children(zygote)[0]
        work.cancel()
        await until(lambda: not alive(child))


async def test_one_that_is_cancelled_before_it_is_handed_over_leaves_nothing(zygote: Zygote) -> None:
    for at in range(30):
        work = asyncio.create_task(decoded(PICTURE))
        for _ in range(at % 4):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    (await decoded(PICTURE)).close()
    await until(lambda: not children(zygote))


def test_it_ends_with_the_process_that_started_it() -> None:
    program = """
import asyncio, os, signal, sys
from serve.media import processes
from serve.media.decoder import NICENESS
processes.ZYGOTE.submit(processes.Job("image", 60, 2**28, 100), b"a")
print(processes.ZYGOTE.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    zygote = int(ended.stdout)
    end = time.monotonic() + PATIENCE_S
    while alive(zygote) and time.monotonic() < end:
        time.sleep(0.01)
    assert ended.returncode == -signal.SIGKILL and not alive(zygote)


def test_it_knows_no_secret(zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIPTYCH_API_KEYS", "RAY_AUTH_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a secret")
    zygote.start()
    environment = Path(f"/proc/{zygote.pid}/environ").read_bytes().split(b"\0")
    own = [entry for entry in environment if not entry.startswith(b"glibc.")]  # glibc cuts its tunables up in place
    assert {entry.partition(b"=")[0] for entry in own if entry} <= {
        *(b"PATH", b"LANG", b"LD_LIBRARY_PATH", b"PYTHONPATH", b"OPENBLAS_NUM_THREADS"),
        *(b"MALLOC_ARENA_MAX", b"GLIBC_TUNABLES"),
    }


async def test_children_stand_behind_all_others_of_the_session_and_are_one_thread(zygote: Zygote) -> None:
    async with decoding(zygote):
        await until(lambda: os.getpriority(os.PRIO_PROCESS, children(zygote)[0]) == min(19, os.nice(0) + NICENESS))
        for process in (zygote.pid, *children(zygote)):
            assert process is not None and len(os.listdir(f"/proc/{process}/task")) == 1
            assert os.getsid(process) == os.getsid(0) and os.getpgid(process) != os.getpgid(0)


# Who may decode when


async def test_what_takes_little_goes_first_and_large_ones_leave_a_seat() -> None:
    seats, begun, leave = Seats(2), list[str](), dict[str, asyncio.Event]()

    async def look(name: str, cost_s: float) -> None:
        leave[name] = asyncio.Event()
        async with seats.take(cost_s, None, "image"):
            begun.append(name)
            await leave[name].wait()

    jobs = [asyncio.create_task(look(f"large {at}", 3.0)) for at in range(3)]
    await asyncio.sleep(0)
    jobs += [asyncio.create_task(look(f"small {at}", 0.05)) for at in range(3)]
    for name in ("large 0", "small 0", "small 1", "small 2", "large 1", "large 2"):
        await until(lambda name=name: name in begun)  # type: ignore[misc]
        assert begun[-1] == name or name == "large 0"
        if name != "large 0":
            leave[name].set()
        if name == "small 2":
            assert [other for other in begun if other.startswith("large")] == ["large 0"]
            leave["large 0"].set()
    await asyncio.gather(*jobs)
    assert (seats.free, seats.free_to_large) == (2, 1)


async def test_a_large_one_is_not_passed_by_for_ever() -> None:
    seats, begun = Seats(1), list[float]()

    async def look(cost_s: float) -> None:
        async with seats.take(cost_s, None, "image"):
            begun.append(cost_s)
            await asyncio.sleep(0.02)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(look(0.01))
        await asyncio.sleep(0)
        large = group.create_task(look(0.05))
        while not large.done():
            group.create_task(look(0.001))
            await asyncio.sleep(0.02)
    assert 0.05 in begun


async def test_whoever_leaves_while_waiting_is_forgotten() -> None:
    seats = Seats(1)
    async with seats.take(0.1, None, "image"):
        waiting = asyncio.ensure_future(contextlib.AsyncExitStack().enter_async_context(seats.take(0.1, None, "image")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        with pytest.raises(Overloaded) as caught:
            async with seats.take(0.1, asyncio.get_running_loop().time() + 0.01, "messages[0]"):
                pass
        assert caught.value.param == "messages[0]"
    async with asyncio.timeout(5), seats.take(0.1, None, "image"):
        pass
    assert seats.free == 1


async def test_the_queue_of_films_is_short() -> None:
    queue = Queue(at_once=1, waiting=1)
    async with queue.take(None, "video"):
        second = asyncio.ensure_future(contextlib.AsyncExitStack().enter_async_context(queue.take(None, "video")))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            async with queue.take(None, "video"):
                pass
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        with pytest.raises(Overloaded):
            async with queue.take(asyncio.get_running_loop().time() + 0.01, "video"):
                pass
    async with asyncio.timeout(5), queue.take(None, "video"):
        pass


async def test_each_event_loop_has_lanes_of_its_own() -> None:
    here = processes.lanes()

    async def there() -> Lanes:
        return processes.lanes()

    assert processes.lanes() is here
    assert await asyncio.to_thread(lambda: asyncio.run(there())) is not here


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "max 100000"}, None),
        ({}, None),
    ],
)
def test_processors_are_those_of_the_container(tmp_path: Path, files: dict[str, str], count: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    own = len(os.sched_getaffinity(0))
    assert processors(tmp_path) == (own if count is None else min(own, count))
