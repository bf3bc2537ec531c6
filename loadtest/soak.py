"""Half an hour of ordinary and bad manners, and whether anything creeps: `make soak`.

Simulated models behind the real gateway, replicas and Ray. Of all requests three in ten leave at a random moment, one
in ten is wrong or asks a model that breaks off; the rest are fan-outs and single questions, whole and streamed, each
with a picture of its own. Memory, file descriptors and threads of every process are counted.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import uvloop

from loadtest.pictures import pictures
from loadtest.sides import Refused
from loadtest.world import MODELS, World, world

RATE = 20.0
LEAVE, WRONG = 0.3, 0.1
EVERY_S = 10.0
WARM = 0.2
"""This share of the run is not judged: caches fill, allocators find their size."""
LIMIT = 1.0
"""MB a thousand requests."""


@dataclass(frozen=True)
class Sample:
    """By role of process, after so many requests. memory: MiB (proportional set size)."""

    at_s: float
    requests: int
    memory: dict[str, float]
    descriptors: dict[str, float]
    threads: dict[str, float]


def main() -> int:
    """0: nothing creeps; 1: something does; 2: it did not start."""
    parser = argparse.ArgumentParser("soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    parser.add_argument("--out", default="build/soak")
    options = parser.parse_args()
    try:
        with world() as running:
            soak = Soak(running, options.rate)
            uvloop.run(soak.run(60 * options.minutes))
    except Refused as refused:
        print(f"soak: {refused}", file=sys.stderr)
        return 2
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps([asdict(one) for one in soak.samples], indent=1))
    return _report(soak, out / "soak.json")


class Soak:
    """The run: what came of its requests, and what the processes used meanwhile. Seeded."""

    def __init__(self, running: World, rate: float) -> None:
        self.world = running
        self.rate = rate
        self.samples: list[Sample] = []
        self.came: Counter[str] = Counter()
        self.left_speaking = self.left_running = 0
        self._random = random.Random(28)
        self._base = [picture for _, picture in zip(range(32), pictures("1x", 28), strict=False)]
        self._began = time.monotonic()

    async def run(self, seconds: float) -> None:
        """Ask for so long, wait for what is under way, and look once more."""
        self._began = due = time.monotonic()
        jobs: set[asyncio.Task[None]] = set()
        watching = asyncio.create_task(self._watch())
        async with self.world.people() as session:
            for asked in self._questions():
                due += self._random.expovariate(self.rate)
                if due > self._began + seconds:
                    break
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                job = asyncio.create_task(self._ask(session, *asked))
                jobs.add(job)
                job.add_done_callback(jobs.discard)
            await asyncio.gather(*jobs)
        watching.cancel()
        await self.world.quiet(10)
        await asyncio.sleep(2)
        self.left_speaking = self.world.speaking()
        self.left_running = await self._running()
        self.samples.append(self._sample())

    async def _running(self) -> int:
        """What the gateway's gauge says, without the request that asks for it."""
        async with self.world.people() as people, people.get(f"{self.world.url}/metrics") as reply:
            line = next(one for one in (await reply.text()).splitlines() if one.startswith("diptych_requests_running "))
        return round(float(line.split()[1])) - 1

    def _questions(self) -> Iterator[tuple[str, str, dict[str, Any], float | None]]:
        """(what is expected, path, body, after how many seconds the client leaves), without end."""
        draw = self._random
        while True:
            leaves = draw.uniform(0.0, 0.6) if draw.random() < LEAVE else None
            image = self._picture()
            stream = draw.random() < 0.5
            task = {"image": image, "question": "what is it?", "stream": stream, "deadline_s": 10}
            if draw.random() < WRONG:
                yield draw.choice(
                    [
                        ("400", "/v1/tasks/vqa", {**task, "imagee": 1}, leaves),
                        ("400", "/v1/tasks/vqa", {**task, "image": "data:image/png;base64,AAAA"}, leaves),
                        ("404", "/v1/tasks/vqa", {**task, "models": ["nobody"]}, leaves),
                        ("200", "/v1/tasks/vqa", {**task, "models": [MODELS[0], "breaking"]}, leaves),
                    ]
                )
            elif draw.random() < 0.5:
                yield "200", "/v1/tasks/vqa", {**task, "models": list(MODELS)}, leaves
            else:
                words = {"type": "text", "text": "what is it?"}
                content = [{"type": "image_url", "image_url": {"url": image}}, words]
                chat = {"model": draw.choice(MODELS), "stream": stream}
                body = {**chat, "messages": [{"role": "user", "content": content}]}
                yield "200", "/v1/chat/completions", body, leaves

    def _picture(self) -> str:
        """A picture that nobody has seen: what stands behind a JPEG's end is no part of what it shows."""
        made = self._random.choice(self._base) + self._random.randbytes(8)
        return "data:image/jpeg;base64," + base64.b64encode(made).decode()

    async def _ask(
        self, session: aiohttp.ClientSession, expected: str, path: str, body: dict[str, Any], leaves: float | None
    ) -> None:
        try:
            async with asyncio.timeout(leaves), session.post(self.world.url + path, json=body) as reply:
                await reply.read()
        except TimeoutError:
            self.came["left"] += 1
        except aiohttp.ClientError as error:
            self.came[f"UNEXPECTED {type(error).__name__}"] += 1
        else:
            good = str(reply.status) == expected
            self.came[expected if good else f"UNEXPECTED {reply.status}, not {expected}"] += 1

    async def _watch(self) -> None:
        while True:
            self.samples.append(await asyncio.to_thread(self._sample))
            await asyncio.sleep(EVERY_S)

    def _sample(self) -> Sample:
        tree = self.world.side.tree
        at = time.monotonic() - self._began
        return Sample(at, self.came.total(), tree.memory(), tree.descriptors(), tree.threads())


def slope(samples: Sequence[Sample], role: str | None) -> tuple[float, float]:
    """MB a thousand requests after warm-up, of a role or of all, and its standard error, by least squares."""
    judged = samples[int(WARM * len(samples)) :]
    asked = np.array([one.requests / 1000 for one in judged])
    held = np.array([sum(one.memory.values()) if role is None else one.memory.get(role, 0.0) for one in judged])
    if len(judged) < 3 or np.ptp(asked) == 0:
        return 0.0, float("inf")
    steep, base = np.polyfit(asked, held, 1)
    residual = float(np.sum((held - (steep * asked + base)) ** 2) / (len(judged) - 2))
    return float(steep), float(np.sqrt(residual / np.sum((asked - asked.mean()) ** 2)))


def _report(soak: Soak, file: Path) -> int:
    first, last = soak.samples[int(WARM * len(soak.samples))], soak.samples[-1]
    print(f"{soak.came.total()} requests in {last.at_s / 60:.1f} minutes: {dict(soak.came)}")
    print(f"{'':<12} {'MB':>14} {'MB a 1000':>18} {'descriptors':>14} {'threads':>12}")
    for role in sorted(last.memory):
        steep, error = slope(soak.samples, role)
        print(
            f"{role:<12} {first.memory.get(role, 0):>5.0f} -> {last.memory[role]:>5.0f} {steep:>8.3f} +- {error:<6.3f} "
            f"{first.descriptors.get(role, 0):>5.0f} -> {last.descriptors[role]:>5.0f} "
            f"{first.threads.get(role, 0):>4.0f} -> {last.threads[role]:>4.0f}"
        )
    steep, error = slope(soak.samples, None)
    unexpected = {what: count for what, count in soak.came.items() if what.startswith("UNEXPECTED")}
    creeping = [role for role, count in last.descriptors.items() if count > first.descriptors.get(role, 0) + 20]
    verdicts = {
        f"memory {steep:.3f} +- {error:.3f} MB a 1000 requests, under {LIMIT:g}": steep < LIMIT,
        f"file descriptors of {', '.join(creeping) or 'nobody'} creep": not creeping,
        f"{soak.left_speaking} answers are spoken after the last client left": not soak.left_speaking,
        f"{soak.left_running} requests are under way then, by the gateway's gauge": not soak.left_running,
        f"unexpected: {unexpected or 'nothing'}": not unexpected,
    }
    for words, held in verdicts.items():
        print(f"{'met   ' if held else 'MISSED'} {words}")
    print(file)
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        os.nice(5)
    sys.exit(main())
