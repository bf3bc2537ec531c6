"""A Diptych of simulated models for chaos and soak tests: the real server, its processes by name, its clients."""

import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from loadtest.client import arrivals, session
from loadtest.ledger import Entry, Ledger
from loadtest.pictures import data_url, pictures
from loadtest.response_reader import ResponseReader
from loadtest.servers import Server, diptych, running, simulated

MODELS = ("one", "two", "three")
"""Asked in every fan-out; the others only by scenarios of their own."""
SMALL, LATE = "small", "late"
SPEED: dict[str, Any] = {"replies": "one two three four", "first_delay_s": 0.1, "delay_s": 0.05}
SLOTS, SMALL_S = 8, 0.8
QUEUE = 16
"""Requests that `small` takes at once, of which half waits: SLOTS / SMALL_S replies a second are all it can do."""
BROKEN: dict[str, dict[str, Any]] = {
    "empty": {"replies": ""},
    "long": {"replies": "x" * 300_000},
    "nan": {"replies": "red", "logprob": float("nan")},
    "breaking": {"replies": "one two three four", "fail_after": 2},
}
DEADLINE_S, TIMEOUT_S = 5.0, 60.0


@contextlib.contextmanager
def chaos_server() -> Iterator["ChaosServer"]:
    """Run the server until the block ends."""
    with tempfile.TemporaryDirectory(prefix="tally-") as tally:
        engines = {
            **dict.fromkeys(MODELS, SPEED),
            SMALL: {"replies": "yes", "first_delay_s": SMALL_S, "slots": SLOTS},
            LATE: {**SPEED, "first_delay_s": 20 * 0.3},
            **BROKEN,
        }
        models = [simulated(name, {**engine, "tally": tally}) for name, engine in engines.items()]
        models[list(engines).index(SMALL)]["max_ongoing_requests"] = QUEUE
        with running(diptych("W", "Diptych with simulated models", models)) as server:
            yield ChaosServer(server, Path(tally))


class ChaosServer:
    """The running server: its processes, and its clients."""

    def __init__(self, server: Server, tally: Path) -> None:
        self.tree = server.tree
        self.tally = tally
        self.url = server.url
        self.pictures = [data_url(picture) for picture in islice(pictures("1x", 1), 64)]
        self.random = random.Random(1)

    def process(self, role: str) -> int:
        """Return the process of a role, as `Tree.process`."""
        return self.tree.process(role)

    def speaking(self) -> int:
        """Return how many answers simulated engines are giving now: files of the tally whose process lives."""
        owners = [name.partition("-")[0] for name in os.listdir(self.tally)]
        return sum(psutil.pid_exists(int(owner)) for owner in owners)

    async def quiet(self, within_s: float) -> float:
        """Return the seconds until no engine speaks any more; infinite where that takes longer than `within_s`."""
        began = time.monotonic()
        while time.monotonic() < began + within_s:
            if not self.speaking():
                return time.monotonic() - began
            await asyncio.sleep(0.05)
        return float("inf")

    def memory(self) -> float:
        """Return the MiB of all its processes."""
        return sum(self.tree.memory().values())

    @contextlib.asynccontextmanager
    async def load(self, rate: float = 12.0, **fields: Any) -> AsyncIterator[Ledger]:
        """Send `rate` requests a second (Poisson), half of them streamed, until the block ends; wait for all of them.

        fields: of the request, in place of a fan-out to MODELS.
        """
        ledger = Ledger()
        jobs: list[asyncio.Task[None]] = []

        async def send() -> None:
            async for _ in arrivals(rate, self.random):
                question = self.question(stream=self.random.random() < 0.5, **fields)
                asking = self.ask(http, ledger, json.dumps(question).encode(), question["deadline_s"])
                jobs.append(asyncio.create_task(asking))

        async with session(TIMEOUT_S) as http:
            sending = asyncio.create_task(send())
            try:
                yield ledger
            finally:
                sending.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)

    def question(self, **fields: Any) -> dict[str, Any]:
        """Return a fan-out to MODELS about one of 64 pictures."""
        question = {"image": self.random.choice(self.pictures), "question": "what is it?", "deadline_s": DEADLINE_S}
        return {**question, "models": list(MODELS), **fields}

    async def ask(self, http: aiohttp.ClientSession, ledger: Ledger, body: bytes, deadline_s: float) -> None:
        """Send a request and record its end. Gives up two seconds after the deadline: then it counts as hung."""
        entry = Entry(time.monotonic(), deadline_s)
        ledger.entries.append(entry)
        try:
            async with asyncio.timeout(deadline_s + 2.0), http.post(f"{self.url}/v1/tasks/vqa", data=body) as reply:
                entry.status = reply.status
                entry.retry_after = reply.headers.get("retry-after", "")
                data = await reply.read()
            entry.last = time.monotonic()
            record(entry, data, reply.content_type)
        except TimeoutError:
            entry.trouble = "hung"
        except aiohttp.ClientError as error:
            entry.last, entry.trouble = time.monotonic(), type(error).__name__


def record(entry: Entry, data: bytes, content_type: str) -> None:
    """Record a task's answer: its columns, its error, and whether it is whole."""
    reader = ResponseReader()
    if content_type == "text/event-stream":
        for line in data.splitlines():
            reader.line(line, 0.0)
    else:
        reader.body(data, 0.0)
    entry.whole, entry.code = reader.whole, reader.code
    entry.columns = {column.model: column.code or column.status for column in reader.columns}
