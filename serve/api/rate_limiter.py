"""Limits what each key asks: requests and pictures a minute, requests at once, tokens a day and a month."""

import asyncio
import contextlib
import datetime
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from serve.api.quotas import OwnQuotas, Quotas, TokenUse, utc_day
from serve.errors import QuotaUsedUp, TooMany
from serve.limits import RateLimits

AT_ONCE_RETRY_S = 1
REFRESH_S = 1.0
"""Seconds for which a key's use of tokens, of all gateways, is taken as known; and between two reports of its own."""


@dataclass
class _Budget:
    """A key's use of tokens in all gateways at a time, of which `own` were this one's. at: when it was learned."""

    use: TokenUse
    own: int
    at: float


class RateLimiter:
    """The limits of this gateway's keys. It lives as long as its process: use stays counted when keys or limits change.

    quotas: where requests and tokens of all gateways are counted; this process alone by default. Requests at once are
    counted here.
    """

    def __init__(self, quotas: Quotas | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.quotas: Quotas = quotas or OwnQuotas(clock=clock)
        self._clock = clock
        self._gateway = secrets.token_hex(8)
        self._running: defaultdict[str, int] = defaultdict(int)
        self._tokens: defaultdict[tuple[str, str], int] = defaultdict(int)
        """The tokens of this process, by day and key."""
        self._unreported = False
        self._budgets: dict[str, _Budget] = {}

    async def start(self, name: str, limits: RateLimits) -> None:
        """Start a request of this key; `finish` ends it. Raises TooMany or QuotaUsedUp where it may not start now."""
        at_once = limits.requests_at_once
        if at_once is not None and self._running[name] >= at_once:
            raise TooMany(f"The key {name} may have {at_once} requests running at once.", retry_after_s=AT_ONCE_RETRY_S)
        self._running[name] += 1
        try:
            await self._check_budget(name, limits)
            await self._take(name, "requests", limits.requests_per_minute)
        except BaseException:
            self._running[name] -= 1
            raise

    async def take_picture(self, name: str, limits: RateLimits) -> None:
        """Count a picture of this key. Raises TooMany where it has none left for now."""
        await self._take(name, "pictures", limits.pictures_per_minute)

    def finish(self, name: str, tokens: int = 0) -> None:
        """End a request of this key, which has used so many tokens."""
        self._running[name] -= 1
        if tokens:
            self._tokens[utc_day(), name] += tokens
            self._unreported = True

    async def report(self) -> None:
        """Report all tokens of this process: who counts them may have been started anew."""
        self._unreported, tokens = False, dict(self._tokens)
        if await self.quotas.report(self._gateway, tokens, ()) is None:
            self._unreported = True
            return
        for entry, count in tokens.items():
            if entry[0] < utc_day() and self._tokens[entry] == count:
                del self._tokens[entry]

    async def keep_reporting(self) -> None:
        """Report every REFRESH_S where there is something new; never return."""
        while True:
            await asyncio.sleep(REFRESH_S)
            if self._unreported:
                await self.report()

    async def _take(self, name: str, what: str, per_minute: int | None) -> None:
        if per_minute is None:
            return
        wait_s = await self.quotas.take(f"{what} of {name}", per_minute)
        if wait_s:
            raise TooMany(
                f"The key {name} has no {what} left for now, of {per_minute} a minute; Retry-After says when to try "
                "again.",
                retry_after_s=wait_s,
            )

    async def _check_budget(self, name: str, limits: RateLimits) -> None:
        """Raise QuotaUsedUp where the key has used its tokens of today or of this month."""
        if limits.tokens_per_day is None and limits.tokens_per_month is None:
            return
        today = utc_day()
        budget = self._budgets.get(name)
        if budget is None or budget.use.day != today or self._clock() - budget.at > REFRESH_S:
            await self._learn(name, today)
        budget = self._budgets[name]
        since = self._tokens[today, name] - budget.own
        for most, used, period in (
            (limits.tokens_per_day, budget.use.today, "day"),
            (limits.tokens_per_month, budget.use.month, "month"),
        ):
            if most is not None and used + since >= most:
                raise QuotaUsedUp(
                    f"The key {name} has used its {most:,} tokens of this {period} (UTC).",
                    retry_after_s=_seconds_to_next(period),
                )

    async def _learn(self, name: str, today: str) -> None:
        """Learn the key's use in all gateways, this one's reported before. Where that is lost, its own counts go on."""
        entry = today, name
        own, known = self._tokens[entry], self._budgets.get(name)
        if known is not None and known.use.day == today:
            known.at = self._clock()  # requests that come meanwhile go by it, also where no answer comes
        uses = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFRESH_S):
                uses = await self.quotas.report(self._gateway, {entry: own}, [name])
        if uses is not None:
            self._budgets[name] = _Budget(uses[name], own, self._clock())
        elif name not in self._budgets or self._budgets[name].use.day != today:
            self._budgets[name] = _Budget(TokenUse(today, own, own), own, self._clock())


def _seconds_to_next(period: str) -> int:
    """Return the seconds until the next day or month begins, in UTC."""
    now = datetime.datetime.now(datetime.UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        begins = midnight + datetime.timedelta(days=1)
    else:
        begins = (midnight.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
    return math.ceil((begins - now).total_seconds())
