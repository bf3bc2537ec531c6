"""The client: the same requests to any server, in a closed or an open loop, and what each of them saw.

aiohttp on uvloop, because the client shares the cores with what it measures: about 0.4 ms of CPU per whole reply.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

TIMEOUT_S = 120.0


@dataclass
class Seen:
    """One request as its client saw it. Seconds from sending it; gaps: between one piece with words and the next.

    due: when an open loop was to send it, in seconds from the loop's beginning.
    """

    due: float = 0.0
    seconds: float = 0.0
    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""


class Caller:
    """POSTs bodies to one URL over connections that stay open.

    read: what becomes of a reply's body; raises ValueError or LookupError where it is not as it should be.
    """

    def __init__(self, url: str, read: Callable[[bytes, Seen], None] | None = None) -> None:
        self.url, self._read = url, read or _completion

    async def closed(self, bodies: Sequence[bytes], clients: int, *, stream: bool) -> tuple[float, list[Seen]]:
        """Each of `clients` sends its next request when its last one is answered. Gives (seconds, every request)."""
        waiting = iter(bodies)
        seen: list[Seen] = []

        async def client(session: aiohttp.ClientSession) -> None:
            for body in waiting:
                seen.append(await self._call(session, body, stream))

        async with _session() as session:
            began = time.perf_counter()
            await asyncio.gather(*(client(session) for _ in range(clients)))
            return time.perf_counter() - began, seen

    async def open(self, bodies: Sequence[bytes], rate: float, *, stream: bool, seed: int) -> tuple[float, list[Seen]]:
        """Requests arrive by themselves, `rate` a second (Poisson), whether or not the last ones are answered."""
        draw = random.Random(seed)
        jobs: list[asyncio.Task[Seen]] = []
        async with _session() as session:
            began = due = time.perf_counter()
            for body in bodies:
                due += draw.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                jobs.append(asyncio.create_task(self._call(session, body, stream, due - began)))
            seen = list(await asyncio.gather(*jobs))
            return time.perf_counter() - began, seen

    async def _call(self, session: aiohttp.ClientSession, body: bytes, stream: bool, due: float = 0.0) -> Seen:
        seen, began = Seen(due), time.perf_counter()
        try:
            async with session.post(self.url, data=body) as reply:
                if reply.status != 200:
                    seen.error = f"{reply.status} {(await reply.text())[:200]}"
                elif stream:
                    await _stream(reply.content.iter_any(), seen, began)
                else:
                    self._read(await reply.read(), seen)
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError) as error:
            seen.error = f"{type(error).__name__}: {error}"
        seen.seconds = time.perf_counter() - began
        if not stream:
            seen.first = seen.seconds
        return seen


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        headers={"content-type": "application/json"},
    )


def _completion(data: bytes, seen: Seen) -> None:
    reply = json.loads(data)
    seen.text = reply["choices"][0]["message"]["content"]
    _count(reply["usage"], seen)


async def _stream(chunks: AsyncIterator[bytes], seen: Seen, began: float) -> None:
    """Every event is read, as a real client would; pieces that arrive together are one."""
    rest, last, done = b"", 0.0, False
    async for chunk in chunks:
        now, words = time.perf_counter(), False
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                done = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(f"an error in the stream: {event['error']}")
            for choice in event["choices"]:
                said = choice["delta"].get("content")
                if said:
                    words, seen.text = True, seen.text + said
            if event.get("usage"):
                _count(event["usage"], seen)
        if words:
            if last:
                seen.gaps.append(now - last)
            else:
                seen.first = now - began
            last = now
    if not done:
        raise ValueError("the stream ended without [DONE]")


def _count(usage: dict[str, int], seen: Seen) -> None:
    seen.prompt_tokens, seen.tokens = usage["prompt_tokens"], usage["completion_tokens"]
