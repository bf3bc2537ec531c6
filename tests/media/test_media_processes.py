"""serve.media.processes: each file gets a process, which ends at its limits, with its request or with its parent."""

import asyncio
import contextlib
import functools
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
from serve.media import video as videos
from serve.media.decoder_process import NICENESS
from serve.media.outline import RejectedFile, read_outline
from serve.media.processes import BoundedQueue, DecodeJob, DecodeQueues, ShortestFirstQueue, Zygote, processors
from serve.media.shared_pixels import SharedPixels
from tests.filmed import blinking
from tests.media.test_image import quarters, saved

PATIENCE_S = 120.0  # media processes stand behind whatever else this machine has to do
ROOT = Path(__file__).parents[2]


@functools.cache
def small_picture() -> bytes:
    return saved(quarters(400, 300), "PNG")


@functools.cache
def slow_picture() -> bytes:
    """Return a file that is decoded in a quarter of a second."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 4), dtype=np.uint8)
    return saved(PIL.Image.fromarray(noise), "WEBP", lossless=True, quality=0, method=0)


def job(data: bytes, **limits: Any) -> DecodeJob:
    outline = read_outline(data)
    defaults = DecodeJob("image", cpu_s=outline.cpu_limit_s, memory=outline.peak_bytes, output=3 * outline.area)
    return replace(defaults, **limits)


@pytest.fixture
def zygote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zygote]:
    """A zygote of the test's own. Checks that it leaves no process or descriptor behind."""
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
    reply, fd = await processes.run_job(job(data, **limits), data)
    return SharedPixels.adopt(fd, *reply["size"])


@contextlib.asynccontextmanager
async def decoding(zygote: Zygote) -> AsyncIterator[asyncio.Task[SharedPixels]]:
    """A context in which a file is being decoded by a child."""
    work = asyncio.create_task(decoded(slow_picture(), cpu_s=60))
    await until(lambda: zygote.pid is not None and children(zygote))
    yield work
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


@pytest.mark.slow
async def test_pixels_come_back_in_shared_memory(zygote: Zygote) -> None:
    for _ in range(20):
        shared = await decoded(small_picture())
        assert (shared.pixels == np.asarray(quarters(400, 300))).all()
        shared.close()
    await until(lambda: not children(zygote))


@pytest.mark.slow
async def test_concurrent_jobs_get_their_own_pixels(zygote: Zygote) -> None:
    files = [saved(PIL.Image.new("RGB", (300 + at, 200), (at, 0, 0)), "PNG") for at in range(24)]
    replies = await asyncio.gather(*map(decoded, files))
    assert [(shared.width, int(shared.pixels[0, 0, 0])) for shared in replies] == [(300 + at, at) for at in range(24)]
    for shared in replies:
        shared.close()


async def test_a_file_that_cannot_be_decoded_is_refused_with_the_reason(zygote: Zygote) -> None:
    for data, why in ((small_picture()[:-60], "damaged"), (b"no picture" * 10, "format")):
        with pytest.raises(RejectedFile) as caught:
            await processes.run_job(job(small_picture()), data)
        assert caught.value.why == why


@pytest.mark.slow
async def test_file_over_its_time_limit_is_rejected_as_slow(zygote: Zygote) -> None:
    long = videos.undecoded_video(blinking(75))
    with pytest.raises(RejectedFile) as caught:
        await processes.run_job(replace(videos.decode_job(long), cpu_s=1), long.file)
    assert caught.value.why == "slow"


@pytest.mark.slow
async def test_file_over_its_memory_limit_is_rejected_for_memory(zygote: Zygote) -> None:
    with pytest.raises(RejectedFile) as caught:
        await decoded(saved(quarters(4000, 3000), "PNG"), memory=20 * 2**20)
    assert caught.value.why == "memory"


async def test_file_over_its_output_limit_is_rejected(zygote: Zygote) -> None:
    with pytest.raises(RejectedFile):
        await decoded(small_picture(), output=1000)


@pytest.mark.slow
async def test_a_child_that_is_killed_is_tried_again_once(zygote: Zygote) -> None:
    async with decoding(zygote) as work:
        os.kill(children(zygote)[0], signal.SIGKILL)
        shared = await asyncio.wait_for(work, PATIENCE_S)
        assert shared.width == 1500
        shared.close()


async def test_file_whose_process_is_killed_each_time_is_unavailable(zygote: Zygote) -> None:
    async with decoding(zygote) as work:
        for _ in range(processes.TRIES):
            await until(lambda: children(zygote))
            killed = children(zygote)[0]
            os.kill(killed, signal.SIGKILL)
            await until(lambda killed=killed: killed not in children(zygote))  # type: ignore[misc]
        with pytest.raises(Unavailable):
            await asyncio.wait_for(work, PATIENCE_S)


async def test_crash_of_a_child_rejects_only_its_file(zygote: Zygote) -> None:
    async with decoding(zygote) as work:
        os.kill(children(zygote)[0], signal.SIGSEGV)
        with pytest.raises(RejectedFile) as caught:
            await asyncio.wait_for(work, PATIENCE_S)
        assert caught.value.why == "damaged"
    (await decoded(small_picture())).close()


@pytest.mark.slow
async def test_killed_zygote_is_replaced_and_its_file_decoded(zygote: Zygote) -> None:
    async with decoding(zygote) as work:
        first, child = zygote.pid, children(zygote)[0]
        assert first is not None
        os.kill(child, signal.SIGSTOP)  # or it may be done before the zygote's end is known
        os.kill(first, signal.SIGKILL)
        shared = await asyncio.wait_for(work, PATIENCE_S)
        assert shared.width == 1500 and zygote.pid != first
        shared.close()
        await until(lambda: not alive(child))
    (await decoded(small_picture())).close()


async def test_cancelling_a_job_ends_its_process(zygote: Zygote) -> None:
    async with decoding(zygote) as work:
        child = children(zygote)[0]
        work.cancel()
        await until(lambda: not alive(child))


async def test_job_cancelled_before_its_submission_leaves_no_process(zygote: Zygote) -> None:
    for at in range(30):
        work = asyncio.create_task(decoded(small_picture()))
        for _ in range(at % 4):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    (await decoded(small_picture())).close()
    await until(lambda: not children(zygote))


def test_zygote_ends_with_its_parent() -> None:
    program = """
import asyncio, os, signal, sys
from serve.media import processes
from serve.media.decoder_process import NICENESS
processes.ZYGOTE.submit(processes.DecodeJob("image", 60, 2**28, 100), b"a")
print(processes.ZYGOTE.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    zygote = int(ended.stdout)
    end = time.monotonic() + PATIENCE_S
    while alive(zygote) and time.monotonic() < end:
        time.sleep(0.01)
    assert ended.returncode == -signal.SIGKILL and not alive(zygote)


def test_zygote_environment_holds_no_secrets(zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIPTYCH_API_KEYS", "RAY_AUTH_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a secret")
    zygote.start()
    environment = Path(f"/proc/{zygote.pid}/environ").read_bytes().split(b"\0")
    own = [entry for entry in environment if not entry.startswith(b"glibc.")]  # glibc cuts its tunables up in place
    assert {entry.partition(b"=")[0] for entry in own if entry} <= {
        *(b"PATH", b"LANG", b"LD_LIBRARY_PATH", b"PYTHONPATH", b"OPENBLAS_NUM_THREADS"),
        *(b"MALLOC_ARENA_MAX", b"GLIBC_TUNABLES"),
    }


async def test_children_are_nice_and_single_threaded_in_the_parents_session(zygote: Zygote) -> None:
    async with decoding(zygote):
        await until(lambda: os.getpriority(os.PRIO_PROCESS, children(zygote)[0]) == min(19, os.nice(0) + NICENESS))
        for process in (zygote.pid, *children(zygote)):
            assert process is not None and len(os.listdir(f"/proc/{process}/task")) == 1
            assert os.getsid(process) == os.getsid(0) and os.getpgid(process) != os.getpgid(0)


# The queues


async def test_small_files_go_first_and_large_files_leave_a_slot() -> None:
    queue, begun, leave = ShortestFirstQueue(2), list[str](), dict[str, asyncio.Event]()

    async def look(name: str, cost_s: float) -> None:
        leave[name] = asyncio.Event()
        async with queue.take(cost_s, None, "image"):
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
    assert (queue.free, queue.free_to_large) == (2, 1)


@pytest.mark.slow
async def test_large_file_is_not_starved_by_small_files() -> None:
    queue, begun = ShortestFirstQueue(1), list[float]()

    async def look(cost_s: float) -> None:
        async with queue.take(cost_s, None, "image"):
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


async def test_cancelled_waiter_leaves_the_queue() -> None:
    queue = ShortestFirstQueue(1)
    async with queue.take(0.1, None, "image"):
        waiting = asyncio.ensure_future(contextlib.AsyncExitStack().enter_async_context(queue.take(0.1, None, "image")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        with pytest.raises(Overloaded) as caught:
            async with queue.take(0.1, asyncio.get_running_loop().time() + 0.01, "messages[0]"):
                pass
        assert caught.value.param == "messages[0]"
    async with asyncio.timeout(5), queue.take(0.1, None, "image"):
        pass
    assert queue.free == 1


async def test_videos_beyond_the_queue_are_overloaded() -> None:
    queue = BoundedQueue(at_once=1, waiting=1)
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


async def test_each_event_loop_has_queues_of_its_own() -> None:
    here = processes.queues()

    async def there() -> DecodeQueues:
        return processes.queues()

    assert processes.queues() is here
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
