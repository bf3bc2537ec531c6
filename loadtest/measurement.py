"""Measures a server under one kind of load for some seconds."""

import statistics
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.client import Client
from loadtest.ledger import percentile
from loadtest.pictures import bodies
from loadtest.servers import MODEL, Server


@dataclass(frozen=True)
class Case:
    """A kind of load. level: clients of a closed loop, requests a second of an open one. tokens: of every reply."""

    loop: str
    level: float
    stream: bool
    tokens: int
    size: str
    count: int
    repeat: int = 0

    @property
    def name(self) -> str:
        level = f"{self.level:g} clients" if self.loop == "closed" else f"{self.level:g}/s open"
        how = "streamed" if self.stream else "whole"
        return f"{how}, {level}, {self.tokens} tokens, {self.size}{', repeated' if self.repeat else ''}"


@dataclass
class Measurement:
    """The numbers of a case on a server (by its key), in milliseconds.

    cpu: of a request, by role of process; gap: between pieces of one stream.
    """

    side: str
    case: Case
    round: int
    rate: float
    first: float
    first_p95: float
    latency: float
    latency_p95: float
    gap: float
    gap_p95: float
    cpu: dict[str, float]
    memory_mb: dict[str, float]
    errors: int
    error: str
    prompt_tokens: int
    tokens: int

    @property
    def outside(self) -> float:
        """Return the CPU of a request outside the engine."""
        return sum(spent for role, spent in self.cpu.items() if role != "engine")


async def measure(server: Server, case: Case, round: int) -> Measurement:
    """Measure a case. Every round has pictures of its own, and every server of a round the same ones.

    A server that forwards to another gets pictures of its own: the other, measured later, would have them cached.
    """
    seed = zlib.crc32(repr((case, round, server.upstream is not None)).encode())
    sent = bodies(MODEL, case.size, case.count, tokens=case.tokens, stream=case.stream, seed=seed, repeat=case.repeat)
    client = Client(server.chat)
    before = server.cpu()
    if case.loop == "closed":
        seconds, results = await client.closed(sent, int(case.level), stream=case.stream)
    else:
        seconds, results = await client.open(sent, case.level, stream=case.stream, seed=round)
    spent = server.cpu_since(before)
    good = [result for result in results if not result.error] or results[:1]
    errors = [result.error for result in results if result.error]
    first, latency = [result.first for result in good], [result.seconds for result in good]
    gaps = [gap for result in good for gap in result.gaps]
    return Measurement(
        side=server.kind.key,
        case=case,
        round=round,
        rate=(len(results) - len(errors)) / seconds,
        first=_ms(first, 0.5),
        first_p95=_ms(first, 0.95),
        latency=_ms(latency, 0.5),
        latency_p95=_ms(latency, 0.95),
        gap=_ms(gaps, 0.5),
        gap_p95=_ms(gaps, 0.95),
        cpu={role: 1000 * used / len(results) for role, used in spent.items()},
        memory_mb=server.memory(),
        errors=len(errors),
        error=errors[0] if errors else "",
        prompt_tokens=good[0].prompt_tokens,
        tokens=int(statistics.median(result.tokens for result in good)),
    )


def _ms(seconds: Sequence[float], share: float) -> float:
    return 1000 * percentile(seconds, share)
