"""A Diptych of simulated models to be broken: the real server, its processes by name, clients who note everything."""

import asyncio
import contextlib
import json
import os
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from loadtest.ledger import Entry, Ledger
from loadtest.pictures import data_url, pictures
from loadtest.processes import command_line
from loadtest.sides import Side, Sort, diptych_with, running

MODELS = ("one", "two", "three")
"""Asked in every fan-out; the others only by scenarios of their own."""
SMALL, LATE = "small", "late"
SPEED: dict[str, Any] = {"replies": "one two three four", "first_delay_s": 0.1, "delay_s": 0.05}
SLOTS, SMALL_S = 8, 0.8
ROOM = 16
"""What `small` takes at once, of which half waits: SLOTS / SMALL_S replies a second are all it can do."""
BROKEN: dict[str, dict[str, Any]] = {
    "empty": {"replies": ""},
    "long": {"replies": "x" * 300_000},
    "nan": {"replies": "red", "logprob": float("nan")},
    "breaking": {"replies": "one two three four", "fail_after": 2},
}
DEADLINE_S = 5.0
JSON = {"content-type": "application/json"}
ROLE = re.compile(r"ray::ServeReplica:[^:]*:(\S+)|(ServeController)|(gcs_server)|(raylet)")


@contextlib.contextmanager
def world() -> Iterator["World"]:
    """The server, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="tally-") as tally:
        simulated = {
            **dict.fromkeys(MODELS, SPEED),
            SMALL: {"replies": "yes", "first_delay_s": SMALL_S, "slots": SLOTS},
            LATE: {**SPEED, "first_delay_s": 20 * 0.3},
            **BROKEN,
        }

        def command(port: int, folder: Path) -> list[str]:
            models = [
                {
                    "name": name,
                    "like": "toy-llava",
                    "checkpoint": str(folder),
                    "simulate": {**said, "tally": tally},
                    **({"max_ongoing_requests": ROOM} if name == SMALL else {}),
                }
                for name, said in simulated.items()
            ]
            return diptych_with(models, port, folder)

        sort = Sort("W", "Diptych with simulated models", "driver", command, model=MODELS[0])
        with running(sort) as side:
            yield World(side, Path(tally))


class World:
    """The server that runs, and what can be done to it and asked of it."""

    def __init__(self, side: Side, tally: Path) -> None:
        self.side = side
        self.tally = tally
        self.url = side.url
        self.pictures = [data_url(picture) for _, picture in zip(range(64), pictures("1x", 1), strict=False)]
        self.random = random.Random(1)

    def process(self, role: str) -> int:
        """The process of a model's replica, "gateway", "controller", "gcs_server" or "raylet". Raises LookupError."""
        for process in self.side.tree.all():
            found = ROLE.search(self._title(process))
            name = next((group for group in found.groups() if group), "") if found else ""
            if name == role or (role == "controller" and name == "ServeController"):
                return process
        raise LookupError(role)

    def _title(self, process: int) -> str:
        line = command_line(process)
        return line if line.startswith("ray::") else os.path.basename(line.split(" ")[0])

    def speaking(self) -> int:
        """Answers that simulated engines are giving now: files of the tally whose process lives."""
        owners = [name.partition("-")[0] for name in os.listdir(self.tally)]
        return sum(psutil.pid_exists(int(owner)) for owner in owners)

    async def quiet(self, within_s: float) -> float:
        """Seconds until no engine speaks any more; infinite where that does not come in time."""
        began = time.monotonic()
        while time.monotonic() < began + within_s:
            if not self.speaking():
                return time.monotonic() - began
            await asyncio.sleep(0.05)
        return float("inf")

    def memory(self) -> float:
        """MiB of all its processes."""
        return sum(self.side.memory().values())

    @contextlib.asynccontextmanager
    async def people(self) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
            yield session

    @contextlib.asynccontextmanager
    async def load(self, rate: float = 12.0, **fields: Any) -> AsyncIterator[Ledger]:
        """So many requests a second (Poisson), half of them streamed, for as long as the block runs; then all are
        waited for. fields: of the request, in place of a fan-out to MODELS."""
        ledger = Ledger()
        jobs: list[asyncio.Task[Entry]] = []

        async def send() -> None:
            due = time.monotonic()
            while True:
                due += self.random.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                asked = self.question(stream=self.random.random() < 0.5, **fields)
                asking = self.ask(session, ledger, self.encoded(asked), asked["deadline_s"])
                jobs.append(asyncio.create_task(asking))

        async with self.people() as session:
            sending = asyncio.create_task(send())
            try:
                yield ledger
            finally:
                sending.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)

    def question(self, **fields: Any) -> dict[str, Any]:
        """A fan-out to MODELS about a picture of 64."""
        asked = {"image": self.random.choice(self.pictures), "question": "what is it?", "deadline_s": DEADLINE_S}
        return {**asked, "models": list(MODELS), **fields}

    @staticmethod
    def encoded(asked: Mapping[str, Any]) -> bytes:
        return json.dumps(asked).encode()

    async def ask(
        self, session: aiohttp.ClientSession, ledger: Ledger, body: bytes, deadline_s: float = DEADLINE_S
    ) -> Entry:
        """Ask it, and note what came. Gives up two seconds after the deadline: that is a request that hung."""
        entry = Entry(time.monotonic(), deadline_s)
        ledger.entries.append(entry)
        try:
            async with (
                asyncio.timeout(entry.deadline_s + 2.0),
                session.post(f"{self.url}/v1/tasks/vqa", data=body, headers=JSON) as reply,
            ):
                entry.status = reply.status
                entry.retry_after = reply.headers.get("retry-after", "")
                data = bytearray()
                async for part in reply.content.iter_any():
                    entry.first = entry.first or time.monotonic()
                    data += part
            entry.last = time.monotonic()
            _note(entry, bytes(data), reply.content_type)
        except TimeoutError:
            entry.trouble = "hung"
        except aiohttp.ClientError as error:
            entry.last, entry.trouble = time.monotonic(), type(error).__name__
        return entry


def _note(entry: Entry, data: bytes, content_type: str) -> None:
    """What an answer says. A stream's columns are its `reply` events, a body's its replies."""
    if content_type == "text/event-stream":
        entry.whole = data.endswith(b"data: [DONE]\n\n")
        replies = []
        for block in data.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
            if lines.get("event") == "reply":
                replies.append(json.loads(lines["data"]))
            elif lines.get("event") == "error":
                entry.code = json.loads(lines["data"])["error"]["code"] or "error"
    else:
        try:
            body = json.loads(data)
        except ValueError:
            return
        entry.whole = True
        replies = body.get("replies", [])
        entry.code = (body.get("error") or {}).get("code") or ""
    entry.columns = {one["model"]: "ok" if one["status"] == "ok" else _code(one) for one in replies}


def _code(reply: Mapping[str, Any]) -> str:
    return (reply["error"] or {}).get("code") or str(reply["status"])
