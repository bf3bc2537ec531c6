"""Half an hour of well and badly behaved clients, to see whether memory or anything else creeps: `make soak`.

Simulated models behind the real gateway, replicas and Ray. Of all requests three in ten leave at a random moment, one
in ten is wrong or asks a model that breaks off; the rest are fan-outs and single questions, whole and streamed, each
with a picture of its own. Memory, file descriptors and threads of every process are counted.
"""

import argparse
import asyncio
import base64
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import aiohttp
import numpy as np
import uvloop

from loadtest.arguments import positive
from loadtest.chaos_server import MODELS, TIMEOUT_S, ChaosServer, chaos_server, record
from loadtest.client import arrivals, session
from loadtest.ledger import Entry
from loadtest.pictures import pictures
from loadtest.servers import metrics

RATE = 20.0
LEAVE, WRONG = 0.3, 0.1
EVERY_S = 10.0
WARM = 0.2
"""The share of the run that is not judged: caches fill, allocators find their size."""
LIMIT = 1.0
"""MB a thousand requests."""


@dataclass(frozen=True)
class Sample:
    """Counts by role of process, after this number of requests. memory: MiB (proportional set size)."""

    at_s: float
    requests: int
    memory: dict[str, float]
    descriptors: dict[str, float]
    threads: dict[str, float]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=positive, default=30.0)
    parser.add_argument("--rate", type=positive, default=RATE, help="requests a second")
    parser.set_defaults(out="build/soak")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Run the load. Met: nothing creeps, nothing is left over, every answer is as expected."""
    with contextlib.suppress(OSError):
        os.nice(5)
    with chaos_server() as server:
        soak = Soak(server, options.rate)
        uvloop.run(soak.run(60 * options.minutes))
    return "soak", [asdict(sample) for sample in soak.samples], _report(soak)


class Soak:
    """A run: the outcomes of its requests, and the resources of the processes meanwhile. Seeded."""

    def __init__(self, server: ChaosServer, rate: float) -> None:
        self.server = server
        self.rate = rate
        self.samples: list[Sample] = []
        self.outcomes: Counter[str] = Counter()
        self.left_speaking = self.left_running = 0
        self._random = random.Random(28)
        self._base = list(islice(pictures("1x", 28), 32))
        self._began = time.monotonic()

    async def run(self, seconds: float) -> None:
        """Ask for so many seconds, wait for the answers, and count once more."""
        self._began = time.monotonic()
        jobs: set[asyncio.Task[None]] = set()
        watching = asyncio.create_task(self._watch())
        async with session(TIMEOUT_S) as http:
            questions = self._questions()
            async for due in arrivals(self.rate, self._random):
                if due > self._began + seconds:
                    break
                job = asyncio.create_task(self._ask(http, *next(questions)))
                jobs.add(job)
                job.add_done_callback(jobs.discard)
            await asyncio.gather(*jobs)
        watching.cancel()
        await self.server.quiet(10)
        await asyncio.sleep(2)
        self.left_speaking = self.server.speaking()
        try:
            gauges = await asyncio.to_thread(metrics, self.server.url)
            self.left_running = round(gauges["diptych_requests_running"]) - 1  # but for the request for the metrics
        except OSError as error:
            self.outcomes[f"UNEXPECTED no metrics at the end: {error}"] += 1
        self.samples.append(self._sample())

    def _questions(self) -> Iterator[tuple[str, str, dict[str, Any], float | None]]:
        """Yield (expected status, path, body, seconds after which the client leaves, if it does), without end."""
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
                text = {"type": "text", "text": "what is it?"}
                content = [{"type": "image_url", "image_url": {"url": image}}, text]
                chat = {"model": draw.choice(MODELS), "stream": stream}
                body = {**chat, "messages": [{"role": "user", "content": content}]}
                yield "200", "/v1/chat/completions", body, leaves

    def _picture(self) -> str:
        """Return a data URL that no cache has seen: bytes behind a JPEG's end are no part of its picture."""
        file = self._random.choice(self._base) + self._random.randbytes(8)
        return "data:image/jpeg;base64," + base64.b64encode(file).decode()

    async def _ask(
        self, http: aiohttp.ClientSession, expected: str, path: str, body: dict[str, Any], leaves: float | None
    ) -> None:
        try:
            async with asyncio.timeout(leaves), http.post(self.server.url + path, json=body) as reply:
                data = await reply.read()
        except TimeoutError:
            late = leaves is None  # it was the session's patience that ended
            self.outcomes[f"UNEXPECTED no answer within {http.timeout.total:g} s" if late else "left"] += 1
        except aiohttp.ClientError as error:
            self.outcomes[f"UNEXPECTED {type(error).__name__}"] += 1
        else:
            self.outcomes[outcome(expected, reply.status, data, reply.content_type)] += 1

    async def _watch(self) -> None:
        while True:
            self.samples.append(await asyncio.to_thread(self._sample))
            await asyncio.sleep(EVERY_S)

    def _sample(self) -> Sample:
        tree = self.server.tree
        at = time.monotonic() - self._began
        return Sample(at, self.outcomes.total(), tree.memory(), tree.descriptors(), tree.threads())


def outcome(expected: str, status: int, data: bytes, content_type: str) -> str:
    """Return the expected status, or what is wrong with an answer: its status, an error in it, or that it is cut."""
    if str(status) != expected:
        return f"UNEXPECTED {status}, not {expected}"
    answer = Entry(0.0, 0.0)
    record(answer, data, content_type)
    if status == 200 and (answer.code or not answer.whole):
        return f"UNEXPECTED {status} with {f'the error {answer.code}' if answer.code else 'half an answer'}"
    return expected


def slope(samples: Sequence[Sample], role: str | None) -> tuple[float, float]:
    """Fit memory by requests after warm-up, of a role or of all. Return (MB a thousand requests, standard error)."""
    judged = samples[int(WARM * len(samples)) :]
    count = np.array([sample.requests / 1000 for sample in judged])
    memory = [sum(sample.memory.values()) if role is None else sample.memory.get(role, 0.0) for sample in judged]
    if len(judged) < 3 or np.ptp(count) == 0:
        return 0.0, float("inf")
    steep, base = np.polyfit(count, memory, 1)
    residual = float(np.sum((np.array(memory) - (steep * count + base)) ** 2) / (len(judged) - 2))
    return float(steep), float(np.sqrt(residual / np.sum((count - count.mean()) ** 2)))


def _report(soak: Soak) -> bool:
    first, last = soak.samples[int(WARM * len(soak.samples))], soak.samples[-1]
    print(f"{soak.outcomes.total()} requests in {last.at_s / 60:.1f} minutes: {dict(soak.outcomes)}")
    print(f"{'':<12} {'MB':>14} {'MB a 1000':>18} {'descriptors':>14} {'threads':>12}")
    for role in sorted(last.memory):
        steep, error = slope(soak.samples, role)
        print(
            f"{role:<12} {first.memory.get(role, 0):>5.0f} -> {last.memory[role]:>5.0f} {steep:>8.3f} +- {error:<6.3f} "
            f"{first.descriptors.get(role, 0):>5.0f} -> {last.descriptors[role]:>5.0f} "
            f"{first.threads.get(role, 0):>4.0f} -> {last.threads[role]:>4.0f}"
        )
    steep, error = slope(soak.samples, None)
    unexpected = {outcome: count for outcome, count in soak.outcomes.items() if outcome.startswith("UNEXPECTED")}
    creeping = [role for role, count in last.descriptors.items() if count > first.descriptors.get(role, 0) + 20]
    verdicts = {
        f"memory {steep:.3f} +- {error:.3f} MB a 1000 requests, under {LIMIT:g}": steep < LIMIT and np.isfinite(error),
        f"file descriptors of {', '.join(creeping) or 'nobody'} creep": not creeping,
        f"{soak.left_speaking} answers are spoken after the last client left": not soak.left_speaking,
        f"{soak.left_running} requests are under way then, by the gateway's gauge": not soak.left_running,
        f"unexpected: {unexpected or 'nothing'}": not unexpected,
    }
    for text, held in verdicts.items():
        print(f"{'met   ' if held else 'MISSED'} {text}")
    return all(verdicts.values())
