"""Counts requests and tokens of keys for all gateways: in one process, which the others ask.

A gateway that cannot reach that process lets in its share of each key's rate, and counts tokens by itself. Tokens are
reported as sums of a day, which only grow, so that a report that comes twice, or late, or after a restart, is right.
"""

import asyncio
import datetime
import logging
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from serve.api.usage_file import UsageFile

log = logging.getLogger(__name__)

ANSWER_S = 0.25
"""Seconds to wait for the process that counts."""
LOST_S = 5.0
"""Seconds for which it is not asked again once it did not answer."""
FORGOTTEN_S = 3600.0
"""Seconds after which an unused bucket is full again, and forgotten."""


class TokenUse(NamedTuple):
    """A key's tokens. day: the UTC date of `today`, as 2027-01-31; month: of its whole month until now."""

    day: str
    today: int
    month: int


class Quotas(Protocol):
    """Counts of all gateways."""

    async def take(self, bucket: str, per_minute: int) -> int:
        """Take one from a bucket that refills so often a minute. Return 0, or the seconds to wait where it is empty."""

    async def report(
        self, gateway: str, counts: Mapping[tuple[str, str], int], names: Collection[str]
    ) -> dict[str, TokenUse] | None:
        """Set a gateway's tokens by day and key; return the use of the named keys, None where it cannot be known."""


@dataclass
class _Level:
    """A bucket's level. tokens: what may be taken. counted_at: when that was updated (s)."""

    tokens: float
    counted_at: float


class Buckets:
    """Token buckets by name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: dict[str, _Level] = {}
        self._swept_at = clock()

    def take(self, name: str, per_minute: float) -> int:
        """Take one. Return 0, or the seconds to wait where there is none. It holds as many as refill in a minute."""
        now, holds, interval_s = self._clock(), max(1.0, per_minute), 60 / per_minute
        level = self._levels.setdefault(name, _Level(holds, now))
        level.tokens = min(holds, level.tokens + (now - level.counted_at) / interval_s)
        level.counted_at = now
        self._sweep(now)
        if level.tokens < 1:
            return math.ceil((1 - level.tokens) * interval_s)
        level.tokens -= 1
        return 0

    def _sweep(self, now: float) -> None:
        """Forget buckets that nobody has used for long: they would be full."""
        if now - self._swept_at > FORGOTTEN_S:
            self._swept_at = now
            oldest = now - FORGOTTEN_S
            self._levels = {name: level for name, level in self._levels.items() if level.counted_at > oldest}


class OwnQuotas:
    """Quotas in this process. file: keeps tokens over a restart."""

    def __init__(self, file: UsageFile | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.file = file
        self._buckets = Buckets(clock)
        self._counts: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        """Tokens of each gateway, by day and key."""

    async def take(self, bucket: str, per_minute: int) -> int:
        return self._buckets.take(bucket, per_minute)

    async def report(
        self, gateway: str, counts: Mapping[tuple[str, str], int], names: Collection[str]
    ) -> dict[str, TokenUse] | None:
        today = utc_day()
        if self.file is not None:
            try:
                sums = await self.file.report(gateway, counts, names, today)
            except OSError as error:
                log.error("the tokens of keys cannot be written: %s", error)
                return None
            return {name: TokenUse(today, *sums[name]) for name in names}
        for entry, count in counts.items():
            by_gateway = self._counts[entry]
            by_gateway[gateway] = max(count, by_gateway.get(gateway, 0))
        for entry in [entry for entry in self._counts if entry[0][:7] < today[:7]]:
            del self._counts[entry]
        return {name: self._use(name, today) for name in names}

    def _use(self, name: str, today: str) -> TokenUse:
        by_day = {day: sum(by_gateway.values()) for (day, key), by_gateway in self._counts.items() if key == name}
        month = sum(count for day, count in by_day.items() if day[:7] == today[:7])
        return TokenUse(today, by_day.get(today, 0), month)


class SharedQuotas:
    """Quotas in another process. ask: calls a method there. gateways: how many may share the rates while it is lost."""

    def __init__(
        self,
        ask: Callable[..., Awaitable[Any]],
        gateways: int,
        clock: Callable[[], float] = time.monotonic,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.gateways = gateways
        self._ask, self._clock, self._answer_s = ask, clock, answer_s
        self._share = Buckets(clock)
        self._lost_until = 0.0

    async def take(self, bucket: str, per_minute: int) -> int:
        # counted here as well, so that a loss does not begin with a full bucket
        own_wait_s = self._share.take(bucket, per_minute / self.gateways)
        shared_wait_s = await self._answer("take", bucket, per_minute)
        return own_wait_s if shared_wait_s is None else int(shared_wait_s)

    async def report(
        self, gateway: str, counts: Mapping[tuple[str, str], int], names: Collection[str]
    ) -> dict[str, TokenUse] | None:
        uses: dict[str, TokenUse] | None = await self._answer("report", gateway, counts, names)
        return uses

    async def _answer(self, method: str, *arguments: Any) -> Any:
        """Return what the method returns; None where the process does not answer."""
        if self._clock() < self._lost_until:
            return None
        try:
            async with asyncio.timeout(self._answer_s):
                return await self._ask(method, *arguments)
        except Exception as error:  # any: a key's request must not fail because it cannot be counted
            log.warning("quotas are not shared with other gateways for now: %s", type(error).__name__)
            self._lost_until = self._clock() + LOST_S
            return None


def utc_day() -> str:
    """Return today's date in UTC, as 2027-01-31."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
