"""The benchmarks' client: the same requests to any server, in a closed or an open loop, and the result of each.

aiohttp on uvloop, because the client shares the cores with what it measures: about 0.4 ms of CPU per whole reply.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT_S = 120.0


@dataclass
class Result:
    """A request as its client saw it. Seconds from sending it; gaps: between one piece with words and the next.

    due: when an open loop was to send it, in seconds from the loop's beginning.
    """

    due: float = 0.0
    seconds: float = 0.0
    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""


def read_completion(data: bytes, result: Result) -> None:
    count_tokens(json.loads(data)["usage"], result)


def read_chunk(event: dict[str, Any], result: Result) -> bool:
    """Read a chunk of a chat completion. Return whether it has text."""
    if event.get("usage"):
        count_tokens(event["usage"], result)
    return any(choice["delta"].get("content") for choice in event["choices"])


class Client:
    """POSTs bodies to one URL over connections that stay open.

    read: fills in a result from a whole reply's body; may raise what Python does where the body has another form.
    event: the same from an event of a stream; returns whether the event has text.
    """

    def __init__(
        self,
        url: str,
        read: Callable[[bytes, Result], None] = read_completion,
        event: Callable[[dict[str, Any], Result], bool] = read_chunk,
    ) -> None:
        self.url, self._read, self._event = url, read, event

    async def closed(self, bodies: Sequence[bytes], clients: int, *, stream: bool) -> tuple[float, list[Result]]:
        """Send from `clients` clients, each waiting for its answer. Return (seconds, results)."""
        waiting = iter(bodies)
        results: list[Result] = []

        async def client(http: aiohttp.ClientSession) -> None:
            for body in waiting:
                results.append(await self.call(http, body, stream))

        async with session() as http:
            began = time.perf_counter()
            await asyncio.gather(*(client(http) for _ in range(clients)))
            return time.perf_counter() - began, results

    async def open(
        self, bodies: Sequence[bytes], rate: float, *, stream: bool, seed: int
    ) -> tuple[float, list[Result]]:
        """Send `rate` requests a second (Poisson), answered or not. Return (seconds, results)."""
        jobs: list[asyncio.Task[Result]] = []
        async with session() as http:
            began = time.perf_counter()
            times = arrivals(rate, random.Random(seed))
            for body in bodies:
                due = await anext(times) - began
                jobs.append(asyncio.create_task(self.call(http, body, stream, due)))
            results = list(await asyncio.gather(*jobs))
            return time.perf_counter() - began, results

    async def call(self, http: aiohttp.ClientSession, body: bytes, stream: bool, due: float = 0.0) -> Result:
        """Send one request. Return its result, which has the error of one that failed."""
        result, began = Result(due), time.perf_counter()
        try:
            async with http.post(self.url, data=body) as reply:
                if reply.status != 200:
                    result.error = f"{reply.status} {(await reply.text())[:200]}"
                elif stream:
                    await read_stream(reply.content.iter_any(), result, began, self._event)
                else:
                    self._read(await reply.read(), result)
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError, AttributeError) as error:
            result.error = f"{type(error).__name__}: {error}"  # the last four: of an answer in another form
        result.seconds = time.perf_counter() - began
        if not stream:
            result.first = result.seconds
        return result


async def arrivals(rate: float, draw: random.Random) -> AsyncIterator[float]:
    """Wait for `rate` moments a second (Poisson), without end. Yield when each was due, by `time.perf_counter`."""
    due = time.perf_counter()
    while True:
        due += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield due


def session(timeout_s: float = TIMEOUT_S) -> aiohttp.ClientSession:
    """Return a session of as many connections as are needed, whose bodies are JSON."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        headers={"content-type": "application/json"},
    )


async def read_stream(
    chunks: AsyncIterator[bytes],
    result: Result,
    began: float,
    read: Callable[[dict[str, Any], Result], bool],
) -> None:
    """Read every event, as a real client would; pieces that arrive together count as one.

    read: fills in the result from an event, and returns whether the event has text.
    """
    rest, last, done = b"", 0.0, False
    async for chunk in chunks:
        now, has_words = time.perf_counter(), False
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                done = True
                continue
            event = json.loads(line[6:])
            if event.get("error"):
                raise ValueError(f"an error in the stream: {event['error']}")
            has_words |= read(event, result)
        if has_words:
            if last:
                result.gaps.append(now - last)
            else:
                result.first = now - began
            last = now
    if not done:
        raise ValueError("the stream ended without [DONE]")


def count_tokens(usage: dict[str, int], result: Result) -> None:
    result.prompt_tokens, result.tokens = usage["prompt_tokens"], usage["completion_tokens"]
