"""Drill `diptych run` over an object store: kill a shard at random times, and count the answers about every picture.

`make bench-store`. The store is moto's S3 on loopback, in a process of its own, full of tiny pictures; the server is
this program with simulated engines. Printed: answers and how often each picture has one, what was asked again after
kills, the memory of each process of `diptych run` as it goes, and the memory that a list of a million names takes.
"""

import argparse
import bisect
import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import psutil
import uvicorn

from loadtest.arguments import whole
from loadtest.servers import NotAnswering
from serve.api.app import create_app
from serve.client.evaluation.run import Taken
from serve.client.storage.names import NameSet
from serve.client.storage.sources import Shard, open_source
from serve.client.storage.store import open_store
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.router import Router
from serve.worker import Worker

ROOT = Path(__file__).parents[1]
MOTO = ROOT / "build" / "others" / "moto"
BUCKET, OUT = "photos", "answers"
START_S, EVERY_S = 120.0, 0.1
FLAT_MB = 30.0
"""MiB by which a process may grow from its first answers to its last."""


@dataclass(frozen=True)
class Call:
    """A process of `diptych run`. early_mb, late_mb: its resident memory at its first answers, and at its end."""

    answered: int
    seconds: float
    early_mb: float
    late_mb: float
    killed: bool


@dataclass(frozen=True)
class Drilled:
    """A shard that was killed several times and then came to its end. requests: of all calls."""

    expected: int
    answers: int
    repeated: int
    missing: int
    requests: int
    calls: list[Call]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pictures", type=whole(1), default=100_000)
    parser.add_argument("--shard", type=Shard.parse, default=Shard(3, 16), help="3/16")
    parser.add_argument("--kills", type=whole(0), default=10)
    parser.add_argument("--part", type=whole(1), default=200, help="lines of a part")
    parser.add_argument("--names", type=whole(0), default=1_000_000, help="of a list; 0 leaves it out")
    parser.add_argument("--moto", type=Path, default=MOTO, help="the folder that moto is installed in")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Drill, print, and return the name, the numbers and whether every picture has one answer in little memory."""
    memory = listed(options.names) if options.names else []
    for taken, megabytes in memory:
        print(f"{taken:>9} names of a list taken: {megabytes:6.1f} MiB", flush=True)
    environment = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, options.moto)))}
    with _moto(options.pictures, environment) as store, _server() as (url, count):
        began = time.monotonic()
        source, out = f"s3://{BUCKET}", f"s3://{OUT}/run/"
        drilled = drill(source, out, url, options.shard, options.kills, count, store, part=options.part)
        seconds = time.monotonic() - began
    again = drilled.requests - drilled.expected
    print(
        f"{options.pictures} pictures listed, {drilled.expected} of them in shard {options.shard}; killed "
        f"{sum(call.killed for call in drilled.calls)} times in {seconds:.0f} s: {drilled.answers} answers, "
        f"{drilled.missing} missing, {drilled.repeated} repeated, {again} asked again."
    )
    grown = max(call.late_mb - call.early_mb for call in drilled.calls)
    met = not drilled.missing and not drilled.repeated and grown < FLAT_MB
    return "store", {**asdict(drilled), "names": memory, "seconds": seconds}, met


def drill(
    source: str,
    out: str,
    url: str,
    shard: Shard,
    kills: int,
    count: Callable[[], int],
    store: Mapping[str, str],
    *,
    part: int,
) -> Drilled:
    """Kill `diptych run` at random times, within the first three parts that it writes, then let it come to its end.

    count: returns the number of questions that the server has answered. store: variables that name the store. part:
    lines of a part.
    """
    draw = random.Random(0)
    calls: list[Call] = []
    with _variables(store):
        began = time.monotonic()
        expected = [picture.name for picture in open_source(source).pictures(shard)]
        print(f"{len(expected)} pictures of shard {shard} listed in {time.monotonic() - began:.1f} s", flush=True)
    command = [sys.executable, "-m", "serve.cli", "run", source, "--out", out, "--shard", str(shard), "--server", url]
    command += ["--part", str(part)]
    before = count()
    for kill in range(kills + 1):
        target = count() + draw.randint(1, 3 * part) if kill < kills else None
        call = _call(command, target, count, store)
        calls.append(call)
        memory, end = f"{call.early_mb:.0f} to {call.late_mb:.0f} MiB", "killed" if call.killed else "ended"
        print(f"  {call.answered:>6} asked in {call.seconds:5.1f} s, {memory}, {end}", flush=True)
        if not call.killed:
            break
    with _variables(store):
        names = _recorded(out)
    return Drilled(
        expected=len(expected),
        answers=sum(names.values()),
        repeated=sum(times > 1 for times in names.values()),
        missing=len(set(expected) - names.keys()),
        requests=count() - before,
        calls=calls,
    )


def _call(command: list[str], target: int | None, count: Callable[[], int], store: Mapping[str, str]) -> Call:
    """Run the command; kill it once the server has answered `target` questions. Raises NotAnswering where it fails."""
    began, first = time.monotonic(), count()
    early = late = 0.0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **store})
        watched = psutil.Process(process.pid)
        while process.poll() is None and (target is None or count() < target):
            with contextlib.suppress(psutil.Error):
                late = watched.memory_info().rss / 2**20 or late  # 0 once it has ended
                if early == 0 and count() > first + 50:
                    early = late
            time.sleep(EVERY_S)
        killed = process.poll() is None
        process.kill()
        if process.wait() not in (0, -signal.SIGKILL):
            log.seek(0)
            raise NotAnswering(log.read().decode(errors="replace")[-2000:])
    return Call(count() - first, time.monotonic() - began, early or late, late, killed)


def _recorded(out: str) -> Counter[str]:
    """Count the lines about each picture in all parts."""
    store, names = open_store(out), Counter[str]()
    for path in store.walk():
        if path.startswith("part-"):
            with store.open(path) as file:
                names.update(json.loads(line)["file"] for line in file)
    return names


@contextlib.contextmanager
def _variables(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _server() -> Iterator[tuple[str, Callable[[], int]]]:
    """Serve the two toys with simulated engines in a thread. Yield the URL, and what counts its answers."""
    engines = {name: FakeEngine("a red circle", kept=0) for name in ("toy-llava", "toy-paligemma")}
    workers = [Worker(MODELS[name], engine) for name, engine in engines.items()]
    for worker in workers:
        worker.mark("ready", "ready")
    router = Router(workers)
    answered = [0]
    run = router.run

    def counted(plan: Any, count: Any = None) -> Any:
        answered[0] += 1
        return run(plan, count)

    router.run = counted  # type: ignore[method-assign]
    port = _free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(router), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", lambda: answered[0]
    finally:
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def _moto(pictures: int, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run moto with a bucket full of pictures. Yield the variables that name it. Raises NotAnswering without moto."""
    port = _free_port()
    command = [sys.executable, "-m", "loadtest.store", "--serve", str(port), str(pictures)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **environment})
        try:
            until = time.monotonic() + START_S
            while process.poll() is None and time.monotonic() < until:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.2)
            else:
                log.seek(0)
                raise NotAnswering(f"moto did not start: {log.read().decode(errors='replace')[-1000:]}")
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        finally:
            process.kill()
            process.wait()


def _serve_moto(port: int, pictures: int) -> None:
    """Serve a store with this many pictures until this process is killed."""
    from moto.s3.models import s3_backends  # type: ignore[import-not-found]
    from moto.server import ThreadedMotoServer  # type: ignore[import-not-found]

    backend = s3_backends["123456789012"]["aws"]
    for bucket in (BUCKET, OUT):
        backend.create_bucket(bucket, "us-east-1")
    for number in range(pictures):
        backend.put_object(BUCKET, f"{number % 100:02d}/{number:07d}.png", _picture(number))
    _page_quickly(backend, backend.buckets[BUCKET])
    ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False).start()
    threading.Event().wait()


def _page_quickly(backend: Any, filled: Any) -> None:
    """Let moto list a bucket that stays as it is from a list of its names. For each page of a thousand it goes through
    all keys and sorts them: a minute for 25,000 keys, a quarter of an hour for 100,000."""
    by_all_keys, names = backend.list_objects_v2, sorted(filled.keys)

    def listed(bucket: Any, prefix: str | None, delimiter: str | None, continuation_token: str | None,
               start_after: str | None, max_keys: int) -> tuple[list[Any], bool, str | None]:  # fmt: skip
        if bucket is not filled or prefix or delimiter:
            whole: tuple[list[Any], bool, str | None] = by_all_keys(
                bucket, prefix, delimiter, continuation_token, start_after, max_keys
            )
            return whole
        first = bisect.bisect_right(names, continuation_token or start_after or "")
        page = names[first : first + max_keys]
        more = first + max_keys < len(names)
        return [bucket.keys[name] for name in page], more, page[-1] if more else None

    backend.list_objects_v2 = listed


def _picture(number: int) -> bytes:
    file = io.BytesIO()
    colour = number & 255, number >> 8 & 255, number >> 16 & 255
    PIL.Image.new("RGB", (8, 8), colour).save(file, "PNG", compress_level=1)
    return file.getvalue()


def listed(names: int) -> list[tuple[int, float]]:
    """Return the resident memory in MiB of a new process after each tenth of the names of a list was taken."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "list.jsonl")
        with path.open("w") as file:
            for number in range(names):
                file.write(f'{{"image": "s3://{BUCKET}/{number % 100:02d}/{number:07d}.png"}}\n')
        command = [sys.executable, "-m", "loadtest.store", "--take", str(path), str(max(1, names // 10))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [(int(count), float(megabytes)) for count, megabytes in map(str.split, done.stdout.splitlines())]


def _take(path: str, every: int) -> None:
    """Take all pictures of a list, as `diptych run` does, and print its memory at times."""
    process = psutil.Process()
    print(0, process.memory_info().rss / 2**20)
    for count, _ in enumerate(open_source(path).pictures(skip=Taken(NameSet())), 1):
        if count % every == 0:
            print(count, process.memory_info().rss / 2**20)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve_moto(int(sys.argv[2]), int(sys.argv[3]))
    else:
        _take(sys.argv[2], int(sys.argv[3]))
