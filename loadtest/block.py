"""One server under one kind of load for some seconds, and what that gave."""

import statistics
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.caller import Caller
from loadtest.ledger import percentile
from loadtest.pictures import bodies
from loadtest.sides import MODEL, Side


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
class Block:
    """What it gave. Milliseconds; cpu: of a request, by role of process; gap: between pieces of one stream."""

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
        """CPU of a request outside the engine."""
        return sum(spent for role, spent in self.cpu.items() if role != "engine")


async def measure(side: Side, case: Case, at: int) -> Block:
    """One block. Every round has pictures of its own, and every side of a round the same ones.

    But for one that stands before another: its pictures would be in the other's caches, which is measured after it.
    """
    seed = zlib.crc32(repr((case, at, side.upstream is not None)).encode())
    asked = bodies(MODEL, case.size, case.count, tokens=case.tokens, stream=case.stream, seed=seed, repeat=case.repeat)
    caller = Caller(side.chat)
    before = side.cpu()
    if case.loop == "closed":
        seconds, seen = await caller.closed(asked, int(case.level), stream=case.stream)
    else:
        seconds, seen = await caller.open(asked, case.level, stream=case.stream, seed=at)
    spent = side.cpu_since(before)
    good = [one for one in seen if not one.error] or seen[:1]
    errors = [one.error for one in seen if one.error]
    gaps = [gap for one in good for gap in one.gaps]
    return Block(
        side=side.key,
        case=case,
        round=at,
        rate=(len(seen) - len(errors)) / seconds,
        first=_ms([one.first for one in good], 0.5),
        first_p95=_ms([one.first for one in good], 0.95),
        latency=_ms([one.seconds for one in good], 0.5),
        latency_p95=_ms([one.seconds for one in good], 0.95),
        gap=_ms(gaps, 0.5),
        gap_p95=_ms(gaps, 0.95),
        cpu={role: 1000 * used / len(seen) for role, used in spent.items()},
        memory_mb=side.memory(),
        errors=len(errors),
        error=errors[0] if errors else "",
        prompt_tokens=good[0].prompt_tokens,
        tokens=int(statistics.median(one.tokens for one in good)),
    )


def _ms(seconds: Sequence[float], share: float) -> float:
    return 1000 * percentile(seconds, share)
